"""From a volume in HU and the truth of its slices to a `Series`. Reads no file, invents no label.

Volumes are (z, y, x), canonical (row 0 anterior, column 0 patient right), feet to head. Preprocessing
averages thin slices into slabs; a slab has a class when one of its slices has it, and a mask is known
when it is known in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.preprocess import (
    DEFAULT_VIEW,
    STEP_MM,
    HeadFrame,
    NetworkInput,
    Spacing,
    View,
    resample,
)
from workers.training.datasets import MASKS, Series, cell_mm, quantise

COVERED = 0.4
"""A network pixel is blood from this share of it on."""


@dataclass(frozen=True)
class SliceTruth:
    """What is known of every source slice, feet to head.

    `labels` (z, 6) in the order of CLASSES; `known` (z, 6) mask channels that may be trained on;
    `masks` (z, y, x) uint8 on the source grid, bit k for channel k, or None where nothing is drawn, by
    hand. `told` (z, 6) are the labels that are known, None for all.
    """

    labels: NDArray[np.uint8]
    known: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None
    told: NDArray[np.bool_] | None = None


def assemble(
    patient: str,
    hu: NDArray[np.float32],
    spacing_mm: Spacing,
    truth: SliceTruth,
    *,
    name: str = "",
    view: View = DEFAULT_VIEW,
) -> Series:
    """The network's pictures with slab labels. A mask too small for the network's grid is not known there."""
    prepared = view.prepare(hu, spacing_mm)
    starts = slab_starts(prepared)
    labels = np.maximum.reduceat(truth.labels, starts, axis=0)
    known = np.logical_and.reduceat(truth.known, starts, axis=0)
    told = np.ones(known.shape, bool)
    if truth.told is not None:
        told = np.logical_and.reduceat(truth.told, starts, axis=0) | (labels > 0)
    masks = np.zeros((len(starts), view.size, view.size), np.uint8)
    if truth.masks is not None:
        slabs = np.bitwise_or.reduceat(truth.masks, starts, axis=0)
        masks = np.stack([_shrink(slab, prepared.frame, view.size) for slab in slabs])
    drawn = np.stack([((masks >> bit) & 1).any(axis=(1, 2)) for bit in range(len(MASKS))], axis=1)
    known &= drawn | (labels == 0)
    by_hand = np.full(len(starts), truth.masks is not None)
    step_mm = prepared.cell[0] * spacing_mm[0] or STEP_MM
    return Series(
        patient,
        quantise(prepared.pictures),
        labels,
        masks,
        known,
        told,
        by_hand,
        name,
        step_mm,
        cell_mm(prepared, spacing_mm),
    )


def slab_starts(prepared: NetworkInput) -> NDArray[np.int_]:
    """First source slice of every picture: the first slab is centred on the middle of its slices."""
    count = round(2 * float(prepared.centres[0])) + 1
    return np.arange(0, prepared.shape[0], count)


def _shrink(mask: NDArray[np.uint8], frame: HeadFrame, size: int) -> NDArray[np.uint8]:
    """One packed mask (y, x) on the network's grid, channel by channel."""
    packed = np.zeros((size, size), np.uint8)
    for bit in range(len(MASKS)):
        channel = (mask >> bit) & 1
        if channel.any():
            covered = resample(channel.astype(np.float32), frame, size) > COVERED
            packed |= covered.astype(np.uint8) << bit
    return packed
