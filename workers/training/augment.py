"""Random changes a training batch must survive: geometry, window, noise, resolution. Not for run time.

Randomness is numpy's, on the CPU, so that a batch is the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Half-widths of uniform jitter, and probabilities. Intensities are of the 0..1 brain window.

    `elastic` is the displacement in sides of the picture (Simard et al., ICDAR 2003), `erase` the
    probability that a rectangle is blanked (Zhong et al., AAAI 2020).
    """

    rotation_deg: float = 25.0
    scale: float = 0.18
    aspect: float = 0.08
    shift: float = 0.08
    flip: float = 0.5
    gain: float = 0.12
    offset: float = 0.05
    noise: float = 0.05
    blur: float = 0.35
    smallest: float = 0.5
    slice_swap: float = 0.5
    lone_slice: float = 0.1
    shear: float = 0.0
    elastic: float = 0.0
    erase: float = 0.0


STILL = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0, 0)
"""Changes nothing."""
_COARSE = 6
"""Grid points a side of an elastic displacement."""


def augment(
    pictures: Tensor, masks: Tensor, rng: np.random.Generator, how: Augmentation, *, slices: bool = True
) -> tuple[Tensor, Tensor]:
    """Changed copies of pictures (n, channels, y, x) and masks (n, 6, y, x).

    `slices` says that the channels are neighbouring slices, which may be swapped, and not windows.
    """
    pictures, masks = _geometry(pictures, masks, rng, how)
    if slices:
        pictures = _neighbours(pictures, rng, how)
    if how.blur:
        pictures = _resolution(pictures, rng, how)
    if how.gain or how.offset or how.noise:
        pictures = _intensity(pictures, rng, how, slices)
    return (_erase(pictures, rng, how) if how.erase else pictures), masks


def _geometry(
    pictures: Tensor, masks: Tensor, rng: np.random.Generator, how: Augmentation
) -> tuple[Tensor, Tensor]:
    count = len(pictures)
    angle = np.deg2rad(rng.uniform(-how.rotation_deg, how.rotation_deg, count))
    scale = np.exp(rng.uniform(-how.scale, how.scale, count))
    aspect = np.exp(rng.uniform(-how.aspect, how.aspect, count))
    mirror = np.where(rng.random(count) < how.flip, -1.0, 1.0)
    shift = rng.uniform(-how.shift, how.shift, (count, 2)) * 2
    lean = rng.uniform(-how.shear, how.shear, count) if how.shear else np.zeros(count)
    matrix = np.empty((count, 2, 3), np.float32)
    matrix[:, 0, 0] = np.cos(angle) * scale * aspect * mirror
    matrix[:, 0, 1] = -np.sin(angle) * scale * aspect + lean
    matrix[:, 1, 0] = np.sin(angle) * scale / aspect * mirror
    matrix[:, 1, 1] = np.cos(angle) * scale / aspect
    matrix[:, :, 2] = shift
    both, channels = torch.cat((pictures, masks), dim=1), pictures.shape[1]
    affine = torch.from_numpy(matrix).to(both.device)
    grid = functional.affine_grid(affine, list(both.shape), align_corners=False)
    if how.elastic:
        grid = grid + _displacement(count, both.shape[-1], rng, how.elastic).to(both.device)
    moved = functional.grid_sample(both, grid, align_corners=False)
    return moved[:, :channels], (moved[:, channels:] > 0.5).float()


def _displacement(count: int, size: int, rng: np.random.Generator, sides: float) -> Tensor:
    """Smooth random shifts (n, y, x, 2) in the units of a sampling grid, whose side is 2."""
    coarse = rng.normal(0, 2 * sides / 2, (count, 2, _COARSE, _COARSE)).astype(np.float32)
    fine = functional.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1)


def _erase(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """A rectangle of 5 to 30 % of each side becomes grey in some of the pictures."""
    size = pictures.shape[-1]
    pictures = pictures.clone()
    for index in np.flatnonzero(rng.random(len(pictures)) < how.erase):
        height, width = rng.integers(max(1, size // 20), max(2, int(0.3 * size)), 2)
        top, left = rng.integers(0, size - height), rng.integers(0, size - width)
        pictures[index, :, top : top + height, left : left + width] = 0.5
    return pictures


def _neighbours(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Swap below and above, or repeat the middle slice as its own neighbours."""
    swap = _mask(rng, how.slice_swap, len(pictures)).to(pictures.device)
    pictures = torch.where(swap, pictures.flip(1), pictures)
    alone = _mask(rng, how.lone_slice, len(pictures)).to(pictures.device)
    return torch.where(alone, pictures[:, 1:2].expand(-1, 3, -1, -1), pictures)


def _resolution(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Down and up again for some of the batch, one random size a batch."""
    size = pictures.shape[-1]
    small = max(8, int(size * rng.uniform(how.smallest, 0.9)))
    coarse = functional.interpolate(pictures, (small, small), mode="bilinear", antialias=True)
    coarse = functional.interpolate(coarse, (size, size), mode="bilinear")
    return torch.where(_mask(rng, how.blur, len(pictures)).to(pictures.device), coarse, pictures)


def _intensity(pictures: Tensor, rng: np.random.Generator, how: Augmentation, slices: bool) -> Tensor:
    """Window jitter about grey matter and noise of random strength and grain; air and bone stay put.

    Neighbouring slices have noise of their own, the windows of one slice share theirs.
    """
    count = len(pictures)
    device = pictures.device
    gain = _column(rng.uniform(1 - how.gain, 1 + how.gain, count)).to(device)
    offset = _column(rng.uniform(-how.offset, how.offset, count)).to(device)
    pivot = 0.45
    inside = (pictures > 0.02) & (pictures < 0.98)
    shape = pictures.shape if slices else (count, 1, *pictures.shape[2:])
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(pictures.device)
    if rng.random() < 0.5:
        noise = functional.avg_pool2d(noise, 3, 1, 1) * 2.2
    strength = _column(rng.uniform(0, how.noise, count) * (rng.random(count) < 0.7))
    noise = noise * strength.to(device)
    changed = ((pictures - pivot) * gain + pivot + offset + noise).clamp(0, 1)
    return torch.where(inside, changed, pictures)


def _mask(rng: np.random.Generator, probability: float, count: int) -> Tensor:
    return torch.from_numpy(rng.random(count) < probability).view(-1, 1, 1, 1)


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)
