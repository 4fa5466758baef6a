"""The transfer syntax an object travels in: which suit it, and the same object in another. Loses nothing.

The stored file stays as it is: what is made here lives as long as one send. Pixels are compressed without
loss or not at all, so that the SOP Instance UID stays (PS3.3 C.7.6.1.1.5).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from io import BytesIO

from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    ParametricMapStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from node.encapsulated import frame_stream
from node.frames import UNREADABLE

SYNTAXES: dict[str, UID] = {  # by the word in the settings
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpegls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
FALL_BACK = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""Offered for every object: Implicit VR Little Endian is what every peer must take (PS3.5 10.1)."""
_IMAGE_CODERS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
_LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage; not yet named in pydicom
_IMAGES = (SecondaryCaptureImageStorage, ParametricMapStorage, _LABEL_MAP)
IMPOSSIBLE = (AttributeError, RuntimeError, TypeError, *UNREADABLE)
"""What pydicom and its coders raise of an object that cannot be had in another transfer syntax."""
_ITEM = struct.Struct("<HHI")
_one_at_a_time = threading.Lock()
"""The JPEG 2000 encoder of pylibjpeg-openjpeg is not safe in threads, and each destination has its own."""


def offered(sop_class_uid: str, wanted: Iterable[str]) -> tuple[UID, ...]:
    """What to propose for a SOP class, most wanted first: one presentation context for each.

    A binary SEG holds one bit a pixel, which no image coder takes, and a document holds no pixels at all:
    both are only ever deflated.
    """
    is_image = sop_class_uid in _IMAGES
    chosen = [SYNTAXES[word] for word in wanted if is_image or SYNTAXES[word] not in _IMAGE_CODERS]
    return tuple(dict.fromkeys((*chosen, *FALL_BACK)))


def as_stored(stored: UID, usable: Iterable[UID]) -> tuple[UID, ...]:
    """`usable`, and before it the syntax of a stored file that is costly, or impossible, to change."""
    keep = stored.is_compressed or not stored.is_little_endian
    return tuple(dict.fromkeys((*((stored,) if keep else ()), *usable)))


def in_syntax(ds: FileDataset, syntax: UID) -> FileDataset:
    """`ds` in another transfer syntax; may change `ds`, but no bit of its pixels.

    Raises one of IMPOSSIBLE when that cannot be had.
    """
    if syntax == ds.file_meta.TransferSyntaxUID:
        return ds
    if not UID(ds.file_meta.TransferSyntaxUID).is_little_endian:
        raise ValueError("big endian pixels are sent as they are, or not at all")
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        _rid_of_tables(ds)
        with _one_at_a_time:
            ds.decompress(generate_instance_uid=False)
        if syntax == ds.file_meta.TransferSyntaxUID:
            return ds
    if syntax in _IMAGE_CODERS:
        with _one_at_a_time:
            ds.compress(syntax, generate_instance_uid=False)
        return ds
    if syntax.is_implicit_VR != ds.file_meta.TransferSyntaxUID.is_implicit_VR:
        ds = _relabelled(ds, ImplicitVRLittleEndian if syntax.is_implicit_VR else ExplicitVRLittleEndian)
    stream = BytesIO()
    ds.file_meta.TransferSyntaxUID = syntax
    dcmwrite(stream, ds, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


def _rid_of_tables(ds: FileDataset) -> None:
    """Each frame in a fragment of its own: pydicom finds a frame by the offset tables, whatever they say."""
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    streams = [frame_stream(ds, frame) for frame in range(frames)]
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        ds.pop(keyword, None)
    ds.PixelData = encapsulate(streams, has_bot=False)
    ds["PixelData"].is_undefined_length = True


def _relabelled(ds: FileDataset, syntax: UID) -> FileDataset:
    """With VRs, or without; every value stays the bytes it is, whatever character set the header names."""
    stream = DicomBytesIO()
    stream.write(b"\0" * 128 + b"DICM")
    ds.file_meta.TransferSyntaxUID = syntax
    write_file_meta_info(stream, ds.file_meta)
    stream.write(_encoded(ds, syntax.is_implicit_VR))
    return dcmread(BytesIO(stream.getvalue()))


def _encoded(ds: Dataset, implicit: bool) -> bytes:
    """The elements of `ds` in Little Endian, without group lengths (retired, PS3.5 7.2)."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    for tag in sorted(ds.keys()):
        if tag.element:
            write_data_element(stream, _labelled(ds, tag, implicit))
    return stream.getvalue()


def _labelled(ds: Dataset, tag: BaseTag, implicit: bool) -> RawDataElement | DataElement:
    """With its VR; an element of an unknown one, or of which nobody can make sense, is UN (PS3.5 6.2.2)."""
    stored = ds.get_item(tag)
    vr = stored.VR or _looked_up(ds, tag)
    if vr == "SQ":
        items = [_encoded(item, implicit) for item in ds[tag].value]
        value = b"".join(_ITEM.pack(0xFFFE, 0xE000, len(item)) + item for item in items)
        return RawDataElement(tag, vr, len(value), value, 0, implicit, True)
    return stored._replace(VR=vr) if isinstance(stored, RawDataElement) else stored


def _looked_up(ds: Dataset, tag: BaseTag) -> str:
    try:
        vr = ds[tag].VR
    except (AttributeError, TypeError, *UNREADABLE):
        return "UN"
    return vr if len(vr) == 2 else "UN"
