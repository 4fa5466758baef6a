"""The analysed CT slices as builders may see them. Never changes a source dataset, never guesses geometry.

highdicom refuses many real headers (absent type 2 elements, illegal dates, jittered orientations, the
character sets of Japan and Korea), so builders only ever see sanitised clones that hold no text of the
patient's; `identity.stamp` then copies the patient and study as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from node.domain.errors import PermanentError
from node.domain.findings import Findings

JITTER = 1e-2
"""Direction cosines of one series may differ by this much (0.6°) and still be the same orientation."""

TYPE_2 = (  # highdicom wants these to be there; PS3.3 C.7.1.1, C.7.2.1
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True)
class Source:
    """Header datasets of single-frame CT slices, and their HU.

    `datasets` lie along the slice normal in the order of `findings.slices`; `hu(i)` gives the HU of
    slice i as (rows, columns) in the source's own pixel orientation and may decode it on demand.
    """

    datasets: tuple[Dataset, ...]
    hu: Callable[[int], np.ndarray]

    @classmethod
    def ordered(
        cls, datasets: Iterable[Dataset], findings: Findings, hu: Callable[[Dataset], np.ndarray]
    ) -> Source:
        """The slices that `findings` speaks of, in its order; all as given when it speaks of none."""
        given = tuple(datasets)
        by_uid = {str(ds.SOPInstanceUID): ds for ds in given}
        missing = [s.sop_instance_uid for s in findings.slices if s.sop_instance_uid not in by_uid]
        if missing:
            raise PermanentError(
                "SOURCE_INCOMPLETE", f"slice {missing[0]} of the findings is not among the source instances"
            )
        kept = tuple(by_uid[s.sop_instance_uid] for s in findings.slices) or given
        return cls(kept, lambda index: hu(kept[index]))

    @property
    def first(self) -> Dataset:
        """The slice whose patient and study stand for all; raises where there is none."""
        if not self.datasets:
            raise PermanentError("SOURCE_EMPTY", "a report needs at least one source instance to refer to")
        return self.datasets[0]

    def index(self, sop_instance_uid: str) -> int:
        """Where this slice lies in `datasets`; raises KeyError for a stranger."""
        return self._indices[sop_instance_uid]

    def holds(self, sop_instance_uid: str) -> bool:
        return sop_instance_uid in self._indices

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {str(ds.SOPInstanceUID): i for i, ds in enumerate(self.datasets)}

    @cached_property
    def has_planes(self) -> bool:
        """Every slice has position, orientation and pixel spacing (PS3.3 C.7.6.2)."""
        return all(
            numbers(ds, "ImagePositionPatient", 3) is not None
            and numbers(ds, "ImageOrientationPatient", 6) is not None
            and numbers(ds, "PixelSpacing", 2) is not None
            for ds in self.datasets
        )

    @property
    def is_stack(self) -> bool:
        """Every slice has a plane, and all of them have the same orientation."""
        found = [numbers(ds, "ImageOrientationPatient", 6) for ds in self.headers]
        return self.has_planes and all(own == found[0] for own in found)

    @property
    def frame_of_reference_uid(self) -> str:
        """Empty where the source has none, or several."""
        uids = {str(value(ds, "FrameOfReferenceUID") or "") for ds in self.datasets}
        return uids.pop() if len(uids) == 1 else ""

    @cached_property
    def headers(self) -> tuple[Dataset, ...]:
        """Sanitised clones, one a slice: what highdicom is given instead of the source."""
        thickness = self._thickness_mm()
        orientation = numbers(self.first, "ImageOrientationPatient", 6)
        return tuple(_clone(ds, orientation, thickness) for ds in self.datasets)

    def _thickness_mm(self) -> float:
        """SliceThickness of the first slice that has one, else the median step along the normal."""
        stated = [t[0] for ds in self.datasets if (t := numbers(ds, "SliceThickness", 1)) and t[0] > 0]
        if stated:
            return stated[0]
        positions = [p for ds in self.datasets if (p := numbers(ds, "ImagePositionPatient", 3))]
        steps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1) if len(positions) > 1 else []
        return float(np.median(steps)) if len(steps) and np.median(steps) > 0 else 1.0


def value(ds: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is absent or cannot be read."""
    try:
        return ds.get(keyword)
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError):
        return None


def numbers(ds: Dataset, keyword: str, count: int) -> list[float] | None:
    """Exactly `count` finite numbers, or None."""
    found = value(ds, keyword)
    items = [found] if isinstance(found, (int, float, str)) else list(found or ())
    try:
        parsed = [float(item) for item in items]
    except (TypeError, ValueError):
        return None
    return parsed if len(parsed) == count and np.isfinite(parsed).all() else None


def _clone(ds: Dataset, orientation: Sequence[float] | None, thickness_mm: float) -> Dataset:
    clone = Dataset()
    clone.file_meta = FileMetaDataset()
    clone.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    clone.SOPClassUID = UID(str(value(ds, "SOPClassUID") or CTImageStorage))
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if found := value(ds, keyword):
            setattr(clone, keyword, UID(str(found)))
    for keyword in TYPE_2:
        setattr(clone, keyword, None)
    for keyword in _LOSSY:
        if found := value(ds, keyword):
            setattr(clone, keyword, found)
    clone.Modality = "CT"
    clone.SamplesPerPixel, clone.PhotometricInterpretation = 1, "MONOCHROME2"
    clone.BitsAllocated, clone.BitsStored, clone.HighBit, clone.PixelRepresentation = 16, 16, 15, 1
    for keyword in ("Rows", "Columns"):
        if found := value(ds, keyword):
            setattr(clone, keyword, int(found))
    if spacing := numbers(ds, "PixelSpacing", 2):
        clone.PixelSpacing = spacing
    if position := numbers(ds, "ImagePositionPatient", 3):
        clone.ImagePositionPatient = position
    clone.SliceThickness = thickness_mm
    own = numbers(ds, "ImageOrientationPatient", 6)
    if own and orientation:
        clone.ImageOrientationPatient = list(orientation if _parallel(own, orientation) else own)
    return clone


def _parallel(one: Sequence[float], other: Sequence[float]) -> bool:
    return bool(np.abs(np.subtract(one, other)).max() <= JITTER)
