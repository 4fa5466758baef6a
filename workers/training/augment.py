"""Random changes a training batch must survive: geometry, window, noise, resolution. Not for run time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Half-widths of uniform jitter, and probabilities. Intensities are of the 0..1 brain window."""

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


def augment(
    pictures: Tensor, masks: Tensor, rng: np.random.Generator, how: Augmentation
) -> tuple[Tensor, Tensor]:
    """Changed copies of pictures (n, 3, y, x) and masks (n, 6, y, x)."""
    pictures, masks = _geometry(pictures, masks, rng, how)
    pictures = _neighbours(pictures, rng, how)
    pictures = _resolution(pictures, rng, how)
    return _intensity(pictures, rng, how), masks


def _geometry(
    pictures: Tensor, masks: Tensor, rng: np.random.Generator, how: Augmentation
) -> tuple[Tensor, Tensor]:
    count = len(pictures)
    angle = np.deg2rad(rng.uniform(-how.rotation_deg, how.rotation_deg, count))
    scale = np.exp(rng.uniform(-how.scale, how.scale, count))
    aspect = np.exp(rng.uniform(-how.aspect, how.aspect, count))
    mirror = np.where(rng.random(count) < how.flip, -1.0, 1.0)
    shift = rng.uniform(-how.shift, how.shift, (count, 2)) * 2
    matrix = np.empty((count, 2, 3), np.float32)
    matrix[:, 0, 0] = np.cos(angle) * scale * aspect * mirror
    matrix[:, 0, 1] = -np.sin(angle) * scale * aspect
    matrix[:, 1, 0] = np.sin(angle) * scale / aspect * mirror
    matrix[:, 1, 1] = np.cos(angle) * scale / aspect
    matrix[:, :, 2] = shift
    both = torch.cat((pictures, masks), dim=1)
    grid = functional.affine_grid(torch.from_numpy(matrix), list(both.shape), align_corners=False)
    moved = functional.grid_sample(both, grid, align_corners=False)
    return moved[:, :3], (moved[:, 3:] > 0.5).float()


def _neighbours(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Swap below and above, or repeat the middle slice as its own neighbours."""
    swap = _mask(rng, how.slice_swap, len(pictures))
    pictures = torch.where(swap, pictures.flip(1), pictures)
    alone = _mask(rng, how.lone_slice, len(pictures))
    return torch.where(alone, pictures[:, 1:2].expand(-1, 3, -1, -1), pictures)


def _resolution(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Down and up again for some of the batch, one random size a batch."""
    size = pictures.shape[-1]
    small = max(8, int(size * rng.uniform(how.smallest, 0.9)))
    coarse = functional.interpolate(pictures, (small, small), mode="bilinear", antialias=True)
    coarse = functional.interpolate(coarse, (size, size), mode="bilinear")
    return torch.where(_mask(rng, how.blur, len(pictures)), coarse, pictures)


def _intensity(pictures: Tensor, rng: np.random.Generator, how: Augmentation) -> Tensor:
    """Window jitter about grey matter and noise of random strength and grain; air and bone stay put."""
    count = len(pictures)
    gain = _column(rng.uniform(1 - how.gain, 1 + how.gain, count))
    offset = _column(rng.uniform(-how.offset, how.offset, count))
    pivot = 0.45
    inside = (pictures > 0.02) & (pictures < 0.98)
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    if rng.random() < 0.5:
        noise = functional.avg_pool2d(noise, 3, 1, 1) * 2.2
    noise = noise * _column(rng.uniform(0, how.noise, count) * (rng.random(count) < 0.7))
    changed = ((pictures - pivot) * gain + pivot + offset + noise).clamp(0, 1)
    return torch.where(inside, changed, pictures)


def _mask(rng: np.random.Generator, probability: float, count: int) -> Tensor:
    return torch.from_numpy(rng.random(count) < probability).view(-1, 1, 1, 1)


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)
