"""Labelled head CT as training arrays: phantoms and the public CT-ICH pictures. Trains nothing.

CT-ICH: Hssayeni et al., Data 5(1):14 (2020), doi:10.13026/w8q8-ky94, CC BY 4.0.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from node.domain.findings import CLASSES, SUBTYPES
from workers.phantom import volume
from workers.preprocess import SIZE, NetworkInput, network_input, resample

MASKS = CLASSES
"""Order of the mask channels: any, then the subtypes."""
MIN_BLEED_MM2 = 20.0
"""A phantom slice counts as positive from this much blood."""

_BRAIN, _BONE = (-20.0, 120.0), (-900.0, 3200.0)
"""Lower edge and width in HU of the two published 8-bit windows."""
_ICH_SIZE = 512
_ICH_SPACING_MM = (5.0, 0.45, 0.45)
"""Assumed: the source does not give it. Preprocessing scales by head size, so only the step matters."""
_BOX_NAMES = dict(zip(("EDH", "IPH", "IVH", "SAH", "SDH"), SUBTYPES, strict=True))
_BOX_HU = (48.0, 95.0)


@dataclass(frozen=True)
class Series:
    """One patient's network pictures with labels, feet to head.

    `pictures` (n, SIZE, SIZE) uint8 of the brain window; `labels` (n, 6) in the order of CLASSES;
    `masks` (n, SIZE, SIZE) uint8, bit k set where mask channel k has blood; `known` (n, 6) tells
    which mask channels may be trained on (unlabelled blood is never taught as an empty mask).
    """

    patient: str
    pictures: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One slice: picture (3, SIZE, SIZE) 0..1, labels (6,), mask (6, SIZE, SIZE), known channels (6,)."""

    picture: NDArray[np.float32]
    labels: NDArray[np.float32]
    mask: NDArray[np.float32]
    known: NDArray[np.float32]


class SliceDataset:
    """Every slice of some series as a `Sample`; the neighbours are its channels."""

    def __init__(self, series: Sequence[Series]) -> None:
        self.series = list(series)
        self.index = [(s, i) for s, one in enumerate(self.series) for i in range(len(one.pictures))]
        self.labels = np.concatenate([one.labels for one in self.series])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Sample:
        place, middle = self.index[item]
        series = self.series[place]
        last = len(series.pictures) - 1
        around = [max(middle - 1, 0), middle, min(middle + 1, last)]
        bits = series.masks[middle][None] >> np.arange(len(MASKS), dtype=np.uint8)[:, None, None]
        return Sample(
            series.pictures[around].astype(np.float32) / np.float32(255),
            series.labels[middle].astype(np.float32),
            (bits & 1).astype(np.float32),
            series.known[middle].astype(np.float32),
        )


