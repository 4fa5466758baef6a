"""Reads single elements of a dataset by keyword, whatever a modality wrote into them. Knows no instance.

A value that is absent, empty, illegal or of the wrong VR becomes None or empty. Raw bytes are parsed here,
not by pydicom, so that one junk element can neither raise nor slow the rest.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from node.domain.errors import PermanentError
from node.domain.instance import Vector
from node.frames import UNREADABLE

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
TAGS = {keyword: tag_for_keyword(keyword) or 0 for keyword in (*_KEYWORDS, *_OF_ACQUISITION)}
HEADER_TAGS = [TAGS[keyword] for keyword in _KEYWORDS]
"""What `read_instance` reads; pass to `dcmread(specific_tags=…)` to read no more than is needed."""

_BASE_TAGS = {tag: BaseTag(tag) for tag in TAGS.values()}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_IMPLICIT = {TAGS["Rows"]: "US", TAGS["Columns"]: "US", TAGS["TemporalPositionIndex"]: "UL"}
_DELIMITERS = TEXT_VR_DELIMS | PN_DELIMS

Elements = dict[int, tuple[bytes, bytes]]
"""Of a plain image in Little Endian: VR (empty where it is implicit) and value, as they came, by tag."""


def raw_elements(elements: Elements) -> dict[int, RawDataElement]:
    """As pydicom holds elements that it has not looked at yet."""
    return {
        tag: RawDataElement(_BASE_TAGS[tag], vr.decode() or None, len(value), value, 0, not vr, True)
        for tag, (vr, value) in elements.items()
    }


class Raw(dict[int, RawDataElement]):
    """So much of a Dataset as `Header` needs, without its price."""

    def get_item(self, tag: int) -> RawDataElement | None:
        return self.get(tag)


class Header:
    """Tolerant access by keyword to one Dataset, without converting (or caching) its raw elements."""

    def __init__(self, ds: Dataset | Raw) -> None:
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
            return self._ds.get_item(TAGS[keyword])
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
            items: Any = self._ds[TAGS[keyword]].value
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
