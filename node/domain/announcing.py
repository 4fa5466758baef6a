"""What is told about a study, and when something is news. Knows no channel, no clock, sends nothing.

An announcement repeats what was found in one analysis, beside the priority at which the study should be
read. That priority is never lowered: what comes out less urgent later is told as a correction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from node.domain.findings import Findings, Priority

When = Literal["positive", "stat", "all"]
_ORDER = [Priority.STAT, Priority.HIGH, Priority.ROUTINE, None]
"""None: not analysed."""
LONGEST_IDENTIFIER = 20
"""What every version of HL7 v2 takes as Message Control ID (MSH-10)."""


class Stage(StrEnum):
    """How far the analysis had come."""

    PRELIMINARY = "PRELIMINARY"  # classified; no volume yet, and the mask may still raise the priority
    FINAL = "FINAL"
    NOT_ANALYSED = "NOT_ANALYSED"


@dataclass(frozen=True)
class Audience:
    """A channel, and which results it wants.

    `positive`: STAT and HIGH; `stat`: STAT alone; `all`: every result, and what was not analysed. With
    `follow_up`, what was told is told again in full once the analysis is complete.
    """

    name: str
    when: When = "positive"
    follow_up: bool = True


@dataclass(frozen=True)
class Subject:
    """Whose study it is, as its images said when the result was found."""

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    """As in DICOM: Family^Given^Middle^Prefix^Suffix, groups apart by = (PS3.5 6.2.1)."""
    patient_birth_date: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""


@dataclass(frozen=True)
class Occasion:
    """When something is told to which channel, and of whom. Times in seconds since the epoch."""

    channel: str
    study_instance_uid: str
    subject: Subject
    last_slice_at: float
    at: float


@dataclass(frozen=True)
class Correction:
    """What was told before and is no longer the whole truth."""

    number: int
    revision: int
    priority: Priority | None


@dataclass(frozen=True)
class Withdrawal:
    """What was told of a patient whose study it is not: where results are filed by patient, take it back."""

    subject: Subject
    findings: Findings


@dataclass(frozen=True)
class Earlier:
    """What a channel was told of the study before: whether it was `tried`, and whether it surely arrived."""

    told: Announcement
    tried: bool
    arrived: bool


@dataclass(frozen=True)
class Announcement:
    """One thing told once; a copy of everything it says, so that a resend says the same.

    `identifier` names it wherever it goes; `number` counts what a channel was told about a study, from 1.
    `findings` come without their slices. `last_slice_at`, `made_at`: seconds since the epoch.
    """

    identifier: str
    study_instance_uid: str
    number: int
    stage: Stage
    subject: Subject
    findings: Findings
    reading_priority: Priority | None
    """The most urgent one told so far; None as long as there was no result."""
    last_slice_at: float
    made_at: float
    corrects: Correction | None = None
    test: bool = False
    """A message made by hand to try a channel."""
    withdraws: tuple[Withdrawal, ...] = ()

    @property
    def urgent(self) -> bool:
        """The order of reading should change."""
        return self.reading_priority in (Priority.STAT, Priority.HIGH)

    def to_json(self) -> dict[str, Any]:
        withdraws = [
            {"subject": asdict(one.subject), "findings": one.findings.to_json()} for one in self.withdraws
        ]
        return {**asdict(self), "findings": self.findings.to_json(), "withdraws": withdraws}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Announcement:
        corrects = data["corrects"]
        read: dict[str, Any] = {
            **data,
            "stage": Stage(data["stage"]),
            "subject": Subject(**data["subject"]),
            "findings": Findings.from_json(data["findings"]),
            "reading_priority": _priority(data["reading_priority"]),
            "corrects": Correction(**{**corrects, "priority": _priority(corrects["priority"])})
            if corrects
            else None,
            "withdraws": tuple(
                Withdrawal(Subject(**one["subject"]), Findings.from_json(one["findings"]))
                for one in data.get("withdraws", ())
            ),
        }
        return cls(**read)


def is_news(
    stage: Stage,
    findings: Findings,
    audience: Audience,
    last: Announcement | None,
    patient_id: str | None = None,
) -> bool:
    """Whether the audience is to be told; `last` is what it was told about the study before, if anything.

    Saying again what was said is no news, so that a job done twice announces once; but for a study that is
    another patient's (`patient_id`) by now. A preliminary word is news only where it raises the priority:
    what it lowers may be raised again by the mask.
    """
    if last is None:
        return _wanted(stage, findings.priority, audience.when)
    if stage is Stage.PRELIMINARY:
        wanted = _wanted(stage, findings.priority, audience.when)
        return wanted and _is_above(findings.priority, last.reading_priority)
    if patient_id is not None and patient_id != last.subject.patient_id:
        return True
    if stage is Stage.NOT_ANALYSED or last.stage is Stage.NOT_ANALYSED:
        return stage is not last.stage
    if _says(findings) != _says(last.findings):
        return True
    again = last.stage is Stage.FINAL and _source(findings) == _source(last.findings)
    return audience.follow_up and not again


def withdrawals(before: Sequence[Earlier], patient_id: str) -> tuple[Withdrawal, ...]:
    """Of what was told, oldest first, what still stands under another patient than the study's is by now."""
    standing: dict[str, Withdrawal] = {}
    for one in before:
        if one.tried:
            standing[one.told.subject.patient_id] = Withdrawal(one.told.subject, one.told.findings)
        if one.arrived:
            for gone in one.told.withdraws:
                standing.pop(gone.subject.patient_id, None)
    standing.pop(patient_id, None)
    return tuple(standing.values())


