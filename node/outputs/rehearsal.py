"""A tiny result of a head that does not exist, built and thrown away, so that the first real one is quick.

The first build of a process loads highdicom's tables and the fonts. Stores, sends and logs nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from node.domain.findings import (
    CLASSES,
    ClassFinding,
    Consistency,
    Findings,
    ModelIdentity,
    Priority,
    SegmentationFinding,
    SliceFinding,
    Status,
)
from node.outputs.catalogue import build_all
from node.outputs.context import Context
from node.outputs.encoding import encode
from node.outputs.source import Source
from node.outputs.uids import derived

SLICES = 2
SIDE = 512
"""Rows and columns of nearly every CT: the fonts are loaded in the sizes that will be wanted."""
_MODEL = ModelIdentity("rehearsal", "0", "")
_AT = datetime(2000, 1, 1, tzinfo=UTC)


def rehearse(names: Collection[str]) -> None:
    """Build and encode the outputs `names`. Raises whatever their builders raise."""
    for made in build_all(_context(), names).values():
        for ds in made:
            encode(ds)


def _context() -> Context:
    slices = [_slice(number) for number in range(SLICES)]
    masks = np.zeros((SLICES, SIDE, SIDE), bool)
    masks[:, SIDE // 2 :, SIDE // 2 :] = True
    air = np.zeros((SIDE, SIDE), np.int16)
    source = Source(tuple(slices), lambda index: air, (None,) * SLICES)
    return Context(_findings(slices), source, _AT, "0", masks, masks[:, ::32, ::32].astype(np.float32))


def _slice(number: int) -> Dataset:
    """A CT header with what the builders ask for, of nobody."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, UID(derived("rehearsal", "slice", number))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid("study"), _uid("series")
    ds.FrameOfReferenceUID = _uid("frame of reference")
    ds.Modality, ds.Rows, ds.Columns = "CT", SIDE, SIDE
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 5
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [0, 0, 5 * number]
    return ds


def _findings(slices: list[Dataset]) -> Findings:
    uids = tuple(str(ds.SOPInstanceUID) for ds in slices)
    scores = dict.fromkeys(CLASSES, 0.9)
    return Findings(
        _MODEL,
        _uid("series"),
        1,
        Status.ANALYSED,
        classes={name: ClassFinding(score, True, uids[0]) for name, score in scores.items()},
        slices=tuple(SliceFinding(uid, 5.0 * number, scores) for number, uid in enumerate(uids)),
        segmentation=SegmentationFinding(1.0, uids),
        consistency=Consistency.AGREE,
        priority=Priority.STAT,
    )


def _uid(name: str) -> UID:
    return UID(derived("rehearsal", name))