def pack_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Subtype masks (5, …) as one byte a pixel: bit 0 any, bits 1 to 5 the subtypes."""
    packed = np.zeros(masks.shape[1:], np.uint8)
    packed[masks.any(axis=0)] = 1
    for index, mask in enumerate(masks):
        packed[mask] |= 1 << (index + 1)
    return packed


def quantise(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def phantom_series(seed: int, *, slices: int = 24, size: int = 192) -> Series:
    """A phantom head (chance decides about bleeds) cut at a random height, through the real preprocessing."""
    lowest_mm = float(np.random.default_rng((seed, 1)).uniform(-72, -45))
    head = volume(seed, None, slices=slices, size=size, lowest_mm=lowest_mm)
    pictures = network_input(head.hu, head.spacing_mm)
    masks = np.stack(
        [
            [resample(mask.astype(np.float32), pictures.frame, SIZE) > 0.4 for mask in channel]
            if channel.any()
            else np.zeros(pictures.pictures.shape, bool)
            for channel in head.masks
        ]
    )
    enough = head.masks.sum((2, 3)) * head.spacing_mm[1] * head.spacing_mm[2] >= MIN_BLEED_MM2
    labels = np.concatenate((enough.any(axis=0)[None], enough)).T.astype(np.uint8)
    return Series(
        f"phantom-{seed}",
        quantise(pictures.pictures),
        labels,
        pack_masks(masks),
        np.ones(labels.shape, bool),
    )


def phantoms(seeds: Iterable[int], workers: int = 1, size: int = 192) -> Iterator[Series]:
    """Phantom series for the seeds, in order, drawn by `workers` processes."""
    build: Callable[[int], Series] = partial(phantom_series, size=size)
    if workers <= 1:
        yield from map(build, seeds)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(build, seeds, chunksize=4)


def ct_ich(folder: Path) -> Iterator[Series]:
    """Every patient of the CT-ICH pictures in `folder` (index.csv, boxes.csv, brain/, bone/, masks/)."""
    with (folder / "index.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["patient"]), int(row["slice"])))
    boxes: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (folder / "boxes.csv").open() as file:
        for box in csv.DictReader(file):
            boxes.setdefault((box["patient"], box["slice"]), []).append(box)
    for patient in dict.fromkeys(row["patient"] for row in rows):
        yield _ich_patient(folder, [row for row in rows if row["patient"] == patient], boxes)


def _ich_patient(
    folder: Path, rows: list[dict[str, str]], boxes: dict[tuple[str, str], list[dict[str, str]]]
) -> Series:
    hu = np.stack([_ich_hounsfield(folder, row) for row in rows])
    pictures = network_input(hu, _ICH_SPACING_MM)
    labels = np.asarray([[int(row[name]) for name in CLASSES] for row in rows], np.uint8)
    masks = np.zeros((len(rows), SIZE, SIZE), np.uint8)
    known = np.zeros(labels.shape, bool)
    for index, row in enumerate(rows):
        found = boxes.get((row["patient"], row["slice"]), [])
        masks[index], known[index] = _ich_mask(folder, row, labels[index], found, hu[index], pictures)
    return Series(f"ct-ich-{int(rows[0]['patient']):03d}", quantise(pictures.pictures), labels, masks, known)


def _ich_hounsfield(folder: Path, row: dict[str, str]) -> NDArray[np.float32]:
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


def _ich_pixels(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as image:
        grey = image.convert("L").resize((_ICH_SIZE, _ICH_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(grey, np.float32)


def _ich_mask(
    folder: Path,
    row: dict[str, str],
    labels: NDArray[np.uint8],
    boxes: list[dict[str, str]],
    hu: NDArray[np.float32],
    pictures: NetworkInput,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Packed mask on the network grid and which channels it speaks for.

    An absent class is a known empty mask. A drawn mask speaks for "any", and for the subtype when
    there is one only. A loose box is filled by threshold and speaks for its subtype, and for "any"
    when every subtype of the slice has a box.
    """
    known = labels == 0
    subtypes = np.zeros((len(SUBTYPES), SIZE, SIZE), bool)
    present = [name for name, label in zip(SUBTYPES, labels[1:], strict=True) if label]
    if row["mask_path"]:
        with Image.open(folder / row["mask_path"]) as image:
            mask = np.asarray(image.convert("L").resize((_ICH_SIZE, _ICH_SIZE)), np.float32) > 127
        small = resample(mask.astype(np.float32), pictures.frame, SIZE) > 0.4
        packed = small.astype(np.uint8)
        known[0] = True
        if len(present) == 1:
            place = CLASSES.index(present[0])
            packed |= small.astype(np.uint8) << place
            known[place] = True
        return packed, known
    for box in boxes:
        name = _BOX_NAMES[box["subtype"]]
        if name in present:
            filled = box_mask(hu, tuple(float(box[key]) for key in ("xc", "yc", "w", "h")))
            subtypes[SUBTYPES.index(name)] |= resample(filled.astype(np.float32), pictures.frame, SIZE) > 0.4
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


def save_series(path: Path, series: Sequence[Series]) -> None:
    """Keep prepared series in one .npz, for reuse between runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        patients=np.asarray([one.patient for one in series for _ in one.pictures]),
        pictures=np.concatenate([one.pictures for one in series]),
        labels=np.concatenate([one.labels for one in series]),
        masks=np.concatenate([one.masks for one in series]),
        known=np.concatenate([one.known for one in series]),
    )


def load_series(path: Path) -> list[Series]:
    """Read back what `save_series` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    patients = arrays.pop("patients")
    edges = [0, *(np.flatnonzero(patients[1:] != patients[:-1]) + 1).tolist(), len(patients)]
    return [
        Series(str(patients[start]), **{name: array[start:stop] for name, array in arrays.items()})
        for start, stop in pairwise(edges)
    ]
