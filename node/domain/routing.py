"""Which destination gets what of a study, by rules on its result and its origin. Sends and reads nothing.

The first rule that fits decides; a destination without rules gets every result, one whose rules all fail
gets nothing. What the headers do not tell is taken in favour of sending: a rule that sends is then met, one
that withholds is not. Whoever was told of a study before is told the rest: an alarm is never left standing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeVar

from node.domain.findings import CLASSES, Findings, Priority, Status

NONE, NOT_ANALYSED = "none", "not_analysed"
FINDINGS = (*CLASSES, NONE, NOT_ANALYSED)
"""What a rule may ask for: a class that is present, none at all, or no analysis."""
T = TypeVar("T")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Part(StrEnum):
    """What can be sent of a study."""

    RESULTS = "results"  # the objects that the destination's `outputs` name
    SOURCE = "source"  # the instances of the analysed series, as they were received


@dataclass(frozen=True)
class Case:
    """What is known of a study when its results are routed; empty or None: not known.

    `time` and `day` are StudyTime and StudyDate (PS3.3 C.7.2.1) as the modality wrote them, in its own zone.
    """

    findings: frozenset[str]
    """Of FINDINGS."""
    priority: Priority | None
    source_aes: frozenset[str] = frozenset()
    """Calling AE titles that brought the analysed series."""
    station: str = ""
    """StationName (PS3.3 C.7.5.1)."""
    time: time | None = None
    day: date | None = None
    age_days: float | None = None
    """Since StudyDate; what is newer than now has age 0."""


@dataclass(frozen=True)
class Rule:
    """Every condition that is given must hold; within one, any of its values. Names may hold * and ?."""

    send: frozenset[Part] = frozenset({Part.RESULTS})
    """Empty: the destination gets nothing."""
    finding: tuple[str, ...] = ()
    priority: tuple[Priority, ...] = ()
    source_ae: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    hours: tuple[time, time] | None = None
    """From, until (exclusive); from 17:00 until 07:00 goes over midnight."""
    days: tuple[str, ...] = ()
    older_than_days: float | None = None


@dataclass(frozen=True)
class Decision:
    """What a destination gets, by which rule (from 1; None: by none), and why, in words."""

    send: frozenset[Part]
    rule: int | None
    why: str


@dataclass(frozen=True)
class _Condition:
    """One condition of a rule, judged; `holds` is None where nobody knows."""

    words: str
    holds: bool | None


def decide(rules: Sequence[Rule], case: Case, told_before: bool = False) -> Decision:
    """What a destination with these rules gets of the case."""
    decision = _by_rules(rules, case)
    if told_before and Part.RESULTS not in decision.send:
        why = f"got results of this study before, and so gets these ({decision.why})"
        return Decision(decision.send | {Part.RESULTS}, decision.rule, why)
    return decision


def _by_rules(rules: Sequence[Rule], case: Case) -> Decision:
    if not rules:
        return Decision(frozenset({Part.RESULTS}), None, "no rules: every result")
    misses = []
    for number, rule in enumerate(rules, start=1):
        judged = list(_conditions(rule, case))
        failed = [c for c in judged if c.holds is False or (c.holds is None and not rule.send)]
        if not failed:
            words = "; ".join(c.words for c in judged) or "without conditions"
            return Decision(rule.send, number, f"rule {number}: {words}")
        misses.append(f"rule {number} wants {failed[0].words}")
    return Decision(frozenset(), None, f"no rule fits: {'; '.join(misses)}")


def _conditions(rule: Rule, case: Case) -> Iterator[_Condition]:
    if rule.finding:
        is_words = ", ".join(name for name in FINDINGS if name in case.findings)
        holds = bool(case.findings.intersection(rule.finding)) if case.findings else None
        yield _condition("finding", " or ".join(rule.finding), is_words, holds)
    if rule.priority:
        known = case.priority in rule.priority if case.priority else None
        yield _condition("priority", " or ".join(rule.priority), case.priority or "", known)
    if rule.source_ae:
        fits = any(_like(ae, rule.source_ae) for ae in case.source_aes) if case.source_aes else None
        yield _condition("source AE", " or ".join(rule.source_ae), ", ".join(sorted(case.source_aes)), fits)
    if rule.station:
        same = _like(case.station, rule.station) if case.station else None
        yield _condition("station", " or ".join(rule.station), case.station, same)
    if rule.hours:
        begin, end = rule.hours
        inside = _within(case.time, begin, end) if case.time else None
        is_time = f"{case.time:%H:%M}" if case.time else ""
        yield _condition("time", f"{begin:%H:%M}-{end:%H:%M}", is_time, inside)
    if rule.days:
        name = DAYS[case.day.weekday()] if case.day else ""
        yield _condition("day", " or ".join(rule.days), name, name in rule.days if name else None)
    if rule.older_than_days is not None:
        old = case.age_days > rule.older_than_days if case.age_days is not None else None
        age = f"{case.age_days:.0f} days" if case.age_days is not None else ""
        yield _condition("older than", f"{rule.older_than_days:g} days", age, old)


def _condition(name: str, wanted: str, found: str, holds: bool | None) -> _Condition:
    return _Condition(f"{name} {wanted} ({f'is {found}' if found else 'not known'})", holds)


def _like(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)


def _within(moment: time, begin: time, end: time) -> bool:
    """Half open; over midnight where the end lies before the beginning."""
    return begin <= moment < end if begin < end else moment >= begin or moment < end


def findings_of(findings: Findings | None) -> frozenset[str]:
    """The names by which rules ask for a result; None stands for a series that was not analysed."""
    if findings is None or findings.status is not Status.ANALYSED:
        return frozenset({NOT_ANALYSED})
    return frozenset(name for name, c in findings.classes.items() if c.present) or frozenset({NONE})


def read_time(text: str) -> time | None:
    """A DICOM TM (PS3.5 6.2) to the minute; None for what is none."""
    return _read(text, lambda t: time(int(t[:2]), int(t[2:4] or "0")))


def read_date(text: str) -> date | None:
    """A DICOM DA (PS3.5 6.2); None for what is none."""
    return _read(text, lambda t: date(int(t[:4]), int(t[4:6]), int(t[6:8])))


def _read(text: str, make: Callable[[str], T]) -> T | None:
    try:
        return make(text)
    except ValueError:
        return None
