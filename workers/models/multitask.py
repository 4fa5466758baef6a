"""The multi-task pipeline: its networks classify, segment and explain one head CT in one run.

Several members (networks trained with different seeds) are averaged, each over the picture and its
mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from node.domain.findings import ModelIdentity
from workers import preprocess
from workers.models.cam import grad_cam_pp
from workers.models.compiled import named
from workers.models.contract import Spacing
from workers.models.engine import Compiler, Forward
from workers.models.loading import filled, require_preprocessing
from workers.models.network import FIRST_CENTRE, MultiTaskNet, Output, mask_evidence
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.preprocess import DEFAULT_VIEW, NetworkInput, View

MULTITASK = "multitask"
"""The name of this family in a sidecar."""
CHANNELS = 3
"""A slice and its neighbours."""


class MultiTaskPipeline(PicturePipeline):
    """See `workers.models.contract.Pipeline`. The masks of a reading have a channel for each class."""

    draws = True

    def __init__(
        self,
        identity: ModelIdentity,
        members: Sequence[MultiTaskNet],
        operating: Operating,
        device: torch.device | None = None,
        view: View = DEFAULT_VIEW,
    ) -> None:
        super().__init__(identity, operating, view, device)
        self.members: list[MultiTaskNet] = [self.engine.place(member) for member in members]
        self.forwards: list[Forward] = list(self.members)

    def use(self, compiler: Compiler) -> None:
        self.forwards = [
            named(Output, compiler(member, member, (CHANNELS, *self.view.shape))) for member in self.members
        ]

    def warm_up(self) -> None:
        self.engine.warm_up(self._see, (CHANNELS, *self.view.shape))

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        """Run every member over all pictures and their mirror images."""
        seen = self.engine.each(self._see, [source.triplets() for source in sources])
        return [
            Reading(
                self.identity,
                source,
                classes.cpu().numpy(),
                evidence.cpu().numpy(),
                tuple(features),
                masks.cpu().numpy(),
            )
            for source, (classes, evidence, masks, *features) in zip(sources, seen, strict=True)
        ]

    def _see(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Of a batch: logits, the mask's evidence, masks; then of each member its last maps."""
        logits, blood, features = [], [], []
        for forward in self.forwards:
            output, mirrored = forward(batch), forward(batch.flip(3))
            logits += [output.classes, mirrored.classes]
            blood += [output.masks, mirrored.masks.flip(3)]
            features.append(output.features)
        drawn = torch.stack(blood).float().mean(0)
        classes = torch.stack(logits).float().mean(0)
        return classes, mask_evidence(drawn), torch.sigmoid(drawn), *features

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """The gradient passes the class head only."""
        for member, features in zip(self.members, reading.features, strict=True):
            leaf = features[lit].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                score = member.classify(leaf)[:, place].sum()
                (gradients,) = torch.autograd.grad(score, leaf)
            yield grad_cam_pp(leaf.detach(), gradients), FIRST_CENTRE


def build(
    states: Sequence[Mapping[str, Tensor]], facts: Mapping[str, Any], device: torch.device
) -> MultiTaskPipeline:
    """The pipeline of these weights, network by network, and the facts of their sidecar.

    Raises PermanentError for another preprocessing, or weights that do not fit.
    """
    seen = view(int(facts["preprocessing"]["size"]))
    require_preprocessing(facts, preprocessing_facts(seen))
    widths, dropout = tuple(facts["recipe"]["widths"]), facts["recipe"]["dropout"]
    members = [filled(MultiTaskNet(widths, dropout), state, facts["name"]) for state in states]
    identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
    return MultiTaskPipeline(identity, members, Operating.from_facts(facts), device, seen)


def view(size: int) -> View:
    """How this family sees the head."""
    return View(DEFAULT_VIEW.windows, size)


def preprocessing_facts(seen: View = DEFAULT_VIEW) -> dict[str, Any]:
    """What weights and preprocessing of this family must agree on."""
    (window,) = seen.windows
    return {
        "size": seen.size,
        "window_hu": [window.low, window.low + window.width],
        "margin": preprocess.MARGIN,
        "step_mm": preprocess.STEP_MM,
        "neighbours": 1,
    }
