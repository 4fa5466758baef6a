"""Masks and heat maps as the bytes of one file, for the worker to leave and compose to pick up. Pure."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from node.domain.errors import PermanentError

_PART = "subtype-"


@dataclass(frozen=True)
class Maps:
    """Arrays of one analysis, in source pixel orientation and the slice order of its findings.

    `masks` is boolean (z, rows, columns); `heat` is uint8 (z, h, w) over the whole image field; `subtypes`
    are the parts of the mask by subtype, each of its shape.
    """

    masks: np.ndarray
    heat: np.ndarray
    subtypes: Mapping[str, np.ndarray] = field(default_factory=dict)


UNREADABLE = (
    ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise on bytes that `pack` did not write."""


def pack(maps: Maps) -> bytes:
    stream = io.BytesIO()
    shape = np.array(maps.masks.shape)
    parts: dict[str, Any] = {f"{_PART}{name}": np.packbits(mask) for name, mask in maps.subtypes.items()}
    np.savez_compressed(stream, masks=np.packbits(maps.masks), shape=shape, heat=maps.heat, **parts)
    return stream.getvalue()


def unpack(data: bytes) -> Maps:
    """Raises PermanentError MAPS_UNREADABLE for anything `pack` did not write."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            shape = tuple(int(n) for n in arrays["shape"])
            parts = {name.removeprefix(_PART): name for name in arrays.files if name.startswith(_PART)}
            subtypes = {name: _unpacked(arrays[key], shape) for name, key in parts.items()}
            return Maps(_unpacked(arrays["masks"], shape), arrays["heat"], subtypes)
    except UNREADABLE as error:
        text = f"stored masks cannot be read: {error}; have the job analysed again"
        raise PermanentError("MAPS_UNREADABLE", text) from error


def _unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    if len(shape) != 3 or min(shape) < 0 or packed.shape != (-(-count // 8),):
        raise ValueError(f"{packed.shape} bytes are no mask of {' × '.join(map(str, shape))}")
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)
