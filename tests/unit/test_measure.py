"""Millilitres, diameters, sides and parts of a mask, against shapes whose measures are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from node.domain.findings import SegmentationFinding, Side
from node.domain.instance import SliceRef
from tests.factories import AXIAL, ct_series
from workers.measure import measured, reaches_edge, slices_with, volume_ml
from workers.midline import BY_SYMMETRY
from workers.volume import Volume, build_volume


@pytest.fixture
def volume() -> Volume:
    """Slices at 0, 5, 10, 20, 25 and 30 mm, pixels of 0.5 mm by 0.4 mm."""
    series = ct_series(6, rows=20, columns=16, PixelSpacing=[0.5, 0.4])
    for ds, height in zip(series, (0, 5, 10, 20, 25, 30), strict=True):
        ds.ImagePositionPatient = [-100, -110, height]
    return build_volume(series)


def test_nothing(volume: Volume) -> None:
    mask = np.zeros(volume.hu.shape, bool)
    assert volume_ml(mask, volume) == 0.0
    assert slices_with(mask, volume) == ()


@pytest.mark.parametrize(("index", "thickness_mm"), [(0, 5.0), (1, 5.0), (2, 7.5), (3, 7.5), (5, 5.0)])
def test_each_slice_counts_with_its_own_thickness(volume: Volume, index: int, thickness_mm: float) -> None:
    mask = np.zeros(volume.hu.shape, bool)
    mask[index, 2:12, 3:13] = True
    assert volume_ml(mask, volume) == pytest.approx(100 * 0.5 * 0.4 * thickness_mm / 1000)
    assert slices_with(mask, volume) == (volume.sop_instance_uids[index],)


def test_all_of_it(volume: Volume) -> None:
    mask = np.ones(volume.hu.shape, bool)
    assert volume_ml(mask, volume) == pytest.approx(20 * 0.5 * 16 * 0.4 * 35 / 1000)
    assert slices_with(mask, volume) == volume.sop_instance_uids


TILT = float(np.cos(np.radians(18))), float(np.sin(np.radians(18)))


def head(
    blood_mm: tuple[float, float, float],
    *,
    iop: tuple[float, ...] = AXIAL,
    leaning: bool = False,
    middle_mm: float = 0.0,
) -> tuple[Volume, np.ndarray]:
    """A skull with its middle at x = `middle_mm`, and a mask of an ellipsoid of blood at that place in LPS.

    The half-axes are 24 mm from side to side, 15 mm to the back and 18 mm up; slices of 4 mm. `leaning`
    tilts the gantry by 18 degrees while the table moves along z.
    """
    orientation = (1.0, 0.0, 0.0, 0.0, *TILT) if leaning else iop
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along_row, along_column)
    table = np.arange(-60, 60, 4.0) / (TILT[0] if leaning else 1.0) * (1 if normal[2] > 0 else -1)
    origins = table[:, None] * (0, 0, 1) - 108.0 * (along_row + along_column)
    volume = Volume(
        hu=np.zeros((30, 73, 73), np.float32),
        positions_mm=origins @ normal,
        thickness_mm=np.full(30, 4.0),
        pixel_spacing_mm=(3.0, 3.0),
        orientation=orientation,
        origins_mm=origins,
        slices=tuple(SliceRef(f"1.{k}") for k in range(30)),
    )
    places = volume.patient_mm(np.argwhere(np.ones(volume.hu.shape, bool))).reshape(*volume.hu.shape, 3)
    radius = np.hypot((places[..., 0] - middle_mm) / 70, places[..., 1] / 88)
    hu = np.where(radius < 0.92, 35, np.where(radius < 1, 1000, -1000)).astype(np.float32)
    crest = (np.abs(places[..., 0] - middle_mm) < 3) & (places[..., 1] > 65) & (radius < 1)
    hu[crest] = 1000
    mask = (((places - blood_mm) / (24.0, 15.0, 18.0)) ** 2).sum(-1) < 1
    return replace(volume, hu=hu), mask


ELLIPSOID_ML = 4 / 3 * np.pi * 24 * 15 * 18 / 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "leaning": {"leaning": True},
    "seen from above": {"iop": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
    "transposed": {"iop": (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)},
    "upside down": {"iop": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("x_mm", "side"), [(32.0, Side.LEFT), (-32.0, Side.RIGHT)])
def test_an_ellipsoid_is_the_same_however_it_was_scanned(variant: str, x_mm: float, side: Side) -> None:
    found = measured(*reversed(head((x_mm, -10.0, 0.0), **VARIANTS[variant])), {})
    assert found.volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.04)
    assert found.diameter_mm == pytest.approx(48, abs=3.5)
    assert (found.side, found.side_method) == (side, BY_SYMMETRY)
    assert found.components == 1
    assert found.abc2
    assert (found.abc2.a_mm, found.abc2.b_mm) == pytest.approx((48, 30), abs=4.5)
    assert found.abc2.volume_ml == pytest.approx(48 * 30 * 18 * 1.366 / 2000, rel=0.2)
    assert found.left_ml is not None and found.right_ml is not None
    assert found.left_ml + found.right_ml == pytest.approx(found.volume_ml)
    assert max(found.left_ml, found.right_ml) == pytest.approx(found.volume_ml, rel=0.001)


@pytest.mark.parametrize(
    ("middle_mm", "x_mm", "side"),
    [(0, 12, Side.BILATERAL), (30, 20, Side.BILATERAL), (-30, 5, Side.LEFT), (30, -5, Side.RIGHT)],
)
def test_the_side_is_that_of_the_head_not_of_the_image(middle_mm: float, x_mm: float, side: Side) -> None:
    volume, mask = head((x_mm, 0.0, 0.0), middle_mm=middle_mm)
    assert measured(mask, volume, {}).side is side


def test_a_thin_midline_bleed_is_neither_left_nor_right() -> None:
    volume, mask = head((0.0, 0.0, 0.0), middle_mm=10)
    places = volume.patient_mm(np.argwhere(mask))
    thin = np.zeros_like(mask)
    thin[tuple(np.argwhere(mask)[np.abs(places[:, 0] - 10) < 4].T)] = True
    assert measured(thin, volume, {}).side is Side.MIDLINE


def test_parts_are_counted_and_the_largest_one_is_estimated() -> None:
    volume, mask = head((40.0, 0.0, 0.0))
    specks = mask.copy()
    specks[2:4, 30:32, 20:22] = specks[25, 50, 20] = True
    whole, alone = measured(specks, volume, {}), measured(mask, volume, {})
    assert (whole.components, alone.components) == (3, 1)
    assert whole.abc2 == alone.abc2 and whole.diameter_mm == alone.diameter_mm
    assert whole.volume_ml > alone.volume_ml


def test_the_largest_part_is_that_of_the_most_millilitres(volume: Volume) -> None:
    """Slices that stand for more height hold fewer voxels of the same blood."""
    thin, thick = np.zeros(volume.hu.shape, bool), np.zeros(volume.hu.shape, bool)
    thin[0, 2:4, 2:7] = True
    thick[3, 10:14, 10:12] = True
    found, alone = measured(thin | thick, volume, {}), measured(thick, volume, {})
    assert thin.sum() > thick.sum() and volume_ml(thin, volume) < volume_ml(thick, volume)
    assert found.components == 2
    assert found.abc2 == alone.abc2


def test_subtypes_are_measured_each(volume: Volume) -> None:
    part = np.zeros(volume.hu.shape, bool)
    part[1, :10, :10] = True
    found = measured(np.ones_like(part), volume, {"subdural": part})
    assert found.subtypes_ml == {"subdural": pytest.approx(100 * 0.5 * 0.4 * 5 / 1000)}


def test_an_empty_mask_is_nothing_but_zero(volume: Volume) -> None:
    assert measured(np.zeros(volume.hu.shape, bool), volume, {}) == SegmentationFinding(0.0, ())


@pytest.mark.parametrize(("index", "reaches"), [(0, True), (2, False), (5, True)])
def test_blood_on_an_outer_slice_may_go_on(volume: Volume, index: int, reaches: bool) -> None:
    mask = np.zeros(volume.hu.shape, bool)
    mask[index, 3, 3] = True
    assert reaches_edge(mask) is reaches
