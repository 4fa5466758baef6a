"""Smooth random fields and soft edges the phantom is drawn with. Knows no anatomy."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating[Any]]

SCALES_MM = {"coarse": 22.0, "medium": 9.0, "fine": 4.0}
_GRID = 160
_DEPTH = 32
_GRID_MM = 1.5
_DEPTH_MM = 5.0
_SEED = 7


def soft(value: Array) -> Array:
    """Logistic step: 0 far below zero, 1 far above, for partial-volume edges."""
    return 1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0)))


def angle_between(theta: Array, centre: float) -> Array:
    """Signed difference of angles in radians, wrapped to -pi..pi."""
    return (theta - centre + np.pi) % (2 * np.pi) - np.pi


@lru_cache(maxsize=1)
def _bank() -> dict[str, Array]:
    """Periodic band-limited noise (z, y, x) of unit variance, one field a scale."""
    rng = np.random.default_rng(_SEED)
    fz = np.fft.fftfreq(_DEPTH, d=_DEPTH_MM)[:, None, None] * 0.8
    fy = np.fft.fftfreq(_GRID, d=_GRID_MM)[None, :, None]
    fx = np.fft.rfftfreq(_GRID, d=_GRID_MM)[None, None, :]
    squared = fx**2 + fy**2 + fz**2
    bank = {}
    for name, scale_mm in SCALES_MM.items():
        white = rng.standard_normal((_DEPTH, _GRID, _GRID)).astype(np.float32)
        spectrum = np.fft.rfftn(white) * np.exp(-0.5 * (np.pi * scale_mm) ** 2 * squared)
        smooth = np.fft.irfftn(spectrum, s=white.shape, axes=(0, 1, 2))
        bank[name] = (smooth / smooth.std()).astype(np.float32)
    return bank


def plane(scale: str, z_mm: float, offset: tuple[int, int, int], size: int) -> Array:
    """The field of one scale at height z, shifted by `offset` grid steps, on a (size, size) image."""
    field = _bank()[scale]
    position = z_mm / _DEPTH_MM + offset[0]
    below = int(np.floor(position))
    weight = position - below
    mixed = (1 - weight) * field[below % _DEPTH] + weight * field[(below + 1) % _DEPTH]
    mixed /= np.sqrt((1 - weight) ** 2 + weight**2 + 1.6 * weight * (1 - weight))
    shifted = np.roll(mixed, offset[1:], (0, 1)).astype(np.float32)
    if size == _GRID:
        return shifted
    steps = (np.arange(size, dtype=np.float32) + 0.5) * _GRID / size - 0.5
    rows = _interpolate(shifted, steps)
    return _interpolate(rows.T, steps).T


def _interpolate(image: Array, steps: Array) -> Array:
    """Linear interpolation along the first axis, periodic."""
    low = np.floor(steps).astype(int)
    weight = (steps - low)[:, None].astype(np.float32)
    length = image.shape[0]
    return image[low % length] * (1 - weight) + image[(low + 1) % length] * weight


def blur(image: Array, sigma_px: float) -> Array:
    """Gaussian blur, cut at three sigma."""
    return ndimage.gaussian_filter(image, sigma_px, truncate=3.0).astype(np.float32)
