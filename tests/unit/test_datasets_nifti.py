"""The NIfTI readers: however a file is stored, blood lands on the patient's side; unknown stays unknown."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES
from tests.factories import head_hu
from workers.training.nifti import DIAGNOSES, bhsd, ct_ich_volumes, instance_2022, read_canonical
from workers.training.sources import source

SLICES, SIDE = 8, 72
LPS_MM = np.array([[-3.0, 0, 0, 100], [0, -3, 0, 110], [0, 0, 5, -20], [0, 0, 0, 1]])
"""Affine to RAS of voxels (x, y, z) that grow to left, posterior, head."""


def head() -> tuple[np.ndarray, np.ndarray]:
    """HU and blood (z, y, x): on the patient's left, in front, in the upper slices 5 and 6."""
    blood = np.zeros((SLICES, SIDE, SIDE), bool)
    blood[5:7, 20:30, 42:52] = True
    return head_hu(SLICES, SIDE, SIDE, blood), blood


def write(path: Path, array: np.ndarray, axes: str = "LPS", affine: np.ndarray = LPS_MM) -> None:
    """Store canonical (z, y, x) with its axes growing to `axes`, and the affine that says so."""
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))
    voxels = array.transpose(2, 1, 0).astype(np.int16)
    stored = nibabel.orientations.apply_orientation(voxels, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, affine @ inv_ornt_aff(turn, voxels.shape)), path)


def write_bhsd(folder: Path, axes: str, value: int = 5) -> Path:
    hu, blood = head()
    write(folder / "images" / "ID_1.nii.gz", hu, axes)
    write(folder / "ground truths" / "ID_1.nii.gz", blood * value, axes)
    return folder


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "RPI", "PSR", "SAL"])
def test_blood_lands_on_the_same_side_however_it_is_stored(tmp_path: Path, axes: str) -> None:
    (series,) = bhsd(write_bhsd(tmp_path, axes))
    assert series.patient == "bhsd-ID_1"
    assert np.flatnonzero(series.labels[:, 0]).tolist() == [5, 6]
    assert np.flatnonzero(series.labels[:, CLASSES.index("subdural")]).tolist() == [5, 6]
    assert series.known.all()
    blood = (series.masks[5] >> CLASSES.index("subdural")) & 1
    rows, columns = np.nonzero(blood)
    assert columns.mean() > 70 and rows.mean() < 58, "patient left is right in the picture, front is up"
    assert series.pictures[5, 0][blood > 0].mean() > series.pictures[4, 0][blood > 0].mean() + 30


def test_a_tilted_affine_keeps_its_spacing(tmp_path: Path) -> None:
    angle = np.deg2rad(15)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write(tmp_path / "a.nii", head()[0], "RAS", tilt @ LPS_MM)
    turned = read_canonical(tmp_path / "a.nii")
    assert np.allclose(turned.spacing_mm, (5, 3, 3)) and np.array_equal(turned.data, head()[0])


def test_slices_that_lean_are_as_far_apart_as_a_perpendicular_tells(tmp_path: Path) -> None:
    """Of a tilted gantry: each slice lies 5 mm above the last one, and 4 mm to the back of it."""
    lean = LPS_MM.copy()
    lean[1, 2] = -4
    write(tmp_path / "a.nii", head()[0], "RAS", lean)
    assert np.allclose(read_canonical(tmp_path / "a.nii").spacing_mm, (5, 3, 3))


def test_scans_of_one_patient_of_bhsd_are_named_alike_and_as_in_rsna_2019(tmp_path: Path) -> None:
    """Its files carry PatientID and study of that set: two scans of a patient must not be in two folds."""
    hu, blood = head()
    names = ("ID_2db7ee14_ID_2591d00dfc", "ID_2db7ee14_ID_f27e38fdfd", "mine")
    for name in names:
        write(tmp_path / "images" / f"{name}.nii.gz", hu)
        write(tmp_path / "ground truths" / f"{name}.nii.gz", blood)
    told = [(one.patient, one.name) for one in bhsd(tmp_path)]
    assert [patient for patient, _ in told] == ["rsna-ID_2db7ee14", "rsna-ID_2db7ee14", "bhsd-mine"]
    assert len(set(told)) == 3
    assert source("bhsd").cache_name != "bhsd", "what was prepared under the earlier names is read anew"


def test_thin_slices_share_a_slab_and_its_labels(tmp_path: Path) -> None:
    hu, blood = head()
    thin = LPS_MM @ np.diag([1, 1, 0.5, 1])
    write(tmp_path / "images" / "a.nii", hu, affine=thin)
    write(tmp_path / "ground truths" / "a.nii", blood * 2, affine=thin)
    (series,) = bhsd(tmp_path)
    assert len(series.pictures) == SLICES // 2
    assert np.flatnonzero(series.labels[:, CLASSES.index("intraparenchymal")]).tolist() == [2, 3]


