"""Whether a volume shows a head, judged by its pixels alone. Trusts no header, names no disease.

A head is a shell of bone around brain: seen from its middle there is bone close under the skin in nearly
every direction, and what it encloses is of the density of brain. Chest, abdomen, pelvis, neck, limbs and
test objects fail in one or the other. Nothing here depends on how the patient lies or on which way is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.errors import PermanentError

MIN_CRANIAL_MM = 40.0
"""Height over which the slices must show brain within a skull; a whole adult head has 90 to 130 mm."""
MIN_CRANIAL_SHARE = 0.3
"""Of all slices: a head with its neck has more, a whole body less."""
MIN_RING = 0.7
"""Share of directions with bone under the skin: leaves room for a large craniectomy."""
MIN_BRAIN = 0.75
"""Share of the enclosed pixels that are as dense as brain, liquor, blood or oedema."""
RADIUS_MM = (35.0, 115.0)
"""Inner radius of the skull on a slice: from an infant's vertex to the largest heads, with room to spare."""
BRAIN_HU = (-15.0, 100.0)
MEDIAN_HU = (6.0, 75.0)
"""Of the enclosed pixels: from hydrocephalus to a fatal bleed; water lies below."""

_BONE_HU = 160.0
_BODY_HU = -250.0
_UNDER_SKIN_MM = 30.0
_PIXEL_MM = 2.0
_STEP_MM = 4.0
_DIRECTIONS = 72
_INNER = 0.9
"""What is enclosed is judged up to this share of the way to the bone, free of its blur."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class Slice:
    """What one slice shows. Shares 0 to 1; where nothing is found `radius_mm` is 0 and `median_hu` NaN."""

    outline_mm: float
    """Diameter of a circle with the area of the body's outline."""
    ring: float
    radius_mm: float
    brain: float
    median_hu: float

    @property
    def is_cranial(self) -> bool:
        return (
            self.ring >= MIN_RING
            and self.brain >= MIN_BRAIN
            and RADIUS_MM[0] <= self.radius_mm <= RADIUS_MM[1]
            and MEDIAN_HU[0] <= self.median_hu <= MEDIAN_HU[1]
        )


@dataclass(frozen=True)
class Evidence:
    """What the slices show together."""

    slices: tuple[Slice, ...]
    cranial_mm: float
    covered_mm: float

    @property
    def is_head(self) -> bool:
        return self.cranial_mm >= MIN_CRANIAL_MM and self.cranial_mm >= MIN_CRANIAL_SHARE * self.covered_mm

    def words(self) -> str:
        """What was seen instead of a head, the plainest first."""
        shown = [s for s in self.slices if s.outline_mm > 0]
        if not shown:
            return "they show air only"
        seen = (
            f"brain within a skull on {self.cranial_mm:.0f} of {self.covered_mm:.0f} mm, "
            f"at least {max(MIN_CRANIAL_MM, MIN_CRANIAL_SHARE * self.covered_mm):.0f} mm needed"
        )
        outline = float(np.median([s.outline_mm for s in shown]))
        ring = float(np.median([s.ring for s in shown]))
        brain = float(np.median([s.brain for s in shown]))
        return (
            f"{seen}; the usual slice is {outline:.0f} mm wide, has bone under {100 * ring:.0f} % "
            f"of its skin and encloses {100 * brain:.0f} % as dense as brain"
        )


def require_head(
    hu: NDArray[np.float32],
    spacing_mm: tuple[float, float],
    thickness_mm: NDArray[np.float64],
    known: Mapping[int, Slice] | None = None,
) -> Evidence:
    """Evidence of a head in a volume (z, y, x). Raises PermanentError NOT_A_HEAD where there is none.

    `spacing_mm` is that of rows and of columns, `thickness_mm` (z,) what each slice stands for; `known` is
    what `look_at` said of some slices, by index.
    """
    evidence = look(hu, spacing_mm, thickness_mm, known)
    if not evidence.is_head:
        text = f"the images do not show a head, whatever the headers say: {evidence.words()}"
        raise PermanentError("NOT_A_HEAD", f"{text}; send the head series, or check RescaleIntercept")
    return evidence


