"""What an archive holds against what came here: which head CTs are missing, whole or in part. Asks nobody.

Counts decide, not UIDs of instances. A study counts as a head CT when its words say so, or say no other part:
to list one too many costs a look, to list one too few costs a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from node.domain import vocabulary as words
from node.domain.routing import read_date, read_time


class Kind(StrEnum):
    """What is missing."""

    STUDY = "study"  # a head CT of which nothing came
    SERIES = "series"  # a CT series of a study that came
    SLICES = "slices"  # instances of a series that came
    PRIOR = "prior"  # an earlier head CT of a patient whose later one came, or should have


@dataclass(frozen=True)
class ArchivedSeries:
    """A series as the archive describes it; `instances` is None where it does not count them."""

    series_instance_uid: str
    modality: str = ""
    description: str = ""
    body_part: str = ""
    protocol_name: str = ""
    instances: int | None = None

    @property
    def name(self) -> str:
        return self.description or self.protocol_name


@dataclass(frozen=True)
class ArchivedStudy:
    study_instance_uid: str
    patient_id: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    description: str = ""
    series: tuple[ArchivedSeries, ...] = ()


@dataclass(frozen=True)
class Here:
    """What came of a study: instances by series, and the series of which some still arrive.

    `made`: series of results, which an archive holds from here. `files_removed`: retention took
    the files, and with them the counts; what came came.
    """

    instances: Mapping[str, int] = field(default_factory=dict)
    receiving: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    files_removed: bool = False


@dataclass(frozen=True)
class Missing:
    """One thing to fetch. `series_instance_uid` is empty for a whole study; `expected` None: not counted."""

    kind: Kind
    study: ArchivedStudy
    series_instance_uid: str
    description: str
    expected: int | None
    here: int
    note: str = ""


def missing(study: ArchivedStudy, here: Here | None, prior: bool = False) -> list[Missing]:
    """What of an archived study never came; nothing for one that is no head CT."""
    wanted = [s for s in study.series if s.modality == "CT" and s.instances != 0]
    head = is_head(study)
    if head is False or not wanted:
        return []
    note = "" if head else "no field names the body part"
    if here is None:
        counts = [s.instances for s in wanted]
        total = sum(c for c in counts if c is not None) if None not in counts else None
        kind = Kind.PRIOR if prior else Kind.STUDY
        return [Missing(kind, study, "", study.description, total, 0, note)]
    return [] if prior or here.files_removed else list(_of_series(study, wanted, here, note))


def _of_series(
    study: ArchivedStudy, wanted: Sequence[ArchivedSeries], here: Here, note: str
) -> Iterator[Missing]:
    for series in wanted:
        uid = series.series_instance_uid
        came = here.instances.get(uid)
        if uid in here.made:
            continue
        if came is None and part(series) is not False and not _is_aside(series):
            yield Missing(Kind.SERIES, study, uid, series.name, series.instances, 0, note)
        elif came is not None and uid not in here.receiving and (series.instances or 0) > came:
            yield Missing(Kind.SLICES, study, uid, series.name, series.instances, came, note)


def is_head(study: ArchivedStudy) -> bool | None:
    """True where words say head, False where they say another part alone, None where they say nothing."""
    said = {part(s) for s in study.series if s.modality == "CT"} | {_part(study.description)}
    return True if True in said else False if False in said else None


def part(series: ArchivedSeries) -> bool | None:
    """Whether a series is of the head: by its own name, else by the body part it states."""
    named = _part(series.name)
    return named if named is not None else _part(series.body_part)


def _part(text: str) -> bool | None:
    folded = words.NO_HEAD_PHRASE.sub(" ", words.fold(text))
    if words.HEAD.search(folded):
        return True
    return False if words.OTHER_PART.search(folded) else None


def _is_aside(series: ArchivedSeries) -> bool:
    """A localizer or a page of doses: nothing that is ever analysed."""
    folded = words.fold(series.name)
    return bool(words.LOCALIZER.search(folded) or words.DOSE.search(folded))


def is_settled(study: ArchivedStudy, now: datetime, grace: timedelta) -> bool:
    """Old enough that it should be here. `now` is a local time without zone, as the header's is."""
    day, time = read_date(study.study_date), read_time(study.study_time)
    if day is None or time is None:
        return True
    return datetime.combine(day, time) <= now - grace


def is_whole(expected: int | None, came: int) -> bool:
    """What was fetched is here."""
    return came >= expected if expected is not None else came > 0
