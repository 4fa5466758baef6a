"""CT-ICH, BHSD and INSTANCE 2022 volumes with drawn masks, from NIfTI. Guesses no orientation, no subtype.

CT-ICH v1.3.1 (PhysioNet Restricted Health Data License 1.5.0): Hssayeni et al., Data 5(1):14 (2020):
`ct_scans/`, `masks/` (0 and 255) and a table of subtypes a slice. BHSD: Wu et al., MLMI 2023,
doi:10.48550/arXiv.2308.11298: `images/`, `ground truths/`, values 1–5; derived from RSNA 2019, so not
external to models trained on that; its files carry the PatientID and the study of that set, and a patient
may have several.
INSTANCE 2022: Li et al., doi:10.48550/arXiv.2301.03281: `data/`, `label/` (binary): no subtype is told
where anything bleeds.

NIfTI axes are (i, j, k) with an affine to patient RAS mm; here volumes are (z, y, x) with x to patient
left, y to posterior, z from feet to head (LPS), found from the affine and nothing else.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Pair
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES
from node.pixels import LOWEST_HU
from workers.preprocess import DEFAULT_VIEW, View
from workers.training.assemble import SliceTruth, assemble
from workers.training.datasets import Series

CANONICAL = ("L", "P", "S")
"""Where x, y and z grow to: patient left, posterior, head."""
BHSD_VALUES = {
    1: "epidural", 2: "intraparenchymal", 3: "intraventricular", 4: "subarachnoid", 5: "subdural",
}  # fmt: skip
DIAGNOSES = "hemorrhage_diagnosis_raw_ct.csv"

_SUFFIXES = (".nii.gz", ".nii")
_HIGHEST_AIR_HU = -200.0
"""A head CT in HU has air around it; a volume without any value below this is something else."""


@dataclass(frozen=True)
class Canonical:
    """A NIfTI volume turned: `data` (z, y, x), spacing in mm, the affine of its (x, y, z) voxels.

    The spacing along z is perpendicular to the slices, which may slide over one another (gantry tilt).

    `z_axis` is the file's axis that runs along the body, `reversed` that its third runs against z, y or x.
    """

    data: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    z_axis: int
    reversed: bool


def ct_ich_volumes(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """CT-ICH from its NIfTI files: "any" drawn, subtypes a slice from the table of diagnoses."""
    diagnoses = read_diagnoses(folder / DIAGNOSES)
    for name, image, mask in pairs(folder / "ct_scans", folder / "masks"):
        head, drawn = read_pair(image, mask)
        found = diagnoses.get(int(name)) if name.isdigit() else None
        if found is None or len(found) != len(head.data):
            rows = "no" if found is None else str(len(found))
            text = f"{image} has {len(head.data)} slices, {DIAGNOSES} {rows} rows for it; fetch both again"
            raise PermanentError("LABELS_INCOMPLETE", text)
        if head.z_axis != 2:
            text = f"{image} is not stored slice by slice, so {DIAGNOSES} does not fit it; fetch it again"
            raise PermanentError("NOT_AXIAL", text)
        labels = found[::-1].copy() if head.reversed else found
        truth = _diagnosed(labels, drawn > 0)
        yield _assemble(f"ct-ich-{int(name):03d}", image, head, truth, view)


def bhsd(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """BHSD: every subtype drawn, so labels and masks of all six channels are known."""
    for name, image, mask in pairs(folder / "images", folder / "ground truths"):
        head, drawn = read_pair(image, mask)
        packed = pack_values(drawn, BHSD_VALUES, mask)
        labels = np.stack([((packed >> bit) & 1).any(axis=(1, 2)) for bit in range(len(CLASSES))], axis=1)
        truth = SliceTruth(labels.astype(np.uint8), np.ones(labels.shape, bool), packed)
        patient, study = bhsd_patient(name)
        yield _assemble(patient, image, head, truth, view, study)


def bhsd_patient(name: str) -> tuple[str, str]:
    """Patient and study of a file of that name: those of RSNA 2019, where it is of the published form."""
    known = re.fullmatch(r"(ID_[0-9a-f]+)_(ID_[0-9a-f]+)", name)
    return (f"rsna-{known[1]}", known[2]) if known else (f"bhsd-{name}", "")


def instance_2022(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """INSTANCE 2022 training cases: blood is drawn, its subtype is not told."""
    for name, image, mask in pairs(folder / "data", folder / "label"):
        head, drawn = read_pair(image, mask)
        blood = drawn > 0
        bleeding = np.asarray(blood.any(axis=(1, 2)), bool)
        known = np.repeat(~bleeding[:, None], len(CLASSES), axis=1)
        known[:, 0] = True
        labels = np.zeros(known.shape, np.uint8)
        labels[:, 0] = bleeding
        truth = SliceTruth(labels, known, blood.astype(np.uint8), told=known)
        yield _assemble(f"instance-{name}", image, head, truth, view)


def _assemble(
    patient: str, image: Path, head: Canonical, truth: SliceTruth, view: View, name: str = ""
) -> Series:
    try:
        return assemble(patient, head.data, head.spacing_mm, truth, name=name, view=view)
    except PermanentError as error:
        raise PermanentError(error.code, f"{image}: {error}") from error


def _diagnosed(labels: NDArray[np.uint8], blood: NDArray[np.bool_]) -> SliceTruth:
    """Labels of the readers; masks known where the drawing agrees, of a subtype where it is the only one."""
    agree = np.asarray(blood.any(axis=(1, 2)) == (labels[:, 0] > 0), bool)
    known = (labels == 0) | (labels[:, 1:].sum(axis=1, keepdims=True) == 1)
    known[:, 0] = True
    known &= agree[:, None]
    masks = blood.astype(np.uint8)
    single = agree & (labels[:, 1:].sum(axis=1) == 1)
    for index in np.flatnonzero(single):
        masks[index] |= masks[index] << int(1 + labels[index, 1:].argmax())
    return SliceTruth(labels, known, masks)


def read_diagnoses(table: Path) -> dict[int, NDArray[np.uint8]]:
    """Patient number → labels (slices, 6) in the order of the file's slices (SliceNumber counts from 1)."""
    if not table.is_file():
        raise PermanentError("FILE_MISSING", f"{table} is not there; fetch it from the set's page")
    rows: dict[int, dict[int, list[int]]] = {}
    columns = [name.capitalize() for name in SUBTYPES]
    with table.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if not any(row.values()):
                continue
            try:
                labels = [int(row[column]) for column in columns]
                rows.setdefault(int(row["PatientNumber"]), {})[int(row["SliceNumber"])] = labels
            except (KeyError, ValueError) as error:
                text = f"{table}: {error} in {dict(row)}; fetch it again"
                raise PermanentError("LABELS_UNREADABLE", text) from error
    found = {}
    for patient, slices in rows.items():
        subtypes = np.asarray([slices[number] for number in sorted(slices)], np.uint8)
        found[patient] = np.concatenate((subtypes.max(axis=1, keepdims=True), subtypes), axis=1)
    return found


