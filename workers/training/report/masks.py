"""How well the drawn mask of "any" meets the true one: overlap, distance, area, volume. Only known slices.

Both masks empty: the slice is left out of every mean and counted. One empty: Dice and IoU are 0, the
Hausdorff distance has no value, and the slice is counted. Nothing here knows of background.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from workers.training.metrics import Array, Draws, Index, Interval, correlation, moments, ratio
from workers.training.report.case import Case

GRID_PIXELS = "grid pixels"
"""The unit where the size of a cell is not told."""
SCATTERED = 10
"""With fewer patients a correlation and limits of agreement get no interval."""
AGREEMENT = 1.96
"""Limits of agreement in standard deviations (Bland and Altman, Lancet 1986)."""


@dataclass(frozen=True)
class Overlap:
    """Every slice with a known mask: pixels drawn, true and in both, 95 % Hausdorff distance, each (n,).

    `owners` is the place of its case, `cell_mm` (n, 3) the size (z, y, x) of a grid cell or NaN;
    `distance` is in mm, or in grid pixels where `cell_mm` is NaN, and NaN where a mask is empty.
    """

    owners: Index
    drawn: Array
    true: Array
    both: Array
    distance: Array
    cell_mm: Array
    by_hand: NDArray[np.bool_]

    def take(self, kept: NDArray[np.bool_]) -> Overlap:
        """Only those slices."""
        return Overlap(**{name: values[kept] for name, values in vars(self).items()})

    @property
    def in_mm(self) -> NDArray[np.bool_]:
        return np.isfinite(self.cell_mm[:, 0])


@dataclass(frozen=True)
class Volumes:
    """Volume of drawn and true mask over the known slices of a case, each (n,), all in one `unit`.

    Cases where both are empty are not among them; `both_empty` counts those.
    """

    unit: str
    owners: Index
    drawn: Array
    true: Array
    both_empty: int


def overlap(cases: Sequence[Case], distances: bool = True) -> Overlap | None:
    """Every slice whose true mask is known and where the model draws masks; None: there is no such slice.

    Without `distances` (they take most of the time) they are NaN.
    """
    parts = [
        _of_case(place, case, distances)
        for place, case in enumerate(cases)
        if case.drawn is not None and case.known.any()
    ]
    if not parts:
        return None
    names = vars(parts[0])
    return Overlap(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _of_case(place: int, case: Case, distances: bool) -> Overlap:
    assert case.drawn is not None and case.truth is not None
    known = case.known
    drawn, true = case.drawn[known].astype(bool), case.truth[known].astype(bool)
    spacing = (1.0, 1.0) if case.cell_mm is None else case.cell_mm[1:]
    cell = np.full(3, np.nan) if case.cell_mm is None else np.asarray(case.cell_mm, float)
    return Overlap(
        owners=np.full(len(drawn), place, np.intp),
        drawn=_pixels(drawn),
        true=_pixels(true),
        both=_pixels(drawn & true),
        distance=hausdorff95(drawn, true, spacing) if distances else np.full(len(drawn), np.nan),
        cell_mm=np.tile(cell, (len(drawn), 1)),
        by_hand=case.hand[known],
    )


def _pixels(masks: NDArray[np.bool_]) -> Array:
    return masks.sum(axis=(1, 2)).astype(np.float64)


def hausdorff95(drawn: NDArray[np.bool_], true: NDArray[np.bool_], spacing: tuple[float, float]) -> Array:
    """95 % Hausdorff distance (n,) of masks (n, y, x), as MONAI has it; NaN where one of the two is empty."""
    distance = np.full(len(drawn), np.nan)
    both = drawn.any(axis=(1, 2)) & true.any(axis=(1, 2))
    if both.any():
        pair = drawn[both, None], true[both, None]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # MONAI's own, of its insides
            found = compute_hausdorff_distance(
                *pair, include_background=True, percentile=95, spacing=list(spacing)
            )
        distance[both] = found.numpy()[:, 0]
    return distance


def describe(draws: Draws, cases: Sequence[Case]) -> dict[str, Any] | None:
    """Overlap of known slices, of bloody ones by the origin of their mask, and volumes; None: no masks."""
    found = overlap(cases)
    if found is None:
        return None
    bloody = found.true > 0
    return {
        "all": _figures(draws, found),
        "by_hand": _figures(draws, found.take(bloody & found.by_hand)),
        "pseudo": _figures(draws, found.take(bloody & ~found.by_hand)),
        "without_blood": _clean(draws, found.take(~bloody)),
        "volume": {one.unit: _volume(draws, one) for one in volumes(found)},
    }


def _clean(draws: Draws, found: Overlap) -> dict[str, Any]:
    """Slices known to hold no blood: on how many something is drawn, and how much."""
    told: dict[str, Any] = {"slices": len(found.drawn), "patients": draws.count(found.owners)}
    if len(found.drawn):
        told["falsely_drawn"] = _mean(draws, found.owners, (found.drawn > 0).astype(float))
    return told


def _figures(draws: Draws, found: Overlap) -> dict[str, Any]:
    drawn, true = found.drawn > 0, found.true > 0
    told: dict[str, Any] = {
        "slices": len(drawn),
        "patients": draws.count(found.owners),
        "both": int((drawn & true).sum()),
        "only_true": int((~drawn & true).sum()),
        "only_drawn": int((drawn & ~true).sum()),
        "both_empty": int((~drawn & ~true).sum()),
    }
    some = found.take(drawn | true)
    if len(some.drawn) == 0:
        return told
    together, either = some.drawn + some.true, some.drawn + some.true - some.both
    pixels, union, shared = draws.sums(some.owners, np.stack((together, either, some.both), axis=1)).T
    told |= {
        "dice_pooled": draws.interval(ratio(2 * shared, pixels), some.owners),
        "iou_pooled": draws.interval(ratio(shared, union), some.owners),
        "dice_mean": _mean(draws, some.owners, 2 * some.both / together),
        "iou_mean": _mean(draws, some.owners, some.both / either),
        "hd95": {},
        "area": {},
    }
    for in_mm in (True, False):
        one = some.take(some.in_mm == in_mm)
        if len(one.drawn):
            cell = one.cell_mm[:, 1] * one.cell_mm[:, 2] if in_mm else 1.0
            told["area"]["mm2" if in_mm else GRID_PIXELS] = {
                "slices": len(one.drawn),
                "pearson": _pearson(draws, one.owners, one.drawn * cell, one.true * cell),
            }
        one = one.take(np.isfinite(one.distance))
        if len(one.distance):
            told["hd95"]["mm" if in_mm else GRID_PIXELS] = {
                "slices": len(one.distance),
                "mean": _mean(draws, one.owners, one.distance),
                "median": draws.interval(draws.medians(one.owners, one.distance), one.owners),
            }
    return told


def _mean(draws: Draws, owners: Index, values: Array) -> Interval:
    return draws.interval(draws.mean(owners, values), owners)


def _pearson(draws: Draws, owners: Index, x: Array, y: Array) -> Interval:
    return draws.interval(correlation(draws.sums(owners, moments(x, y))), owners, SCATTERED)


def volumes(found: Overlap) -> list[Volumes]:
    """Volumes a case, those in mL and those in grid pixels apart."""
    listed = []
    for unit, in_mm in (("mL", True), (GRID_PIXELS, False)):
        some = found.take(found.in_mm == in_mm)
        cell = some.cell_mm.prod(axis=1) / 1000 if in_mm else np.ones(len(some.drawn))
        owners, place = np.unique(some.owners, return_inverse=True)
        drawn, true = np.zeros(len(owners)), np.zeros(len(owners))
        np.add.at(drawn, place, some.drawn * cell)
        np.add.at(true, place, some.true * cell)
        kept = (drawn > 0) | (true > 0)
        if len(owners):
            listed.append(Volumes(unit, owners[kept], drawn[kept], true[kept], int((~kept).sum())))
    return listed


def _volume(draws: Draws, one: Volumes) -> dict[str, Any]:
    told: dict[str, Any] = {"n": len(one.owners), "both_empty": one.both_empty}
    if len(one.owners) == 0:
        return told
    difference = one.drawn - one.true
    shift = difference.mean()
    centred = difference - shift
    count, total, squares = draws.sums(
        one.owners, np.stack((np.ones_like(centred), centred, centred**2), axis=1)
    ).T
    bias = ratio(total, count)
    spread = np.sqrt(np.maximum(ratio(squares - count * bias**2, count - 1), 0))
    return told | {
        "pearson": _pearson(draws, one.owners, one.drawn, one.true),
        "bias": draws.interval(bias + shift, one.owners, SCATTERED),
        "limit_low": draws.interval(bias + shift - AGREEMENT * spread, one.owners, SCATTERED),
        "limit_high": draws.interval(bias + shift + AGREEMENT * spread, one.owners, SCATTERED),
    }
