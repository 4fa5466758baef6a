"""One asymmetric head with one lesion, told in the space of the patient, and scans of it in any geometry.

Everything a scan shows is a function of the place in patient LPS (mm), so that every series of it, however
its rows, columns and slices lie, must lead to the same lesion in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.domain.findings import CLASSES, ModelIdentity
from tests.factories import ct_series
from workers.models.contract import MAP_SIZE, Classification

LESION_MM = np.array([31.0, -22.0, 18.0])
"""Patient left, front, upper half."""
LESION_AXES_MM = np.array([15.0, 19.0, 17.0])
LESION_ML = float(4 / 3 * np.pi * LESION_AXES_MM.prod() / 1000)
LESION_HU = 70
_SKULL_MM = np.array([70.0, 88.0, 78.0])
_BONE_MM = 6.0
_SCALP_MM = 6.0


def hu_at(places_mm: NDArray[np.float64]) -> NDArray[np.int16]:
    """HU at places (…, 3) in patient LPS: scalp, skull, brain, one ventricle on the right, the lesion."""

    def within(middle: Sequence[float] | NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (((places_mm - np.asarray(middle)) / axes) ** 2).sum(-1) < 1

    hu = np.full(places_mm.shape[:-1], -1000, np.int16)
    hu[within((0, 0, 0), _SKULL_MM + _SCALP_MM)] = 5
    hu[within((0, -84, -20), np.array([12.0, 16.0, 12.0]))] = 5  # a nose, so that front is not back
    hu[within((0, 0, 0), _SKULL_MM)] = 1000
    hu[within((0, 0, 0), _SKULL_MM - _BONE_MM)] = 32
    hu[within((-22, 8, 10), np.array([7.0, 22.0, 11.0]))] = 6
    hu[within(LESION_MM, LESION_AXES_MM)] = LESION_HU
    return hu


@dataclass(frozen=True)
class Scan:
    """How a series lies. Slices go along the normal of `iop`, or straight along z where `table` is set."""

    iop: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    heights_mm: tuple[float, ...] = tuple(np.arange(-72.0, 73.0, 6.0))
    rows: int = 116
    columns: int = 100
    spacing_mm: tuple[float, float] = (2.0, 2.0)
    table: bool = False
    labels: dict[str, Any] = field(default_factory=dict)
    name: str = "scan"


def turned(scan_iop: Sequence[float], degrees: Sequence[float]) -> tuple[float, ...]:
    """Row and column directions turned about x, y and z in turn."""
    x, y, z = np.radians(degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    turn = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
    return tuple(np.round(np.concatenate([turn @ scan_iop[:3], turn @ scan_iop[3:]]), 9).tolist())


def scan(how: Scan = Scan()) -> list[Dataset]:
    """The series, a CT image a slice."""
    series = ct_series(
        len(how.heights_mm), how.rows, how.columns, iop=how.iop, with_bleed=False, name=how.name,
        **{"SeriesDescription": "Head", **how.labels},
    )  # fmt: skip
    for ds, height in zip(series, how.heights_mm, strict=True):
        places = _places(how, height)
        ds.ImagePositionPatient = [round(float(v), 6) for v in places[0, 0]]
        ds.PixelSpacing = list(how.spacing_mm)
        ds.SliceThickness = float(np.median(np.diff(how.heights_mm)))
        ds.PixelData = (hu_at(places) + 1024).astype("<i2").tobytes()
    return series


def _places(how: Scan, height_mm: float) -> NDArray[np.float64]:
    """Patient LPS of every pixel centre of one slice, its middle on the axis of the stack."""
    along_row, along_column = np.array(how.iop[:3], float), np.array(how.iop[3:], float)
    normal = np.array([0, 0, 1.0]) if how.table else np.cross(along_row, along_column)
    down = (np.arange(how.rows) - (how.rows - 1) / 2) * how.spacing_mm[0]
    across = (np.arange(how.columns) - (how.columns - 1) / 2) * how.spacing_mm[1]
    return height_mm * normal + down[:, None, None] * along_column + across[None, :, None] * along_row


def stored_as(series: list[Dataset], store: Callable[[Dataset, NDArray[np.int32]], None]) -> list[Dataset]:
    """The series with its HU stored in another way: `store(ds, hu)` writes them."""
    for ds in series:
        hu = np.frombuffer(ds.PixelData, "<i2").reshape(ds.Rows, ds.Columns).astype(np.int32) - 1024
        store(ds, hu)
    return series


def put(
    ds: Dataset, stored: NDArray[np.int32], *, bits: int = 16, signed: bool = True, **labels: Any
) -> None:
    """Stored values as they are, with the elements that tell how to read them."""
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    ds.PixelData = stored.astype(np.int32).astype(np.uint16).astype("<u2").tobytes()
    for keyword, value in labels.items():
        setattr(ds, keyword, value)


class Threshold:
    """Blood is what has the HU of the lesion. Knows nothing of where things are."""

    identity = ModelIdentity("threshold", "1", "00" * 32)
    thresholds = dict.fromkeys(CLASSES, 0.5)
    knows = frozenset(CLASSES)
    draws = True

    def classify(self, hu: np.ndarray, spacing_mm: object) -> Classification:
        share = self.segment(hu).mean((1, 2))
        slices = np.full((len(hu), len(CLASSES)), 0.01, np.float32)
        for name in ("any", "intraparenchymal"):
            slices[:, CLASSES.index(name)] = 0.9 * share / max(share.max(), 1e-9)
        return Classification(slices, slices.max(0))

    def segment(self, hu: np.ndarray, *_: object) -> np.ndarray:
        return np.abs(hu - LESION_HU) < 3

    def segment_subtypes(self, *_: object) -> dict[str, np.ndarray]:
        return {}

    def explain(self, hu: np.ndarray, *_: object) -> np.ndarray:
        y, x = (np.arange(MAP_SIZE) * size // MAP_SIZE for size in hu.shape[1:])
        return self.segment(hu)[:, y[:, None], x].astype(np.float32)
