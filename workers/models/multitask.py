"""The multi-task pipeline: its networks classify, segment and explain one head CT in one run.

Several members (networks trained with different seeds) are averaged, each over the picture and its
mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.domain.findings import SUBTYPES, ModelIdentity
from workers import preprocess
from workers.models.cam import grad_cam_pp
from workers.models.compiled import Compiler, Forward, named
from workers.models.contract import Classification, Mask, Spacing, Volume
from workers.models.loading import filled, require_preprocessing
from workers.models.network import FIRST_CENTRE, MultiTaskNet, Output, mask_evidence
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.preprocess import DEFAULT_VIEW, NetworkInput, View

MULTITASK = "multitask"
"""The name of this family in a sidecar."""
BATCH = 32


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
        self.members = [
            member.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for member in members
        ]
        self.forwards: list[Forward] = list(self.members)

    def accelerate(self, compiler: Compiler) -> None:
        for index, member in enumerate(self.members):
            self.forwards[index] = named(Output, compiler(member, member, (3, *self.view.shape)))

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        """The "any" mask divided among the subtypes: each place goes to the likeliest one."""
        reading = self._reading(hu, spacing_mm, classification)
        assert reading.masks is not None
        blood = self.segment(hu, spacing_mm, classification)
        owner = reading.masks[:, 1:].argmax(axis=1)
        divided = {}
        for index, name in enumerate(SUBTYPES):
            mask = np.zeros_like(blood)
            for z, picture in enumerate(reading.source.to_slices((owner == index).astype(np.float32))):
                if blood[z].any():
                    mask[z] = blood[z] & (reading.source.to_source(picture) > 0.5)
            if mask.any():
                divided[name] = mask
        return divided

    @torch.inference_mode()
    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        """Run every member over all pictures and their mirror images."""
        pictures = torch.from_numpy(source.triplets())
        classes, evidence, masks = [], [], []
        features: list[list[Tensor]] = [[] for _ in self.members]
        for batch in pictures.split(BATCH):
            batch = batch.to(self.device, memory_format=torch.channels_last)
            logits, blood = [], []
            for forward, kept in zip(self.forwards, features, strict=True):
                output, mirrored = forward(batch), forward(batch.flip(3))
                logits += [output.classes, mirrored.classes]
                blood += [output.masks, mirrored.masks.flip(3)]
                kept.append(output.features)
            classes.append(torch.stack(logits).float().mean(0))
            drawn = torch.stack(blood).float().mean(0)
            evidence.append(mask_evidence(drawn))
            masks.append(torch.sigmoid(drawn))
        return Reading(
            self.identity,
            source,
            torch.cat(classes).cpu().numpy(),
            torch.cat(evidence).cpu().numpy(),
            tuple(torch.cat(kept) for kept in features),
            torch.cat(masks).cpu().numpy(),
        )

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        """The gradient passes the class head only."""
        for member, features in zip(self.members, reading.features, strict=True):
            leaf = features.detach().clone().requires_grad_(True)
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
    view = View(DEFAULT_VIEW.windows, int(facts["preprocessing"]["size"]))
    require_preprocessing(facts, preprocessing_facts(view))
    widths, dropout = tuple(facts["recipe"]["widths"]), facts["recipe"]["dropout"]
    members = [filled(MultiTaskNet(widths, dropout), state, facts["name"]) for state in states]
    identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
    return MultiTaskPipeline(identity, members, Operating.from_facts(facts), device, view)


def preprocessing_facts(view: View = DEFAULT_VIEW) -> dict[str, Any]:
    """What weights and preprocessing of this family must agree on."""
    (window,) = view.windows
    return {
        "size": view.size,
        "window_hu": [window.low, window.low + window.width],
        "margin": preprocess.MARGIN,
        "step_mm": preprocess.STEP_MM,
        "neighbours": 1,
    }
