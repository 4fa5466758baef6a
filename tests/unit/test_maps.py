"""Masks and heat maps survive being packed; anything else is refused by its code."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from node.domain.errors import PermanentError
from node.maps import Maps, pack, unpack


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 512, 512), (4, 3, 9)])
def test_what_is_packed_comes_back_bit_for_bit(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(7)
    masks = random.random(shape) < 0.3
    heat = random.integers(0, 256, (shape[0], 16, 16), dtype=np.uint8)
    back = unpack(pack(Maps(masks, heat)))
    assert back.masks.dtype == np.bool_ and back.heat.dtype == np.uint8
    np.testing.assert_array_equal(back.masks, masks)
    np.testing.assert_array_equal(back.heat, heat)


def test_an_empty_mask_of_a_whole_head_is_small() -> None:
    data = pack(Maps(np.zeros((300, 512, 512), bool), np.zeros((300, 32, 32), np.uint8)))
    assert len(data) < 100_000


def _zip(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


WHOLE = pack(Maps(np.ones((2, 8, 8), bool), np.ones((2, 4, 4), np.uint8)))
PICKLED = _zip(masks=np.array([{"a": 1}], dtype=object), shape=np.array([1]), heat=np.zeros(1))


def _directory_says(at: int, value: int) -> bytes:
    """With another byte in the first entry of the zip's directory (APPNOTE 4.3.12)."""
    place = WHOLE.index(b"PK\1\2") + at
    return WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]


EMPTY_ZIP = io.BytesIO()
zipfile.ZipFile(EMPTY_ZIP, "w").close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        WHOLE[: len(WHOLE) // 2],
        WHOLE[:-30],
        EMPTY_ZIP.getvalue(),
        PICKLED,
        _zip(masks=np.zeros(1, np.uint8), shape=np.array([2, 8, 8]), heat=np.zeros(1, np.uint8)),
        _zip(masks=np.zeros(16, np.uint8), shape=np.array([-2, 8, 8]), heat=np.zeros(1, np.uint8)),
        _zip(masks=np.zeros(16, np.float32), shape=np.array([2, 8, 8]), heat=np.zeros(1, np.uint8)),
        _zip(masks=np.zeros(16, np.uint8), shape=np.array(7), heat=np.zeros(1, np.uint8)),
        WHOLE[:60] + bytes(20) + WHOLE[80:],
        _directory_says(6, 99),
        _directory_says(8, 1),
    ],
    ids=[
        "empty",
        "text",
        "half",
        "tail",
        "no arrays",
        "pickle",
        "short",
        "negative",
        "float",
        "scalar",
        "rot",
        "zip of a later version",
        "encrypted",
    ],
)
def test_what_pack_did_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(PermanentError) as caught:
        unpack(data)
    assert caught.value.code == "MAPS_UNREADABLE"
