"""The analysed CT slices as builders may see them. Never changes a source dataset, never guesses geometry.

highdicom refuses many real headers (absent type 2 elements, illegal dates, jittered orientations, the
character sets of Japan and Korea), so builders only ever see sanitised clones that hold no text of the
patient's; `identity.stamp` then copies the patient and study as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from node.domain.errors import PermanentError
from node.domain.findings import Findings
from node.domain.instance import SliceRef
from node.frames import UNREADABLE, frame_headers, is_multiframe
from node.outputs.references import Names, name_sources
from node.outputs.uids import derived

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
_LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


class Decoder(Protocol):
    """HU (rows, columns) of one frame of a CT; the first where none is named."""

    def __call__(self, ds: Dataset, frame: int = 0, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Source:
    """Header datasets of CT slices, one each, and their HU.

    `datasets` lie along the slice normal in the order of `findings.slices`; a frame of a multi-frame
    instance has the header that a plain image would have. `hu(i)` gives the HU of slice i as (rows,
    columns) in the source's own pixel orientation and may decode it on demand. `frame_numbers` are those
    of the slices (from 1, None in a single-frame instance), `frames` how many each instance holds.
    """

    datasets: tuple[Dataset, ...]
    hu: Callable[[int], np.ndarray]
    frame_numbers: tuple[int | None, ...] = ()
    frames: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def ordered(cls, datasets: Iterable[Dataset], findings: Findings, hu: Decoder) -> Source:
        """The slices that `findings` speaks of, in its order; all as given when it speaks of none."""
        given = [slice_ for ds in datasets for slice_ in _slices_of(ds)]
        by_ref = {ref: (header, ds) for ref, header, ds in given}
        refs = [finding.ref for finding in findings.slices] or [ref for ref, _, _ in given]
        missing = [ref for ref in refs if ref not in by_ref]
        if missing:
            text = f"slice {missing[0].sop_instance_uid} of the findings is not among the source instances"
            raise PermanentError("SOURCE_INCOMPLETE", text)

        def decoded(index: int) -> np.ndarray:
            number = refs[index].frame_number
            ds = by_ref[refs[index]][1]
            return hu(ds) if number is None else hu(ds, number - 1)

        frames = Counter(ref.sop_instance_uid for ref, _, _ in given if ref.frame_number is not None)
        headers = tuple(by_ref[ref][0] for ref in refs)
        return cls(headers, decoded, tuple(ref.frame_number for ref in refs), frames)

    @property
    def first(self) -> Dataset:
        """The slice whose patient and study stand for all; raises where there is none."""
        if not self.datasets:
            raise PermanentError("SOURCE_EMPTY", "a report needs at least one source instance to refer to")
        return self.datasets[0]

    @cached_property
    def refs(self) -> tuple[SliceRef, ...]:
        """What each slice is, in the order of `datasets`."""
        frames = self.frame_numbers or (None,) * len(self.datasets)
        return tuple(SliceRef(str(ds.SOPInstanceUID), n) for ds, n in zip(self.datasets, frames, strict=True))

    def index(self, ref: SliceRef) -> int:
        """Where this slice lies in `datasets`; raises KeyError for a stranger."""
        return self._indices[ref]

    def holds(self, ref: SliceRef) -> bool:
        return ref in self._indices

    @cached_property
    def _indices(self) -> dict[SliceRef, int]:
        return {ref: index for index, ref in enumerate(self.refs)}

    @cached_property
    def has_planes(self) -> bool:
        """Every slice has position, orientation and pixel spacing (PS3.3 C.7.6.2)."""
        return all(
            numbers(ds, "ImagePositionPatient", 3) is not None
            and numbers(ds, "ImageOrientationPatient", 6) is not None
            and numbers(ds, "PixelSpacing", 2) is not None
            for ds in self.datasets
        )

    @cached_property
    def is_stack(self) -> bool:
        """Every slice has a plane, and all of them have the same orientation."""
        found = [numbers(ds, "ImageOrientationPatient", 6) for ds in self.headers]
        return self.has_planes and all(own == found[0] for own in found)

    @cached_property
    def frame_of_reference_uid(self) -> str:
        """Empty where the source has none, or several."""
        uids = {str(value(ds, "FrameOfReferenceUID") or "") for ds in self.datasets}
        return uids.pop() if len(uids) == 1 else ""

    @cached_property
    def headers(self) -> tuple[Dataset, ...]:
        """Sanitised clones, one a slice: what highdicom is given instead of the source.

        It takes one instance for one slice, so a frame goes by a name of its own here, as a CT image;
        `name_sources` puts what it really is into the finished object.
        """
        thickness = self._thickness_mm()
        orientation = numbers(self.first, "ImageOrientationPatient", 6)
        clones = tuple(_clone(ds, orientation, thickness) for ds in self.datasets)
        for clone, ref in zip(clones, self.refs, strict=True):
            if ref.frame_number is not None:
                clone.SOPClassUID, clone.SOPInstanceUID = CTImageStorage, UID(_stand_in(ref))
        return clones

    def name_sources(self, ds: Dataset) -> None:
        """Make every reference in a finished object name the instances of the source, and their frames."""
        if any(ref.frame_number is not None for ref in self.refs):
            name_sources(ds, self._names)

    @cached_property
    def _names(self) -> Names:
        return {
            _stand_in(ref): (str(value(ds, "SOPClassUID")), ref, self.frames.get(ref.sop_instance_uid, 0))
            for ds, ref in zip(self.datasets, self.refs, strict=True)
        }

    def _thickness_mm(self) -> float:
        """SliceThickness of the first slice that has one, else the median step along the normal."""
        stated = [t[0] for ds in self.datasets if (t := numbers(ds, "SliceThickness", 1)) and t[0] > 0]
        if stated:
            return stated[0]
        positions = [p for ds in self.datasets if (p := numbers(ds, "ImagePositionPatient", 3))]
        steps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1) if len(positions) > 1 else []
        return float(np.median(steps)) if len(steps) and np.median(steps) > 0 else 1.0


def source_refs(ds: Dataset) -> set[SliceRef]:
    """The slices that a built image says it was made from (PS3.3 C.7.6.1)."""
    return {
        SliceRef(str(item.ReferencedSOPInstanceUID), int(frame) if frame else None)
        for item in ds.get("SourceImageSequence") or ()
        for frame in [item.get("ReferencedFrameNumber")]
    }


def _slices_of(ds: Dataset) -> list[tuple[SliceRef, Dataset, Dataset]]:
    """What each slice of an instance is called, its header, and the instance that holds its pixels."""
    uid = str(ds.SOPInstanceUID)
    headers = frame_headers(ds) if is_multiframe(ds) else []
    if not headers:
        return [(SliceRef(uid), ds, ds)]
    return [(SliceRef(uid, number), header, ds) for number, header in enumerate(headers, start=1)]


def _stand_in(ref: SliceRef) -> str:
    """A UID for a frame where only instances have one; it never leaves the node."""
    return derived(ref.sop_instance_uid, f"frame-{ref.frame_number}")


def value(ds: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is absent or cannot be read."""
    try:
        return ds.get(keyword)
    except (AttributeError, TypeError, *UNREADABLE):
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


def lossy_compression(ds: Dataset) -> str:
    """LossyImageCompression (PS3.3 C.7.6.1.1.5): once "01", always, stated or not."""
    meta = getattr(ds, "file_meta", None)
    if meta and meta.get("TransferSyntaxUID") in _ALWAYS_LOSSY:
        return "01"
    return str(value(ds, "LossyImageCompression") or "00")


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
    clone.LossyImageCompression = lossy_compression(ds)
    for keyword in _LOSSY:
        if found := value(ds, keyword):
            with suppress(ValueError):  # a ratio of "10:1" say, which is no number
                setattr(clone, keyword, found)
    clone.Modality = "CT"
    clone.SamplesPerPixel, clone.PhotometricInterpretation = 1, "MONOCHROME2"
    clone.BitsAllocated, clone.BitsStored, clone.HighBit, clone.PixelRepresentation = 16, 16, 15, 1
    for keyword in ("Rows", "Columns"):
        if found := numbers(ds, keyword, 1):
            setattr(clone, keyword, int(found[0]))
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
