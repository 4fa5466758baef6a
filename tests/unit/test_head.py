"""What shows a head is read, what does not is refused, whatever the headers say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from node.domain.errors import PermanentError
from tests import nonheads
from tests.factories import ct_series
from tests.nonheads import NON_HEADS, PIXEL_MM, STEP_MM
from workers.head import Evidence, look, require_head
from workers.load import load_head
from workers.phantom import volume
from workers.volume import build_volume


def looked_at(hu: np.ndarray, pixel_mm: float = PIXEL_MM, step_mm: float = STEP_MM) -> Evidence:
    return look(hu, (pixel_mm, pixel_mm), np.full(len(hu), step_mm))


@pytest.mark.parametrize("name", NON_HEADS)
def test_what_is_no_head_is_refused_in_words(name: str) -> None:
    hu = NON_HEADS[name]()
    assert not looked_at(hu).is_head
    with pytest.raises(PermanentError, match="do not show a head") as caught:
        require_head(hu, (PIXEL_MM, PIXEL_MM), np.full(len(hu), STEP_MM))
    assert caught.value.code == "NOT_A_HEAD"


@pytest.mark.parametrize("seed", range(6))
def test_phantom_heads_are_heads(seed: int) -> None:
    made = volume(seed, None, slices=16, size=128, step_mm=10.0)
    evidence = looked_at(made.hu, made.spacing_mm[1], 10.0)
    assert evidence.is_head
    assert evidence.cranial_mm >= 60


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_no_matter_how_it_lies(turns: int, mirrored: bool) -> None:
    hu = np.rot90(nonheads.head(), turns, axes=(1, 2))
    plain, seen = looked_at(nonheads.head()), looked_at(hu[::-1, ::-1] if mirrored else hu)
    assert seen.is_head
    assert abs(seen.cranial_mm - plain.cranial_mm) <= 2 * STEP_MM


def without(hu: np.ndarray, share: float) -> np.ndarray:
    """A sector of the skull taken out from the top to the base; the brain stays under the scalp."""
    rows, columns = np.indices(hu.shape[1:]) - (hu.shape[1] - 1) / 2
    sector = np.abs(np.arctan2(columns, -rows)) < np.pi * share
    opened = hu.copy()
    opened[(hu > 200) & sector[None]] = 30
    return opened


@pytest.mark.parametrize(("share", "is_head"), [(0.1, True), (0.25, True), (0.9, False)])
def test_a_large_craniectomy_is_still_a_head(share: float, is_head: bool) -> None:
    assert looked_at(without(nonheads.head(), share)).is_head is is_head


def test_a_large_bleed_is_still_a_head() -> None:
    hu = nonheads.head()
    hu[12:24, 50:110, 85:110] = 75
    assert looked_at(hu).is_head


@pytest.mark.parametrize("hu_inside", [9, 70])
def test_a_head_full_of_liquor_or_of_blood_is_still_a_head(hu_inside: int) -> None:
    hu = nonheads.head()
    rows, columns = np.indices(hu.shape[1:]) - (hu.shape[1] - 1) / 2
    middle = np.hypot(rows, columns) < 19
    hu[:, middle] += hu_inside - 32
    assert looked_at(hu).is_head


def test_a_small_and_thin_skull_is_still_a_head() -> None:
    """An infant: a head of half the size, 2 mm of weak bone."""
    rows, columns = np.indices((160, 160)) - 79.5
    radius = np.hypot(rows, columns)
    plane = np.select([radius < 50, radius < 52, radius < 55], [27, 350, 0], -1000)
    hu = np.repeat(plane[None], 20, axis=0).astype(np.float32)
    assert looked_at(hu, 1.0, 4.0).is_head


def test_thin_slices_are_not_all_looked_at() -> None:
    hu = np.repeat(nonheads.head(16), 8, axis=0)
    evidence = looked_at(hu, step_mm=0.625)
    assert evidence.is_head
    assert len(evidence.slices) <= 24


def test_a_chest_called_head_is_not_analysed(tmp_path: Path) -> None:
    series = ct_series(36, nonheads.SIZE, spacing_mm=PIXEL_MM, step_mm=STEP_MM)
    paths = []
    for index, (ds, hu) in enumerate(zip(series, NON_HEADS["chest"](), strict=True)):
        ds.PixelData = (hu + 1024).astype("<i2").tobytes()
        paths.append(tmp_path / f"{index}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    with pytest.raises(PermanentError) as caught:
        load_head(paths)
    assert caught.value.code == "NOT_A_HEAD"


def test_the_plain_head_of_the_factories_is_one() -> None:
    made = build_volume(ct_series(14, 64, step_mm=8.0))
    assert look(made.hu, made.pixel_spacing_mm, made.thickness_mm).is_head


@pytest.mark.skipif(
    "ICHNODE_TEST_DATA" not in os.environ, reason="ICHNODE_TEST_DATA is not set: no real heads"
)
def test_a_real_tilted_head_is_one() -> None:
    folder = Path(os.environ["ICHNODE_TEST_DATA"], "dicom", "ge-head-tilt")
    made = load_head(sorted(folder.glob("*.dcm")))
    assert look(made.hu, made.pixel_spacing_mm, made.thickness_mm).cranial_mm > 90
