"""What becomes a volume: which slices are kept, in which order, and what each of them stands for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.domain.errors import PermanentError
from node.domain.geometry import slice_normal
from tests.factories import ct_series, head_hu
from workers.load import load_volume
from workers.preprocess import slabs
from workers.volume import Volume, build_volume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def at_heights(*heights_mm: float, **changes: Any) -> list[Dataset]:
    series = ct_series(len(heights_mm), rows=16, columns=12, **changes)
    for ds, height in zip(series, heights_mm, strict=True):
        ds.ImagePositionPatient = [-100, -110, height]
    return series


def warned(volume: Volume, words: str) -> bool:
    return any(words in warning for warning in volume.warnings)


def test_sorted_by_place_whatever_the_numbers_say() -> None:
    series = ct_series(8, rows=24)
    volume = build_volume([series[k] for k in (3, 0, 7, 1, 6, 2, 5, 4)])
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert volume.warnings == ()
    np.testing.assert_allclose(np.diff(volume.positions_mm), 5.0)
    np.testing.assert_allclose(volume.thickness_mm, 5.0)
    assert volume.hu.dtype == np.float32


def axial_orientations() -> list[tuple[float, ...]]:
    """All eight ways to lay an axial slice down along the axes."""
    made = []
    for a, b in itertools.product((1.0, -1.0), repeat=2):
        made += [(a, 0.0, 0.0, 0.0, b, 0.0), (0.0, a, 0.0, b, 0.0, 0.0)]
    return made


@pytest.mark.parametrize("iop", axial_orientations())
def test_canonical_grows_to_left_back_and_head_and_back_again(iop: tuple[float, ...]) -> None:
    volume = build_volume(ct_series(5, rows=20, columns=16, iop=iop))
    z, y, x = np.indices(volume.hu.shape)
    places = volume.patient_mm(np.stack([z.ravel(), y.ravel(), x.ravel()], 1)).reshape(*volume.hu.shape, 3)
    for axis, component in ((2, 0), (1, 1), (0, 2)):
        moved = Volume(**{**volume.__dict__, "hu": places[..., component].astype(np.float32)}).canonical()
        assert (np.diff(moved, axis=axis) > 0).all()
        other = [a for a in range(3) if a != axis]
        assert all(np.abs(np.diff(moved, axis=a)).max() < 1e-3 for a in other)
    canonical = volume.canonical()
    np.testing.assert_array_equal(volume.from_canonical(canonical), volume.hu)
    assert np.shares_memory(canonical, volume.hu)
    order = volume.slices_from_canonical(canonical[:, 0, 0])
    assert len(order) == 5


def test_a_coarse_grid_goes_back_as_the_pixels_do() -> None:
    volume = build_volume(ct_series(4, rows=20, columns=16, iop=(0, -1, 0, 1, 0, 0)))
    coarse = np.zeros((4, 4, 5), np.uint8)
    coarse[1, 0, 4] = 1
    fine = np.repeat(np.repeat(coarse, 4, 1), 4, 2)
    back = np.repeat(np.repeat(volume.from_canonical(coarse), 4, 1), 4, 2)
    np.testing.assert_array_equal(volume.from_canonical(fine), back)


def test_spacing_follows_the_axes() -> None:
    plain = build_volume(ct_series(4, rows=20, columns=16, PixelSpacing=[0.5, 0.4]))
    turned = build_volume(ct_series(4, rows=20, columns=16, iop=(0, 1, 0, 1, 0, 0), PixelSpacing=[0.5, 0.4]))
    assert plain.spacing_mm == pytest.approx((5.0, 0.5, 0.4))
    assert turned.spacing_mm == pytest.approx((5.0, 0.4, 0.5))


def test_a_series_of_thin_and_thick_slices_counts_as_thick() -> None:
    """A fossa in thin slices, more of them than above: taken for thin, the thick ones would be averaged, too,
    and blood on a single one would be seen with half its density."""
    fossa, above = np.arange(28) * 2.5, 70 + np.arange(14) * 5.0
    volume = build_volume(at_heights(*fossa, *above))
    assert volume.spacing_mm[0] == 5
    assert slabs(len(volume.hu), volume.spacing_mm[0]) == [(z, z + 1) for z in range(42)]


def test_missing_slices_make_no_series_thick() -> None:
    heights = [z * 2.5 for z in range(40) if z not in (5, 6, 17, 29)]
    assert build_volume(at_heights(*heights)).spacing_mm[0] == 2.5
    far = [*(z * 2.5 for z in range(20)), *(150 + z * 2.5 for z in range(20))]
    assert build_volume(at_heights(*far)).spacing_mm[0] == 2.5


def test_places_in_the_patient() -> None:
    volume = build_volume(
        ct_series(4, rows=20, columns=16, origin_mm=(-100, -110, 20), PixelSpacing=[0.5, 0.4])
    )
    np.testing.assert_allclose(volume.patient_mm(np.array([[2, 10, 5]])), [[-98.0, -105.0, 30.0]])


THICKNESS = [
    ("even", (0, 5, 10, 15), [5, 5, 5, 5]),
    ("one slice missing", (0, 5, 10, 20, 25, 30), [5, 5, 7.5, 7.5, 5, 5]),
    ("a hole is not all blood", (0, 5, 10, 15, 20, 25, 75, 80, 85), [5, 5, 5, 5, 5, 10, 10, 5, 5]),
    ("overlapping slices", (0, 3, 6, 9), [3, 3, 3, 3]),
    ("a hole at the end", (0, 10, 15, 20, 25), [7.5, 7.5, 5, 5, 5]),
    (
        "a fossa in thin slices and thick ones above",
        (*range(30), *range(34, 94, 5)),
        [1] * 29 + [3] + [5] * 12,
    ),
]


@pytest.mark.parametrize(("heights", "thickness"), [r[1:] for r in THICKNESS], ids=[r[0] for r in THICKNESS])
def test_what_a_slice_stands_for(heights: tuple[float, ...], thickness: list[float]) -> None:
    np.testing.assert_allclose(build_volume(at_heights(*heights)).thickness_mm, thickness)


def test_perpendicular_not_along_the_table() -> None:
    cos, sin = np.cos(np.radians(18)), np.sin(np.radians(18))
    series = ct_series(12, rows=16, iop=(1, 0, 0, 0, cos, -sin))
    for k, ds in enumerate(series):
        ds.ImagePositionPatient = [-100, -110, 5.0 * k]
    volume = build_volume(series)
    np.testing.assert_allclose(volume.thickness_mm, 5.0 * cos, rtol=1e-6)
    assert warned(volume, "18.0 degrees")


def test_left_out_with_a_word() -> None:
    series = at_heights(0, 5, 10, 15)
    again = at_heights(5, 10, 15, 20, name="again", AcquisitionNumber=2)
    volume = build_volume([*series, series[2], *again[:2]])
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert warned(volume, "1 repeated instances")
    assert warned(volume, "2 slices at the place of another")


def test_the_largest_group_is_kept() -> None:
    series = at_heights(0, 5, 10, 15, 20)
    others = ct_series(3, rows=32, name="matrix") + ct_series(4, iop=(1, 0, 0, 0, 0, -1), name="coronal")
    volume = build_volume(others + series)
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert warned(volume, "3 slices of another volume, orientation, matrix or pixel spacing")
    assert warned(volume, "4 localizers or slices that are not axial")


def test_a_scan_that_was_repeated_is_not_mixed_with_the_first() -> None:
    """The patient moved; both are in one series, the second 1.2 mm farther down."""
    first = at_heights(*np.arange(8) * 5.0, name="one", AcquisitionNumber=1)
    again = at_heights(*np.arange(8) * 5.0 + 1.2, name="two", AcquisitionNumber=2)
    volume = build_volume([one for both in zip(again, first, strict=True) for one in both])
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in first)
    np.testing.assert_allclose(volume.thickness_mm, 5.0)
    assert warned(volume, "8 slices of another volume")
    longer = build_volume([*first[2:], *again])
    assert longer.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in again)


TWICE = [
    ("the places written less exactly", {"AcquisitionNumber": 2}, 24, 0.002, 1),
    ("after one that was broken off", {"AcquisitionNumber": 2}, 40, 0.0, 2),
    ("another kernel under the same numbers", {"ConvolutionKernel": "H41s"}, 24, 0.0, 1),
    ("another thickness under the same numbers", {"SliceThickness": 3.0}, 24, 0.0, 2),
    ("contrast agent, more of it", {"AcquisitionNumber": 2, "ContrastBolusAgent": "IOHEXOL"}, 30, 0.0, 1),
]


@pytest.mark.parametrize(
    ("changes", "slices", "off_mm", "read"), [row[1:] for row in TWICE], ids=[row[0] for row in TWICE]
)
def test_two_scans_of_the_same_places_are_not_mixed(
    changes: dict[str, Any], slices: int, off_mm: float, read: int
) -> None:
    first = at_heights(*np.arange(24) * 5.003, name="one", AcquisitionNumber=1)
    again = at_heights(*np.arange(slices) * 5.003 - off_mm, name="two", **changes)
    volume = build_volume([*again, *first])
    wanted = {1: first, 2: again}[read]
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in wanted)


def test_of_two_scans_that_are_about_as_long_the_first_is_read_where_it_lies() -> None:
    """The second may have been made with a contrast agent that no header tells of."""
    first = at_heights(*np.arange(28) * 5.0, name="one", AcquisitionNumber=1)
    again = at_heights(*np.arange(30) * 5.0, name="two", AcquisitionNumber=2)
    volume = build_volume([*again, *first])
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in [*first, *again[28:]])


def test_parts_of_a_scan_that_overlap_are_both_read() -> None:
    """A fossa in thin slices, and thick ones that begin two centimetres below its end."""
    fossa = at_heights(*np.arange(29) * 2.5, name="fossa", AcquisitionNumber=1)
    above = at_heights(*np.arange(20) * 5.0 + 51.2, name="above", AcquisitionNumber=2)
    assert len(build_volume([*fossa, *above]).hu) == 49


def test_steps_of_one_scan_with_numbers_of_their_own_stay_together() -> None:
    """A sequential scanner counts each turn of its tube; two parts of a scan may share a place."""
    steps = at_heights(*np.arange(12) * 5.0)
    for number, ds in enumerate(steps):
        ds.AcquisitionNumber = number // 2
    assert len(build_volume(steps).hu) == 12
    for number, ds in enumerate(steps):
        ds.AcquisitionNumber = 1 if number < 7 else 2
    steps[7].ImagePositionPatient = [-100, -110, 29.0]  # a little of the first part again
    assert len(build_volume(steps).hu) == 12


def test_jitter_of_the_orientation_keeps_the_series_together() -> None:
    series = ct_series(6, rows=16)
    for k, ds in enumerate(series):
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0.0049 + 0.0002 * (k % 2)]
    volume = build_volume(series)
    assert len(volume.positions_mm) == 6
    assert volume.warnings == ()


def test_missing_slices_are_told() -> None:
    assert warned(build_volume(at_heights(0, 5, 10, 20, 25, 30)), "no slice between 10.0 and 20.0 mm")


def oblique(degrees: float) -> list[float]:
    angle = np.radians(degrees)
    return [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]


LEFT_OUT = [
    ("no rescale", {"RescaleSlope": None}, "without RescaleSlope and RescaleIntercept"),
    ("two frames without groups", {"NumberOfFrames": 2}, "without position, orientation or pixel spacing"),
    ("a projection", {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "not axial"),
    ("reformats that stand at 40 degrees", {"ImageOrientationPatient": oblique(40)}, "not axial"),
]


@pytest.mark.parametrize(("changes", "word"), [row[1:] for row in LEFT_OUT], ids=[row[0] for row in LEFT_OUT])
def test_what_the_choice_of_series_leaves_out_is_not_read(changes: dict[str, Any], word: str) -> None:
    """There is more of it than of the slices that were judged: derived ones, as a site may allow."""
    derived = ["DERIVED", "SECONDARY", "AXIAL"]
    series = at_heights(*np.arange(24) * 5.0, ImageType=derived)
    others = at_heights(*np.arange(30) * 5.0 + 2.5, name="other", **{"ImageType": derived, **changes})
    volume = build_volume([*others, *series])
    assert volume.sop_instance_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert warned(volume, "30 ") and warned(volume, word)


def test_captures_in_the_same_place_are_no_slices() -> None:
    captures = at_heights(0, 5, 10, name="capture", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    volume = build_volume([*captures, *at_heights(0, 5, 10, 15)])
    assert len(volume.positions_mm) == 4
    assert warned(volume, "3 objects that are no CT images")


@pytest.mark.parametrize(
    ("series", "code"),
    [
        (ct_series(2, rows=16), "TOO_FEW_SLICES"),
        ([], "TOO_FEW_SLICES"),
        (at_heights(0, 0, 0, 0), "TOO_FEW_SLICES"),
        (ct_series(20, rows=16, iop=(1, 0, 0, 0, 0, -1)), "TOO_FEW_SLICES"),
        (ct_series(5, rows=16, ImagePositionPatient=None), "NO_GEOMETRY"),
        (ct_series(5, rows=16, PixelSpacing=None), "NO_GEOMETRY"),
        (ct_series(5, rows=16, RescaleSlope=None), "NO_RESCALE"),
        (ct_series(5, rows=16, PixelData=b"\0\0"), "PIXELS_UNDECODABLE"),
    ],
)
def test_refused_with_a_code(series: list[Dataset], code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        build_volume(series)
    assert caught.value.code == code


def test_files(tmp_path: Path) -> None:
    series = ct_series(5, rows=24)
    paths = [tmp_path / f"{5 - k}.dcm" for k in range(5)]
    for ds, path in zip(series, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    volume = load_volume(paths)
    np.testing.assert_allclose(volume.hu, build_volume(series).hu)
    assert volume.hu.shape == head_hu(5, 24, 24).shape


@pytest.mark.parametrize(
    ("content", "code"), [(None, "FILE_MISSING"), (b"not DICOM" * 30, "FILE_UNREADABLE")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "bad.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError, match=r"bad\.dcm") as caught:
        load_volume([path])
    assert caught.value.code == code


def test_the_normal_of_an_axial_slice_points_to_the_head() -> None:
    assert slice_normal(AXIAL) == (0.0, 0.0, 1.0)
