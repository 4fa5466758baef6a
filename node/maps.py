"""Masks and heat maps as the bytes of one file, for the worker to leave and compose to pick up. Pure."""

from __future__ import annotations

import io
import zipfile
import zlib
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
            packed, (z, rows, columns) = arrays["masks"], (int(n) for n in arrays["shape"])
            count = z * rows * columns
            if min(z, rows, columns) < 0 or packed.shape != (-(-count // 8),):
                raise ValueError(f"{packed.shape} bytes are no mask of {z} × {rows} × {columns}")
            masks = np.unpackbits(packed, count=count).astype(bool).reshape(z, rows, columns)
            return Maps(masks, arrays["heat"])
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PermanentError("MAPS_UNREADABLE", f"stored masks cannot be read: {error}") from error
