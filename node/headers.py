"""Turn a DICOM header into an Instance, whatever a modality wrote into it. Opens no pixels, decides nothing.

A value that is absent, empty, illegal or of the wrong VR becomes None or empty. Only an object that
does not say which instance, series and study it is gets refused, since nothing could be recorded of it.
Raw bytes are parsed here, not by pydicom, so that one junk element can neither raise nor slow the rest.
"""

from __future__ import annotations

import math
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from node.domain.acquisition import Acquisition
from node.domain.errors import PermanentError
from node.domain.instance import Frame, Instance, Vector
from node.frames import UNREADABLE, frame_headers, is_multiframe
from node.headerfile import TooLong, read_bounded

_KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "StudyTime",
    "AccessionNumber", "Modality", "Manufacturer", "StationName", "StudyDescription", "SeriesDescription",
    "AnatomicRegionSequence", "PatientName", "PatientID", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "BodyPartExamined", "SliceThickness", "ProtocolName",
    "ConvolutionKernel", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID",
    "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "RescaleIntercept", "RescaleSlope",
    "IssuerOfPatientID", "PatientBirthDate", "RequestedProcedurePriority", "StudyPriorityID", "StackID",
    "TemporalPositionIndex", "VolumeBasedCalculationTechnique", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_OF_ACQUISITION = ("ManufacturerModelName", "StationName", "KVP")
_TAGS = {keyword: tag_for_keyword(keyword) or 0 for keyword in (*_KEYWORDS, *_OF_ACQUISITION)}
HEADER_TAGS = [_TAGS[keyword] for keyword in _KEYWORDS]
"""What `read_instance` reads; pass to `dcmread(specific_tags=…)` to read no more than is needed."""

_BASE_TAGS = {tag: BaseTag(tag) for tag in _TAGS.values()}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_IMPLICIT = {_TAGS["Rows"]: "US", _TAGS["Columns"]: "US", _TAGS["TemporalPositionIndex"]: "UL"}
_DELIMITERS = TEXT_VR_DELIMS | PN_DELIMS
_PER_FRAME = [field.name for field in fields(Frame)]

Elements = dict[int, tuple[bytes, bytes]]
"""Of a plain image in Little Endian: VR (empty where it is implicit) and value, as they came, by tag."""
_OF_A_SLICE = frozenset(
    _TAGS[name] for name in ("SOPInstanceUID", "InstanceNumber", "AcquisitionNumber", "ImagePositionPatient")
)
_TO_READ_A_SLICE = _OF_A_SLICE | {_TAGS["SpecificCharacterSet"]}
MOST_REMEMBERED = 64


def read_instance(source: str | Path | BinaryIO) -> Instance:
    """The instance in a Part 10 file. Raises PermanentError HEADER_UNREADABLE or HEADER_INCOMPLETE.

    A stream stands at the pixels afterwards, or at its end where there are none.
    """
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as stream:
            return read_instance(stream)
    name = getattr(source, "name", source)
    try:
        ds = read_bounded(source, HEADER_TAGS)
    except UNREADABLE as error:
        raise PermanentError("HEADER_UNREADABLE", f"{name} cannot be read as DICOM: {error}") from error
    except TooLong as error:
        text = f"{name} is no header that anybody writes: {error}; nothing of it is kept"
        raise PermanentError("HEADER_TOO_LONG", text) from error
    meta = getattr(ds, "file_meta", None)
    return instance_of(ds, str(meta.get("TransferSyntaxUID", "")) if meta else "")


def instance_of(ds: Dataset, transfer_syntax_uid: str) -> Instance:
    """The facts the node decides by. Raises PermanentError HEADER_INCOMPLETE without the four UIDs."""
    own = _instance_of(ds, transfer_syntax_uid)
    if not is_multiframe(ds):
        return own
    return _with_frames(own, [_instance_of(header, transfer_syntax_uid) for header in frame_headers(ds)])


def raw_elements(elements: Elements) -> dict[int, RawDataElement]:
    """As pydicom holds elements that it has not looked at yet."""
    return {
        tag: RawDataElement(_BASE_TAGS[tag], vr.decode() or None, len(value), value, 0, not vr, True)
        for tag, (vr, value) in elements.items()
    }


class SeriesHeaders:
    """Headers of slices, of which each says nearly all that the one before it in its series said.

    Gives what `instance_of` gives, and remembers the latest header of some series. Any thread may use it.
    """

    def __init__(self) -> None:
        self._latest: dict[bytes, tuple[Elements, Instance]] = {}

    def instance_of(self, elements: Elements, transfer_syntax_uid: str) -> Instance:
        """Raises PermanentError HEADER_INCOMPLETE without the four UIDs."""
        key = elements.get(_TAGS["SeriesInstanceUID"], (b"", b""))[1]
        of_series = {tag: element for tag, element in elements.items() if tag not in _OF_A_SLICE}
        known, latest = self._latest.get(key, ({}, None))
        if latest is not None and known == of_series and latest.transfer_syntax_uid == transfer_syntax_uid:
            own = {tag: elements[tag] for tag in _TO_READ_A_SLICE if tag in elements}
            return latest.slice_alike(**_of_a_slice(_Header(_Raw(raw_elements(own)))))
        instance = _instance_of(_Raw(raw_elements(elements)), transfer_syntax_uid)
        if len(self._latest) >= MOST_REMEMBERED:
            self._latest = {}
        self._latest[key] = (of_series, instance)
        return instance


