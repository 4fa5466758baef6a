"""Headers of slices, of which each says nearly what the one before it over the same association said.

The slice before gives a form: stretches of bytes that are the same again, and between them the few elements
that are not. What fits the form has the same elements in the same order, so only those few are read. What
does not is skimmed whole (`node.skim`), and teaches the form which elements differ. Decides nothing.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from node.domain.instance import Instance, Vector
from node.elements import TAGS, Elements
from node.headers import OF_A_SLICE, instance_of_elements, slice_like
from node.skim import LONG_VRS, UNDEFINED, WANTED, Skimmed, behind_sequence, skim

MOST_REMEMBERED = 64
MOST_VARYING = 64
_UID, _NUMBER = TAGS["SOPInstanceUID"], TAGS["InstanceNumber"]
_ACQUISITION, _POSITION = TAGS["AcquisitionNumber"], TAGS["ImagePositionPatient"]
_SHORT, _LONG = struct.Struct("<H"), struct.Struct("<I")
_USUAL_VRS = {_UID: b"UI", _NUMBER: b"IS", _ACQUISITION: b"IS", _POSITION: b"DS"}
_PLAIN_UID = re.compile(rb"([0-9.]+)\0?")
_PLAIN_INTEGER = re.compile(rb" *[+-]?[0-9]{1,9} *")
_PLAIN_DECIMAL = rb" *[+-]?[0-9]{1,16}(?:\.[0-9]{0,16})? *"
_PLAIN_POSITION = re.compile(rb"\\".join([_PLAIN_DECIMAL] * 3))


@dataclass(frozen=True)
class Header:
    """An instance, and where the value of its Pixel Data begins in the data set, with its length."""

    instance: Instance
    pixels_at: int
    pixels_length: int


@dataclass(frozen=True)
class _Gap:
    """An element between two stretches: the one before ends behind its tag and VR."""

    tag: int
    vr: bytes
    length: struct.Struct


@dataclass(frozen=True)
class _Form:
    syntax: str
    data: bytes
    skimmed: Skimmed
    instance: Instance
    varying: frozenset[int]
    stretches: tuple[bytes, ...]
    """One more than there are gaps; the last one ends with the length of Pixel Data."""
    gaps: tuple[_Gap, ...]

    def read(self, data: bytes) -> Header | None:
        """None for what does not fit."""
        at = 0
        own: Elements = {}
        for stretch, gap in zip(self.stretches, self.gaps, strict=False):
            if not data.startswith(stretch, at):
                return None
            at += len(stretch)
            begin = at + gap.length.size
            if begin > len(data):
                return None
            (length,) = gap.length.unpack_from(data, at)
            at = begin + length
            if length == UNDEFINED:
                at = behind_sequence(data, begin, gap.vr)
                if at < 0:
                    return None
            if gap.tag in OF_A_SLICE:
                own[gap.tag] = (gap.vr, data[begin:at])
        last = self.stretches[-1]
        if not data.startswith(last, at):
            return None
        instance = _slice(self.instance, own, self.skimmed.elements)
        return Header(instance, at + len(last), self.skimmed.pixels_length)


class HeadersAlike:
    """Remembers the latest header of some associations. Any thread may use it."""

    def __init__(self) -> None:
        self._forms: dict[str, _Form] = {}

    def read(self, association_id: str, data: bytes, transfer_syntax_uid: str) -> Header | None:
        """`data` are the first bytes of a data set. None for what is left to pydicom, as `skim` does.

        Raises PermanentError HEADER_INCOMPLETE without the four UIDs.
        """
        form = self._forms.get(association_id)
        if form is not None and form.syntax == transfer_syntax_uid and (fitting := form.read(data)):
            return fitting
        skimmed = skim(data, transfer_syntax_uid)
        if skimmed is None:
            return None
        instance = instance_of_elements(skimmed.elements, transfer_syntax_uid)
        if len(self._forms) >= MOST_REMEMBERED:
            self._forms = {}
        varying = _varying(form, data, skimmed) if form and form.syntax == transfer_syntax_uid else OF_A_SLICE
        self._forms[association_id] = _form(transfer_syntax_uid, data, skimmed, instance, varying)
        return Header(instance, skimmed.pixels_at, skimmed.pixels_length)


def _varying(form: _Form, data: bytes, skimmed: Skimmed) -> frozenset[int]:
    """Which elements differed so far; a new beginning where the elements are not the same ones."""
    before = {tag: form.data[at:end] for tag, at, end in form.skimmed.spans}
    now = {tag: data[at:end] for tag, at, end in skimmed.spans}
    if list(before) != list(now):
        return OF_A_SLICE
    differing = {tag for tag in now if now[tag] != before[tag] and tag not in WANTED}
    varying = form.varying | differing
    return varying if len(varying) <= MOST_VARYING else OF_A_SLICE


def _form(syntax: str, data: bytes, skimmed: Skimmed, instance: Instance, varying: frozenset[int]) -> _Form:
    stretches, gaps, begin = [], [], 0
    for tag, at, end in skimmed.spans:
        if tag in varying:
            vr = data[at + 4 : at + 6] if skimmed.is_explicit else b""
            length = _LONG if not vr or vr in LONG_VRS else _SHORT
            length_at = at + (4 if not vr else 8 if vr in LONG_VRS else 6)
            stretches.append(data[begin:length_at])
            gaps.append(_Gap(tag, vr, length))
            begin = end
    stretches.append(data[begin : skimmed.pixels_at])
    return _Form(syntax, data, skimmed, instance, varying, tuple(stretches), tuple(gaps))


class _Unusual(Exception):
    """Left to `node.headers`."""


def _slice(latest: Instance, own: Elements, all_elements: Elements) -> Instance:
    """Another slice of which `own` differ. Raises PermanentError HEADER_INCOMPLETE without its UID."""
    try:
        return _plain_slice(latest, own)
    except _Unusual:
        return slice_like(latest, own, all_elements)


def _plain_slice(latest: Instance, own: Elements) -> Instance:
    """Of values that are written as nearly everybody writes them."""
    for tag, (vr, _) in own.items():
        if vr and vr != _USUAL_VRS[tag]:
            raise _Unusual
    uid = _PLAIN_UID.fullmatch(_value(own, _UID))
    if uid is None:
        raise _Unusual
    number, acquisition = _integer(_value(own, _NUMBER)), _integer(_value(own, _ACQUISITION))
    return latest.slice_alike(uid[1].decode("ascii"), number, acquisition, _position(_value(own, _POSITION)))


def _value(own: Elements, tag: int) -> bytes:
    return own[tag][1] if tag in own else b""


def _integer(value: bytes) -> int | None:
    if not value:
        return None
    if _PLAIN_INTEGER.fullmatch(value) is None:
        raise _Unusual
    return int(value)


def _position(value: bytes) -> Vector | None:
    if not value:
        return None
    if _PLAIN_POSITION.fullmatch(value) is None:
        raise _Unusual
    return tuple(map(float, value.split(b"\\")))
