"""Labelled head CT as training arrays: phantoms and the public CT-ICH pictures. Trains nothing.

CT-ICH: Hssayeni et al., Data 5(1):14 (2020), doi:10.13026/w8q8-ky94, CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES
from workers.phantom import volume
from workers.preprocess import DEFAULT_VIEW, STEP_MM, NetworkInput, Spacing, View, resample
from workers.training.ct_ich_tables import BOX_NAMES, Row, Slice, read_boxes, read_index

MASKS = CLASSES
"""Order of the mask channels: any, then the subtypes."""
MIN_BLEED_MM2 = 20.0
"""A phantom slice counts as positive from this much blood."""

_BRAIN, _BONE = (-20.0, 120.0), (-900.0, 3200.0)
"""Lower edge and width in HU of the two published 8-bit windows."""
_ICH_SIZE = 512
_ICH_SPACING_MM = (5.0, 0.45, 0.45)
"""Assumed: the source does not give it. Preprocessing scales by head size, so only the step matters."""
_BOX_HU = (48.0, 95.0)


@dataclass(frozen=True)
class Series:
    """One series' network pictures with labels, feet to head. A patient may have several.

    `pictures` (n, windows, size, size) uint8; `labels` (n, 6) in the order of CLASSES, of which `told`
    (n, 6) are known; `masks` (n, size, size) uint8, bit k set where mask channel k has blood; `known`
    (n, 6) tells which mask channels may be trained on (unlabelled blood is never taught as an empty
    mask), `by_hand` (n,) where a person drew them. `study` (6,) is the truth of the whole where slices
    have none. `cell_mm` (z, y, x) is the size of a picture's cell, None where the source does not tell.
    """

    patient: str
    pictures: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    known: NDArray[np.bool_]
    told: NDArray[np.bool_]
    by_hand: NDArray[np.bool_]
    name: str = ""
    step_mm: float = STEP_MM
    cell_mm: Spacing | None = None
    study: tuple[int, ...] | None = None

    @property
    def truth(self) -> NDArray[np.uint8]:
        """Labels of the whole (6,): those of the study, else what any slice has."""
        if self.study is not None:
            return np.asarray(self.study, np.uint8)
        return np.asarray((self.labels * self.told).max(axis=0), np.uint8)


@dataclass(frozen=True)
class Batch:
    """Slices: pictures (n, channels, size, size) 0..1, labels and `told` (n, 6), masks (n, 6, size, size),
    known mask channels (n, 6); all float32."""

    pictures: NDArray[np.float32]
    labels: NDArray[np.float32]
    told: NDArray[np.float32]
    masks: NDArray[np.float32]
    known: NDArray[np.float32]


class SliceDataset:
    """Every slice of some series; neighbours, where wanted, become the channels.

    `neighbours` are steps along the slices, (-1, 0, 1) say, and take the first window only; empty: every
    window of the slice itself.
    """

    def __init__(self, series: Sequence[Series], neighbours: tuple[int, ...] = ()) -> None:
        self.series = list(series)
        self.neighbours = neighbours
        self.index = [(s, i) for s, one in enumerate(self.series) for i in range(len(one.pictures))]
        self.labels = np.concatenate([one.labels * one.told for one in self.series])

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, items: Iterable[int]) -> Batch:
        """These slices, in this order."""
        parts = [self._slice(int(item)) for item in items]
        pictures, labels, told, masks, known = (np.stack(part) for part in zip(*parts, strict=True))
        bits = np.arange(len(MASKS), dtype=np.uint8)[None, :, None, None]
        return Batch(
            pictures.astype(np.float32) / np.float32(255),
            labels.astype(np.float32),
            told.astype(np.float32),
            ((masks[:, None] >> bits) & 1).astype(np.float32),
            known.astype(np.float32),
        )

    def _slice(self, item: int) -> tuple[NDArray[np.generic], ...]:
        place, middle = self.index[item]
        one = self.series[place]
        if self.neighbours:
            last = len(one.pictures) - 1
            pictures = one.pictures[[min(max(middle + step, 0), last) for step in self.neighbours], 0]
        else:
            pictures = one.pictures[middle]
        return pictures, one.labels[middle], one.told[middle], one.masks[middle], one.known[middle]


def pack_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Subtype masks (5, …) as one byte a pixel: bit 0 any, bits 1 to 5 the subtypes."""
    packed = np.zeros(masks.shape[1:], np.uint8)
    packed[masks.any(axis=0)] = 1
    for index, mask in enumerate(masks):
        packed[mask] |= 1 << (index + 1)
    return packed


