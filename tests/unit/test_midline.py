"""The mid-sagittal plane of phantom heads that lie off centre, turned and leaning."""

from __future__ import annotations

import numpy as np
import pytest

from workers.midline import BY_IMAGE, BY_SYMMETRY, midplane

SPACING_MM = (1.5, 1.2)


def head(
    turned_deg: float = 0, at_mm: float = 90, lean: float = 0, blood: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """HU (z, y, x) of a skull with an inner crest and petrous ridges, and the heights of its slices."""
    heights = np.arange(0, 120, 5.0)
    z, y, x = np.meshgrid(heights, np.arange(140) * 1.5, np.arange(160) * 1.2, indexing="ij")
    x = x - at_mm - lean * (z - 60)
    y = y - 105
    angle = np.radians(turned_deg)
    side, depth = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    radius = np.hypot(side / 68, depth / 85)
    hu = np.where(radius < 1, 35.0, -1000.0)
    hu[(radius > 0.92) & (radius < 1)] = 1100
    hu[(np.abs(side) < 3) & (depth > 65) & (radius < 1)] = 900
    ridges = (np.abs(np.abs(side) - 25 - 0.5 * depth) < 5) & (depth > 0) & (depth < 40) & (z < 30)
    hu[ridges & (radius < 1)] = 900
    if blood:
        hu[(np.hypot(side - 35, depth) < 25) & (z > 30)] = 75
    return hu.astype(np.float32), heights


@pytest.mark.parametrize("lean", [0.0, 0.12])
@pytest.mark.parametrize(("turned_deg", "at_mm"), [(0, 96), (0, 70), (14, 90), (-22, 100), (48, 95)])
def test_the_plane_follows_the_head(turned_deg: float, at_mm: float, lean: float) -> None:
    hu, heights = head(turned_deg, at_mm, lean)
    plane = midplane(hu, heights, SPACING_MM)
    assert plane.method == BY_SYMMETRY
    assert np.degrees(np.arctan(plane.per_y)) == pytest.approx(turned_deg, abs=1.5)
    assert plane.per_z == pytest.approx(lean, abs=0.02)
    through = plane.left_of_mm(np.array([60.0]), np.array([105.0]), np.array([at_mm]))
    assert through == pytest.approx(0, abs=1.5)


def test_blood_on_one_side_moves_nothing() -> None:
    plain, heights = head(8)
    bloody, _ = head(8, blood=True)
    assert midplane(plain, heights, SPACING_MM) == midplane(bloody, heights, SPACING_MM)


def test_left_is_where_the_columns_grow() -> None:
    hu, heights = head()
    plane = midplane(hu, heights, SPACING_MM)
    away = plane.left_of_mm(np.array([60.0, 60.0]), np.array([105.0, 105.0]), np.array([60.0, 130.0]))
    assert away == pytest.approx([-30, 40], abs=1.5)


def test_without_a_skull_the_image_is_halved_and_says_so() -> None:
    plane = midplane(np.full((5, 20, 31), -1000, np.float32), np.arange(5.0), (1.0, 2.0))
    assert (plane.at_mm, plane.per_y, plane.per_z, plane.method) == (30.0, 0.0, 0.0, BY_IMAGE)
