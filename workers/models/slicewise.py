"""Pipelines around slice networks: classifiers, two CNNs with a sequence model, a U-Net. Trains nothing.

All look at the same cut-out of the head as the default pipeline, each through its own windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity
from workers.models.backbones import SliceNetwork, windows_of
from workers.models.cam import grad_cam_pp, grad_cam_pp_pooled
from workers.models.compiled import named
from workers.models.contract import Spacing
from workers.models.engine import Compiler, Forward
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.models.sequence import SequenceModel, SequenceReader
from workers.models.unet import SIZE as UNET_SIZE
from workers.models.unet import MaskOutput, UNet, decision
from workers.preprocess import BRAIN, NetworkInput, View


class SlicePipeline(PicturePipeline):
    """Slice classifiers of one spec, trained with different seeds; their logits are averaged."""

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[SliceNetwork],
        operating: Operating,
        device: torch.device | None = None,
    ) -> None:
        view = View(windows_of([one.spec for one in networks]), _one_size(networks))
        super().__init__(identity, operating, view, device)
        self.networks: list[SliceNetwork] = [self.engine.place(network) for network in networks]
        self.trunks: list[Forward] = [network.features for network in self.networks]

    def use(self, compiler: Compiler) -> None:
        self.trunks = [
            compiler(network, network.features, (network.spec.channels, *self.view.shape))
            for network in self.networks
        ]

    def warm_up(self) -> None:
        for network, trunk in zip(self.networks, self.trunks, strict=True):
            self.engine.warm_up(trunk, (network.spec.channels, *self.view.shape))

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        return [
            self.judge(source, spacing_mm, features)
            for source, spacing_mm, features in zip(
                sources, spacings_mm, self._features(sources), strict=True
            )
        ]

    @torch.no_grad()
    def judge(self, source: NetworkInput, spacing_mm: Spacing, features: tuple[Tensor, ...]) -> Reading:
        """What the heads say of the networks' last maps."""
        logits = [network.classify(maps) for network, maps in zip(self.networks, features, strict=True)]
        mean = torch.stack(logits).float().mean(0).cpu().numpy()
        return Reading(self.identity, source, mean, mean, features)

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        for network, maps in zip(self.networks, reading.features, strict=True):
            with torch.enable_grad():
                leaf = maps[lit].float().mean((2, 3)).requires_grad_(True)
                (gradients,) = torch.autograd.grad(network.score(leaf)[:, place].sum(), leaf)
            yield grad_cam_pp_pooled(maps[lit], gradients), network.first_centre

    def _features(self, sources: Sequence[NetworkInput]) -> list[tuple[Tensor, ...]]:
        """Of each source, network by network, its last maps of all pictures through its own windows."""
        every = []
        for network, trunk in zip(self.networks, self.trunks, strict=True):
            seen = [self.view.windows.index(window) for window in network.spec.windows]
            inputs = [network.spec.inputs(source.pictures[:, seen]) for source in sources]
            every.append(self.engine.each(trunk, inputs))
        return list(zip(*every, strict=True))


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
        self.reader = SequenceReader(sequence, [network.score for network in self.networks]).to(self.device)

    @torch.no_grad()
    def judge(self, source: NetworkInput, spacing_mm: Spacing, features: tuple[Tensor, ...]) -> Reading:
        logits = self.reader(_pooled(features)[None], self.reader.steps(source.centres, spacing_mm[0]))[0]
        answer = logits.cpu().numpy()
        return Reading(self.identity, source, answer, answer, features)

    def spoken(self, source: NetworkInput) -> tuple[Tensor, Tensor]:
        """What the CNNs say of every picture: mean features (n, M, k), probabilities (n, M, 6)."""
        pooled = _pooled(self._features([source])[0])
        return pooled, self.reader.said(pooled[None])[0]

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """The answer of each slice, followed back to that slice's own features.

        It depends on the maps by their mean alone, so a backward through the sequence model (and none
        through a CNN) gives every gradient.
        """
        steps = self.reader.steps(reading.source.centres, spacing_mm[0])
        every = self.reader.gradients(_pooled(reading.features), steps, place, lit)
        for index, (network, maps) in enumerate(zip(self.networks, reading.features, strict=True)):
            yield grad_cam_pp_pooled(maps[lit], every[:, index]), network.first_centre


class UNetPipeline(PicturePipeline):
    """U-Nets whose mean mask decides "any". Their maps are those of that decision, on the last features.

    (Grad-CAM for segmentation: Vinogradova et al., AAAI 2020.)
    """

    knows = frozenset({"any"})
    draws = True

    def __init__(
        self,
        identity: ModelIdentity,
        networks: Sequence[UNet],
        operating: Operating,
        device: torch.device | None = None,
        size: int = UNET_SIZE,
    ) -> None:
        super().__init__(identity, operating, View((BRAIN,), size), device)
        self.networks: list[UNet] = [self.engine.place(network) for network in networks]
        self.forwards: list[Forward] = list(self.networks)

    def use(self, compiler: Compiler) -> None:
        self.forwards = [
            named(MaskOutput, compiler(network, network, (len(self.view.windows), *self.view.shape)))
            for network in self.networks
        ]

    def warm_up(self) -> None:
        self.engine.warm_up(self._see, (len(self.view.windows), *self.view.shape))

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        readings = []
        seen = self.engine.each(self._see, [source.pictures for source in sources])
        for source, (drawn, *features) in zip(sources, seen, strict=True):
            logits = decision(drawn)[:, None].expand(-1, len(CLASSES)).cpu().numpy()
            shown = torch.sigmoid(drawn)[:, None].cpu().numpy()
            readings.append(Reading(self.identity, source, logits, logits, tuple(features), shown))
        return readings

    def _see(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Of a batch: the mean mask's logits, then of each network its last maps."""
        outputs = [forward(batch) for forward in self.forwards]
        drawn = torch.stack([output.mask for output in outputs]).float().mean(0)
        return drawn, *(output.features for output in outputs)

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        for network, maps in zip(self.networks, reading.features, strict=True):
            with torch.enable_grad():
                leaf = maps[lit].float().clone().requires_grad_(True)
                (gradients,) = torch.autograd.grad(decision(network.draw(leaf)).sum(), leaf)
            yield grad_cam_pp(leaf.detach(), gradients), 0.0


def _pooled(features: Sequence[Tensor]) -> Tensor:
    """Mean features (n, M, k) of M networks' maps."""
    return torch.stack([maps.float().mean((2, 3)) for maps in features], dim=1)


def _one_size(networks: Sequence[SliceNetwork]) -> int:
    sizes = {network.spec.size for network in networks}
    if len(sizes) != 1:
        raise PermanentError("MODEL_INVALID", f"networks of one size are needed, got {sorted(sizes)} px")
    return sizes.pop()
