"""The phantom is deterministic, keeps blood inside the skull, and faces the way it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from node.domain.findings import SUBTYPES
from workers.phantom import FIELD_MM, Head, render, volume
from workers.phantom_series import SeriesLabels, write_series

SIZE = 96


def test_the_same_seed_gives_the_same_volume_and_another_seed_another() -> None:
    first, again, other = (volume(seed, ("subdural",), slices=4, size=64) for seed in (3, 3, 4))
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.hu, other.hu)


def test_a_bleed_does_not_change_the_anatomy_it_is_drawn_in() -> None:
    with_bleed = Head.draw(np.random.default_rng(5), ("intraparenchymal",))
    without = Head.draw(np.random.default_rng(5), ())
    assert with_bleed.half_axes == without.half_axes
    assert with_bleed.scanner == without.scanner
    assert without.bleeds == ()


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_each_subtype_fills_its_own_mask_with_blood_inside_the_skull(subtype: str) -> None:
    head = volume(11, (subtype,), size=2 * SIZE)
    place = SUBTYPES.index(subtype)
    mask = head.masks[place]
    assert mask.any()
    assert not np.delete(head.masks, place, axis=0).any()
    assert 25 < np.median(head.hu[mask]) < 90
    assert head.hu[mask].max() < 200
    for z in np.flatnonzero(mask.any((1, 2))):
        bone = head.hu[z] > 300
        rows, columns = np.flatnonzero(bone.any(1)), np.flatnonzero(bone.any(0))
        inside = np.argwhere(mask[z])
        assert rows[0] <= inside[:, 0].min() and inside[:, 0].max() <= rows[-1]
        assert columns[0] <= inside[:, 1].min() and inside[:, 1].max() <= columns[-1]


def test_without_bleeds_every_mask_is_empty_and_the_spacing_covers_the_field() -> None:
    head = volume(12, (), slices=6, size=SIZE)
    assert not head.masks.any()
    assert head.hu.dtype == np.float32
    assert head.spacing_mm == (5.0, FIELD_MM / SIZE, FIELD_MM / SIZE)
    assert np.allclose(np.diff(head.positions), 5.0)
    assert head.hu.min() >= -1024 and head.hu.max() <= 3071


def _first_head(side: int) -> Head:
    for seed in range(60):
        head = Head.draw(np.random.default_rng(seed), ("epidural",))
        if head.bleeds[0].side == side:  # type: ignore[attr-defined]
            return head
    raise AssertionError("no such head")


@pytest.mark.parametrize("side", (-1, 1))
def test_a_bleed_of_the_patients_left_lies_in_the_high_columns(side: int) -> None:
    head = _first_head(side)
    _, masks = render(head, head.bleeds[0].z, SIZE)  # type: ignore[attr-defined]
    columns = np.argwhere(masks[0])[:, 1]
    assert np.sign(columns.mean() - SIZE / 2) == side


def test_the_face_is_in_the_first_rows_and_the_feet_end_first() -> None:
    head = volume(13, (), slices=32, size=SIZE)
    eyes = head.hu[5]
    air_in_front = (eyes[: SIZE // 3] < -500).mean()
    assert air_in_front > 0.2
    soft = (head.hu > -200).sum((1, 2))
    assert soft[3] > soft[-1]


def test_the_dicom_series_holds_the_volume_and_says_it_is_a_phantom(tmp_path: Path) -> None:
    labels = SeriesLabels(accession_number="ACC7", kernel="H60s")
    paths = write_series(tmp_path, 3, ("subdural",), slices=4, size=64, labels=labels)
    again = write_series(tmp_path / "again", 3, ("subdural",), slices=4, size=64, labels=labels)
    head = volume(3, ("subdural",), slices=4, size=64)
    for z, (path, twin) in enumerate(zip(paths, again, strict=True)):
        ds = pydicom.dcmread(path)
        assert ds.SOPInstanceUID == pydicom.dcmread(twin).SOPInstanceUID
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.abs(hu - head.hu[z]).max() <= 0.51
        assert float(ds.ImagePositionPatient[2]) == head.positions[z]
        assert "PHANTOM" in ds.PatientID and ds.PatientName == "PHANTOM^HEAD"
        assert (ds.AccessionNumber, ds.ConvolutionKernel) == ("ACC7", "H60s")


def test_a_tilted_gantry_leans_the_planes_and_not_the_table(tmp_path: Path) -> None:
    paths = write_series(tmp_path, 3, (), slices=3, size=32, tilt_deg=18.0, signed=True)
    first, second = (pydicom.dcmread(path) for path in paths[:2])
    row, column = np.reshape(np.asarray(first.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(row, column)
    step = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient)
    assert np.degrees(np.arccos(normal[2])) == pytest.approx(18.0, abs=1e-3)
    assert step == pytest.approx([0, 0, 5.0])
    assert first.PixelRepresentation == 1