def quantise(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def phantom_series(seed: int, *, slices: int = 24, size: int = 192, view: View = DEFAULT_VIEW) -> Series:
    """A phantom head (chance decides about bleeds) cut at a random height, through the real preprocessing."""
    lowest_mm = float(np.random.default_rng((seed, 1)).uniform(-72, -45))
    head = volume(seed, None, slices=slices, size=size, lowest_mm=lowest_mm)
    source = view.prepare(head.hu, head.spacing_mm)
    masks = np.stack(
        [
            [resample(mask.astype(np.float32), source.frame, view.size) > 0.4 for mask in channel]
            if channel.any()
            else np.zeros((len(source.pictures), view.size, view.size), bool)
            for channel in head.masks
        ]
    )
    enough = head.masks.sum((2, 3)) * head.spacing_mm[1] * head.spacing_mm[2] >= MIN_BLEED_MM2
    labels = np.concatenate((enough.any(axis=0)[None], enough)).T.astype(np.uint8)
    return Series(
        f"phantom-{seed}",
        quantise(source.pictures),
        labels,
        pack_masks(masks),
        known=np.ones(labels.shape, bool),
        told=np.ones(labels.shape, bool),
        by_hand=np.zeros(len(labels), bool),
        cell_mm=cell_mm(source, head.spacing_mm),
    )


def cell_mm(source: NetworkInput, spacing_mm: Spacing) -> Spacing:
    """Size (z, y, x) of a picture's cell in mm."""
    z, y, x = (cells * mm for cells, mm in zip(source.cell, spacing_mm, strict=True))
    return z, y, x


def phantoms(
    seeds: Iterable[int], workers: int = 1, size: int = 192, view: View = DEFAULT_VIEW
) -> Iterator[Series]:
    """Phantom series for the seeds, in order, drawn by `workers` processes."""
    build: Callable[[int], Series] = partial(phantom_series, size=size, view=view)
    if workers <= 1:
        yield from map(build, seeds)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(build, seeds, chunksize=4)


def ct_ich(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """Every patient of the CT-ICH pictures in `folder` (index.csv, boxes.csv, brain/, bone/, masks/).

    Raises PermanentError as `ct_ich_tables`, FILE_MISSING and FILE_UNREADABLE.
    """
    rows, boxes = read_index(folder), read_boxes(folder)
    for patient in dict.fromkeys(row["patient"] for row in rows):
        yield _ich_patient(folder, [row for row in rows if row["patient"] == patient], boxes, view)


def _ich_patient(folder: Path, rows: list[Row], boxes: dict[Slice, list[Row]], view: View) -> Series:
    hu = np.stack([_ich_hounsfield(folder, row) for row in rows])
    source = view.prepare(hu, _ICH_SPACING_MM)
    labels = np.asarray([[int(row[name]) for name in CLASSES] for row in rows], np.uint8)
    masks = np.zeros((len(rows), view.size, view.size), np.uint8)
    known = np.zeros(labels.shape, bool)
    for index, row in enumerate(rows):
        found = boxes.get((row["patient"], row["slice"]), [])
        masks[index], known[index] = _ich_mask(folder, row, labels[index], found, hu[index], source)
    return Series(
        f"ct-ich-{int(rows[0]['patient']):03d}",
        quantise(source.pictures),
        labels,
        masks,
        known,
        told=np.ones(labels.shape, bool),
        by_hand=np.asarray([bool(row["mask_path"]) for row in rows]),
    )


def _ich_hounsfield(folder: Path, row: Row) -> NDArray[np.float32]:
    """Approximate HU (y, x) of one slice from its brain and bone windows."""
    bone_path = folder / row["bone_path"]
    brain = _ich_pixels(folder / row["brain_path"])
    bone = _ich_pixels(bone_path) if row["bone_path"] and bone_path.exists() else brain
    clipped = (brain <= 2) | (brain >= 253)
    hu = np.where(clipped, bone / 255 * _BONE[1] + _BONE[0], brain / 255 * _BRAIN[1] + _BRAIN[0]).astype(
        np.float32
    )
    hu[bone <= 1] = -1000
    return hu


def _ich_pixels(path: Path, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> NDArray[np.float32]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L").resize((_ICH_SIZE, _ICH_SIZE), resampling), np.float32)
    except FileNotFoundError as error:
        text = f"{path} is not there; fetch it again, or remove its row"
        raise PermanentError("FILE_MISSING", text) from error
    except (OSError, SyntaxError, ValueError) as error:
        text = f"{path} cannot be read as a picture; fetch it again, or remove its row"
        raise PermanentError("FILE_UNREADABLE", text) from error


def _ich_mask(
    folder: Path,
    row: Row,
    labels: NDArray[np.uint8],
    boxes: list[Row],
    hu: NDArray[np.float32],
    source: NetworkInput,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Packed mask on the network grid and which channels it speaks for.

    An absent class is a known empty mask. A drawn mask speaks for "any", and for the subtype when
    there is one only. A loose box is filled by threshold and speaks for its subtype, and for "any"
    when every subtype of the slice has a box.
    """
    known, size = labels == 0, source.pictures.shape[-1]
    subtypes = np.zeros((len(SUBTYPES), size, size), bool)
    present = [name for name, label in zip(SUBTYPES, labels[1:], strict=True) if label]
    if row["mask_path"]:
        mask = _ich_pixels(folder / row["mask_path"], Image.Resampling.BICUBIC) > 127
        small = resample(mask.astype(np.float32), source.frame, size) > 0.4
        packed = small.astype(np.uint8)
        known[0] = True
        if len(present) == 1:
            place = CLASSES.index(present[0])
            packed |= small.astype(np.uint8) << place
            known[place] = True
        return packed, known
    for box in boxes:
        name = BOX_NAMES[box["subtype"]]
        if name in present:
            filled = box_mask(hu, tuple(float(box[key]) for key in ("xc", "yc", "w", "h")))
            subtypes[SUBTYPES.index(name)] |= resample(filled.astype(np.float32), source.frame, size) > 0.4
    filled_names = [name for name, mask in zip(SUBTYPES, subtypes, strict=True) if mask.any()]
    for name in filled_names:
        known[CLASSES.index(name)] = True
    known[0] |= bool(present) and set(filled_names) == set(present)
    return pack_masks(subtypes), known


def box_mask(hu: NDArray[np.float32], box: tuple[float, ...]) -> NDArray[np.bool_]:
    """Blood inside a loose box (relative centre x, y, width, height): bright, in pieces, off the bone."""
    rows, columns = hu.shape
    x, y, width, height = box
    inside = np.zeros(hu.shape, bool)
    top, bottom = int((y - height / 2) * rows), int(np.ceil((y + height / 2) * rows))
    left, right = int((x - width / 2) * columns), int(np.ceil((x + width / 2) * columns))
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    bone = ndimage.binary_dilation(hu > 150, iterations=2)
    smooth = ndimage.gaussian_filter(np.clip(hu, -20, 100), 1.2)
    bright = inside & ~bone & (smooth > _BOX_HU[0]) & (smooth < _BOX_HU[1]) & ~_outside_skull(hu)
    bright = ndimage.binary_opening(bright, iterations=1)
    labels, count = ndimage.label(bright)
    if count == 0:
        return np.zeros(hu.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.isin(labels, np.flatnonzero(sizes >= max(25, 0.15 * sizes.max())))
    return ndimage.binary_closing(kept, iterations=2)


def _outside_skull(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Everything that reaches the border without crossing bone; gaps up to a few pixels are closed."""
    bone = ndimage.binary_closing(hu > 200, iterations=4)
    labels, _ = ndimage.label(~bone)
    edge = np.unique(np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1])))
    return np.isin(labels, edge[edge > 0])
