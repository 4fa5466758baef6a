"""Pipelines around slice networks: classifiers, two CNNs with a sequence model, a U-Net. Trains nothing.

All look at the same cut-out of the head as the default pipeline, each through its own windows. None
hides what it cannot do: `knows` are the classes a pipeline can tell (the others get probability 0, which
says nothing of the patient) and `draws` is whether it has a mask at all. A classifier without a mask
answers an all-False one, so an analysis that finds a class reads `classifier_only`; where `draws` is
False that is no disagreement, and the consistency should be left out. Refuses outputs that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers.models.backbones import BRAIN, SliceNetwork, Window, head_pictures, windows_of
from workers.models.cam import grad_cam_pp, grad_cam_pp_pooled, spread
from workers.models.contract import MAP_SIZE, Classification, Mask, Spacing, Volume, require_classification
from workers.models.multitask import Operating, _without_specks
from workers.models.sequence import SequenceModel, both_ways, steps_mm
from workers.models.unet import SIZE as UNET_SIZE
from workers.models.unet import UNet, decision
from workers.preprocess import STEP_MM, NetworkInput

BATCH = 16
COPIES = 32
"""Slices that are followed back through the sequence model at once."""
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Reading:
    """What one model said about every picture (n): class logits (n, 6), network by network its last maps
    (n, k, h, w), and masks 0..1 (n, size, size) where it draws them."""

    reader: ModelIdentity
    source: NetworkInput
    logits: NDArray[np.float32]
    features: tuple[Tensor, ...]
    masks: NDArray[np.float32] | None = None


class SlicewisePipeline:
    """What these pipelines share. See `workers.models.contract.Pipeline`."""

    knows: frozenset[str] = frozenset(CLASSES)
    draws = False
    size: int
    windows: tuple[Window, ...]

    def __init__(self, identity: ModelIdentity, operating: Operating, device: torch.device | None) -> None:
        self.identity = identity
        self.operating = operating
        self.device = device or torch.device("cpu")

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.operating.thresholds

    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        """Run every network over all pictures."""
        raise NotImplementedError

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        """Network by network, Grad-CAM++ maps (n, h, w) of a class and where their first cell looks."""
        raise NotImplementedError

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification:
        reading = self._reading(hu, spacing_mm, None)
        aggregation = self.operating.aggregation
        # there is one voice, so whatever share class and mask have of the evidence is its own
        evidence = aggregation.evidence(reading.logits, reading.logits)
        known = np.asarray([name in self.knows for name in CLASSES])
        answer = Classification(
            slices=reading.source.to_slices(aggregation.slice_probabilities(evidence) * known),
            series=aggregation.series_probabilities(evidence) * known,
            state=reading,
        )
        return require_classification(answer, hu.shape[0])

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        """All False: a pipeline that `draws` overrides this."""
        return np.zeros(hu.shape, bool)

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        return {}

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> NDArray[np.float32]:
        """One map a network, each scaled to its peak, averaged; then scaled to the slice's probability.

        So slices without the finding stay dark, and the whole series shares one scale.
        """
        reading = self._reading(hu, spacing_mm, classification)
        place = CLASSES.index(class_name)
        maps = [
            _peak_is_one(spread(coarse, self.size, first_centre))
            for coarse, first_centre in self.coarse(reading, spacing_mm, place)
        ]
        drawn = _peak_is_one(torch.stack(maps).mean(0)).cpu().numpy()
        pictures = reading.source.to_slices(drawn)
        shown = np.stack([reading.source.to_source(picture, (MAP_SIZE, MAP_SIZE)) for picture in pictures])
        strength = classification.slices[:, place]
        return np.clip(shown * strength[:, None, None], 0, 1).astype(np.float32)

    def _reading(self, hu: Volume, spacing_mm: Spacing, classification: Classification | None) -> Reading:
        """What this very model kept when it classified, or a new run."""
        state = classification.state if classification is not None else None
        if isinstance(state, Reading) and state.reader == self.identity and state.source.shape == hu.shape:
            return state
        reading = self.read(head_pictures(hu, spacing_mm, self.windows, self.size), spacing_mm)
        masks = reading.masks if reading.masks is not None else np.zeros(1)
        if not (np.isfinite(reading.logits).all() and np.isfinite(masks).all()):
            raise PermanentError(
                "MODEL_OUTPUT_INVALID",
                "the output of the network holds NaN or infinity; check the weights and the input",
            )
        return reading

    def _batches(self, pictures: NDArray[np.float32]) -> Iterator[Tensor]:
        for batch in torch.from_numpy(np.ascontiguousarray(pictures)).split(BATCH):
            yield batch.to(self.device, memory_format=torch.channels_last)


class SlicePipeline(SlicewisePipeline):
    """Slice classifiers of one spec, trained with different seeds; their logits are averaged."""

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[SliceNetwork],
        operating: Operating,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(identity, operating, device)
        self.networks = [_ready(network, self.device) for network in networks]
        self.size, self.windows = _one_size(networks), windows_of([one.spec for one in networks])

    @torch.no_grad()
    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        features = self._features(source)
        logits = [network.classify(maps) for network, maps in zip(self.networks, features, strict=True)]
        mean = torch.stack(logits).float().mean(0).cpu().numpy()
        return Reading(self.identity, source, mean, features)

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        for network, maps in zip(self.networks, reading.features, strict=True):
            with torch.enable_grad():
                leaf = maps.float().mean((2, 3)).requires_grad_(True)
                (gradients,) = torch.autograd.grad(network.score(leaf)[:, place].sum(), leaf)
            yield grad_cam_pp_pooled(maps, gradients), network.first_centre

    def _features(self, source: NetworkInput) -> tuple[Tensor, ...]:
        """Network by network, its last maps of all pictures through its own windows."""
        every = []
        for network in self.networks:
            seen = [self.windows.index(window) for window in network.spec.windows]
            batches = self._batches(network.spec.inputs(source.pictures[:, seen]))
            every.append(torch.cat([network.features(batch) for batch in batches]))
        return tuple(every)


class SequencePipeline(SlicePipeline):
    """CNNs, each of its own spec, whose features and outputs one sequence model reads as a CT."""

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[SliceNetwork],
        sequence: SequenceModel,
        operating: Operating,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(identity, networks, operating, device)
        if len(networks) != sequence.cnns:
            raise PermanentError(
                "MODEL_INVALID", f"the sequence model reads {sequence.cnns} CNNs, there are {len(networks)}"
            )
        self.sequence = sequence.eval().to(self.device).requires_grad_(False)

    @torch.no_grad()
    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        features = self._features(source)
        logits = self.merge(_pooled(features)[None], self._steps(source, spacing_mm))[0]
        return Reading(self.identity, source, logits.cpu().numpy(), features)

    def merge(self, pooled: Tensor, steps: Tensor) -> Tensor:
        """Logits (b, n, 6) from mean features (b, n, M, k): the CNNs' own answers follow from these."""
        scores = [network.score(pooled[:, :, index]) for index, network in enumerate(self.networks)]
        probabilities = torch.sigmoid(torch.stack(scores, dim=2))
        return both_ways(self.sequence, pooled, probabilities, steps.expand(len(pooled), -1))

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        """The answer of each slice, followed back to that slice's own features.

        It depends on the maps by their mean alone, so a backward through the sequence model (and none
        through a CNN) gives every gradient. Copies of the CT go through side by side, one a slice.
        """
        pooled, steps = _pooled(reading.features), self._steps(reading.source, spacing_mm)
        gradients = []
        for slices in torch.arange(len(pooled), device=self.device).split(COPIES):
            copy = torch.arange(len(slices), device=self.device)
            # a GRU of cuDNN refuses backward in eval mode
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                leaf = pooled.expand(len(slices), -1, -1, -1).clone().requires_grad_(True)
                score = self.merge(leaf, steps)[copy, slices, place].sum()
                (gradient,) = torch.autograd.grad(score, leaf)
            gradients.append(gradient[copy, slices])
        every = torch.cat(gradients)
        for index, (network, maps) in enumerate(zip(self.networks, reading.features, strict=True)):
            yield grad_cam_pp_pooled(maps, every[:, index]), network.first_centre

    def _steps(self, source: NetworkInput, spacing_mm: Spacing) -> Tensor:
        return torch.from_numpy(steps_mm(source.centres, spacing_mm[0], STEP_MM)).to(self.device)


