"""One axial stack of CT slices as a volume in HU, and the way into canonical orientation and back.

Resamples nothing: pixels stay those of the source, so that masks fit it. Trusts geometry only, never
InstanceNumber, SliceLocation or PatientPosition. Lengths are in mm, positions in patient LPS.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.domain.completeness import find_gaps
from node.domain.eligibility import Rules, SkipCode, refuse_slice
from node.domain.errors import PermanentError
from node.domain.geometry import SAME_POSITION_MM, slice_normal, slice_position_mm
from node.domain.instance import Instance, SliceRef, Vector
from node.domain.patients import require_one
from node.domain.stacks import main_stack
from workers.head import Slice
from workers.images import Image, image_of

MIN_SLICES = 3
_APART_MM = 1.5 * SAME_POSITION_MM
"""Slices farther apart are at two places: one in the last decimal of a place is still the same."""
_WIDEST = Rules(allow_derived=True)
_NOT_AXIAL = "localizers or slices that are not axial"
_LEFT_OUT = {
    SkipCode.NOT_CT.value: "objects that are no CT images",
    SkipCode.NO_GEOMETRY.value: "images without position, orientation or pixel spacing",
    SkipCode.NO_RESCALE.value: "images without RescaleSlope and RescaleIntercept",
}
"""In words of the report; of every other refusal `_NOT_AXIAL`."""
WHOLE = 0.8
"""An acquisition with a smaller part of the slices of another one in its place was broken off."""
MAX_FILLED_STEPS = 3.0
"""A hole counts towards the slices beside it up to this many steps (two slices missing); see `_step_mm`."""
LONGER = 1.3
"""Steps this much longer than the usual one belong to another part of the scan…"""
LONGER_STEPS, LONGER_SHARE = 3, 0.2
"""…where there are so many of them, over this share of the height: fewer are slices that are missing."""

MOST_THREADS = 16

_Scalar = TypeVar("_Scalar", bound=np.generic)
_Slice = tuple[Instance, Image]
"""One slice, and the image that holds its pixels (among those of other frames, where it is a frame)."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack in source pixel orientation, slices in order of increasing position along their normal.

    hu                 float32 (z, y, x): z slices, y rows, x columns of the source images
    positions_mm       (z,) ImagePositionPatient along the normal (row × column direction), increasing
    thickness_mm       (z,) what each slice stands for, perpendicular to it: half way to its neighbours
    pixel_spacing_mm   between rows, between columns (PS3.3 10.7.1.3)
    orientation        ImageOrientationPatient: direction of a row, then of a column
    origins_mm         (z, 3) ImagePositionPatient
    slices             (z,) which instance, or which frame of it, each slice is
    """

    hu: NDArray[np.float32]
    positions_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]
    pixel_spacing_mm: tuple[float, float]
    orientation: Vector
    origins_mm: NDArray[np.float64]
    slices: tuple[SliceRef, ...]
    warnings: tuple[str, ...] = ()
    seen: Mapping[int, Slice] = field(default_factory=dict)
    """What some of the slices, by their index, are known to show of a head (workers.head.look_at)."""

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """One a slice: frames of a multi-frame instance share theirs."""
        return tuple(ref.sop_instance_uid for ref in self.slices)

    @property
    def is_transposed(self) -> bool:
        """Rows of the source run front to back rather than right to left."""
        return abs(self.orientation[0]) < abs(self.orientation[1])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Canonical (z, y, x); z is the usual perpendicular step, see `_step_mm`."""
        between_rows, between_columns = self.pixel_spacing_mm
        step = _step_mm(self.positions_mm)
        return (step, between_columns, between_rows) if self.is_transposed else (step, *self.pixel_spacing_mm)

    def canonical(self) -> NDArray[np.float32]:
        """A view of `hu`: columns to patient left, rows to posterior, slices from feet to head."""
        return self.to_canonical(self.hu)

    def to_canonical(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """A view of an array in source orientation, (z, y, x), as `canonical` shows the HU."""
        turned = array.transpose(0, 2, 1) if self.is_transposed else array
        return turned[self._flips()]

    def from_canonical(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Back to source orientation: a mask, or any grid (z, h, w) that covers the slices exactly."""
        flipped = array[self._flips()]
        return flipped.transpose(0, 2, 1) if self.is_transposed else flipped

    def slices_from_canonical(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Back to source order: values (z, …) that belong to whole slices."""
        return array[self._flips()[0]]

    def patient_mm(self, indices: NDArray[np.int_]) -> NDArray[np.float64]:
        """Places in patient LPS of the centres of voxels (n, 3), given as source (z, y, x)."""
        between_rows, between_columns = self.pixel_spacing_mm
        along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        across = indices[:, 2:3] * between_columns * along_row
        down = indices[:, 1:2] * between_rows * along_column
        return np.asarray(self.origins_mm[indices[:, 0]] + across + down)

    def _flips(self) -> tuple[slice, slice, slice]:
        along_row, along_column = self.orientation[:3], self.orientation[3:]
        to_left, to_back = (along_column, along_row) if self.is_transposed else (along_row, along_column)
        upward = slice_normal(self.orientation)[2]
        z, y, x = (slice(None, None, 1 if value >= 0 else -1) for value in (upward, to_back[1], to_left[0]))
        return z, y, x


def build_volume(datasets: Sequence[Dataset]) -> Volume:
    """As `volume_of`, from datasets that nobody has looked at."""
    return volume_of([image_of(ds) for ds in datasets])


def volume_of(images: Sequence[Image]) -> Volume:
    """The largest axial stack among the images of one series.

    Raises PermanentError: PATIENTS_MIXED, NO_GEOMETRY, TOO_FEW_SLICES, NO_RESCALE, PIXELS_UNDECODABLE.
    """
    warnings: list[str] = []
    require_one([image.instance for image in images])
    axial = _axial_images([(image.instance, image) for image in images], warnings)
    stack = _distinct(_main_stack(axial, warnings), warnings)
    if len(stack) < MIN_SLICES:
        text = f"{len(stack)} axial slices at different places, at least {MIN_SLICES} needed"
        raise PermanentError("TOO_FEW_SLICES", text)
    slices = [slice_ for slice_, _ in stack]
    first = slices[0]
    orientation, spacing = first.orientation or (), first.pixel_spacing or ()
    origins = np.array([slice_.position for slice_ in slices], np.float64)
    positions = origins @ np.array(slice_normal(orientation))
    warnings += _irregularities(slices, origins, positions)
    warnings += sorted({image.lossy for _, image in stack if image.lossy})
    return Volume(
        hu=_decode(stack),
        positions_mm=positions,
        thickness_mm=_thickness_mm(positions, (first.slice_thickness, slices[-1].slice_thickness)),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        orientation=orientation,
        origins_mm=origins,
        slices=tuple(slice_.ref for slice_ in slices),
        warnings=tuple(warnings),
        seen={
            index: image.seen.slice_
            for index, (_, image) in enumerate(stack)
            if image.seen is not None and image.seen.spacing_mm == (spacing[0], spacing[1])
        },
    )


def _axial_images(series: Sequence[_Slice], warnings: list[str]) -> list[_Slice]:
    """Slices that the choice of a series counts, too, those of each SOP instance once.

    Derived ones are among them, which a site may allow: where there are others, they stand back.
    """
    seen: set[str] = set()
    images: list[_Slice] = []
    left_out: Counter[str] = Counter()
    for instance, image in series:
        if instance.sop_instance_uid in seen:
            left_out["repeated instances"] += 1
            continue
        seen.add(instance.sop_instance_uid)
        for slice_ in instance.slices():
            reason = refuse_slice(slice_, _WIDEST)
            if reason is None:
                images.append((slice_, image))
            else:
                left_out[_LEFT_OUT.get(reason.code, _NOT_AXIAL)] += 1
    for code in (SkipCode.NO_GEOMETRY, SkipCode.NO_RESCALE):
        if not images and (count := left_out[_LEFT_OUT[code]]):
            raise PermanentError(code.value, f"{count} {_LEFT_OUT[code]}, and none with them")
    warnings += [f"{count} {what} left out" for what, count in left_out.items()]
    return images


def _main_stack(images: list[_Slice], warnings: list[str]) -> list[_Slice]:
    """The slices of one volume, where the series holds several."""
    kept = [images[index] for index in main_stack([slice_ for slice_, _ in images])]
    if len(kept) < len(images):
        left = len(images) - len(kept)
        warnings.append(f"{left} slices of another volume, orientation, matrix or pixel spacing left out")
    return kept


def _distinct(group: list[_Slice], warnings: list[str]) -> list[_Slice]:
    """In order along the normal, one slice a place; of several always that of the same scan: see `_turn`."""
    orientation = group[0][0].orientation or () if group else ()
    sizes = Counter(key for slice_, _ in group for key in (_scan(slice_)[:1], _scan(slice_)))
    largest = max((size for scan, size in sizes.items() if len(scan) == 1), default=0)
    places: list[tuple[float, list[_Slice]]] = []
    for image in sorted(group, key=lambda image: slice_position_mm(image[0].position or (), orientation)):
        place = slice_position_mm(image[0].position or (), orientation)
        if not places or place - places[-1][0] > _APART_MM:
            places.append((place, []))
        places[-1][1].append(image)
    if len(places) < len(group):
        warnings.append(f"{len(group) - len(places)} slices at the place of another left out")
    return [min(images, key=lambda image: _turn(image[0], sizes, largest)) for _, images in places]


def _scan(slice_: Instance) -> tuple[object, ...]:
    """What slices of one acquisition (the first value) in one reconstruction have in common."""
    return slice_.acquisition_number or 0, slice_.kernel, slice_.slice_thickness or 0.0


def _turn(slice_: Instance, sizes: Mapping[tuple[object, ...], int], largest: int) -> tuple[object, ...]:
    """Smallest goes first: of the earliest acquisition that is not much shorter than the largest one."""
    scan = _scan(slice_)
    size = sizes[scan[:1]]
    order = (slice_.instance_number or 0, slice_.sop_instance_uid, slice_.frame_number or 0)
    return -(size if size < WHOLE * largest else largest), scan[0], -sizes[scan], scan, order


def _irregularities(
    instances: Sequence[Instance], origins_mm: NDArray[np.float64], positions_mm: NDArray[np.float64]
) -> list[str]:
    """Words for what a reader of the results should know about the geometry."""
    found = [
        f"no slice between {gap.from_mm:.1f} and {gap.to_mm:.1f} mm along the slice normal"
        for gap in find_gaps(instances)
    ]
    normal = np.array(slice_normal(instances[0].orientation or ()))
    height = positions_mm[-1] - positions_mm[0]
    drift = float(np.linalg.norm(origins_mm[-1] - origins_mm[0] - height * normal))
    if drift > 1.0:
        found.append(f"slices lean by {np.degrees(np.arctan2(drift, height)):.1f} degrees (gantry tilt)")
    return found


def _thickness_mm(
    positions_mm: NDArray[np.float64], ends_mm: tuple[float | None, float | None]
) -> NDArray[np.float64]:
    """What each slice stands for: half way to both neighbours, SliceThickness permitting at the ends."""
    steps = np.diff(positions_mm)
    half = np.minimum(steps, MAX_FILLED_STEPS * _step_mm(positions_mm)) / 2
    outer = [
        min(step, thickness / 2) if thickness and thickness > 0 else step
        for step, thickness in zip((half[0], half[-1]), ends_mm, strict=True)
    ]
    return np.concatenate([[outer[0]], half]) + np.concatenate([half, [outer[1]]])


def _step_mm(positions_mm: NDArray[np.float64]) -> float:
    """The median step; of a series whose parts were scanned in shorter and in longer ones, the longer.

    Slices are put together until they are about as thick as networks know them. By the shorter step, as of a
    fossa in thin slices, the thick ones above were put together too, and blood on one of them would fade. By
    the longer one the thin ones alone are: see `workers.even`.
    """
    steps = np.diff(positions_mm)
    usual = float(np.median(steps))
    longer = steps[steps > LONGER * usual]
    if len(longer) >= LONGER_STEPS and longer.sum() >= LONGER_SHARE * steps.sum():
        return float(np.median(longer))
    return usual


def _decode(stack: Sequence[_Slice]) -> NDArray[np.float32]:
    """HU of every slice, decoded in threads."""
    first = stack[0][0]
    hu = np.empty((len(stack), first.rows or 0, first.columns or 0), np.float32)

    def decode(index: int) -> None:
        slice_, image = stack[index]
        hu[index] = image.hu((slice_.frame_number or 1) - 1)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(decode, range(len(stack))))
    return hu


def threads() -> int:
    """In which slices are decoded, one for each core of this process: decoders hold no lock of Python."""
    return min(max(len(os.sched_getaffinity(0)), 2), MOST_THREADS)
