"""One axial stack of CT slices as a volume in HU, and the way into canonical orientation and back.

Resamples nothing: pixels stay those of the source, so that masks fit it. Trusts geometry only, never
InstanceNumber, SliceLocation or PatientPosition. Lengths are in mm, positions in patient LPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, JPEG2000TransferSyntaxes

from node.domain.completeness import SAME_POSITION_MM, find_gaps, slice_normal, slice_position_mm
from node.domain.errors import PermanentError
from node.domain.instance import Instance, Vector
from node.headers import instance_of
from node.pixels import hounsfield

MIN_SLICES = 3
MAX_TILT_DEG = 45.0
"""Beyond this a stack is coronal or sagittal rather than axial."""
MAX_FILLED_STEPS = 3.0
"""A hole counts towards the slices beside it up to this many usual steps (two slices missing)."""

_ORIENTATION_TOLERANCE = 0.01
_SPACING_TOLERANCE = 0.001
_THREADS = 4

_Scalar = TypeVar("_Scalar", bound=np.generic)
_Slice = tuple[Instance, Dataset]


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack in source pixel orientation, slices in order of increasing position along their normal.

    hu                 float32 (z, y, x): z slices, y rows, x columns of the source images
    positions_mm       (z,) ImagePositionPatient along the normal (row × column direction), increasing
    thickness_mm       (z,) what each slice stands for, perpendicular to it: half way to its neighbours
    pixel_spacing_mm   between rows, between columns (PS3.3 10.7.1.3)
    orientation        ImageOrientationPatient: direction of a row, then of a column
    origins_mm         (z, 3) ImagePositionPatient
    """

    hu: NDArray[np.float32]
    positions_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]
    pixel_spacing_mm: tuple[float, float]
    orientation: Vector
    origins_mm: NDArray[np.float64]
    sop_instance_uids: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def is_transposed(self) -> bool:
        """Rows of the source run front to back rather than right to left."""
        return abs(self.orientation[0]) < abs(self.orientation[1])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Canonical (z, y, x); z is the median perpendicular step."""
        between_rows, between_columns = self.pixel_spacing_mm
        step = float(np.median(np.diff(self.positions_mm)))
        return (step, between_columns, between_rows) if self.is_transposed else (step, *self.pixel_spacing_mm)

    def canonical(self) -> NDArray[np.float32]:
        """A view of `hu`: columns to patient left, rows to posterior, slices from feet to head."""
        hu = self.hu.transpose(0, 2, 1) if self.is_transposed else self.hu
        return hu[self._flips()]

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
    """The largest axial stack among the datasets of one series.

    Raises PermanentError: NO_GEOMETRY, TOO_FEW_SLICES, NO_RESCALE, PIXELS_UNDECODABLE.
    """
    warnings: list[str] = []
    images = _axial_images(datasets, warnings)
    stack = _distinct(_largest_group(images, warnings), warnings)
    if len(stack) < MIN_SLICES:
        text = f"{len(stack)} axial slices at different places, at least {MIN_SLICES} needed"
        raise PermanentError("TOO_FEW_SLICES", text)
    instances = [instance for instance, _ in stack]
    first = instances[0]
    orientation, spacing = first.orientation or (), first.pixel_spacing or ()
    origins = np.array([instance.position for instance in instances], np.float64)
    positions = origins @ np.array(slice_normal(orientation))
    warnings += _irregularities(instances, origins, positions)
    return Volume(
        hu=_decode([ds for _, ds in stack]),
        positions_mm=positions,
        thickness_mm=_thickness_mm(positions, (first.slice_thickness, instances[-1].slice_thickness)),
        pixel_spacing_mm=(spacing[0], spacing[1]),
        orientation=orientation,
        origins_mm=origins,
        sop_instance_uids=tuple(instance.sop_instance_uid for instance in instances),
        warnings=tuple(warnings),
    )


def _axial_images(datasets: Sequence[Dataset], warnings: list[str]) -> list[_Slice]:
    """CT images with geometry that stand more or less axially, each SOP instance once."""
    images: dict[str, _Slice] = {}
    foreign = placeless = others = repeated = 0
    for ds in datasets:
        meta = getattr(ds, "file_meta", None)
        instance = instance_of(ds, str(meta.get("TransferSyntaxUID", "")) if meta else "")
        if instance.sop_instance_uid in images:
            repeated += 1
        elif instance.sop_class_uid != CTImageStorage:
            foreign += 1
        elif instance.position is None or instance.orientation is None or instance.pixel_spacing is None:
            placeless += 1
        elif "LOCALIZER" in instance.image_type or not _is_axial(instance.orientation):
            others += 1
        else:
            images[instance.sop_instance_uid] = (instance, ds)
    if placeless and not images:
        text = f"none of {len(datasets)} instances tells its position, orientation and pixel spacing"
        raise PermanentError("NO_GEOMETRY", text)
    for count, what in (
        (repeated, "repeated instances"),
        (foreign, "objects that are no CT images"),
        (placeless, "instances without geometry"),
        (others, "localizers or slices that are not axial"),
    ):
        if count:
            warnings.append(f"{count} {what} left out")
    return list(images.values())


def _is_axial(orientation: Vector) -> bool:
    return abs(slice_normal(orientation)[2]) >= np.cos(np.radians(MAX_TILT_DEG))


def _largest_group(images: list[_Slice], warnings: list[str]) -> list[_Slice]:
    """The largest set of images alike in orientation, matrix and pixel spacing; of equals the first."""
    groups: list[list[_Slice]] = []
    for image in images:
        group = next((group for group in groups if _alike(group[0][0], image[0])), None)
        if group is None:
            groups.append(group := [])
        group.append(image)
    if not groups:
        return []
    best = max(groups, key=len)
    if len(groups) > 1:
        left = len(images) - len(best)
        warnings.append(f"{left} slices of another orientation, matrix or pixel spacing left out")
    return best


def _alike(one: Instance, other: Instance) -> bool:
    def close(a: Vector | None, b: Vector | None, tolerance: float) -> bool:
        return all(abs(x - y) <= tolerance for x, y in zip(a or (), b or (), strict=True))

    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and close(one.orientation, other.orientation, _ORIENTATION_TOLERANCE)
        and close(one.pixel_spacing, other.pixel_spacing, _SPACING_TOLERANCE)
    )


def _distinct(group: list[_Slice], warnings: list[str]) -> list[_Slice]:
    """In order along the normal, one slice a place; of several the one acquired first."""
    if not group:
        return []
    orientation = group[0][0].orientation or ()

    def order(image: _Slice) -> tuple[float, int, int, str]:
        instance = image[0]
        place = round(slice_position_mm(instance.position or (), orientation) / SAME_POSITION_MM)
        turn = (instance.acquisition_number or 0, instance.instance_number or 0)
        return place, *turn, instance.sop_instance_uid

    stack = sorted(group, key=order)
    kept = stack[:1] + [image for before, image in pairwise(stack) if order(image)[0] - order(before)[0] > 1]
    if len(kept) < len(stack):
        warnings.append(f"{len(stack) - len(kept)} slices at the place of another left out")
    return kept


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
    half = np.minimum(steps, MAX_FILLED_STEPS * np.median(steps)) / 2
    outer = [
        min(step, thickness / 2) if thickness and thickness > 0 else step
        for step, thickness in zip((half[0], half[-1]), ends_mm, strict=True)
    ]
    return np.concatenate([[outer[0]], half]) + np.concatenate([half, [outer[1]]])


def _decode(datasets: Sequence[Dataset]) -> NDArray[np.float32]:
    """HU of every slice; in threads, but for JPEG 2000, whose decoder gains nothing there and is not safe."""
    hu = np.empty((len(datasets), int(datasets[0].Rows), int(datasets[0].Columns)), np.float32)

    def decode(index: int) -> None:
        hu[index] = hounsfield(datasets[index])

    syntaxes = {str(ds.file_meta.get("TransferSyntaxUID", "")) for ds in datasets if hasattr(ds, "file_meta")}
    threads = 1 if syntaxes.intersection(JPEG2000TransferSyntaxes) else _THREADS
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(len(datasets))))
    return hu
