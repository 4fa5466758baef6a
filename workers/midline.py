"""Where the middle of a head is: the mid-sagittal plane, by the symmetry of the skull. Judges no finding.

The bone, summed along the body axis, is turned until it matches its own mirror image best; then slab by
slab it is shifted until it does, and a line through the slabs tells how the head leans. So a head that lies
turned, leaning or off centre keeps its sides. Only bone counts: blood and shift of the brain move nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import theilslopes

BY_SYMMETRY = "mid-sagittal plane by symmetry of the skull"
BY_IMAGE = "middle of the image, since no skull was found"
MOST_DEG = 60.0
"""A head turned by more than this is not followed."""
_PER_DEG = 0.002
"""So much likeness is a degree less of turn worth."""
_BONE_HU = (200.0, 1000.0)
_CELL_MM = 2.0
_SLAB_MM = 12.0
_LEAST_BONE_CELLS = 100.0

Picture = NDArray[np.float64]


@dataclass(frozen=True)
class Midplane:
    """x = `at_mm` + `per_y` · y + `per_z` · z, in mm from the first voxel of a canonical volume."""

    at_mm: float
    per_y: float
    per_z: float
    method: str

    def left_of_mm(
        self, z_mm: NDArray[np.float64], y_mm: NDArray[np.float64], x_mm: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Distance of places from the plane, positive to the patient's left."""
        away = x_mm - (self.at_mm + self.per_y * y_mm + self.per_z * z_mm)
        return np.asarray(away / np.sqrt(1 + self.per_y**2 + self.per_z**2))


def midplane(
    hu: NDArray[np.float32], heights_mm: NDArray[np.float64], pixel_mm: tuple[float, float]
) -> Midplane:
    """The plane in a canonical volume (z, y, x) of HU.

    `heights_mm` (z,) grow from 0 at the first slice; `pixel_mm` is between rows and between columns.
    """
    slabs, at_mm = _bone(hu, heights_mm, pixel_mm)
    if slabs.sum() < _LEAST_BONE_CELLS:
        return Midplane((hu.shape[2] - 1) / 2 * pixel_mm[1], 0.0, 0.0, BY_IMAGE)
    degrees = _turn(slabs.sum(axis=0))
    angle = np.radians(degrees)
    row, column = ((count - 1) / 2 for count in slabs.shape[1:])
    slope = float(np.tan(angle))
    bony = slabs.sum(axis=(1, 2)) >= 0.2 * slabs.sum(axis=(1, 2)).max()
    found = [_likeness(slab, degrees)[1] for slab in slabs[bony]]
    first_row_mm = _CELL_MM * (column + (np.array(found) - column) / np.cos(angle) - slope * row)
    lean, at_bottom = 0.0, float(np.median(first_row_mm))
    if len(found) > 2:
        lean, at_bottom, *_ = (float(v) for v in theilslopes(first_row_mm, at_mm[bony]))
    return Midplane(at_bottom, slope, lean, BY_SYMMETRY)


def _bone(
    hu: NDArray[np.float32], heights_mm: NDArray[np.float64], pixel_mm: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bone 0..1 in slabs (n, rows, columns) of square cells, and the heights of the slabs (n,)."""
    low, high = _BONE_HU
    y, x = (
        np.rint(np.arange(0, (count - 1) * step + 0.01, _CELL_MM) / step).astype(int).clip(0, count - 1)
        for count, step in zip(hu.shape[1:], pixel_mm, strict=True)
    )
    number = np.floor(heights_mm / _SLAB_MM).astype(int)
    slabs, at_mm = [], []
    for slab in np.unique(number):
        members = np.flatnonzero(number == slab)
        members = members[:: max(1, len(members) // 4)]
        cells = (hu[np.ix_(members, y, x)].astype(np.float64) - low) / (high - low)
        slabs.append(np.clip(cells, 0, 1).mean(axis=0))
        at_mm.append(heights_mm[members].mean())
    return np.array(slabs), np.array(at_mm)


def _turn(picture: Picture) -> float:
    """By how many degrees it must be turned to be most like its mirror image, the nearer of two likely ones.

    A skull is also rather like its mirror image front to back, at right angles to what is looked for.
    """
    coarse = np.arange(-MOST_DEG, MOST_DEG + 1, 2.0)
    alike = {float(degrees): _likeness(picture, degrees)[0] for degrees in coarse}
    likely = max(alike, key=lambda degrees: alike[degrees] - _PER_DEG * abs(degrees))
    near = max(
        (degrees for degrees in alike if abs(degrees - likely) <= 8), key=lambda degrees: alike[degrees]
    )
    fine = np.arange(near - 2.0, near + 2.1, 0.25)
    return float(max(fine, key=lambda degrees: _likeness(picture, degrees)[0]))


def _likeness(picture: Picture, degrees: float) -> tuple[float, float]:
    """How well the turned picture matches its mirror image, 0..1, and about which of its columns."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(picture.shape) - 1) / 2
    turned = ndimage.affine_transform(picture, turn, centre - turn @ centre, order=1)
    spectrum = np.fft.rfft(turned, 2 * turned.shape[1], axis=1)
    matches = np.fft.irfft(spectrum**2, axis=1).sum(axis=0)
    best = int(matches.argmax())
    before, here, after = matches[best - 1], matches[best], matches[(best + 1) % len(matches)]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float(here / max((turned**2).sum(), 1e-9)), (best + float(shift)) / 2
