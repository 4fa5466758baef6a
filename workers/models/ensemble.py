"""Several pipelines as one: each looks through its own view, their evidence is averaged. Trains nothing.

Networks that were taught differently err differently, so their mean is steadier than each (Hansen & Salamon,
IEEE PAMI 1990). What is averaged are logits, before any calibration; the ensemble has one calibration and one
set of thresholds of its own. The first part that draws a mask draws it; explanations are averaged like
evidence, since all parts decided. Refuses parts that do not tell the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers.models.contract import Classification, Mask, Spacing, Volume
from workers.models.engine import Engine
from workers.models.picture import Operating, Prepared, Reading, ReadingPipeline, peak_is_one
from workers.models.scan import Scan


@dataclass(frozen=True)
class JointReading(Reading):
    """Averaged logits, on the pictures of the part that draws; `parts` are the readings of all."""

    parts: tuple[Reading, ...] = ()


class EnsemblePipeline(ReadingPipeline):
    """See `workers.models.contract.Pipeline`. `weights` are how much each part says; only ratios count."""

    def __init__(
        self,
        identity: ModelIdentity,
        parts: Sequence[ReadingPipeline],
        weights: Sequence[float],
        operating: Operating,
    ) -> None:
        super().__init__(identity, operating)
        if len(parts) != len(weights) or not parts or min(weights) <= 0:
            raise PermanentError(
                "MODEL_INVALID", f"{identity.name}: every part of an ensemble needs a weight above 0"
            )
        if len({part.knows for part in parts}) > 1:
            raise PermanentError(
                "MODEL_INVALID", f"{identity.name}: the parts of an ensemble must tell the same classes"
            )
        self.parts = tuple(parts)
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self.leader = next((index for index, part in enumerate(parts) if part.draws), 0)
        self.draws = parts[self.leader].draws
        self.knows = parts[0].knows

    def run_on(self, engine: Engine) -> None:
        for part in self.parts:
            part.run_on(engine)

    def engines(self) -> list[Engine]:
        return [engine for part in self.parts for engine in part.engines()]

    def view_of(self, scan: Scan) -> Prepared:
        sources = [source for part in self.parts for source in part.view_of(scan).sources]
        return Prepared(scan.spacing_mm, tuple(sources))

    def look_all(self, prepared: Sequence[Prepared]) -> list[Reading]:
        by_part, start = [], 0
        for part in self.parts:
            stop = start + part.views
            own = [Prepared(one.spacing_mm, one.sources[start:stop]) for one in prepared]
            by_part.append(part.look_all(own))
            start = stop
        return [self._joint(readings) for readings in zip(*by_part, strict=True)]

    @property
    def views(self) -> int:
        return sum(part.views for part in self.parts)

    def _joint(self, readings: tuple[Reading, ...]) -> JointReading:
        leading = readings[self.leader]
        return JointReading(
            self.identity,
            leading.source,
            weighted([one.class_logits for one in readings], self.weights),
            weighted([one.mask_logits for one in readings], self.weights),
            (),
            leading.masks,
            readings,
        )

    def heat(self, reading: Reading, spacing_mm: Spacing, class_name: str) -> NDArray[np.float32]:
        """The parts' maps at the size of the leading one's pictures, averaged by weight."""
        assert isinstance(reading, JointReading)
        maps = [
            part.heat(own, spacing_mm, class_name)
            for part, own in zip(self.parts, reading.parts, strict=True)
        ]
        size = maps[self.leader].shape[-1]
        joint = weighted([_resized(one, size) for one in maps], self.weights)
        bright: NDArray[np.float32] = peak_is_one(torch.from_numpy(joint)).numpy()
        return bright

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        own = self._of_leader(hu, spacing_mm, classification)
        return self.parts[self.leader].segment(hu, spacing_mm, own)

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        own = self._of_leader(hu, spacing_mm, classification)
        return self.parts[self.leader].segment_subtypes(hu, spacing_mm, own)

    def _of_leader(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Classification:
        """The classification with the leading part's own reading as its state."""
        reading = self._reading(hu, spacing_mm, classification)
        assert isinstance(reading, JointReading)
        return Classification(classification.slices, classification.series, reading.parts[self.leader])


def weighted(values: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Their mean, all of one shape, by these weights."""
    return np.average(np.stack(values), axis=0, weights=weights).astype(np.float32)


def _resized(maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Maps (n, y, x) at another size; both cover the same square."""
    if maps.shape[-1] == size:
        return maps
    tensor = torch.from_numpy(maps)[:, None]
    drawn = functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
    return np.asarray(drawn[:, 0].numpy(), np.float32)