class UNetPipeline(SlicewisePipeline):
    """U-Nets whose mean mask decides "any". Their maps are those of that decision, on the last features.

    (Grad-CAM for segmentation: Vinogradova et al., AAAI 2020.)
    """

    knows = frozenset({"any"})
    draws = True
    windows = (BRAIN,)

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[UNet],
        operating: Operating,
        device: torch.device | None = None,
        size: int = UNET_SIZE,
    ) -> None:
        super().__init__(identity, operating, device)
        self.networks = [_ready(network, self.device) for network in networks]
        self.size = size

    @torch.no_grad()
    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        features: list[list[Tensor]] = [[] for _ in self.networks]
        masks = []
        for batch in self._batches(source.pictures):
            outputs = [network(batch) for network in self.networks]
            for kept, output in zip(features, outputs, strict=True):
                kept.append(output.features)
            masks.append(torch.stack([output.mask for output in outputs]).float().mean(0))
        drawn = torch.cat(masks)
        logits = decision(drawn)[:, None].expand(-1, len(CLASSES)).cpu().numpy()
        shown = torch.sigmoid(drawn).cpu().numpy()
        return Reading(self.identity, source, logits, tuple(torch.cat(kept) for kept in features), shown)

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        for network, maps in zip(self.networks, reading.features, strict=True):
            with torch.enable_grad():
                leaf = maps.float().clone().requires_grad_(True)
                (gradients,) = torch.autograd.grad(decision(network.draw(leaf)).sum(), leaf)
            yield grad_cam_pp(maps, gradients), 0.0

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        reading = self._reading(hu, spacing_mm, classification)
        assert reading.masks is not None
        threshold = self.operating.mask_threshold
        mask = np.zeros(hu.shape, bool)
        for z, picture in enumerate(reading.source.to_slices(reading.masks)):
            if picture.max() >= threshold:
                mask[z] = reading.source.to_source(picture) >= threshold
        return _without_specks(mask, spacing_mm)


def _ready(network: Network, device: torch.device) -> Network:
    """The network for use: eval mode, its weights no part of any gradient, channels last."""
    network.eval().requires_grad_(False)
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _pooled(features: Sequence[Tensor]) -> Tensor:
    """Mean features (n, M, k) of M networks' maps."""
    return torch.stack([maps.float().mean((2, 3)) for maps in features], dim=1)


def _peak_is_one(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-8)


def _one_size(networks: Sequence[SliceNetwork]) -> int:
    sizes = {network.spec.size for network in networks}
    if len(sizes) != 1:
        raise PermanentError("MODEL_INVALID", f"networks of one size are needed, got {sorted(sizes)} px")
    return sizes.pop()