def test_blood_too_small_for_the_grid_is_not_taught_as_an_empty_mask(tmp_path: Path) -> None:
    fine = LPS_MM @ np.diag([72 / 512, 72 / 512, 1, 1])
    hu = np.repeat(np.repeat(head()[0][:, :64, :64], 8, axis=1), 8, axis=2)
    blood = np.zeros(hu.shape)
    blood[3, 250, 250] = 1
    write(tmp_path / "images" / "a.nii", hu, affine=fine)
    write(tmp_path / "ground truths" / "a.nii", blood, affine=fine)
    (series,) = bhsd(tmp_path)
    assert series.labels[3, :2].tolist() == [1, 1] and series.known[3].tolist() == [False] * 2 + [True] * 4


def test_instance_tells_blood_but_no_subtype(tmp_path: Path) -> None:
    hu, blood = head()
    write(tmp_path / "data" / "001.nii.gz", hu, "LAS")
    write(tmp_path / "label" / "001.nii.gz", blood, "LAS")
    (volume,) = instance_2022(tmp_path)
    assert volume.patient == "instance-001" and volume.by_hand.all()
    assert np.flatnonzero(volume.labels[:, 0]).tolist() == [5, 6]
    assert volume.told[:, 0].all() and not volume.told[5, 1:].any() and volume.told[4].all()
    assert volume.known[:, 0].all() and not volume.known[5, 1:].any() and volume.known[4].all()
    assert set(np.unique(volume.masks)) == {0, 1}


def write_ct_ich(folder: Path, axes: str, slices: dict[int, tuple[str, ...]], rows: int = SLICES) -> Path:
    hu, blood = head()
    write(folder / "ct_scans" / "049.nii", hu, axes)
    write(folder / "masks" / "049.nii", blood * 255, axes)
    names = [name.capitalize() for name in SUBTYPES]
    lines = [",".join(["PatientNumber", "SliceNumber", *names, "No_Hemorrhage"])]
    for number in range(1, rows + 1):
        held = [int(name in slices.get(number, ())) for name in SUBTYPES]
        lines.append(",".join(map(str, [49, number, *held, int(not any(held))])))
    (folder / DIAGNOSES).write_text("\n".join([*lines, "," * len(SUBTYPES)]) + "\n")
    return folder


@pytest.mark.parametrize(("axes", "numbers"), [("RAS", (6, 7)), ("LPI", (3, 2))])
def test_ct_ich_rows_follow_the_slices_of_the_file(
    tmp_path: Path, axes: str, numbers: tuple[int, int]
) -> None:
    one, two = numbers
    diagnoses = {one: ("subdural",), two: ("subdural", "epidural")}
    (series,) = ct_ich_volumes(write_ct_ich(tmp_path, axes, diagnoses))
    place = CLASSES.index("subdural")
    assert series.patient == "ct-ich-049"
    assert np.flatnonzero(series.labels[:, place]).tolist() == [5, 6]
    assert series.known[5].all() and (series.masks[5] >> place & 1).any()
    assert series.known[6].tolist() == [True, False, True, True, True, False]


def test_a_drawing_that_contradicts_the_readers_is_not_known(tmp_path: Path) -> None:
    (series,) = ct_ich_volumes(write_ct_ich(tmp_path, "RAS", {1: ("epidural",)}))
    assert np.flatnonzero(series.labels[:, 0]).tolist() == [0]
    assert np.flatnonzero(~series.known.any(axis=1)).tolist() == [0, 5, 6]


def test_ct_ich_without_a_row_for_each_slice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"049\.nii has 8 slices.*7 rows"):
        list(ct_ich_volumes(write_ct_ich(tmp_path, "RAS", {}, rows=7)))


def refused(folder: Path) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        list(bhsd(folder))
    return caught.value


def test_a_mask_that_does_not_fit_its_image_is_refused(tmp_path: Path) -> None:
    _, blood = head()
    mask = write_bhsd(tmp_path, "LPS") / "ground truths" / "ID_1.nii.gz"
    write(mask, blood[:, :-2])
    shape = refused(tmp_path)
    assert shape.code == "MASK_MISMATCH" and str(mask) in str(shape) and "resample" in str(shape)
    moved = LPS_MM.copy()
    moved[2, 3] += 10
    write(mask, blood, affine=moved)
    assert "10.0 mm" in str(refused(tmp_path))
    write(mask, blood * 6)
    assert refused(tmp_path).code == "MASK_VALUES"
    mask.unlink()
    lonely = refused(tmp_path)
    assert lonely.code == "FILE_MISSING" and "images" in str(lonely)


def test_a_windowed_or_placeless_or_broken_image_is_refused(tmp_path: Path) -> None:
    image = write_bhsd(tmp_path, "LPS") / "images" / "ID_1.nii.gz"
    write(image, np.clip(head()[0], 0, 80))
    assert refused(tmp_path).code == "NOT_HOUNSFIELD"
    placeless = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), None)
    nibabel.save(placeless, image)
    assert refused(tmp_path).code == "ORIENTATION_UNKNOWN"
    image.write_bytes(b"no nifti")
    broken = refused(tmp_path)
    assert broken.code == "FILE_UNREADABLE" and str(image) in str(broken)