def announcement(
    occasion: Occasion,
    stage: Stage,
    findings: Findings,
    last: Announcement | None,
    number: int,
    withdraws: tuple[Withdrawal, ...] = (),
) -> Announcement:
    """What has to be said after `last`, as the channel's announcement `number` of the study."""
    told = last.reading_priority if last else None
    key = f"{occasion.channel}|{occasion.study_instance_uid}|{number}|{occasion.at!r}"
    return Announcement(
        identifier=hashlib.sha256(key.encode()).hexdigest()[:LONGEST_IDENTIFIER],
        study_instance_uid=occasion.study_instance_uid,
        number=number,
        stage=stage,
        subject=occasion.subject,
        findings=replace(findings, slices=()),
        reading_priority=min((told, findings.priority), key=_ORDER.index),
        last_slice_at=occasion.last_slice_at,
        made_at=occasion.at,
        corrects=_corrected(findings, last),
        withdraws=withdraws,
    )


def _corrected(findings: Findings, last: Announcement | None) -> Correction | None:
    """A final word after a preliminary one completes it, unless it takes something back."""
    if last is None:
        return None
    taken_back = _is_above(last.findings.priority, findings.priority) or not (
        _present(last.findings) <= _present(findings)
    )
    if last.stage is Stage.PRELIMINARY and not taken_back:
        return None
    return Correction(last.number, last.findings.revision, last.findings.priority)


def _wanted(stage: Stage, priority: Priority | None, when: When) -> bool:
    match when:
        case "all":
            return True
        case "stat":
            return priority is Priority.STAT
    return priority in (Priority.STAT, Priority.HIGH)


def _is_above(priority: Priority | None, other: Priority | None) -> bool:
    return _ORDER.index(priority) < _ORDER.index(other)


def _present(findings: Findings) -> frozenset[str]:
    return frozenset(name for name, found in findings.classes.items() if found.present)


def _says(findings: Findings) -> tuple[Priority | None, frozenset[str]]:
    return findings.priority, _present(findings)


def _source(findings: Findings) -> tuple[str, int, str]:
    return findings.series_instance_uid, findings.revision, findings.model.sha256


def _priority(text: str | None) -> Priority | None:
    return Priority(text) if text else None
