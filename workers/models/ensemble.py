"""Several pipelines as one: each looks through its own view, their evidence is averaged. Trains nothing.

Networks that were taught differently err differently, so their mean is steadier than each (Hansen &
Salamon, IEEE PAMI 1990). What is averaged are logits, before any calibration; the ensemble has one
calibration and one set of thresholds of its own. Masks are averaged too, at each place those of the parts
that see it, and so are explanations, since all parts decided. Refuses parts that do not tell the same
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from workers.models.contract import Spacing
from workers.models.engine import Engine
from workers.models.picture import Operating, Prepared, Reading, ReadingPipeline, peak_is_one
from workers.models.scan import Scan


@dataclass(frozen=True)
class JointReading(Reading):
    """Averaged logits, masks of all that draw, on the first part's pictures; `parts` are all readings."""

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
        self.draws = any(part.draws for part in parts)
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
        return JointReading(
            self.identity,
            readings[0].source,
            weighted([one.class_logits for one in readings], self.weights),
            weighted([one.mask_logits for one in readings], self.weights),
            (),
            overlaid(
                [
                    Overlay(one.masks, one.sees, weight)
                    for one, weight in zip(readings, self.weights, strict=True)
                    if one.masks is not None
                ]
            ),
            parts=readings,
        )

    def heat(
        self, reading: Reading, spacing_mm: Spacing, class_name: str, lit: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """The parts' maps at the size of the first one's pictures, averaged by weight."""
        assert isinstance(reading, JointReading)
        maps = [
            part.heat(own, spacing_mm, class_name, lit)
            for part, own in zip(self.parts, reading.parts, strict=True)
        ]
        size = maps[0].shape[-1]
        joint = weighted([resized(one, size) for one in maps], self.weights)
        bright: NDArray[np.float32] = peak_is_one(torch.from_numpy(joint)).numpy()
        return bright


def weighted(values: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Their mean, all of one shape, by these weights."""
    return np.average(np.stack(values), axis=0, weights=weights).astype(np.float32)


class Overlay(NamedTuple):
    """Masks (n, k, y, x) of one part, the places (n, y, x) it sees (None: all), and how much it says."""

    masks: NDArray[np.float32]
    sees: NDArray[np.bool_] | None
    weight: float


def overlaid(drawn: Sequence[Overlay]) -> NDArray[np.float32] | None:
    """At each place the mean by weight of those that see it, on the finest grid; 0 where none does.

    None without any. Of masks with fewer channels than others, all have the first ones in common.
    """
    if not drawn:
        return None
    size = max(one.masks.shape[-1] for one in drawn)
    channels = min(one.masks.shape[1] for one in drawn)
    total = np.zeros((len(drawn[0].masks), channels, size, size), np.float32)
    heard = np.zeros((len(drawn[0].masks), 1, size, size), np.float32)
    for masks, sees, weight in drawn:
        seen = 1.0 if sees is None else resized(sees[:, None].astype(np.float32), size) > 0.5
        total += weight * seen * resized(masks[:, :channels], size)
        heard += weight * seen
    return np.divide(total, heard, out=total, where=heard > 0)


def resized(maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Maps (…, y, x) at another size; both cover the same square."""
    if maps.shape[-1] == size:
        return maps
    flat = torch.from_numpy(maps).reshape(-1, 1, *maps.shape[-2:])
    drawn = functional.interpolate(flat, (size, size), mode="bilinear", antialias=True)
    return np.asarray(drawn.reshape(*maps.shape[:-2], size, size).numpy(), np.float32)
