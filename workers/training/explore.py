"""What a set of labelled head CT holds, as one JSON and two pictures. Trains nothing, changes no data.

Counts and histograms are of the pictures the network would see: the brain window, slabs of about 5 mm.
A class whose label is not told in a set is counted as not told, never as absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from node.domain.findings import CLASSES
from workers.preprocess import WIDE_BRAIN
from workers.training.datasets import Series
from workers.training.sources import source

HU_RANGE = (WIDE_BRAIN.low, WIDE_BRAIN.low + WIDE_BRAIN.width)
EXAMPLES = 4
"""Pictures shown of each class."""


@dataclass
class Tally:
    """What was seen so far: counts a class of slices and of series, grey values, a few pictures."""

    patients: set[str] = field(default_factory=set)
    series: int = 0
    slices: int = 0
    told_slices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    positive_slices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    told_series: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    positive_series: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    masks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    grey: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    examples: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)


def explore(kind: str, data: Path, out: Path, limit: int | None = None) -> dict[str, Any]:
    """Read at most `limit` series of `data`; write explore.json, histogram.png and examples.png to `out`.

    Raises KeyError for an unknown kind, and what the reader of the set raises.
    """
    tally = count(islice(source(kind).read(data), limit))
    facts = {"kind": kind, "limit": limit, **summary(tally)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "explore.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _histogram(tally).savefig(out / "histogram.png", dpi=100)
    _examples(tally).savefig(out / "examples.png", dpi=100)
    return facts


def count(items: Iterable[Series]) -> Tally:
    """Everything to be told about the items, holding one of them at a time."""
    tally = Tally()
    for item in items:
        tally.patients.add(item.patient)
        tally.series += 1
        tally.slices += len(item.pictures)
        tally.grey += np.bincount(item.pictures.ravel(), minlength=256)
        if item.study is None:
            _count_slices(tally, item)
            continue
        tally.told_series += 1
        tally.positive_series += item.truth
        middle = np.full(1, len(item.pictures) // 2)
        _keep(tally, item, {name: middle for name, seen in zip(CLASSES, item.truth, strict=True) if seen})
    return tally


def _count_slices(tally: Tally, item: Series) -> None:
    labels, told = item.labels, item.told
    positive = (labels > 0) & told
    tally.told_slices += told.sum(axis=0)
    tally.positive_slices += positive.sum(axis=0)
    tally.told_series += told.all(axis=0) | positive.any(axis=0)
    tally.positive_series += positive.any(axis=0)
    tally.masks += np.stack([((item.masks >> bit) & 1).any(axis=(1, 2)).sum() for bit in range(len(CLASSES))])
    places = {name: np.flatnonzero(positive[:, channel]) for channel, name in enumerate(CLASSES)}
    _keep(tally, item, {name: found for name, found in places.items() if len(found)})


def _keep(tally: Tally, item: Series, places: dict[str, NDArray[np.int_]]) -> None:
    """One picture of this item for each class at hand, or its middle one for "none"."""
    chosen = places or {"none": np.full(1, len(item.pictures) // 2)}
    for name, found in chosen.items():
        kept = tally.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(item.pictures[int(found[len(found) // 2]), 0].copy())


def summary(tally: Tally) -> dict[str, Any]:
    """The tally as plain JSON types."""

    def by_class(told: NDArray[np.int64], positive: NDArray[np.int64]) -> dict[str, dict[str, int]]:
        return {
            name: {"told": int(told[place]), "positive": int(positive[place])}
            for place, name in enumerate(CLASSES)
        }

    low, high = HU_RANGE
    return {
        "patients": len(tally.patients),
        "series": tally.series,
        "slices": tally.slices,
        "slice_labels": by_class(tally.told_slices, tally.positive_slices),
        "series_labels": by_class(tally.told_series, tally.positive_series),
        "slices_with_mask": dict(zip(CLASSES, tally.masks.tolist(), strict=True)),
        "hu": np.linspace(low, high, 256).round(2).tolist(),
        "pixels": tally.grey.tolist(),
    }


def _histogram(tally: Tally) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.step(np.linspace(*HU_RANGE, 256)[1:-1], tally.grey[1:-1], where="mid")
    axes.set(xlabel="HU", ylabel="pixels", title="Inside the brain window; its ends are left out")
    return figure


def _examples(tally: Tally) -> Figure:
    names = [name for name in ("none", *CLASSES) if name in tally.examples]
    rows = max(len(names), 1)
    figure = Figure(figsize=(2 * EXAMPLES, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, EXAMPLES, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for row, name in zip(grid, names, strict=False):
        for axes, picture in zip(row, tally.examples[name], strict=False):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, fontsize=8)
    return figure
