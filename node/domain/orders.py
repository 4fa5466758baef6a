"""How urgent a study was ordered, and whose turn it is in the queue. Knows nothing of what an image shows.

Several places may say how urgent a study is: the modality worklist, HL7 orders, the AE title that sends it,
its own headers. The latest word of each place counts, and the most urgent of them wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class OrderPriority(StrEnum):
    """Requested Procedure Priority (0040,1003), most urgent first, as PS3.3 C.4.11 lists its terms."""

    STAT = "STAT"
    HIGH = "HIGH"
    ROUTINE = "ROUTINE"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class Source(StrEnum):
    """Who said so."""

    CALLER = "CALLER"  # orders.stat_calling_ae_titles
    HL7 = "HL7"  # ORM^O01, OMG^O19, OMI^O23
    WORKLIST = "WORKLIST"  # modality worklist by C-FIND
    HEADER = "HEADER"  # (0040,1003) or (0032,000C) of the instances


MOST_URGENT_FIRST = tuple(OrderPriority)
_WORDS = {
    OrderPriority.STAT: ("STAT", "S", "EM", "EMERGENCY"),
    OrderPriority.HIGH: ("HIGH", "A", "ASAP", "P", "C", "UR", "URGENT"),
    OrderPriority.ROUTINE: ("ROUTINE", "R"),
    OrderPriority.MEDIUM: ("MEDIUM", "MED", "T"),
    OrderPriority.LOW: ("LOW", "PRN", "EL"),
}
_BY_WORD = {word: priority for priority, spellings in _WORDS.items() for word in spellings}
"""DICOM's terms of (0040,1003) and (0032,000C); the letters of HL7 tables 0485, 0027 and v3 ActPriority,
mapped to the former by ourselves: A, P and C are HIGH, T is MEDIUM."""


def read_priority(text: str) -> OrderPriority | None:
    """What a priority field says; None where it is empty or says something nobody agreed on."""
    return _BY_WORD.get(text.strip().upper())


@dataclass(frozen=True)
class Subject:
    """What an order or a study is known by; what is not known is empty."""

    study_instance_uid: str = ""
    accession_number: str = ""
    patient_ids: tuple[str, ...] = ()
    placer_order_number: str = ""
    """Which of several orders it is, where one examination is ordered as several procedures; of no study."""


@dataclass(frozen=True)
class Said:
    """One word about the urgency of one order; `reference` names the message or the AE title it came from."""

    source: Source
    priority: OrderPriority
    about: Subject
    said_at: float
    reference: str = ""


def concerns(order: Subject, study: Subject) -> bool:
    """Whether an order is about a study: the same Study Instance UID, else accession number and patient.

    Accession numbers of several hospitals may be the same, so two patients that differ are no match.
    """
    if order.study_instance_uid and order.study_instance_uid == study.study_instance_uid:
        return True
    if not order.accession_number or order.accession_number != study.accession_number:
        return False
    known = set(order.patient_ids), set(study.patient_ids)
    return not all(known) or bool(known[0] & known[1])


def are_same(order: Subject, other: Subject) -> bool:
    """Whether two orders are one, so that the later takes the place of the earlier.

    One accession number may stand for several studies, each of which was ordered (IHE RAD TF-1, 3.4): orders
    that name different ones differ. So do orders of different placer order numbers (ORC-2).
    """
    numbers = (order.placer_order_number, other.placer_order_number)
    if all(numbers) and numbers[0] != numbers[1]:
        return False
    if order.study_instance_uid and other.study_instance_uid:
        return order.study_instance_uid == other.study_instance_uid
    return concerns(order, other)


def most_urgent(words: Iterable[Said]) -> Said | None:
    """The word that counts, of several places; of words alike the one said first."""
    ranked = sorted(words, key=lambda w: (MOST_URGENT_FIRST.index(w.priority), w.said_at))
    return ranked[0] if ranked else None


@dataclass(frozen=True)
class Rules:
    """Which ordered priorities go first, and after how long waiting counts like one of them."""

    stat: tuple[OrderPriority, ...] = (OrderPriority.STAT,)
    age_s: float = 1800.0


class Turn(StrEnum):
    """Why a job was taken."""

    STAT = "STAT"  # ordered so
    AGED = "AGED"  # routine that waited so long that it counts as STAT
    ROUTINE = "ROUTINE"


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, since when (seconds since the epoch)."""

    job_id: int
    since: float


def next_turn(
    stat: Waiting | None, other: Waiting | None, aged_before: float, owed: bool
) -> tuple[Waiting, Turn] | None:
    """Whose turn it is, of the STAT job and the other job that wait longest.

    STAT goes first. Routine from before `aged_before` counts as STAT; where both wait, a worker takes them
    in turn, STAT first: `owed` says that its last STAT job went before an aged one. So a STAT job waits for
    one aged job at most, and an aged one for one STAT job, however many come.
    """
    aged = other is not None and other.since < aged_before
    if stat is not None and not (aged and owed):
        return stat, Turn.STAT
    if other is None:
        return None
    return other, Turn.AGED if aged else Turn.ROUTINE
