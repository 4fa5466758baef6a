"""Pipelines whose slice classes come from a sequence model over the whole CT. Trains nothing.

The networks draw and weigh as they do without it; what they say of slices, and the features they say it
from, is read by the sequence model of `workers.models.sequence`. Fewer pictures than SHORTEST are no head to
read along: of these each is told by the networks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers.models import multitask, rim
from workers.models.cam import grad_cam_pp
from workers.models.contract import Spacing
from workers.models.engine import in_float32
from workers.models.loading import filled, require_preprocessing
from workers.models.multitask import MultiTaskPipeline
from workers.models.network import FIRST_CENTRE, MultiTaskNet
from workers.models.picture import Operating, PicturePipeline, Reading
from workers.models.rim import RimNet, RimPipeline
from workers.models.sequence import SequenceModel, SequenceReader
from workers.preprocess import NetworkInput, View

State = Mapping[str, Tensor]

SHORTEST = 8
"""Pictures, of about 5 mm, that a sequence model can make something of: it learned from whole heads, and from
every other slice of one."""


class Heard(Protocol):
    """A network that a sequence model can listen to."""

    @property
    def pooled_features(self) -> int: ...

    def pooled(self, features: Tensor) -> Tensor:
        """Of its last maps (n, k, h, w) what it answers from, (n, pooled_features)."""
        ...

    def score(self, pooled: Tensor) -> Tensor:
        """Its class logits (..., 6) from these."""
        ...


class WholeCtPipeline(PicturePipeline):
    """Stands before a pipeline whose reading has the last maps of each network, of the picture as it is."""

    first_centre = 0.0
    """Where the first cell of those maps looks."""

    def listen(self, sequence: SequenceModel, networks: Sequence[Heard]) -> None:
        """Let the sequence model have the last word on what these networks say."""
        self.heard = tuple(networks)
        self.reader = SequenceReader(sequence, [network.score for network in networks]).to(self.device)

    def maps_of(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Of a batch of pictures the last maps of each network, nothing else."""
        raise NotImplementedError

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        return [
            self._merged(reading, spacing_mm) if _is_head(reading) else reading
            for reading, spacing_mm in zip(super().read_all(sources, spacings_mm), spacings_mm, strict=True)
        ]

    @torch.no_grad()
    def _merged(self, reading: Reading, spacing_mm: Spacing) -> Reading:
        """With the class logits of the sequence model."""
        steps = self.reader.steps(reading.source.centres, spacing_mm[0])
        logits = self.reader(self._pooled(reading.features)[None], steps)[0]
        return replace(reading, class_logits=logits.cpu().numpy())

    def _pooled(self, features: Sequence[Tensor]) -> Tensor:
        """(n, M, pooled_features) of M networks' maps."""
        return torch.stack(
            [one.pooled(maps.float()) for one, maps in zip(self.heard, features, strict=True)], dim=1
        )

    @torch.no_grad()
    def spoken(self, source: NetworkInput) -> tuple[Tensor, Tensor]:
        """What the networks say of every picture: features (n, M, k), probabilities (n, M, 6)."""
        (maps,) = self.engine.each(self.maps_of, [source.triplets()])
        features = self._pooled(maps)
        return features, self.reader.said(features[None])[0]

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """The answer of each slice, through the sequence model and the pooling, back to its own features."""
        if not _is_head(reading):
            yield from super().coarse(reading, spacing_mm, place, lit)
            return
        steps = self.reader.steps(reading.source.centres, spacing_mm[0])
        every = self.reader.gradients(self._pooled(reading.features), steps, place, lit)
        for at, (network, maps) in enumerate(zip(self.heard, reading.features, strict=True)):
            leaf = maps[lit].detach().float().clone().requires_grad_(True)
            with torch.enable_grad():
                (gradients,) = torch.autograd.grad(network.pooled(leaf), leaf, every[:, at])
            yield grad_cam_pp(leaf.detach(), gradients), self.first_centre


def _is_head(reading: Reading) -> bool:
    return len(reading.source.centres) >= SHORTEST


class MultiTaskSequencePipeline(WholeCtPipeline, MultiTaskPipeline):
    """The sequence model reads the mean and the maximum of each member's deepest features."""

    first_centre = FIRST_CENTRE

    def maps_of(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(forward(batch).features for forward in self.forwards)


class RimSequencePipeline(WholeCtPipeline, RimPipeline):
    """It reads what each network judges the whole rim from, and what its cells say together."""

    def maps_of(self, batch: Tensor) -> tuple[Tensor, ...]:
        bands = rim.laid_out(in_float32(rim.unroll, batch))
        return tuple(trunk(bands).features for trunk in self.trunks)


@dataclass(frozen=True)
class WholeCt:
    """One family whose networks a sequence model reads; `view` is that of a size."""

    view: Callable[[int], View]
    preprocessing: Callable[[View], dict[str, Any]]
    network: Callable[[tuple[int, ...], float], Any]
    pipeline: Callable[..., MultiTaskSequencePipeline | RimSequencePipeline]

    def fresh(self, networks: int, widths: Sequence[int], dropout: float) -> tuple[list[Any], SequenceModel]:
        """So many networks of these widths and a sequence model that reads them, with weights of chance."""
        made = [self.network(tuple(widths), dropout) for _ in range(networks)]
        return made, SequenceModel(networks, made[0].pooled_features)

    def assemble(
        self,
        identity: ModelIdentity,
        states: Sequence[State],
        recipe: Mapping[str, Any],
        operating: Operating,
        device: torch.device,
        view: View,
    ) -> MultiTaskSequencePipeline | RimSequencePipeline:
        """The pipeline of these weights, the sequence model's last, with the widths and dropout of a recipe.

        Raises PermanentError MODEL_INVALID for weights that do not fit.
        """
        if len(states) < 2:
            told = "a sequence model and the networks it reads are due, the weights hold one network"
            raise PermanentError("MODEL_INVALID", f"{identity.name}: {told}")
        networks, sequence = self.fresh(len(states) - 1, recipe["widths"], recipe["dropout"])
        for network, state in zip((*networks, sequence), states, strict=True):
            filled(network, state, identity.name)
        built = self.pipeline(identity, networks, operating, device, view)
        built.listen(sequence, networks)
        return built

    def build(
        self, states: Sequence[State], facts: Mapping[str, Any], device: torch.device
    ) -> MultiTaskSequencePipeline | RimSequencePipeline:
        """The same from a sidecar. Raises PermanentError for another preprocessing as well."""
        view = self.view(int(facts["preprocessing"]["size"]))
        require_preprocessing(facts, self.preprocessing(view))
        identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
        how = Operating.from_facts(facts)
        return self.assemble(identity, states, facts["recipe"], how, device, view)


WHOLE_CT: Mapping[str, WholeCt] = {
    "multitask-sequence": WholeCt(
        multitask.view, multitask.preprocessing_facts, MultiTaskNet, MultiTaskSequencePipeline
    ),
    "rim-sequence": WholeCt(rim.view, rim.preprocessing_facts, RimNet, RimSequencePipeline),
}
"""By their names in a sidecar."""