class _Raw(dict[int, RawDataElement]):
    """So much of a Dataset as `_Header` needs, without its price."""

    def get_item(self, tag: int) -> RawDataElement | None:
        return self.get(tag)


def _with_frames(own: Instance, frames: list[Instance]) -> Instance:
    """The object with what all its frames have in common, and each frame with the rest."""
    if not frames:
        return own
    values = {name: [getattr(frame, name) for frame in frames] for name in _PER_FRAME}
    common: dict[str, Any] = {
        name: found[0] for name, found in values.items() if all(v == found[0] for v in found)
    }
    blank: dict[str, Any] = {f.name: f.default for f in fields(Instance) if f.name in values.keys() - common}
    rest = [{n: found[index] for n, found in values.items() if n in blank} for index in range(len(frames))]
    return replace(own, **blank, **common, per_frame=tuple(Frame(**own_rest) for own_rest in rest))


def _of_a_slice(header: _Header) -> dict[str, Any]:
    """What differs from slice to slice of a series (`_OF_A_SLICE`)."""
    return {
        "sop_instance_uid": header.required("SOPInstanceUID"),
        "instance_number": header.integer("InstanceNumber"),
        "acquisition_number": header.integer("AcquisitionNumber"),
        "position": header.vector("ImagePositionPatient", 3),
    }


