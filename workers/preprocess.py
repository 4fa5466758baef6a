"""From a head CT volume in HU to the network's picture of it, and back again. Decides nothing about disease.

The head is cut out and scaled by its own size, not by millimetres, so a series with unknown pixel
spacing is treated like any other. Through which windows and at which size a network sees it is its
`View`. Volumes are (z, y, x), canonical (row 0 anterior, column 0 patient right), feet to head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from node.domain.errors import PermanentError
from node.pixels import AIR_HU

MARGIN = 1.04
"""Side of the picture over the longest side of the head."""
STEP_MM = 5.0
"""Slice step the network knows; thinner slices are averaged to about this."""

BONE_HU = 1000.0
_NO_BONE_HU = 250.0
"""A head in which nothing is denser has lost its skull to a window."""
_AT_END = 0.02
"""Part of the span of values that counts as its end: exported pictures were often compressed."""
_COARSE = 128
_SOFT_HU = -250.0
_MIN_AREA = 0.02
"""A head covers at least this fraction of the largest slice."""

Volume = NDArray[np.float32]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Window:
    """A display window in HU (DICOM Window Center and Width, PS3.3 C.11.2)."""

    level: float
    width: float

    @property
    def low(self) -> float:
        return self.level - self.width / 2

    def apply(self, hu: Volume) -> Volume:
        """HU as 0..1, cut off at both ends."""
        return np.clip((hu - self.low) / self.width, 0, 1).astype(np.float32)


BRAIN, SUBDURAL, BONE = Window(40, 80), Window(80, 200), Window(600, 2800)
WIDE_BRAIN = Window(40, 120)
"""-20..100 HU: the public CT-ICH pictures are clipped there."""


@dataclass(frozen=True)
class View:
    """How a network sees the head: through which windows, and on how many pixels a side."""

    windows: tuple[Window, ...]
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a picture."""
        return self.size, self.size

    def prepare(self, hu: Volume, spacing_mm: Spacing, frame: HeadFrame | None = None) -> NetworkInput:
        """See `network_input`."""
        return network_input(hu, spacing_mm, self, frame)


SIZE = 128
"""Side of the default network's picture in pixels."""
DEFAULT_VIEW = View((WIDE_BRAIN,), SIZE)


