"""Millilitres and slices of a mask."""

from __future__ import annotations

import numpy as np
import pytest

from tests.factories import ct_series
from workers.measure import slices_with, volume_ml
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
