"""Whether a received data set is whole, and what the command announced. Keeps and decodes nothing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from node.domain.eligibility import CT_IMAGE, ENHANCED_CT_IMAGES
from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.headers import read_instance

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
TRAILING_PADDING = 0xFFFCFFFC
MARK = b"written by ichnode to find the end"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Announced:
    """What a C-STORE command, and the association it came over, say of the data set that follows."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    association_id: str


def understood(
    announced: Announced, stream: BinaryIO, data_at: int, most_bytes: int = 4096 * MEGABYTE
) -> Instance:
    """The instance, once its data set is whole, not too large and what the command announced.

    `stream` is a Part 10 file whose data set begins at byte `data_at`. Raises PermanentError.
    """
    if stream.seek(0, os.SEEK_END) - data_at > most_bytes:
        raise too_large(announced, most_bytes)
    deflated = announced.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    if deflated:
        stream.seek(data_at)
        _check_inflation(announced, stream, most_bytes)
    stream.seek(0)
    try:
        instance = read_instance(stream)
    except zlib.error as error:
        raise PermanentError("TRUNCATED", f"deflated data set cannot be inflated: {error}") from error
    require_announced(announced, instance)
    if not deflated:  # inflating has told already
        _check_whole(stream, UID(announced.transfer_syntax_uid), instance)
    return instance


def require_announced(announced: Announced, instance: Instance) -> None:
    """Raises PermanentError SOP_MISMATCH when the data set is another object than the command said."""
    if instance.sop_class_uid != announced.sop_class_uid:
        raise PermanentError(
            "SOP_MISMATCH", f"announced as {announced.sop_class_uid}, is a {instance.sop_class_uid}"
        )
    if instance.sop_instance_uid != announced.sop_instance_uid:
        raise PermanentError(
            "SOP_MISMATCH",
            f"announced as {announced.sop_instance_uid}, the data set says {instance.sop_instance_uid}; "
            "the sender writes one of them wrongly",
        )


def too_large(announced: Announced, most_bytes: int) -> PermanentError:
    text = f"instance {announced.sop_instance_uid} is larger than {most_bytes // MEGABYTE} MiB"
    return PermanentError("INSTANCE_TOO_LARGE", f"{text}; raise scp.max_instance_mb to take it")


def _check_inflation(announced: Announced, stream: BinaryIO, most_bytes: int) -> None:
    """Inflates bit by bit and keeps nothing: a few bytes may stand for more than the memory holds."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    count = 0
    try:
        while not inflater.eof and (rest := stream.read(MEGABYTE)):
            while rest and not inflater.eof:
                count += len(inflater.decompress(rest, MEGABYTE))
                rest = inflater.unconsumed_tail
                if count > most_bytes:
                    raise too_large(announced, most_bytes)
    except zlib.error as error:
        raise PermanentError("TRUNCATED", f"deflated data set cannot be inflated: {error}") from error


def _check_whole(stream: BinaryIO, syntax: UID, instance: Instance) -> None:
    """`stream` stands where the header ended. Raises PermanentError TRUNCATED when something is missing."""
    at = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(at)
    name = f"instance {instance.sop_instance_uid}"
    order = "<" if syntax.is_little_endian else ">"
    start = stream.read(12)
    group, element = struct.unpack(order + "HH", start[:4]) if len(start) >= 8 else (0, 0)
    if (tag := group << 16 | element) != PIXEL_DATA and tag not in FLOAT_PIXEL_DATA:
        if instance.sop_class_uid in (CT_IMAGE, *ENHANCED_CT_IMAGES):
            raise PermanentError("TRUNCATED", f"{name}: is an image, but its pixel data is missing")
        if not _ends_well(stream, syntax):
            raise PermanentError("TRUNCATED", f"{name}: its last element is cut short")
        return
    header = 8 if syntax.is_implicit_VR else 12
    length = struct.unpack(order + "I", start[header - 4 : header])[0] if len(start) >= header else 1 << 32
    require_pixels(stream, at + header, length, size, name)


def require_pixels(stream: BinaryIO, at: int, length: int, size: int, name: str) -> None:
    """Pixel Data has its value at byte `at` of a file of `size` bytes. Raises PermanentError TRUNCATED."""
    if length == UNDEFINED_LENGTH:
        if not _fragments_end(stream, at, size):
            raise PermanentError("TRUNCATED", f"{name}: encapsulated pixel data does not end")
    elif length > size - at:
        raise PermanentError("TRUNCATED", f"{name}: {size - at} of {length} pixel bytes arrived")


def _fragments_end(stream: BinaryIO, at: int, size: int) -> bool:
    """Whether items follow one another up to the Sequence Delimitation Item (PS3.5 A.4)."""
    while size - at >= 8:
        stream.seek(at)
        group, element, length = struct.unpack("<HHI", stream.read(8))
        if (group, element) != ITEM:
            return bool((group, element) == SEQUENCE_DELIMITER)
        at += 8 + length
    return False


def _ends_well(stream: BinaryIO, syntax: UID) -> bool:
    """Whether an element written behind the last one is found there: one cut short would swallow it."""
    order, header = (
        ("<" if syntax.is_little_endian else ">"),
        (TRAILING_PADDING >> 16, TRAILING_PADDING & 0xFFFF),
    )
    start = struct.pack(order + "HH", *header) + (b"" if syntax.is_implicit_VR else b"OB\0\0")
    more = start + struct.pack(order + "I", len(MARK)) + MARK
    ds = dcmread(_Followed(stream, more), specific_tags=[TRAILING_PADDING])
    return TRAILING_PADDING in ds and ds[TRAILING_PADDING].value == MARK


class _Followed(io.RawIOBase):
    """A file with some bytes behind its end, neither written nor held in memory."""

    def __init__(self, stream: BinaryIO, more: bytes) -> None:
        self._stream, self._more, self._at = stream, more, 0
        self._size = stream.seek(0, os.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size + len(self._more)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = b""
        if self._at < self._size:
            self._stream.seek(self._at)
            data = self._stream.read(len(buffer))
        data += self._more[max(self._at - self._size, 0) :][: len(buffer) - len(data)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