@dataclass(frozen=True)
class HeadFrame:
    """The square around the head, in pixels of the source slice: edges may lie outside the picture."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class NetworkInput:
    """`pictures` (n, windows, size, size) float32 0..1, where they lie, and what they come from.

    They are an array, or a tensor on the device that will read them.
    `centres` are the (fractional) source slice numbers of the pictures, increasing; `shape` is that
    of the source volume (z, y, x).
    """

    pictures: Any
    centres: NDArray[np.float32]
    frame: HeadFrame
    shape: tuple[int, int, int]

    def triplets(self) -> Any:
        """The first window with its neighbours as channels: (n, 3, size, size), below, itself, above."""
        return beside(self.pictures[:, 0], (-1, 0, 1))

    @property
    def cell(self) -> Spacing:
        """How far it is from one picture and its pixels to the next, in source slices and pixels."""
        step = float(self.centres[1] - self.centres[0]) if len(self.centres) > 1 else 1.0
        size = self.pictures.shape[-1]
        return step, self.frame.height / size, self.frame.width / size

    def to_slices(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n, …) a picture as values (z, …) a source slice, linearly interpolated."""
        if len(self.centres) == self.shape[0]:
            return values
        low, high, part = self._between()
        weight = part.reshape(-1, *[1] * (values.ndim - 1))
        return values[low] * (1 - weight) + values[high] * weight

    def behind(self, slices: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pictures (n,) that values of these source slices (z,) are interpolated from."""
        if len(self.centres) == self.shape[0]:
            return slices
        low, high, part = self._between()
        found = np.zeros(len(self.centres), bool)
        found[low[slices]] = True
        found[high[slices & (part > 0)]] = True
        return found

    def _between(self) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.float32]]:
        """Of each source slice the pictures below and above, and how far it is from the one to the other."""
        last = len(self.centres) - 1
        place = np.interp(np.arange(self.shape[0]), self.centres, np.arange(len(self.centres)))
        low = np.minimum(place.astype(int), last)
        return low, np.minimum(low + 1, last), (place - low).astype(np.float32)

    def to_source(
        self, picture: NDArray[np.float32], size: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """One picture-grid image on the source field of view, (y, x) or `size` pixels; zero outside."""
        rows, columns = size or self.shape[1:]
        by_row, by_column = rows / self.shape[1], columns / self.shape[2]
        frame = self.frame
        top, left = frame.top * by_row, frame.left * by_column
        y = (np.arange(rows) + 0.5 - top) / (frame.height * by_row) * picture.shape[0] - 0.5
        x = (np.arange(columns) + 0.5 - left) / (frame.width * by_column) * picture.shape[1] - 0.5
        return _sample(_sample(picture, y).T, x).T


def beside(pictures: Any, steps: tuple[int, ...]) -> Any:
    """Pictures (n, y, x), an array or a tensor, as (n, steps, y, x): each with those so many places further.

    The first and the last stand in for the neighbour they lack.
    """
    last = len(pictures) - 1
    places = [min(max(place + step, 0), last) for place in range(last + 1) for step in steps]
    return pictures[places].reshape(last + 1, len(steps), *pictures.shape[1:])


def _sample(image: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear interpolation along the first axis, zero outside."""
    length = image.shape[0]
    low = np.floor(at).astype(int)
    weight = (at - low).astype(np.float32)[:, None]
    first, second = image[np.clip(low, 0, length - 1)], image[np.clip(low + 1, 0, length - 1)]
    outside = (at < -0.5) | (at > length - 0.5)
    return np.where(outside[:, None], 0, first * (1 - weight) + second * weight).astype(np.float32)


def network_input(
    hu: Volume, spacing_mm: Spacing, view: View = DEFAULT_VIEW, frame: HeadFrame | None = None
) -> NetworkInput:
    """Find the head (unless `frame` says where it is), window, average thin slices and resample.

    Values that a window has cut off are put back where that can be told: see `unclipped`.

    Raises PermanentError without a head.
    """
    if hu.ndim != 3 or 0 in hu.shape:
        raise PermanentError(
            "VOLUME_INVALID", f"a volume (z, y, x) is needed, got an array of shape {hu.shape}"
        )
    hu = unclipped(hu)
    frame, parts = frame or find_head(hu, spacing_mm), slabs(hu.shape[0], spacing_mm[0])
    pictures = np.stack(
        [
            [resample(window.apply(hu[start:stop]).mean(axis=0), frame, view.size) for window in view.windows]
            for start, stop in parts
        ]
    )
    centres = np.asarray([(start + stop - 1) / 2 for start, stop in parts], np.float32)
    return NetworkInput(pictures, centres, frame, (hu.shape[0], hu.shape[1], hu.shape[2]))


def unclipped(hu: Volume) -> Volume:
    """The same volume; where a window has cut off everything above or below, bone and air are put back.

    A skull shown as 80 HU would pass for blood all around the brain. Every head has bone, so that a volume
    without any has been cut off, and its highest values are where the bone was. Where nothing is lighter
    than fat, the lowest values that reach the edge of a picture are the air around the head, which else
    would pass for a part of it.
    """
    low, top = float(hu.min()), float(hu.max())
    boneless, airless = top < _NO_BONE_HU, low > _SOFT_HU
    if not (boneless or airless):
        return hu
    inside = hu[hu > _SOFT_HU]
    span = min(top, _NO_BONE_HU) - float(inside.min(initial=top))
    dense, light = hu > top - _AT_END * span, hu < low + _AT_END * span
    if boneless and 2 * np.count_nonzero(dense) <= inside.size:  # else a uniform body, no skull
        hu = np.where(dense, np.float32(BONE_HU), hu)
    return np.where(_from_edges(light), np.float32(AIR_HU), hu) if airless else hu


def _from_edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask (z, y, x) that are connected to an edge of their slice."""
    inner = np.zeros(mask.shape[1:], bool)
    inner[1:-1, 1:-1] = True
    return np.stack([ndimage.binary_propagation(one & ~inner, mask=one) for one in mask])


def slabs(slices: int, step_mm: float) -> list[tuple[int, int]]:
    """Groups of neighbouring slices that are together about STEP_MM thick, as (start, stop)."""
    count = max(1, round(STEP_MM / step_mm)) if step_mm > 0 else 1
    return [(start, min(start + count, slices)) for start in range(0, slices, count)]


def resample(image: Volume, frame: HeadFrame, size: int) -> Volume:
    """The part of an image (y, x) inside the frame as (size, size), antialiased; zero outside the image."""
    rows, columns = image.shape
    top, left = max(0, int(np.ceil(-frame.top))), max(0, int(np.ceil(-frame.left)))
    bottom = max(0, int(np.ceil(frame.top + frame.height - rows)))
    right = max(0, int(np.ceil(frame.left + frame.width - columns)))
    padded = np.pad(image, ((top, bottom), (left, right)))
    x, y = frame.left + left, frame.top + top
    box = (x, y, x + frame.width, y + frame.height)
    picture = Image.fromarray(padded.astype(np.float32, copy=False)).resize(
        (size, size), Image.Resampling.BILINEAR, box=box
    )
    return np.asarray(picture, np.float32)


def find_head(hu: Volume, spacing_mm: Spacing) -> HeadFrame:
    """The square (in mm) around the head, one for the whole series.

    Per slice the largest soft-tissue component after removing thin things (head rest, tubes); the
    slices with at least 60 % of the largest area vote, so neck and vertex do not set the scale.
    """
    step = max(1, min(hu.shape[1:]) // _COARSE)
    coarse = hu[:, ::step, ::step]
    boxes, areas = [], []
    for image in coarse:
        box, area = _largest_box(image > _SOFT_HU)
        boxes.append(box)
        areas.append(area)
    if max(areas) < _MIN_AREA * coarse[0].size:
        raise PermanentError(
            "HEAD_NOT_FOUND", "no head was found in the images; check that they are a head CT in HU"
        )
    votes = np.asarray(
        [box for box, area in zip(boxes, areas, strict=True) if area >= 0.6 * max(areas)], float
    )
    top, left = np.percentile(votes[:, :2], 15, axis=0) * step
    bottom, right = np.percentile(votes[:, 2:], 85, axis=0) * step
    side_mm = max((bottom - top) * spacing_mm[1], (right - left) * spacing_mm[2]) * MARGIN
    height, width = side_mm / spacing_mm[1], side_mm / spacing_mm[2]
    return HeadFrame(
        float((top + bottom - height) / 2), float((left + right - width) / 2), float(height), float(width)
    )


def _largest_box(soft: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], int]:
    """Edges (top, left, bottom, right) and area of the largest component once thin things are gone."""
    opened = ndimage.binary_opening(ndimage.binary_fill_holes(soft), iterations=2)
    labels, count = ndimage.label(opened)
    if count == 0:
        return (0, 0, 0, 0), 0
    sizes = np.bincount(labels.ravel())[1:]
    rows, columns = ndimage.find_objects(labels)[int(sizes.argmax())]
    return (rows.start, columns.start, rows.stop, columns.stop), int(sizes.max())
