"""The header elements that the node decides by, read from the first bytes of a data set.

Gives up on anything unusual, and leaves it to pydicom: big endian, deflated, multi-frame objects, filled
sequences among the wanted elements, VRs it does not know, elements out of order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from node.elements import HEADER_TAGS, Elements, raw_elements

PIXEL_DATA, FLOAT_PIXELS = 0x7FE00010, (0x7FE00008, 0x7FE00009)
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
FIRST = 0x00080001
"""Below lie command and file meta elements, and group 0008's own length; none begins a data set here."""
DEEPEST = 8
_NUMBER_OF_FRAMES = 0x00280008
_FIRST_PIXELS = min(PIXEL_DATA, *FLOAT_PIXELS)
WANTED = frozenset(map(int, HEADER_TAGS))
_UNUSUAL = frozenset(tag for tag in WANTED if dictionary_VR(tag) == "SQ") | {_NUMBER_OF_FRAMES}
LONG_VRS = frozenset(
    (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
)
_SHORT = frozenset((b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO")) | frozenset(
    (b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US")
)
_VRS = _SHORT | LONG_VRS
_TAG_LENGTH = struct.Struct("<HHI")
_EXPLICIT = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")
Reader = Callable[[bytes, int], tuple[int, bytes, int, int]]


@dataclass(frozen=True)
class Skimmed:
    """The wanted elements, and where the value of Pixel Data begins in the data set, with its length."""

    elements: Elements
    pixels_at: int
    pixels_length: int
    spans: Sequence[tuple[int, int, int]] = ()
    """(tag, where it begins, where it ends) of every element at the top, up to Pixel Data."""
    is_explicit: bool = True

    @property
    def header(self) -> Dataset:
        """The elements as pydicom holds those that it has not looked at yet."""
        return Dataset({BaseTag(tag): element for tag, element in raw_elements(self.elements).items()})


class _Unusual(Exception):
    """Left to pydicom."""


def skim(data: bytes, transfer_syntax_uid: str) -> Skimmed | None:
    """`data` are the first bytes of a data set. None when more of them would be needed, or more skill."""
    element = _reader(transfer_syntax_uid)
    if element is None or (element is _implicit and data[4:6] in _VRS):  # explicit after all
        return None
    try:
        return _skim(data, element is _implicit, element)
    except (_Unusual, struct.error):
        return None


@lru_cache(64)
def _reader(transfer_syntax_uid: str) -> Reader | None:
    """How elements are read; None for what is left to pydicom."""
    syntax = UID(transfer_syntax_uid)
    if not syntax.is_little_endian or syntax.is_deflated:
        return None
    return _implicit if syntax.is_implicit_VR else _explicit


def _skim(data: bytes, is_implicit: bool, element: Reader) -> Skimmed:
    found: Elements = {}
    spans: list[tuple[int, int, int]] = []
    at, last = 0, FIRST - 1
    wanted, most = WANTED, min(len(data), UNDEFINED - 1)
    while True:
        begin = at
        tag, vr, length, at = element(data, at)
        if tag <= last or tag >= _FIRST_PIXELS:
            if tag != PIXEL_DATA or tag <= last:
                raise _Unusual
            return Skimmed(found, at, length, spans, not is_implicit)
        last = tag
        end = at + length
        if tag in wanted:
            if end > most or (tag in _UNUSUAL and (length or tag == _NUMBER_OF_FRAMES)):
                raise _Unusual
            found[tag] = (vr, data[at:end])
        elif end > most:
            if length != UNDEFINED or vr not in (b"", b"SQ"):
                raise _Unusual
            end = _behind_items(data, at, is_implicit, DEEPEST)
        spans.append((tag, begin, end))
        at = end


def _explicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    """(tag, VR, length, where the value begins)."""
    group, number, vr, length = _EXPLICIT.unpack_from(data, at)
    if vr in _SHORT:
        return group << 16 | number, vr, length, at + 8
    if vr not in LONG_VRS:
        raise _Unusual
    return group << 16 | number, vr, _LENGTH.unpack_from(data, at + 8)[0], at + 12


def _implicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    group, number, length = _TAG_LENGTH.unpack_from(data, at)
    return group << 16 | number, b"", length, at + 8


def behind_sequence(data: bytes, at: int, vr: bytes) -> int:
    """Where a sequence of undefined length ends whose items begin at `at`; -1 for what is left to pydicom.

    Its VR is empty where it is implicit.
    """
    if vr not in (b"", b"SQ"):
        return -1
    try:
        return _behind_items(data, at, not vr, DEEPEST)
    except (_Unusual, struct.error):
        return -1


def _behind_items(data: bytes, at: int, is_implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends (PS3.5 7.5.2)."""
    if not depth:
        raise _Unusual
    while True:
        group, element, length = _TAG_LENGTH.unpack_from(data, at)
        at += 8
        tag = group << 16 | element
        if tag == SEQUENCE_END and length == 0:
            return at
        if tag != ITEM:
            raise _Unusual
        at = _behind_elements(data, at, at + length if length != UNDEFINED else None, is_implicit, depth - 1)


def _behind_elements(data: bytes, at: int, end: int | None, is_implicit: bool, depth: int) -> int:
    """Where an item ends; without an `end` of its own it has a delimiter."""
    while at != end:
        group, element, length = _TAG_LENGTH.unpack_from(data, at)
        if end is None and group << 16 | element == ITEM_END and length == 0:
            return at + 8
        tag, vr, length, at = (_implicit if is_implicit else _explicit)(data, at)
        if tag >= ITEM or (end is not None and at > end):
            raise _Unusual
        if length != UNDEFINED:
            at += length
        elif vr in (b"", b"SQ"):
            at = _behind_items(data, at, is_implicit, depth)
        else:
            raise _Unusual
        if end is not None and at > end:
            raise _Unusual
    return at