def look(
    hu: NDArray[np.float32],
    spacing_mm: tuple[float, float],
    thickness_mm: NDArray[np.float64],
    known: Mapping[int, Slice] | None = None,
) -> Evidence:
    """What the slices show, looked at every `_STEP_MM` or so."""
    known = known or {}
    step = max(1, round(_STEP_MM / float(np.median(thickness_mm))))
    chosen = range(step // 2, len(hu), step)
    slices = tuple(known.get(index) or look_at(hu[index], spacing_mm) for index in chosen)
    stands_for = [float(thickness_mm[start : start + step].sum()) for start in range(0, len(hu), step)]
    cranial = sum(mm for slice_, mm in zip(slices, stands_for, strict=False) if slice_.is_cranial)
    return Evidence(slices, cranial, float(thickness_mm.sum()))


def look_at(hu: NDArray[np.float32], spacing_mm: tuple[float, float]) -> Slice:
    """One slice (y, x) in HU."""
    coarse, bony, pixel_mm = _coarse(hu, spacing_mm)
    outline = _largest(ndimage.binary_fill_holes(coarse > _BODY_HU))
    area_mm2 = float(np.count_nonzero(outline)) * pixel_mm[0] * pixel_mm[1]
    outline_mm = 2 * float(np.sqrt(area_mm2 / np.pi))
    nothing = Slice(outline_mm, 0.0, 0.0, 0.0, float("nan"))
    if outline_mm < RADIUS_MM[0]:
        return nothing
    rays = _Rays(ndimage.center_of_mass(outline), pixel_mm, outline.shape)
    inner_mm = _inner_mm(rays, outline, bony > _BONE_HU)
    closed = np.isfinite(inner_mm)
    if not closed.any():
        return nothing
    radius_mm = float(np.median(inner_mm[closed]))
    limit_mm = np.where(closed, inner_mm, radius_mm) * _INNER
    enclosed = rays.radii_mm[None] < limit_mm[:, None]
    if not enclosed.any():
        return nothing
    inside = rays.sample(coarse)[enclosed]
    area = np.broadcast_to(rays.radii_mm, enclosed.shape)[enclosed]  # a point further out stands for more
    dense = (inside >= BRAIN_HU[0]) & (inside <= BRAIN_HU[1])
    brain = float(area[dense].sum() / max(float(area.sum()), 1e-9))
    return Slice(outline_mm, float(closed.mean()), radius_mm, brain, float(np.median(inside)))


def _inner_mm(rays: _Rays, outline: NDArray[np.bool_], bone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of the inner side of the bone under the skin in each direction, NaN where there is none."""
    skin_mm = rays.radii_mm[_last(rays.sample(outline))]
    under = rays.sample(bone) & (rays.radii_mm[None] >= skin_mm[:, None] - _UNDER_SKIN_MM)
    return np.where(under.any(axis=1), rays.radii_mm[under.argmax(axis=1)], np.nan)


class _Rays:
    """Points along rays from the middle of the outline; pixels are met at the nearest place."""

    def __init__(
        self, middle: tuple[float, ...], pixel_mm: tuple[float, float], shape: tuple[int, ...]
    ) -> None:
        furthest = float(np.hypot(shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]))
        self.radii_mm = np.arange(0, min(furthest, 300.0), _PIXEL_MM / 2)
        angle = 2 * np.pi * np.arange(_DIRECTIONS)[:, None] / _DIRECTIONS
        rows = np.rint(middle[0] + np.sin(angle) * self.radii_mm / pixel_mm[0]).astype(int)
        columns = np.rint(middle[1] + np.cos(angle) * self.radii_mm / pixel_mm[1]).astype(int)
        self._outside = (rows < 0) | (rows >= shape[0]) | (columns < 0) | (columns >= shape[1])
        self._at = np.clip(rows, 0, shape[0] - 1), np.clip(columns, 0, shape[1] - 1)

    def sample(self, image: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """(directions, radii), 0 outside the image."""
        values = image[self._at].copy()
        values[self._outside] = image.dtype.type(0)
        return values


def _last(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Index of the last true value of each row; 0 where there is none."""
    return np.where(inside.any(axis=1), inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1), 0)


def _coarse(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """Blocks of about `_PIXEL_MM`: their mean, their maximum (thin bone must not vanish), and their size."""
    down, across = (max(1, round(_PIXEL_MM / size)) for size in spacing_mm)
    rows, columns = hu.shape[0] // down * down, hu.shape[1] // across * across
    blocks = hu[:rows, :columns].reshape(rows // down, down, columns // across, across)
    return blocks.mean(axis=(1, 3)), blocks.max(axis=(1, 3)), (down * spacing_mm[0], across * spacing_mm[1])


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part once thin things (head rest, tubes) are gone."""
    labels, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
    if count == 0:
        return np.zeros_like(mask)
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
