"""Recipes whose networks a sequence model reads: their view, and a pipeline around them. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from workers.models import families
from workers.models.backbones import windows_of
from workers.models.multitask_sequence import MULTITASK_SEQUENCE, MultiTaskSequencePipeline, fresh
from workers.models.picture import Operating
from workers.models.sequence import SequenceModel
from workers.models.slicewise import SequencePipeline
from workers.preprocess import DEFAULT_VIEW, View
from workers.training.learners import identity
from workers.training.recipes import Recipe

State = Mapping[str, Tensor]
SequencedPipeline = SequencePipeline | MultiTaskSequencePipeline


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


class SequencedMultiTask:
    """The multi-task networks of one part, all its snapshots."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.view = View(DEFAULT_VIEW.windows, recipe.size)

    def model(self, networks: int) -> SequenceModel:
        return fresh(networks, self.recipe.widths, self.recipe.dropout)[1]

    def pipeline(
        self, states: Sequence[State], operating: Operating, device: torch.device
    ) -> SequencedPipeline:
        members, model = fresh(len(states) - 1, self.recipe.widths, self.recipe.dropout)
        for network, state in zip((*members, model), states, strict=True):
            network.load_state_dict(dict(state))
        return MultiTaskSequencePipeline(identity(self.recipe), members, model, operating, device, self.view)


def sequenced(recipe: Recipe) -> Sequenced:
    """How the parts of that recipe are put together."""
    if recipe.family == MULTITASK_SEQUENCE:
        return SequencedMultiTask(recipe)
    return SequencedSlices(recipe)
