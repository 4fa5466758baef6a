"""Recipes whose networks a sequence model reads: their view, and a pipeline around them. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

import torch
from torch import Tensor

from workers.models import families
from workers.models.backbones import windows_of
from workers.models.picture import Operating
from workers.models.sequence import SequenceModel
from workers.models.slicewise import SequencePipeline
from workers.models.whole_ct import WHOLE_CT, WholeCtPipeline
from workers.preprocess import View
from workers.training.learners import identity
from workers.training.recipes import Recipe

State = Mapping[str, Tensor]
SequencedPipeline = SequencePipeline | WholeCtPipeline


class Sequenced(Protocol):
    """One recipe of parts that a sequence model reads; its weights are the last of the `states`."""

    @property
    def view(self) -> View: ...

    def model(self, networks: int) -> SequenceModel:
        """A fresh one for so many networks."""
        ...

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> SequencedPipeline: ...


class SequencedSlices:
    """Slice classifiers of a family of the table."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.family = recipe, families.family(recipe.family)
        self.view = View(windows_of(self.family.specs), recipe.size)

    def model(self, networks: int) -> SequenceModel:
        return SequenceModel(networks)

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> SequencedPipeline:
        networks = self.family.networks(self.recipe.size)
        for network, state in zip(networks, states, strict=True):
            network.load_state_dict(dict(state))
        built = self.family.assemble(identity(self.recipe), networks, operating, device, self.recipe.size)
        assert isinstance(built, SequencePipeline)
        return built


class SequencedWhole:
    """Networks of one part that draw as well, all its snapshots."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.kind = recipe, WHOLE_CT[recipe.family]
        self.view = self.kind.view(recipe.size)

    def model(self, networks: int) -> SequenceModel:
        return self.kind.fresh(networks, self.recipe.widths, self.recipe.dropout)[1]

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> SequencedPipeline:
        recipe = asdict(self.recipe)
        return self.kind.assemble(identity(self.recipe), states, recipe, operating, device, self.view)


def sequenced(recipe: Recipe) -> Sequenced:
    """How the parts of that recipe are put together."""
    if recipe.family in WHOLE_CT:
        return SequencedWhole(recipe)
    return SequencedSlices(recipe)
