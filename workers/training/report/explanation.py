"""Whether Grad-CAM++ of "any" points at blood that is there. Looks only at slices with a known, bloody mask.

A map that points well does not show why the network decided; one that points elsewhere is a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, zoom

from workers.training.metrics import Array, Draws, Index
from workers.training.report.case import Case

PEAK_SHARE = 0.5
"""The map's region is where it reaches this share of its own peak."""
FIGURES = ("pointing", "pointing_by_chance", "iou", "energy", "energy_by_chance")


@dataclass(frozen=True)
class Pointing:
    """Slices judged: `values` (n, 5) in the order of FIGURES, NaN: an empty map has no energy."""

    owners: Index
    values: Array
    detected: NDArray[np.bool_]
    empty: NDArray[np.bool_]


def judge(heat: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> tuple[float, ...]:
    """FIGURES of one map (y, x) and one bloody mask (y, x).

    The peak hits when it lies in the mask or one grid pixel beside it (corners too); of several equal
    peaks, the share that hits. By chance: what a point or a map spread evenly over the picture would get.
    """
    near = binary_dilation(mask, np.ones((3, 3), bool))
    by_chance, share = float(near.mean()), float(mask.mean())
    top, total = float(heat.max()), float(heat.sum())
    if top <= 0:
        return 0.0, by_chance, 0.0, float("nan"), share
    region = heat >= PEAK_SHARE * top
    overlap = (region & mask).sum() / (region | mask).sum()
    return float(near[heat == top].mean()), by_chance, float(overlap), float(heat[mask].sum() / total), share


def on_grid(heat: NDArray[np.floating[Any]], shape: tuple[int, int]) -> Array:
    """A map (h, w) on the grid of the mask, bilinear, both covering the same picture."""
    if heat.shape == shape:
        return np.asarray(heat, np.float64)
    scale = [wanted / size for wanted, size in zip(shape, heat.shape, strict=True)]
    return np.asarray(zoom(heat.astype(np.float64), scale, order=1, mode="nearest", grid_mode=True))


def pointing(cases: Sequence[Case], threshold: float | None) -> Pointing | None:
    """Every slice with a map and a known, bloody mask; None: there is none.

    `threshold` of the slice probability of "any" tells which of them were detected; None: nothing was.
    """
    owners, values, detected, empty = [], [], [], []
    for place, case in enumerate(cases):
        if case.explanation is None or case.truth is None:
            continue
        mask = case.truth.astype(bool)
        for index in np.flatnonzero(case.known & mask.any(axis=(1, 2))):
            heat = on_grid(case.explanation[index], (mask.shape[1], mask.shape[2]))
            owners.append(place)
            values.append(judge(heat, mask[index]))
            detected.append(threshold is not None and case.slices[index, 0] >= threshold)
            empty.append(heat.max() <= 0)
    if not owners:
        return None
    return Pointing(np.asarray(owners), np.asarray(values), np.asarray(detected), np.asarray(empty))


def describe(draws: Draws, cases: Sequence[Case], threshold: float | None) -> dict[str, Any] | None:
    """Means over all judged slices and over the detected ones; None: there is nothing to judge."""
    found = pointing(cases, threshold)
    if found is None:
        return None
    every = np.ones(len(found.owners), bool)
    return {"all": _means(draws, found, every), "detected": _means(draws, found, found.detected)}


def _means(draws: Draws, found: Pointing, kept: NDArray[np.bool_]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "slices": int(kept.sum()),
        "patients": draws.count(found.owners[kept]),
        "empty_maps": int(found.empty[kept].sum()),
    }
    for name, values in zip(FIGURES, found.values.T, strict=True):
        some = kept & np.isfinite(values)
        if some.any():
            told[name] = draws.interval(draws.mean(found.owners[some], values[some]), found.owners[some])
    return told
