"""The multi-task pipeline whose slice classes come from a sequence model over the whole CT. Trains nothing.

The networks draw and weigh the mask as they do without it; what they say of slices, and the features they
say it from, is read by the sequence model of `workers.models.sequence`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from node.domain.findings import ModelIdentity
from workers.models.cam import grad_cam_pp
from workers.models.contract import Spacing
from workers.models.loading import filled
from workers.models.multitask import MultiTaskPipeline, trained_view
from workers.models.network import FIRST_CENTRE, MultiTaskNet, pooled
from workers.models.picture import Operating, Reading
from workers.models.sequence import SequenceModel, SequenceReader
from workers.preprocess import DEFAULT_VIEW, NetworkInput, View

MULTITASK_SEQUENCE = "multitask-sequence"
"""The name of this family in a sidecar."""


class MultiTaskSequencePipeline(MultiTaskPipeline):
    """Its sequence model reads the pooled features of each member, of the picture as it is."""

    def __init__(
        self,
        identity: ModelIdentity,
        members: Sequence[MultiTaskNet],
        sequence: SequenceModel,
        operating: Operating,
        device: torch.device | None = None,
        view: View = DEFAULT_VIEW,
    ) -> None:
        super().__init__(identity, members, operating, device, view)
        self.reader = SequenceReader(sequence, [member.score for member in self.members]).to(self.device)

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        return [
            replace(reading, class_logits=self._merged(reading, spacing_mm).cpu().numpy())
            for reading, spacing_mm in zip(super().read_all(sources, spacings_mm), spacings_mm, strict=True)
        ]

    @torch.no_grad()
    def _merged(self, reading: Reading, spacing_mm: Spacing) -> Tensor:
        """Logits (n, 6) of the sequence model."""
        steps = self.reader.steps(reading.source.centres, spacing_mm[0])
        logits: Tensor = self.reader(_stacked(reading.features)[None], steps)[0]
        return logits

    @torch.no_grad()
    def spoken(self, source: NetworkInput) -> tuple[Tensor, Tensor]:
        """What the members say of every picture: pooled features (n, M, 2 k), probabilities (n, M, 6)."""
        (seen,) = self.engine.each(self._see, [source.triplets()])
        features = _stacked(seen[3:])
        return features, self.reader.said(features[None])[0]

    def coarse(self, reading: Reading, spacing_mm: Spacing, place: int) -> Iterator[tuple[Tensor, float]]:
        """The answer of each slice, through the sequence model and the pooling, back to its own features."""
        steps = self.reader.steps(reading.source.centres, spacing_mm[0])
        every = self.reader.gradients(_stacked(reading.features), steps, place)
        for index, features in enumerate(reading.features):
            leaf = features.detach().float().clone().requires_grad_(True)
            with torch.enable_grad():
                (gradients,) = torch.autograd.grad(pooled(leaf), leaf, every[:, index])
            yield grad_cam_pp(leaf.detach(), gradients), FIRST_CENTRE


def _stacked(features: Sequence[Tensor]) -> Tensor:
    """Pooled features (n, M, 2 k) of M members' maps."""
    return torch.stack([pooled(maps.float()) for maps in features], dim=1)


def fresh(members: int, widths: Sequence[int], dropout: float) -> tuple[list[MultiTaskNet], SequenceModel]:
    """Networks of these widths and a sequence model that reads them, with weights of chance."""
    networks = [MultiTaskNet(tuple(widths), dropout) for _ in range(members)]
    return networks, SequenceModel(members, 2 * widths[-1])


def build(
    states: Sequence[Mapping[str, Tensor]], facts: Mapping[str, Any], device: torch.device
) -> MultiTaskSequencePipeline:
    """The pipeline of these weights, the sequence model's last, and the facts of their sidecar.

    Raises PermanentError for another preprocessing, or weights that do not fit.
    """
    view = trained_view(facts)
    members, sequence = fresh(len(states) - 1, facts["recipe"]["widths"], facts["recipe"]["dropout"])
    for network, state in zip((*members, sequence), states, strict=True):
        filled(network, state, facts["name"])
    identity = ModelIdentity(facts["name"], facts["version"], facts["sha256"])
    return MultiTaskSequencePipeline(identity, members, sequence, Operating.from_facts(facts), device, view)
