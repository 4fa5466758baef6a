"""Headers as they really come: absent, empty, illegal and mislabelled values must not stop an instance."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import warnings
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from node import headerfile
from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.elements import HEADER_TAGS
from node.headers import instance_of, read_instance


def header(**changes: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.2.3"
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesDescription = "Head 5.0"
    ds.SeriesNumber, ds.InstanceNumber = 2, 17
    ds.Rows, ds.Columns = 512, 256
    ds.ImagePositionPatient = [-125, -120.5, 33.25]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 0.9483237, -0.3173047]
    ds.PixelSpacing = [0.5, 0.4]
    ds.SliceThickness = 4
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.ConvolutionKernel = ["J40s", "3"]
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def raw(ds: Dataset, keyword: str, vr: str | None, value: bytes) -> Dataset:
    """Put bytes in as a reader would find them, so that nothing is checked on the way."""
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, vr is None, True)
    return ds


def encoded(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> io.BytesIO:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3.4"
    stream = DicomBytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return io.BytesIO(stream.getvalue())


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_a_good_header_reads_the_same_from_memory_and_file(syntax: str) -> None:
    instance = instance_of(header(), syntax)
    assert instance.position == (-125.0, -120.5, 33.25)
    assert instance.pixel_spacing == (0.5, 0.4)
    assert (instance.rows, instance.columns, instance.series_number) == (512, 256, 2)
    assert instance.kernel == "J40s\\3"
    assert instance.rescaled
    assert read_instance(encoded(header(), syntax)) == instance


def test_nothing_but_the_four_uids_is_needed() -> None:
    bare = Dataset()
    bare.SOPClassUID, bare.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    bare.StudyInstanceUID, bare.SeriesInstanceUID = "1.2", "1.2.3"
    assert instance_of(bare, "") == Instance("1.2.3.4", CTImageStorage, "1.2.3", "1.2", "")


def test_every_value_may_be_empty() -> None:
    ds = header()
    for element in list(ds):
        if not element.keyword.endswith("UID"):
            ds[element.tag].value = None
    assert instance_of(ds, "").position is None
    assert instance_of(ds, "") == read_instance(replace_syntax(encoded(ds)))


def replace_syntax(stream: io.BytesIO) -> io.BytesIO:
    """The same file with its transfer syntax blanked out."""
    return io.BytesIO(stream.getvalue().replace(b"1.2.840.10008.1.2.1\0", b"\0" * 20))


@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"]
)
@pytest.mark.parametrize("value", [None, "", "  \0"])
def test_an_instance_must_say_which_it_is(keyword: str, value: str | None) -> None:
    ds = header()
    if value is None:
        delattr(ds, keyword)
    else:
        raw(ds, keyword, "UI", value.encode())
    with pytest.raises(PermanentError, match=keyword) as caught:
        instance_of(ds, ExplicitVRLittleEndian)
    assert caught.value.code == "HEADER_INCOMPLETE"


def test_nothing_is_taken_out_of_a_uid() -> None:
    ds = raw(header(), "StudyInstanceUID", "UI", b"1.2\0.3")
    assert instance_of(ds, "").study_instance_uid == "1.2\0.3", "and no column holds that"


JUNK = [
    ("SliceThickness", "DS", b"5.0mm", "slice_thickness", None),
    ("SliceThickness", "DS", b"4\\5", "slice_thickness", None),
    ("SliceThickness", "DS", b"nan ", "slice_thickness", None),
    ("SliceThickness", "DS", b" 5,0 ", "slice_thickness", None),
    ("SliceThickness", "FD", b"\0\0\0\0\0\0\x14@", "slice_thickness", 5.0),
    ("SliceThickness", "FD", b"\0\0\0", "slice_thickness", None),
    ("SliceThickness", "SQ", b"\xfe\xff\0\xe0", "slice_thickness", None),
    ("ImagePositionPatient", "DS", b"1\\2", "position", None),
    ("ImagePositionPatient", "DS", b"1\\\\3", "position", None),
    ("ImagePositionPatient", None, b"1\\2\\3 ", "position", (1.0, 2.0, 3.0)),
    ("ImageOrientationPatient", "DS", b"0\\0\\0\\0\\0\\0", "orientation", None),
    ("ImageOrientationPatient", "DS", b"1\\0\\0\\1\\0\\0 ", "orientation", None),
    ("PixelSpacing", "DS", b"0\\0 ", "pixel_spacing", None),
    ("PixelSpacing", "DS", b"-1\\1", "pixel_spacing", None),
    ("Rows", "US", b"\0\x02\0", "rows", None),
    ("Rows", "UN", b"\0\x02", "rows", 512),
    ("Rows", None, b"\0\x02", "rows", 512),
    ("Rows", "IS", b"512 ", "rows", 512),
    ("InstanceNumber", "IS", b"12.0", "instance_number", 12),
    ("InstanceNumber", "IS", b"12.5", "instance_number", None),
    ("InstanceNumber", "IS", b"twelve", "instance_number", None),
    ("InstanceNumber", "IS", b"9" * 400, "instance_number", None),
    ("NumberOfFrames", "IS", b"0 ", "frames", 1),
    ("PatientName", "PN", b"DOE\0^JOHN", "patient_name", "DOE^JOHN"),
    ("PatientID", None, b"12\x00345", "patient_id", "12345"),
    ("ImageType", "CS", b"ORIGINAL\\PRI\0MARY", "image_type", ("ORIGINAL", "PRIMARY")),
    ("RescaleSlope", "DS", b"0 ", "rescaled", False),
    ("RescaleIntercept", "DS", b"  ", "rescaled", False),
    ("Modality", "CS", b"ct\0", "modality", "CT"),
    ("SeriesDescription", "LO", "Schädel".encode(), "series_description", "Schädel"),
    ("SeriesDescription", "LO", "Schädel".encode("latin-1"), "series_description", "Schädel"),
    ("SeriesDescription", "LO", b"Head\x00\x00", "series_description", "Head"),
    ("AnatomicRegionSequence", "SQ", b"\xff\xfe\xfd", "body_part", ""),
    ("AnatomicRegionSequence", "FD", b"\0" * 7, "body_part", ""),
    ("AnatomicRegionSequence", "FD", b"\0\0\0\0\0\0\xf0\x7f", "body_part", ""),
    ("StudyDate", "DA", b"2024-13-45", "study_date", "2024-13-45"),
]


@pytest.mark.parametrize(("keyword", "vr", "value", "name", "expected"), JUNK)
def test_junk_becomes_none(keyword: str, vr: str | None, value: bytes, name: str, expected: object) -> None:
    changed = instance_of(raw(header(), keyword, vr, value), "")
    assert getattr(changed, name) == expected
    assert replace(changed, **{name: None}) == replace(instance_of(header(), ""), **{name: None})


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (b"ISO_IR 192", "頭部".encode(), "頭部"),
        (b"GB18030", "颅脑平扫".encode("gb18030"), "颅脑平扫"),
        (b"ISO_IR 144", "Голова".encode("iso8859-5"), "Голова"),
        (b"\\ISO 2022 IR 87", b"\x1b$BF,It\x1b(B CT", "頭部 CT"),
        (b"ISO_IR 100", "Tête".encode("latin-1"), "Tête"),
        (b"NO SUCH SET", "Tête".encode(), "Tête"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_character_sets(declared: bytes, value: bytes, expected: str) -> None:
    ds = raw(raw(header(), "SpecificCharacterSet", "CS", declared), "StudyDescription", "LO", value)
    assert instance_of(ds, "").study_description == expected


def test_body_part_and_agent_from_code_sequences() -> None:
    item = Dataset()
    item.CodeMeaning = "Head"
    ds = header(AnatomicRegionSequence=[item], ContrastBolusAgentSequence=[])
    assert instance_of(ds, "").body_part == "Head"
    assert instance_of(ds, "").contrast_agent == ""


@pytest.mark.parametrize("content", [b"", b"not DICOM at all", b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_what_is_no_dicom_file_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(PermanentError):
        read_instance(io.BytesIO(content))


def test_no_flipped_byte_raises_anything_else() -> None:
    whole = encoded(header()).getvalue()
    random = Random(20190905)
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(random.randrange(1, 6)):
            damaged[random.randrange(130, len(whole))] = random.randrange(256)
        with contextlib.suppress(PermanentError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_instance(io.BytesIO(bytes(damaged)))


@pytest.mark.parametrize("keyword", ["AccessionNumber", "StudyTime", "Columns", "PixelSpacing", "KVP"])
def test_an_empty_value_of_a_representation_that_nobody_knows(keyword: str) -> None:
    """pydicom finds out when the value is asked for. What is not asked for hinders nobody."""
    tag = Tag(keyword)
    nothing = struct.pack("<HH2sH", tag.group, tag.element, b"ZZ", 0)
    data = encoded(header()).getvalue()
    stream = io.BytesIO(data + nothing)
    if keyword == "KVP":
        assert read_instance(stream) == read_instance(io.BytesIO(data))
        return
    with pytest.raises(PermanentError, match=keyword) as caught:
        read_instance(stream)
    assert caught.value.code == "HEADER_UNREADABLE"


SEQUENCE = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "rest", [SEQUENCE, SEQUENCE + b"abc", SEQUENCE + ITEM, SEQUENCE + ITEM + b"\x08\0\x60\0"]
)
def test_a_header_that_ends_within_a_sequence_is_refused(rest: bytes) -> None:
    """pydicom raises an OSError, though no disk is to blame."""
    with pytest.raises(PermanentError, match="No tag") as caught:
        read_instance(io.BytesIO(encoded(header()).getvalue() + rest))
    assert caught.value.code == "HEADER_UNREADABLE"


def test_a_disk_that_fails_is_not_the_senders_fault() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        read_instance(Failing())


def test_zeros_without_end_are_refused_at_once() -> None:
    """Each eight of them are an element without a value."""
    head = encoded(header()).getvalue()
    with pytest.raises(PermanentError, match="65536 elements") as caught:
        read_instance(Zeros(head, 200 * 2**20))
    assert caught.value.code == "HEADER_TOO_LONG"


def test_zeros_in_a_sequence_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headerfile, "MOST_READS", 20_000)
    head = encoded(header()).getvalue()
    with pytest.raises(PermanentError, match="20000 pieces"):
        read_instance(Zeros(head + SEQUENCE + ITEM, 200 * 2**20))


class Zeros(io.RawIOBase):
    """A file that goes on with zeros, which take no memory."""

    def __init__(self, start: bytes, more: int) -> None:
        self._start, self._size, self._at = start, len(start) + more, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        found = self._start[self._at : end].ljust(end - self._at, b"\0")
        self._at = end
        return found


def test_all_facts_come_from_tags_that_are_read() -> None:
    assert len(HEADER_TAGS) == len(set(HEADER_TAGS))
    assert all(HEADER_TAGS)
    assert len(HEADER_TAGS) >= len(fields(Instance)) - 3
