"""Masks and heat maps as the bytes of one file, for the worker to leave and compose to pick up. Pure."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np

from node.domain.errors import PermanentError


@dataclass(frozen=True)
class Maps:
    """Arrays of one analysis, in source pixel orientation and the slice order of its findings.

    `masks` is boolean (z, rows, columns); `heat` is uint8 (z, h, w) over the whole image field.
    """

    masks: np.ndarray
    heat: np.ndarray


def pack(maps: Maps) -> bytes:
    stream = io.BytesIO()
    shape = np.array(maps.masks.shape)
    np.savez_compressed(stream, masks=np.packbits(maps.masks), shape=shape, heat=maps.heat)
    return stream.getvalue()


def unpack(data: bytes) -> Maps:
    """Raises PermanentError MAPS_UNREADABLE for anything `pack` did not write."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            shape = tuple(int(n) for n in arrays["shape"])
            count = int(np.prod(shape))
            masks = np.unpackbits(arrays["masks"], count=count).astype(bool).reshape(shape)
            return Maps(masks, arrays["heat"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise PermanentError("MAPS_UNREADABLE", f"stored masks cannot be read: {error}") from error
