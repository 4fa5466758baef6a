"""Preamble and file meta information (PS3.10 7.1): written before received bytes, read from stored files.

Judges no value.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydicom.errors import InvalidDicomError

from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.wholeness import Announced

META_LENGTH_AT = 128 + 4 + 8
"""Where the length of the file meta information stands: behind preamble, prefix and its tag (PS3.10 7.1)."""
_LONGEST_META = 64 * 1024
_VERSION = struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\x00\x01")


def file_head(announced: Announced) -> bytes:
    """What stands before the data set."""
    sop_class = _element(0x0002, b"UI", announced.sop_class_uid)
    sop_instance = _element(0x0003, b"UI", announced.sop_instance_uid)
    way = _way(announced.transfer_syntax_uid, announced.calling_ae)
    meta = _VERSION + sop_class + sop_instance + way
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta


@lru_cache(64)
def _way(transfer_syntax_uid: str, calling_ae: str) -> bytes:
    """What is the same for all that comes over one association."""
    return b"".join(
        (
            _element(0x0010, b"UI", transfer_syntax_uid),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _element(0x0016, b"AE", calling_ae[:16]),
        )
    )


def _element(number: int, vr: bytes, text: str) -> bytes:
    """Of group 0002, in Explicit VR Little Endian; UI is padded with NUL, text with a blank (PS3.5 6.2)."""
    value = text.encode("latin-1", "replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


@dataclass(frozen=True)
class FileHead:
    """What the file meta information says, and where the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_at: int


def read_head(file: Path) -> FileHead:
    """Of a file that the node wrote. Raises OSError, or InvalidDicomError for what is no Part 10 file."""
    with file.open("rb") as stream:
        start = stream.read(META_LENGTH_AT + 4)
        if len(start) < META_LENGTH_AT + 4 or start[128:132] != b"DICM":
            raise InvalidDicomError("no DICOM file: the prefix DICM is missing")
        (length,) = struct.unpack_from("<I", start, META_LENGTH_AT)
        meta = stream.read(min(length, _LONGEST_META))
    found: dict[int, str] = {}
    at = 0
    while at + 8 <= len(meta):
        group, number, vr, size = struct.unpack_from("<HH2sH", meta, at)
        at += 8
        if vr in (b"OB", b"UN") and at + 4 <= len(meta):
            (size,) = struct.unpack_from("<I", meta, at)
            at += 4
        if group == 2 and vr == b"UI":
            found[number] = meta[at : at + size].decode("ascii", "replace").rstrip("\0 ")
        at += size
    if len(meta) < length or 0x0010 not in found:
        raise InvalidDicomError("the file meta information is cut short, or names no transfer syntax")
    uids = (found.get(0x0002, ""), found.get(0x0003, ""), found[0x0010])
    return FileHead(*uids, META_LENGTH_AT + 4 + length)
