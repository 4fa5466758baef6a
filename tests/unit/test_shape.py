"""Lengths and ABC/2 of shapes whose measures are known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workers.shape import abc2, axes_mm, box_of, regions


def ellipse(half_axes_mm: tuple[float, float], spacing_mm: tuple[float, float], degrees: float) -> np.ndarray:
    """Boolean (y, x), its longer axis turned away from the rows."""
    size = 160
    y, x = np.mgrid[0:size, 0:size].astype(float) - size / 2 + 0.3
    y, x = y * spacing_mm[0], x * spacing_mm[1]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = cos * x + sin * y, cos * y - sin * x
    return (along / half_axes_mm[0]) ** 2 + (across / half_axes_mm[1]) ** 2 < 1


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5), (1.0, 0.5), (0.6, 1.1)])
@pytest.mark.parametrize("degrees", [0, 33, 90, 135])
def test_axes_of_an_ellipse(spacing_mm: tuple[float, float], degrees: float) -> None:
    a_mm, b_mm = axes_mm(ellipse((20.0, 11.0), spacing_mm, degrees), spacing_mm)
    assert a_mm == pytest.approx(40.0, abs=1.2 * max(spacing_mm))
    assert b_mm == pytest.approx(22.0, abs=1.7 * max(spacing_mm))


def test_a_rectangle_is_measured_to_its_outer_edges() -> None:
    region = np.zeros((10, 30), bool)
    region[4, 5:25] = True
    a_mm, b_mm = axes_mm(region, (0.5, 0.4))
    assert a_mm == pytest.approx(20 * 0.4)
    assert b_mm == pytest.approx(0.5)


def test_one_pixel_has_a_size() -> None:
    assert axes_mm(np.ones((1, 1), bool), (0.5, 0.4)) == pytest.approx((0.5, 0.4))


def test_a_crescent_is_as_broad_as_it_is_thick() -> None:
    y, x = np.mgrid[0:120, 0:120] - 59.5
    radius = np.hypot(y, x)
    crescent = (radius < 50) & (radius > 42) & (x > 20)
    a_mm, b_mm = axes_mm(crescent, (1.0, 1.0))
    assert a_mm == pytest.approx(2 * math.sqrt(50**2 - 20**2), abs=2)
    assert 8 <= b_mm <= 14


def ellipsoid(step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Half-axes of 24 (x), 15 (y), 18 mm (z); pixels of 0.5 mm by 0.75 mm; and the thickness of slices."""
    z, y, x = np.mgrid[-20 : 20 + 1e-6 : step_mm, -20:20.01:0.5, -30:30.01:0.75]
    mask = (x / 24) ** 2 + (y / 15) ** 2 + (z / 18) ** 2 < 1
    return mask, np.full(len(mask), step_mm)


def test_abc2_of_an_ellipsoid_in_thin_slices() -> None:
    """C by the weights: |z| < 1/2 counts fully, up to sqrt(3)/2 by half, of a half-axis of 18 mm."""
    mask, thickness_mm = ellipsoid(0.5)
    found = abc2(mask, thickness_mm, (0.5, 0.75))
    c_mm = 18 * (1 + (math.sqrt(0.75) - 0.5))
    assert (found.a_mm, found.b_mm) == pytest.approx((48, 30), abs=1.2)
    assert found.c_mm == pytest.approx(c_mm, abs=1.0)
    assert found.volume_ml == pytest.approx(48 * 30 * c_mm / 2000, rel=0.06)


def test_abc2_of_an_ellipsoid_in_the_slices_of_its_day() -> None:
    """On 10 mm slices through 36 mm of blood: one full slice, two of 69 % area; none of the outer two."""
    mask, thickness_mm = ellipsoid(10.0)
    areas = np.count_nonzero(mask, axis=(1, 2))
    assert [round(float(a), 1) for a in areas / areas.max()] == [0.0, 0.7, 1.0, 0.7, 0.0]
    assert abc2(mask, thickness_mm, (0.5, 0.75)).c_mm == 20


@pytest.mark.parametrize(
    ("widths", "c_mm"),
    [((100, 76, 75, 74), 5 + 5 + 2.5 + 2.5), ((100, 26, 25, 24), 5 + 2.5 + 2.5), ((10, 100, 10), 5)],
)
def test_the_weights_change_at_75_and_25_percent(widths: tuple[int, ...], c_mm: float) -> None:
    mask = np.zeros((len(widths), 1, 100), bool)
    for z, width in enumerate(widths):
        mask[z, 0, :width] = True
    assert abc2(mask, np.full(len(widths), 5.0), (1.0, 1.0)).c_mm == c_mm


def test_slices_of_uneven_thickness_count_with_their_own() -> None:
    mask = np.ones((3, 4, 4), bool)
    assert abc2(mask, np.array([2.0, 5.0, 7.5]), (1.0, 1.0)).c_mm == 14.5


def test_regions_of_a_slice_are_taken_apart() -> None:
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 1:3, 1:3] = mask[0, 3, 3] = mask[0, 6, 6] = True
    assert sorted(int(region.sum()) for region in regions(mask)) == [1, 5]


def test_the_box_holds_the_mask_and_no_more() -> None:
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2, 3] = mask[2, 4, 1] = True
    assert box_of(mask) == (slice(1, 3), slice(2, 5), slice(1, 4))
