"""Small pieces leave a mask, whatever lies around it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from workers.models.picture import SMALLEST_ML, without_specks

SPACING_MM = (5.0, 1.0, 1.0)


def by_the_book(mask: np.ndarray) -> np.ndarray:
    """Piece by piece, over the whole volume."""
    labels, count = ndimage.label(mask)
    kept = np.zeros_like(mask)
    for number in range(1, count + 1):
        piece = labels == number
        if piece.sum() * np.prod(SPACING_MM) / 1000 >= SMALLEST_ML:
            kept |= piece
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_the_same_pieces_stay_as_by_the_book(seed: int) -> None:
    chance = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(chance.standard_normal((12, 40, 48)), (0.8, 2, 2))
    mask = field > np.quantile(field, 0.93)
    mask[:, :5], mask[:, :, 40:], mask[0] = False, False, False
    kept = without_specks(mask, SPACING_MM)
    assert 0 < kept.sum() < mask.sum(), "some pieces are specks, some are not"
    assert (kept == by_the_book(mask)).all()


@pytest.mark.parametrize("corner", [0, -1])
def test_a_piece_at_the_border_of_the_volume_stays(corner: int) -> None:
    mask = np.zeros((4, 30, 30), bool)
    part = slice(0, 20) if corner == 0 else slice(-20, None)
    mask[corner, part, part] = True
    assert (without_specks(mask, SPACING_MM) == mask).all()


def test_nothing_stays_nothing() -> None:
    mask = np.zeros((3, 8, 8), bool)
    assert not without_specks(mask, SPACING_MM).any()
