"""What each destination gets of a job, by its rules. Gathers what is known; sends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Protocol

from node.domain.findings import Findings, Priority
from node.domain.lifecycle import JobState
from node.domain.routing import Case, Decision, Rule, decide, findings_of, read_date, read_time
from node.store.jobs import Job
from node.store.records import Records
from node.store.routes import Origin


class Ruled(Protocol):
    """Whatever has a name and rules: a destination of the settings, or one that is only tried out."""

    @property
    def name(self) -> str: ...

    @property
    def routing(self) -> tuple[Rule, ...]: ...


class Router:
    """Decides for the destinations of the settings."""

    def __init__(self, destinations: Iterable[Ruled], records: Records) -> None:
        self._destinations = tuple(destinations)
        self._records = records

    @property
    def has_rules(self) -> bool:
        return any(destination.routing for destination in self._destinations)

    def decide(self, job: Job, findings: Findings, now: float) -> dict[str, Decision]:
        """By destination; without any rules nothing is looked up."""
        if not self.has_rules:
            return {d.name: decide((), _NOTHING_KNOWN) for d in self._destinations}
        origin = self._records.routes.origin(job.series_instance_uid)
        case = case_of(findings_of(findings), findings.priority or job.priority, origin, now)
        return decide_all(self._destinations, case, self._records.routes.told(job.study_instance_uid))


def decide_all(
    destinations: Iterable[Ruled], case: Case, told: frozenset[str] = frozenset()
) -> dict[str, Decision]:
    """By destination; `told` names those that results of the study were made out to before."""
    return {d.name: decide(d.routing, case, d.name in told) for d in destinations}


def case_of(names: frozenset[str], priority: Priority | None, origin: Origin, now: float) -> Case:
    """What the records know of a study, as the rules see it; `names` are those of its result."""
    header = origin.header
    day = read_date(header.study_date) if header else None
    return Case(
        names,
        priority,
        origin.source_aes,
        header.station_name if header else "",
        read_time(header.study_time) if header else None,
        day,
        _age_days(day, now) if day else None,
    )


@dataclass(frozen=True)
class Trial:
    """One study already seen, and what each destination would get of it; as if nobody was told of it yet."""

    row: dict[str, Any]
    """As `Routes.seen` gives it."""
    case: Case
    decisions: dict[str, Decision]


def try_out(
    destinations: Sequence[Ruled], records: Records, now: float, limit: int, search: str = ""
) -> list[Trial]:
    """The latest studies that were reported, by these rules."""
    trials = []
    for row in records.routes.seen(limit, search):
        priority = Priority(row["priority"]) if row["priority"] else None
        case = case_of(_names(row), priority, row["origin"], now)
        trials.append(Trial(row, case, decide_all(destinations, case)))
    return trials


def _names(row: Mapping[str, Any]) -> frozenset[str]:
    """By which rules ask for the result; none where another version of the node wrote it."""
    if row["state"] == JobState.FAILED or not row["findings"]:
        return findings_of(None)
    try:
        return findings_of(Findings.from_json(row["findings"] | {"slices": []}))
    except (ValueError, KeyError, TypeError):
        return frozenset()


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial for machines; holds no patient name."""
    row, case = trial.row, trial.case
    return {
        "study_instance_uid": row["study_instance_uid"],
        "job_id": row["id"],
        "patient_id": row["patient_id"],
        "accession_number": row["accession_number"],
        "findings": sorted(case.findings),
        "priority": case.priority,
        "source_aes": sorted(case.source_aes),
        "station": case.station,
        "study_time": f"{case.time:%H:%M}" if case.time else None,
        "study_date": case.day.isoformat() if case.day else None,
        "destinations": as_json(trial.decisions),
    }


def _age_days(day: date, now: float) -> float:
    return float(max((datetime.fromtimestamp(now).date() - day).days, 0))


def as_json(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """As it is kept with the job."""
    return {
        name: {"send": sorted(d.send), "rule": d.rule, "why": d.why} for name, d in sorted(decisions.items())
    }


_NOTHING_KNOWN = Case(frozenset(), None)
