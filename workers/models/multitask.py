"""The default pipeline: multi-task networks classify, segment and explain one head CT in one run.

Several members (networks trained with different seeds) are averaged, each over the picture and its
mirror image. Refuses outputs that are not finite: they never become a negative result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES, ModelIdentity
from workers.models.aggregate import Aggregation
from workers.models.cam import grad_cam_pp, spread
from workers.models.contract import MAP_SIZE, Classification, Mask, Spacing, Volume, require_classification
from workers.models.network import FIRST_CENTRE, MultiTaskNet, mask_evidence
from workers.preprocess import SIZE, NetworkInput, network_input

BATCH = 32
SMALLEST_ML = 0.1
"""Pieces of the mask below this volume are noise."""


@dataclass(frozen=True)
class Reading:
    """What the networks said about every picture (n): logits (n, 6), masks 0..1 (n, 6, SIZE, SIZE)
    and, member by member, the deepest features (n, k, h, w)."""

    source: NetworkInput
    class_logits: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    masks: NDArray[np.float32]
    features: tuple[Tensor, ...]


@dataclass(frozen=True)
class Operating:
    """How probabilities become statements: series thresholds a class, mask threshold, aggregation."""

    thresholds: Mapping[str, float]
    mask_threshold: float
    aggregation: Aggregation


class MultiTaskPipeline:
    """See `workers.models.contract.Pipeline`."""

    knows = frozenset(CLASSES)
    draws = True

    def __init__(
        self,
        identity: ModelIdentity,
        members: Sequence[MultiTaskNet],
        operating: Operating,
        device: torch.device | None = None,
    ) -> None:
        self.identity = identity
        self.operating = operating
        self.device = device or torch.device("cpu")
        self.members = [
            member.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for member in members
        ]

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.operating.thresholds

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification:
        reading = self.read(network_input(hu, spacing_mm))
        aggregation = self.operating.aggregation
        evidence = aggregation.evidence(reading.class_logits, reading.mask_logits)
        answer = Classification(
            slices=reading.source.to_slices(aggregation.slice_probabilities(evidence)),
            series=aggregation.series_probabilities(evidence),
            state=reading,
        )
        return require_classification(answer, hu.shape[0])

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        reading = self._reading(hu, spacing_mm, classification)
        return self._mask(reading, CLASSES.index("any"), spacing_mm)

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        """The "any" mask divided among the subtypes: each place goes to the likeliest one."""
        reading = self._reading(hu, spacing_mm, classification)
        blood = self._mask(reading, CLASSES.index("any"), spacing_mm)
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

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> NDArray[np.float32]:
        """Grad-CAM++ of the class head on the deepest features, averaged over members.

        Each slice's map is scaled to its slice's probability of the class, so that slices without
        the finding stay dark and the whole series shares one scale.
        """
        reading = self._reading(hu, spacing_mm, classification)
        place = CLASSES.index(class_name)
        coarse = torch.stack(
            [
                _member_map(member, features, place)
                for member, features in zip(self.members, reading.features, strict=True)
            ]
        ).mean(0)
        maps = spread(coarse, SIZE, FIRST_CENTRE)
        peaks = maps.amax((1, 2), keepdim=True).clamp(min=1e-8)
        pictures = reading.source.to_slices((maps / peaks).cpu().numpy())
        strength = classification.slices[:, place]
        shown = np.stack([reading.source.to_source(picture, (MAP_SIZE, MAP_SIZE)) for picture in pictures])
        return np.clip(shown * strength[:, None, None], 0, 1).astype(np.float32)

    @torch.inference_mode()
    def read(self, source: NetworkInput) -> Reading:
        """Run every member over all pictures and their mirror images."""
        pictures = torch.from_numpy(source.triplets())
        classes, evidence, masks = [], [], []
        features: list[list[Tensor]] = [[] for _ in self.members]
        for batch in pictures.split(BATCH):
            batch = batch.to(self.device, memory_format=torch.channels_last)
            logits, blood = [], []
            for member, kept in zip(self.members, features, strict=True):
                output, mirrored = member(batch), member(batch.flip(3))
                logits += [output.classes, mirrored.classes]
                blood += [output.masks, mirrored.masks.flip(3)]
                kept.append(output.features)
            classes.append(torch.stack(logits).float().mean(0))
            drawn = torch.stack(blood).float().mean(0)
            evidence.append(mask_evidence(drawn))
            masks.append(torch.sigmoid(drawn))
        reading = Reading(
            source,
            torch.cat(classes).cpu().numpy(),
            torch.cat(evidence).cpu().numpy(),
            torch.cat(masks).cpu().numpy(),
            tuple(torch.cat(kept) for kept in features),
        )
        _require_finite(reading)
        return reading

    def _reading(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Reading:
        """What classification kept, or a new run if it came from elsewhere (read back from disk, say)."""
        if isinstance(classification.state, Reading) and classification.state.source.shape == hu.shape:
            return classification.state
        return self.read(network_input(hu, spacing_mm))

    def _mask(self, reading: Reading, channel: int, spacing_mm: Spacing) -> Mask:
        source, threshold = reading.source, self.operating.mask_threshold
        mask = np.zeros(source.shape, bool)
        for z, picture in enumerate(source.to_slices(reading.masks[:, channel])):
            if picture.max() >= threshold:
                mask[z] = source.to_source(picture) >= threshold
        return _without_specks(mask, spacing_mm)


def _member_map(member: MultiTaskNet, features: Tensor, place: int) -> Tensor:
    """Grad-CAM++ (n, h, w) of one member for one class: the gradient passes the class head only."""
    leaf = features.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        score = member.classify(leaf)[:, place].sum()
        (gradients,) = torch.autograd.grad(score, leaf)
    return grad_cam_pp(leaf.detach(), gradients)


def _without_specks(mask: Mask, spacing_mm: Spacing) -> Mask:
    """The mask without connected pieces smaller than SMALLEST_ML."""
    if not mask.any():
        return mask
    labels, _ = ndimage.label(mask)
    sizes_ml = np.bincount(labels.ravel()) * float(np.prod(spacing_mm)) / 1000
    keep = sizes_ml >= SMALLEST_ML
    keep[0] = False
    return keep[labels]


def _require_finite(reading: Reading) -> None:
    for what, values in (("class", reading.class_logits), ("mask", reading.mask_logits)):
        if not np.isfinite(values).all():
            raise PermanentError(
                "MODEL_OUTPUT_INVALID",
                f"the {what} output of the network holds NaN or infinity; check the weights and the input",
            )