def pack_values(drawn: NDArray[np.float32], values: Mapping[int, str], path: Path) -> NDArray[np.uint8]:
    """A label map as one byte a voxel: bit 0 any, bit k channel k. PermanentError MASK_VALUES."""
    packed = np.zeros(drawn.shape, np.uint8)
    strange = set(np.unique(drawn).tolist()) - {0.0, *map(float, values)}
    if strange:
        text = f"{path} holds the values {sorted(strange)}, {sorted(values)} expected; fetch it again"
        raise PermanentError("MASK_VALUES", text)
    for value, name in values.items():
        packed[drawn == value] = 1 | 1 << CLASSES.index(name)
    return packed


def pairs(images: Path, masks: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, image and mask of every patient. PermanentError FILE_MISSING names the one without its other."""
    left, right = _volumes(images), _volumes(masks)
    if not left:
        text = f"{images} holds no .nii or .nii.gz file; give the folder it lies in"
        raise PermanentError("FILE_MISSING", text)
    for name in sorted(left.keys() ^ right.keys()):
        path, other = (left[name], masks) if name in left else (right[name], images)
        text = f"{path} has no fellow of its name in {other}; fetch that one, or remove this one"
        raise PermanentError("FILE_MISSING", text)
    for name in sorted(left):
        yield name, left[name], right[name]


def _volumes(folder: Path) -> dict[str, Path]:
    """Name without its endings → path."""
    found = {}
    for path in sorted(folder.glob("*")):
        suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
        if suffix:
            found[path.name.removesuffix(suffix)] = path
    return found


def read_pair(image: Path, mask: Path) -> tuple[Canonical, NDArray[np.float32]]:
    """An image in HU and its mask on the same canonical grid. Raises MASK_MISMATCH, NOT_HOUNSFIELD."""
    head, drawn = read_canonical(image), read_canonical(mask)
    if head.data.shape != drawn.data.shape:
        text = f"{mask} has the shape {drawn.data.shape} (z, y, x), {image} {head.data.shape}"
        raise PermanentError("MASK_MISMATCH", f"{text}; resample the mask to its image")
    far = np.append(np.asarray(head.data.shape[::-1]) - 1, 1)
    apart = max(
        float(np.linalg.norm((head.affine - drawn.affine) @ corner)) for corner in (np.eye(4)[3], far)
    )
    if apart > min(head.spacing_mm):
        text = f"{mask} lies {apart:.1f} mm off {image}; resample the mask to its image"
        raise PermanentError("MASK_MISMATCH", text)
    low, high = float(head.data.min()), float(head.data.max())
    if not low <= _HIGHEST_AIR_HU or not np.isfinite(high):
        text = (
            f"{image} holds values from {low:g} to {high:g}, no Hounsfield units; use the unwindowed volume"
        )
        raise PermanentError("NOT_HOUNSFIELD", text)
    np.maximum(head.data, np.float32(LOWEST_HU), out=head.data)
    return head, drawn.data


def read_canonical(path: Path) -> Canonical:
    """One volume turned by its affine. Raises PermanentError FILE_UNREADABLE or ORIENTATION_UNKNOWN."""
    try:
        image = nibabel.load(path)
        if not isinstance(image, Nifti1Pair):
            raise ImageFileError(f"{type(image).__name__} instead")
        data = np.asarray(image.dataobj, np.float32)
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        text = f"{path} cannot be read as NIfTI ({error}); fetch it again"
        raise PermanentError("FILE_UNREADABLE", text) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    affine = image.affine
    codes = [int(image.header[name]) for name in ("sform_code", "qform_code")]
    orientation = io_orientation(affine) if data.ndim == 3 and any(codes) else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        text = f"{path} is no volume with an affine (shape {data.shape}, sform and qform code {codes})"
        raise PermanentError("ORIENTATION_UNKNOWN", f"{text}; convert it again from its DICOM files")
    turn = ornt_transform(orientation, axcodes2ornt(CANONICAL))
    turned = apply_orientation(data, turn)
    affine = affine @ inv_ornt_aff(turn, data.shape)
    x, y = (float(size) for size in voxel_sizes(affine)[:2])
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    z = float(abs(affine[:3, 2] @ normal) / np.linalg.norm(normal))
    data = np.ascontiguousarray(turned.transpose(2, 1, 0))
    return Canonical(data, (z, y, x), affine, int(np.flatnonzero(turn[:, 0] == 2)[0]), bool(turn[2, 1] < 0))