def _instance_of(ds: Dataset | _Raw, transfer_syntax_uid: str) -> Instance:
    header = _Header(ds)
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    return Instance(
        **_of_a_slice(header),
        sop_class_uid=header.required("SOPClassUID"),
        series_instance_uid=header.required("SeriesInstanceUID"),
        study_instance_uid=header.required("StudyInstanceUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=header.text("Modality").upper(),
        image_type=tuple(value.upper() for value in header.texts("ImageType") + header.technique()),
        manufacturer=header.text("Manufacturer"),
        station_name=header.text("StationName"),
        body_part=header.text("BodyPartExamined") or header.meaning("AnatomicRegionSequence"),
        study_description=header.text("StudyDescription"),
        series_description=header.text("SeriesDescription"),
        protocol_name=header.text("ProtocolName"),
        kernel=header.text("ConvolutionKernel"),
        contrast_agent=header.text("ContrastBolusAgent") or header.meaning("ContrastBolusAgentSequence"),
        series_number=header.integer("SeriesNumber"),
        rows=header.integer("Rows"),
        columns=header.integer("Columns"),
        frames=max(header.integer("NumberOfFrames") or 1, 1),
        orientation=_orientation(header.vector("ImageOrientationPatient", 6)),
        pixel_spacing=_positive(header.vector("PixelSpacing", 2)),
        slice_thickness=header.number("SliceThickness"),
        rescaled=intercept is not None and slope is not None and slope != 0,
        frame_of_reference_uid=header.text("FrameOfReferenceUID"),
        patient_id=header.text("PatientID"),
        issuer_of_patient_id=header.text("IssuerOfPatientID"),
        patient_name=header.text("PatientName"),
        patient_birth_date=header.text("PatientBirthDate"),
        accession_number=header.text("AccessionNumber"),
        study_date=header.text("StudyDate"),
        study_time=header.text("StudyTime"),
        requested_priority=header.text("RequestedProcedurePriority") or header.text("StudyPriorityID"),
        stack=header.stack(),
    )


def acquisition_of(ds: Dataset) -> Acquisition:
    """How a plain image, or the first frame of a multi-frame one, was acquired."""
    frames = frame_headers(ds) if is_multiframe(ds) else []
    own, header = _Header(ds), _Header(next(iter(frames), ds))
    spacing = _positive(header.vector("PixelSpacing", 2))
    return Acquisition(
        manufacturer=own.text("Manufacturer"),
        model=own.text("ManufacturerModelName"),
        station=own.text("StationName"),
        kernel=header.text("ConvolutionKernel"),
        kvp=header.number("KVP"),
        slice_thickness_mm=header.number("SliceThickness"),
        pixel_mm=spacing[0] if spacing else None,
    )


class _Header:
    """Tolerant access by keyword to one Dataset, without converting (or caching) its raw elements."""

    def __init__(self, ds: Dataset | _Raw) -> None:
        self._ds = ds
        self._encodings: list[str] | None = None

    def required(self, keyword: str) -> str:
        """A UID as it came: nothing is taken out of a key."""
        value = "\\".join(self._values(keyword))
        if not value:
            known = self.text("SOPInstanceUID") or "without SOPInstanceUID"
            raise PermanentError("HEADER_INCOMPLETE", f"instance {known}: {keyword} is missing or empty")
        return value

    def text(self, keyword: str) -> str:
        """All values joined by a backslash, as they were written."""
        return "\\".join(self.texts(keyword))

    def _item(self, keyword: str) -> DataElement | RawDataElement | None:
        try:
            return self._ds.get_item(_TAGS[keyword])
        except UNREADABLE as error:  # a value representation that no standard knows, say
            raise PermanentError("HEADER_UNREADABLE", f"{keyword} cannot be read: {error}") from error

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Without NUL, which belongs into no text and which PostgreSQL cannot hold."""
        return tuple(value.replace("\0", "") for value in self._values(keyword))

    def _values(self, keyword: str) -> tuple[str, ...]:
        item = self._item(keyword)
        if item is None or item.value is None or isinstance(item.value, Sequence):
            return ()
        if isinstance(item, RawDataElement):
            text = self._decode(item.value) if isinstance(item.value, bytes) else str(item.value)
        elif isinstance(item.value, (MultiValue, list, tuple)):
            text = "\\".join(str(value) for value in item.value)
        else:
            text = str(item.value)
        values = tuple(value.strip(" \0\t\r\n") for value in text.split("\\"))
        return values if any(values) else ()

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Every value as a finite number, or nothing at all: half a vector is of no use."""
        item = self._item(keyword)
        if item is None or item.value is None:
            return ()
        try:
            values = tuple(float(value) for value in _binary(item) or self.texts(keyword))
        except ValueError:
            return ()
        return values if all(math.isfinite(value) for value in values) else ()

    def number(self, keyword: str) -> float | None:
        values = self.numbers(keyword)
        return values[0] if len(values) == 1 else None

    def integer(self, keyword: str) -> int | None:
        value = self.number(keyword)
        return int(value) if value is not None and value.is_integer() else None

    def vector(self, keyword: str, length: int) -> Vector | None:
        values = self.numbers(keyword)
        return values if len(values) == length else None

    def technique(self) -> tuple[str, ...]:
        """How an enhanced image was calculated from a volume, where it was (PS3.3 C.8.16.2.1.4)."""
        return tuple(t for t in self.texts("VolumeBasedCalculationTechnique") if t.upper() != "NONE")

    def stack(self) -> str:
        """Which volume of its object a frame belongs to; in order of time where there are several."""
        name, time = self.text("StackID"), self.integer("TemporalPositionIndex")
        return name if time is None else f"{time:06d} {name}".strip()

    def meaning(self, keyword: str) -> str:
        """CodeMeaning of the first item of a code sequence (PS3.3 8.8)."""
        try:
            items: Any = self._ds[_TAGS[keyword]].value
            return str(items[0].CodeMeaning or "").replace("\0", "").strip()
        except (AttributeError, OSError, TypeError, *UNREADABLE):
            return ""

    def _decode(self, value: bytes) -> str:
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        if self._encodings is None:
            self._encodings = []
            declared = [name for name in self.texts("SpecificCharacterSet") if name != "ISO_IR 6"]
            self._encodings = _encodings(declared) if declared else []
        if self._encodings:
            try:
                return decode_bytes(value, self._encodings, _DELIMITERS)
            except (LookupError, UnicodeError):
                pass
        return _undeclared(value)


def _undeclared(value: bytes) -> str:
    """Bytes beyond ASCII without a usable SpecificCharacterSet: UTF-8 where it fits, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _encodings(declared: list[str]) -> list[str]:
    """Python codecs of a SpecificCharacterSet; none when pydicom fell back on its default for all of it."""
    try:
        encodings = list(convert_encodings(declared))
    except (LookupError, ValueError):
        return []
    return encodings if set(encodings) != {default_encoding} else []


def _binary(item: DataElement | RawDataElement) -> tuple[float, ...]:
    """Values of a raw binary element; empty when the element is text (or no number at all).

    Under implicit VR the raw VR is None or UN, and the tag tells.
    """
    if not isinstance(item, RawDataElement) or not isinstance(item.value, bytes):
        return ()
    code = _BINARY.get(item.VR or "")
    if code is None and item.VR in (None, "UN"):
        code = _BINARY.get(_IMPLICIT.get(item.tag, ""))
    size = struct.calcsize(code) if code else 0
    if not code or len(item.value) % size or not item.value:
        return ()
    return struct.unpack(
        f"{'<' if item.is_little_endian else '>'}{len(item.value) // size}{code}", item.value
    )


def _orientation(vector: Vector | None) -> Vector | None:
    """ImageOrientationPatient only if its two directions are unit vectors at right angles (within 2 %)."""
    if vector is None:
        return None
    row, column = vector[:3], vector[3:]
    lengths = (math.hypot(*row), math.hypot(*column))
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    return vector if all(abs(length - 1) < 0.02 for length in lengths) and abs(dot) < 0.02 else None


def _positive(vector: Vector | None) -> Vector | None:
    return vector if vector is not None and min(vector) > 0 else None
