"""The patients of a set as scanners that chance makes up would show them, to learn from. Judges nothing.

Kernel, noise and calibration are changed in HU, before any window cuts the values off, so that what a harder
kernel does at the edge of bone comes with it. Every series has a scanner of its own (domain randomisation:
Tobin et al., IROS 2017). Nothing moves: labels and masks stay those of the series.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workers.preprocess import HeadFrame, NetworkInput, Spacing, View, Volume
from workers.training.disturb import Change, grainy, scaled, sharp, smooth

HARDER, SOFTER = 0.45, 0.25
"""How often the kernel is harder, or softer, than it was."""
HARDER_BY, HARDER_MM = (0.2, 1.2), (0.6, 1.4)
"""How much of what a Gaussian of that standard deviation takes away is added."""
SOFTER_MM = (0.4, 1.2)
NOISY, NOISE_HU, GRAIN_PX = 0.7, (1.0, 8.0), (0.4, 1.2)
"""How often noise is added, its standard deviation, and that of the blur that gives it its grain."""
GAIN, OFFSET_HU = 0.07, 6.0
"""Half-widths of what the values are multiplied by, about 1, and of what is added to them."""


@dataclass(frozen=True)
class OtherScanner(View):
    """The same view of a head, shown by another scanner; `number` tells one from the next."""

    number: int

    @classmethod
    def of(cls, view: View, number: int) -> OtherScanner:
        return cls(view.windows, view.size, number)

    def prepare(self, hu: Volume, spacing_mm: Spacing, frame: HeadFrame | None = None) -> NetworkInput:
        rng = np.random.default_rng(
            (self.number, zlib.crc32(np.ascontiguousarray(hu[len(hu) // 2]).tobytes()))
        )
        return super().prepare(rescanned(hu, spacing_mm, rng), spacing_mm, frame)


def rescanned(hu: Volume, spacing_mm: Spacing, rng: np.random.Generator) -> Volume:
    """The volume (z, y, x) in HU as a scanner that `rng` makes up would show it."""
    for change in _scanner(rng):
        hu = change(hu, spacing_mm)
    return hu.astype(np.float32, copy=False)


def _scanner(rng: np.random.Generator) -> Iterator[Change]:
    """What it does to the values, one after the other."""
    kernel = rng.random()
    if kernel < HARDER:
        yield sharp(rng.uniform(*HARDER_BY), rng.uniform(*HARDER_MM))
    elif kernel < HARDER + SOFTER:
        yield smooth(rng.uniform(*SOFTER_MM))
    if rng.random() < NOISY:
        yield grainy(rng.uniform(*NOISE_HU), rng.uniform(*GRAIN_PX), rng)
    yield scaled(rng.uniform(1 - GAIN, 1 + GAIN), rng.uniform(-OFFSET_HU, OFFSET_HU))
