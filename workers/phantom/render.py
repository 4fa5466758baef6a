"""From a head to slices as a scanner shows them: partial volume, blur, noise, exact masks. Writes no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.domain.findings import SUBTYPES
from workers.phantom.anatomy import tissue
from workers.phantom.bleeds import Intraparenchymal
from workers.phantom.fields import Array, blur
from workers.phantom.head import Head
from workers.phantom.space import Space, Texture

FIELD_MM = 240.0
"""Side of the square field of view."""
LOWEST_MM = -72.0
"""Height of the first slice of a volume in head coordinates."""
HIDDEN_HU = 200.0
"""Blood that shares its pixel with so much bone cannot be seen and is not in the mask."""
_PLANES = 3
"""Thin planes averaged into one slice, for partial volume along z."""


@dataclass(frozen=True)
class PhantomVolume:
    """`hu` (z, y, x) float32, feet to head; `masks` (5, z, y, x) bool in the order of SUBTYPES;
    `spacing_mm` (z, y, x); `positions` of the slices along z in mm."""

    hu: NDArray[np.float32]
    masks: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    positions: tuple[float, ...]


def volume(
    seed: int,
    bleeds: Sequence[str] | None = (),
    *,
    slices: int = 32,
    size: int = 512,
    step_mm: float = 5.0,
    lowest_mm: float = LOWEST_MM,
) -> PhantomVolume:
    """A whole head; `bleeds` are subtype names (None: chance decides), `size` pixels cover 240 mm."""
    head = Head.draw(np.random.default_rng(seed), bleeds)
    positions = tuple(lowest_mm + step_mm * index for index in range(slices))
    hu = np.empty((slices, size, size), np.float32)
    masks = np.empty((len(SUBTYPES), slices, size, size), bool)
    for index, z_mm in enumerate(positions):
        hu[index], masks[:, index] = render(head, z_mm, size)
    pixel_mm = FIELD_MM / size
    return PhantomVolume(hu, masks, (step_mm, pixel_mm, pixel_mm), positions)


def render(head: Head, z_mm: float, size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One slice at height `z_mm`: HU (y, x) and masks (5, y, x) in the order of SUBTYPES."""
    pixel_mm = FIELD_MM / size
    x, y = _image_plane(head, size)
    texture = Texture.at(head, z_mm, size)
    hu = np.zeros((size, size), np.float32)
    blood = np.zeros((len(SUBTYPES), size, size), np.float32)
    brain = np.zeros((size, size), np.float32)
    for offset in np.linspace(-0.4, 0.4, _PLANES) * head.scanner.slice_mm:
        space = _tilted(head, texture, x, y, z_mm, float(offset))
        plane_hu, plane_blood, plane_brain = _plane(space)
        hu += plane_hu / _PLANES
        blood += plane_blood / _PLANES
        brain += plane_brain / _PLANES
    seen = np.stack([blur(mask, 0.45 / pixel_mm) if mask.any() else mask for mask in blood])
    scan = _scan(head, hu, brain, texture, x, y, z_mm)
    return scan, (seen > 0.5) & (scan < HIDDEN_HU)


def _image_plane(head: Head, size: int) -> tuple[Array, Array]:
    """In-plane head coordinates (mm) of every pixel, after centring, scaling and roll."""
    steps = ((np.arange(size) + 0.5) / size - 0.5) * FIELD_MM
    x, y = np.meshgrid(steps - head.centre[0], steps - head.centre[1])
    x, y = x / head.scale, y / head.scale
    cosine, sine = np.cos(head.roll), np.sin(head.roll)
    return (cosine * x + sine * y).astype(np.float32), (-sine * x + cosine * y).astype(np.float32)


def _tilted(head: Head, texture: Texture, x: Array, y: Array, z_mm: float, offset: float) -> Space:
    z = z_mm + offset + np.sin(head.tilt) * y + np.sin(head.yaw) * x
    tilted_y = np.cos(head.tilt) * y - np.sin(head.tilt) * z_mm * 0.3
    return Space(head, texture, x, tilted_y.astype(np.float32), z.astype(np.float32))


def _plane(space: Space) -> tuple[Array, Array, NDArray[np.bool_]]:
    """HU, blood fraction (5, y, x) and where the brain is, in one thin plane."""
    base = tissue(space)
    hu = base.hu
    blood = np.zeros((len(SUBTYPES), *hu.shape), np.float32)
    for bleed in space.head.bleeds:
        if isinstance(bleed, Intraparenchymal):
            rim = bleed.oedema(space) * (1 - base.fluid) * 0.85 * base.brain
            hu = hu + (bleed.rim_hu - hu) * rim * (hu < 200)
        amount = np.clip(bleed.membership(space), 0, 1) * base.brain * (hu < 200)
        clot = bleed.hu + 1.5 * space.fine
        if getattr(bleed, "mixed", False):
            clot = np.where(space.other_medium > 0.2, clot - 22, clot)
        hu = hu + (clot - hu) * amount
        index = SUBTYPES.index(bleed.subtype)
        blood[index] = np.maximum(blood[index], amount)
    return hu.astype(np.float32), blood, base.brain


def _scan(
    head: Head, hu: Array, brain: Array, texture: Texture, x: Array, y: Array, z_mm: float
) -> NDArray[np.float32]:
    """Cupping, beam hardening between the petrous bones, head rest, blur and correlated noise."""
    scanner, size = head.scanner, hu.shape[0]
    pixel_mm = FIELD_MM / size
    radius = np.hypot(x, y) / 90
    hu = hu + brain * scanner.cupping_hu * (radius**2 - 0.4)
    if z_mm < -22:
        band = np.exp(-(((y - 14 + 3 * texture.medium) / 7) ** 2)) * (
            0.6 + 0.4 * np.sin(0.8 * y + 2 * texture.coarse)
        )
        hu = hu - brain * scanner.streak_hu * band * np.clip((-z_mm - 22) / 12, 0, 1)
    rest = (np.abs(np.hypot(x, y - 18) - 104) < 1.2) & (y > 55)
    hu = np.where(rest & (hu < -500), 150, hu)
    hu = blur(hu.astype(np.float32), scanner.psf_mm / pixel_mm)
    rng = np.random.default_rng((scanner.noise_seed, round(z_mm * 100) % 2**31, size))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = blur(noise, 0.45 / pixel_mm**0.5)
    noise -= 0.55 * blur(noise, 3.0 / pixel_mm**0.5)
    noise *= scanner.noise_hu / noise.std() * (0.75 + 0.5 * brain * np.exp(-(radius**2)))
    return np.clip(hu + noise, -1024, 3071).astype(np.float32)
