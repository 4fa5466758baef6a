"""One received image in memory: what its header says, its frames in HU, and what these show of a head.

Whoever builds a volume takes images, whether their pixels are decoded already or not. A decoded one holds
the very same HU, bit for bit. Opens no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.domain.instance import Instance
from node.headers import instance_of
from node.pixels import hounsfield, lossy_words
from workers.head import Slice, look_at

THIN_MM = 2.0
"""Of thinner slices not each is looked at for a head (workers.head.look), and nobody knows yet which."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What `workers.head.look_at` says of a slice at this pixel spacing (mm; rows, columns)."""

    spacing_mm: tuple[float, float]
    slice_: Slice


@dataclass(frozen=True, eq=False)
class Image:
    """An instance; `hu` gives a frame (from 0) as float32 (rows, columns), or raises as `hounsfield` does."""

    instance: Instance
    lossy: str
    """Words for the reader, where compression lost something."""
    hu: Callable[[int], NDArray[np.float32]]
    seen: Seen | None = None
    size_bytes: int = 0
    """Of decoded pixels that it holds."""


def image_of(ds: Dataset) -> Image:
    """An image whose pixels are still to be decoded. Raises as `instance_of` does."""
    meta = getattr(ds, "file_meta", None)
    syntax = str(meta.get("TransferSyntaxUID", "")) if meta else ""
    return Image(instance_of(ds, syntax), lossy_words(ds), lambda frame: hounsfield(ds, frame))


def decoded(image: Image) -> Image:
    """The same image of one frame with its pixels at hand, and looked at unless it is thin.

    Raises PermanentError as `hounsfield` does.
    """
    hu = image.hu(0)
    kept = packed(hu)
    spacing, seen = image.instance.pixel_spacing, None
    if spacing is not None and (image.instance.slice_thickness or 0.0) >= THIN_MM:
        pair = (spacing[0], spacing[1])
        seen = Seen(pair, look_at(hu, pair))
    return Image(image.instance, image.lossy, lambda frame: kept.astype(np.float32), seen, kept.nbytes)


def packed(hu: NDArray[np.float32]) -> NDArray[np.int16] | NDArray[np.float32]:
    """HU in half the memory, where float32 comes back from it bit for bit; else as they are."""
    with np.errstate(invalid="ignore"):
        whole = hu.astype(np.int16)
    again = whole.astype(np.float32)
    return whole if np.array_equal(again.view(np.uint32), hu.view(np.uint32)) else hu
