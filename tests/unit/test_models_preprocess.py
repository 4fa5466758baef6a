"""The network's picture of a head: the same on every matrix, and back on the source where it came from."""

from __future__ import annotations

import numpy as np
import pytest

from node.domain.errors import PermanentError
from node.pixels import AIR_HU
from workers.phantom import volume
from workers.preprocess import (
    BONE_HU,
    SIZE,
    STEP_MM,
    HeadFrame,
    NetworkInput,
    find_head,
    network_input,
    resample,
    unclipped,
)

SPACING = (5.0, 1.0, 1.0)


def _ball(size: int = 128, centre: tuple[int, int] = (60, 70), radius: int = 40) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    head = np.hypot(y - centre[0], x - centre[1]) < radius
    return np.where(head, 40.0, -1000.0).astype(np.float32)


def test_the_frame_is_a_square_around_the_head_and_not_the_head_rest() -> None:
    picture = _ball()
    picture[118:119, 10:120] = 200  # a thin rest
    frame = find_head(np.stack([picture] * 5), SPACING)
    assert frame.height == pytest.approx(frame.width)
    assert frame.height == pytest.approx(80, rel=0.1)
    assert frame.top + frame.height / 2 == pytest.approx(60, abs=2)
    assert frame.left + frame.width / 2 == pytest.approx(70, abs=2)


def test_a_frame_is_square_in_millimetres_where_pixels_are_not() -> None:
    frame = find_head(np.stack([_ball()[::2]] * 5), (5.0, 2.0, 1.0))
    assert frame.height * 2 == pytest.approx(frame.width)


def test_the_same_head_on_two_matrices_gives_nearly_the_same_picture() -> None:
    pictures = []
    for size in (128, 256):
        head = volume(21, (), slices=3, size=size, lowest_mm=0)
        pictures.append(network_input(head.hu, head.spacing_mm).pictures)
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.05


def test_what_goes_out_comes_back_where_it_was() -> None:
    image = _ball()
    frame = find_head(np.stack([image] * 3), SPACING)
    shape = (3, *image.shape)
    source = NetworkInput(np.zeros((3, SIZE, SIZE), np.float32), np.arange(3, dtype=np.float32), frame, shape)
    mask = np.zeros_like(image)
    mask[50:58, 80:92] = 1
    back = source.to_source(resample(mask, frame, SIZE)) > 0.5
    assert 2 * (back & (mask > 0)).sum() / (back.sum() + mask.sum()) > 0.93
    half = source.to_source(resample(mask, frame, SIZE), (64, 64)) > 0.5
    rows, columns = np.argwhere(half).T
    assert (rows.mean() * 2, columns.mean() * 2) == pytest.approx((53, 85.5), abs=1.6)


def test_a_frame_may_reach_outside_the_picture() -> None:
    picture = resample(np.ones((20, 20), np.float32), HeadFrame(-10, -10, 40, 40), 40)
    assert picture[20, 20] == 1 and picture[2, 2] == 0 and picture[37, 37] == 0


def test_thin_slices_are_averaged_to_the_step_the_network_knows() -> None:
    hu = np.stack([_ball()] * 21)
    source = network_input(hu, (1.25, 1.0, 1.0))
    assert len(source.pictures) == 6
    assert np.diff(source.centres)[:-1] == pytest.approx(STEP_MM / 1.25)
    values = source.to_slices(source.centres[:, None].copy())
    assert values.shape == (21, 1)
    assert values[2:19, 0] == pytest.approx(np.arange(2, 19), abs=0.51)
    assert source.triplets().shape == (6, 3, SIZE, SIZE)


def test_the_pictures_behind_some_slices_decide_all_of_their_values() -> None:
    source = network_input(np.stack([_ball()] * 21), (1.25, 1.0, 1.0))
    rng = np.random.default_rng(0)
    values = rng.random((len(source.pictures), 2), np.float32)
    for wanted in (np.arange(21) == 9, np.arange(21) < 5, rng.random(21) < 0.3, np.zeros(21, bool)):
        behind = source.behind(wanted)
        assert behind.shape == (6,) and behind.sum() <= 2 * wanted.sum()
        told = source.to_slices(np.where(behind[:, None], values, np.float32(1e9)))
        assert np.array_equal(told[wanted], source.to_slices(values)[wanted])
    thick = network_input(np.stack([_ball()] * 3), (5.0, 1.0, 1.0))
    assert thick.behind(np.asarray([False, True, False])).tolist() == [False, True, False]


def test_bone_and_air_are_clipped_to_the_brain_window() -> None:
    hu = np.stack([_ball()] * 3)
    hu[:, 55:65, 65:75] = 1500
    pictures = network_input(hu, SPACING).pictures
    assert pictures.min() == 0 and pictures.max() == 1
    assert np.median(pictures[1, 0, 40:90, 30:50]) == pytest.approx(0.5, abs=0.02)


def test_a_skull_that_a_window_cut_off_is_bone_again() -> None:
    """Exported in the brain window, bone would be 80 HU: as dense as blood."""
    hu = volume(21, (), slices=3, size=128, lowest_mm=0).hu
    narrow = np.where(hu > -200, np.clip(hu, 0, 80), -1000).astype(np.float32)
    back = unclipped(narrow)
    assert (back[hu >= 80] == BONE_HU).all() and np.array_equal(back[hu < 75], narrow[hu < 75])
    pictures, plain = network_input(narrow, SPACING).pictures, network_input(hu, SPACING).pictures
    assert (pictures[plain > 0.99] > 0.9).mean() > 0.99  # the network sees the skull as it always does


@pytest.mark.parametrize(("low", "high"), [(0, 80), (-20, 100)])
def test_air_that_a_window_cut_off_is_air_again(low: float, high: float) -> None:
    """Exported as a picture, the air around a head has the lowest value, as its ventricles may have."""
    hu = volume(21, (), slices=3, size=128, lowest_mm=0).hu
    wide = np.pad(hu, ((0, 0), (40, 40), (40, 40)), constant_values=-1000)  # a small head on a large picture
    exported = np.clip(wide, low, high).astype(np.float32)
    back = unclipped(exported)
    assert (back[wide < -900] == AIR_HU).mean() > 0.99
    assert not (back[(wide > low + 5) & (wide < high - 5)] == AIR_HU).any()
    found, plain = find_head(back, SPACING), find_head(wide, SPACING)
    assert found.height == pytest.approx(plain.height, rel=0.1)
    pictures = network_input(exported, SPACING, frame=plain).pictures
    assert np.abs(pictures - network_input(wide, SPACING).pictures).mean() < 0.03


def test_values_that_nothing_cut_off_stay_as_they_are() -> None:
    head = volume(21, (), slices=3, size=128, lowest_mm=0).hu
    body = np.stack([_ball()] * 3)  # no skull anywhere
    body[:, 55:65, 65:75] = 30
    for hu in (head, body):
        assert np.array_equal(unclipped(hu), hu)


@pytest.mark.parametrize("hu", (np.full((3, 64, 64), -1000, np.float32), np.zeros((0, 4, 4), np.float32)))
def test_no_head_no_picture(hu: np.ndarray) -> None:
    with pytest.raises(PermanentError):
        network_input(hu, SPACING)
