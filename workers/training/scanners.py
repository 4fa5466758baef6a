"""The patients of a set as scanners that chance makes up would show them, to learn from. Judges nothing.

Kernel, noise and calibration are changed in HU, before any window cuts the values off, so that what a harder
kernel does at the edge of bone comes with it. Every series has a scanner of its own (domain randomisation:
Tobin et al., IROS 2017). Nothing moves: labels and masks stay those of the series.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from workers.preprocess import HeadFrame, NetworkInput, Spacing, View, Volume

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
    kernel = rng.random()
    if kernel < HARDER:
        added = np.float32(rng.uniform(*HARDER_BY))
        hu = hu + added * (hu - _blurred(hu, spacing_mm, rng.uniform(*HARDER_MM)))
    elif kernel < HARDER + SOFTER:
        hu = _blurred(hu, spacing_mm, rng.uniform(*SOFTER_MM))
    if rng.random() < NOISY:
        hu = hu + _noise(hu.shape, rng)
    gain, offset_hu = rng.uniform(1 - GAIN, 1 + GAIN), rng.uniform(-OFFSET_HU, OFFSET_HU)
    return (hu * np.float32(gain) + np.float32(offset_hu)).astype(np.float32, copy=False)


def _blurred(hu: Volume, spacing_mm: Spacing, width_mm: float) -> Volume:
    """By a Gaussian of that standard deviation, in the plane."""
    return ndimage.gaussian_filter(hu, (0, width_mm / spacing_mm[1], width_mm / spacing_mm[2]))


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Volume:
    strength_hu, grain_px = rng.uniform(*NOISE_HU), rng.uniform(*GRAIN_PX)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0, grain_px, grain_px))
    return grain * np.float32(strength_hu / grain.std())
