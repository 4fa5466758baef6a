"""HL7 order messages (ORM^O01, OMG^O19, OMI^O23) → words about the urgency of studies. Opens no connection.

The priority stands in TQ1-9, in older versions in ORC-7 or OBR-27 (sixth component) or OBR-5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import hl7

from node.domain.errors import PermanentError
from node.domain.orders import MOST_URGENT_FIRST, OrderPriority, Said, Source, Subject, read_priority

TAKEN = (("ORM", "O01"), ("OMG", "O19"), ("OMI", "O23"))
CANCELLED = ("CA", "DC", "OC", "OD", "CR", "DR")
"""Order control codes of orders that are not to be done (HL7 table 0119)."""
PRIORITY_FIELDS = (("TQ1", 9, 1), ("ORC", 7, 6), ("OBR", 27, 6), ("OBR", 5, 1))
"""(segment, field, component), the first that says something counts."""
UTF8 = ("UNICODE UTF-8", "UTF-8")
PLACER_FIELDS = (("ORC", 2, 1), ("OBR", 2, 1))
LONGEST_PLACER = 64
NULL = '""'
"""What a sender writes to empty a field (HL7 v2.5.1, 2.5.3)."""


@dataclass(frozen=True)
class Order:
    """One order of a message: what it is about, and how urgent it is; cancelled ones say nothing more."""

    about: Subject
    priority: OrderPriority | None
    cancelled: bool
    raw_priority: str = ""


@dataclass
class _Group:
    """The segments of one order."""

    segments: list[hl7.Segment] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return any(_name(segment) == name for segment in self.segments)


def parse(block: bytes) -> hl7.Message:
    """A message as it came in its MLLP block. Raises PermanentError when it is none."""
    text = _segments(block.decode("latin-1"))
    if not text.startswith("MSH") or len(text) < 8:
        raise PermanentError("HL7", "not an HL7 message: it does not begin with MSH")
    try:
        message = hl7.parse(text)
        if component(message.segment("MSH"), 18).upper() in UTF8:
            message = hl7.parse(_segments(block.decode("utf-8", "replace")))
    except (hl7.HL7Exception, ValueError, LookupError) as error:
        raise PermanentError("HL7", f"not an HL7 message: {error}") from error
    return message


def _segments(text: str) -> str:
    """Each ended by a carriage return, whatever ends them here, without empty lines, and without padding."""
    lines = re.split(r"[\r\n]+", text.replace("\0", ""))
    return "".join(f"{line}\r" for line in lines if line.strip())


def kind(message: hl7.Message) -> tuple[str, str]:
    """Message code and trigger event, from MSH-9."""
    msh = message.segment("MSH")
    return component(msh, 9), component(msh, 9, 2)


def orders(message: hl7.Message, accession_fields: Sequence[str]) -> list[Order]:
    """Every order of the message. Raises PermanentError when one names no study at all."""
    found = []
    for group in _groups(message):
        placer = _first(group, PLACER_FIELDS)[:LONGEST_PLACER]
        about = Subject(_study_uid(group), _accession(group, accession_fields), _patients(group), placer)
        if not about.study_instance_uid and not about.accession_number:
            where = ", ".join(accession_fields)
            raise PermanentError("HL7", f"an order without accession number ({where}) or Study Instance UID")
        raw = _first(group, PRIORITY_FIELDS)
        cancelled = _first(group, (("ORC", 1, 1),)).upper() in CANCELLED
        found.append(Order(about, read_priority(raw), cancelled, raw))
    if not found:
        raise PermanentError("HL7", "no order in it: neither ORC nor OBR")
    return found


def in_turn(orders: Iterable[Order]) -> list[Order]:
    """So that of several orders of one study the most urgent has the last word: cancelled ones first."""
    return sorted(orders, key=lambda order: -1 if order.cancelled else _urgency(order))


def _urgency(order: Order) -> int:
    """More is more urgent; 0 and above."""
    return len(MOST_URGENT_FIRST) - MOST_URGENT_FIRST.index(order.priority or OrderPriority.ROUTINE)


def said(order: Order, control_id: str, now: float) -> Said:
    """The word of an order that is to be done; one without a priority is routine."""
    return Said(Source.HL7, order.priority or OrderPriority.ROUTINE, order.about, now, control_id)


def component(segment: hl7.Segment, number: int, part: int = 1, repetition: int = 0) -> str:
    """One component of a field, counted from 1 as HL7 counts; empty where there is none."""
    _, _, between_repetitions, between_parts, between_subparts = segment.separators
    repetitions = _text(segment, number).split(between_repetitions)
    if repetition >= len(repetitions):
        return ""
    parts = repetitions[repetition].split(between_parts)
    text = parts[part - 1].split(between_subparts)[0].strip() if part <= len(parts) else ""
    return "" if text == NULL else _unescaped(segment, text)


def _text(segment: hl7.Segment, number: int) -> str:
    """A whole field as it was written."""
    try:
        return str(segment[number])
    except IndexError:
        return ""


def _unescaped(segment: hl7.Segment, text: str) -> str:
    """With the separators that a value holds in place of their escape sequences (HL7 v2.5.1, 2.7.1)."""
    escape = re.escape(segment.esc)
    stands_for = dict(zip("FRST", segment.separators[1:], strict=True)) | {"E": segment.esc}
    return re.sub(f"{escape}([EFRST]){escape}", lambda match: stands_for[match[1]], text)


def _groups(message: hl7.Message) -> Iterator[_Group]:
    """What belongs to each order; PID comes before all of them. An order begins with ORC, else with OBR."""
    common = [s for s in message if _name(s) == "PID"]
    group = _Group()
    for segment in message:
        name = _name(segment)
        if (name == "ORC" and (group.has("ORC") or group.has("OBR"))) or (name == "OBR" and group.has("OBR")):
            yield _Group([*common, *group.segments])
            group = _Group()
        if name in ("ORC", "OBR", "TQ1", "IPC", "ZDS"):
            group.segments.append(segment)
    if group.has("ORC") or group.has("OBR"):
        yield _Group([*common, *group.segments])


def _name(segment: hl7.Segment) -> str:
    return str(segment[0])


def _first(group: _Group, places: Iterable[tuple[str, int, int]]) -> str:
    for name, number, part in places:
        for segment in group.segments:
            if _name(segment) == name and (text := component(segment, number, part)):
                return text
    return ""


def _accession(group: _Group, fields: Sequence[str]) -> str:
    places = [(name, int(number), 1) for name, _, number in (f.partition("-") for f in fields)]
    return _first(group, places)


def _study_uid(group: _Group) -> str:
    """IPC-3 of HL7 2.5 and later; ZDS-1 of IHE Radiology's procedure scheduled message."""
    return _first(group, (("IPC", 3, 1), ("ZDS", 1, 1)))


def _patients(group: _Group) -> tuple[str, ...]:
    """Every identifier of PID-3."""
    for segment in group.segments:
        if _name(segment) == "PID":
            count = _text(segment, 3).count(segment.separators[2]) + 1
            found = (component(segment, 3, 1, index) for index in range(count))
            return tuple(text for text in found if text)
    return ()
