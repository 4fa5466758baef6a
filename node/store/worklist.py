"""Every query of the reading worklist and of a study's page. Only reads.

The word that counts for a study is the newest one that raised its priority, until a later one speaks: an
alarm is never lowered by an analysis that has no result yet. Where there was none, it is the current job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    cast,
    exists,
    func,
    or_,
    select,
    type_coerce,
)

from node.domain.findings import Priority
from node.domain.lifecycle import DeliveryState, JobState
from node.store.beginnings import begins
from node.store.engine import reading
from node.store.jobs import SOURCE
from node.store.tables import deliveries, instances, jobs, objects, reviews, series, studies
from node.store.views import current_job, study_status

Row = dict[str, Any]
MOST_COUNTED = 1000
RAISED = (Priority.STAT, Priority.HIGH)
_OVER = (JobState.SUPERSEDED, JobState.CANCELLED)
FIRST_SENT = 0
"""The rank of a delivery that carries the report."""


class Shown(StrEnum):
    """Which results the list shows."""

    ALL = "all"
    SUSPECTED = "suspected"
    INDETERMINATE = "indeterminate"
    NOT_ANALYSED = "not-analysed"
    NOT_DETECTED = "not-detected"


class Reading(StrEnum):
    """Which of them by what people said."""

    UNREAD = "unread"
    ACKNOWLEDGED = "acknowledged"
    BOTH = "all"


@dataclass(frozen=True)
class Wanted:
    """What is asked for; `search` looks everywhere, whatever the other fields say."""

    shown: Shown = Shown.ALL
    reading: Reading = Reading.UNREAD
    since: float = 0.0
    search: str = ""


class Worklist:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, wanted: Wanted, limit: int, offset: int = 0) -> tuple[list[Row], bool]:
        """Studies, suspected first, each with its jobs' words; and whether there are more."""
        with reading(self._engine) as connection:
            uids = _uids(connection, wanted, limit + 1, offset)
            return _rows(connection, uids[:limit]), len(uids) > limit

    def uids(self, wanted: Wanted) -> list[str]:
        """Every study of the list in its order, however many; `rows` tells of them."""
        with reading(self._engine) as connection:
            found = [uid for query in _queries(wanted) for uid in connection.execute(query).scalars()]
        return list(dict.fromkeys(found))

    def rows(self, uids: Sequence[str]) -> list[Row]:
        """What `page` gives of these studies, as far as they are still there."""
        with reading(self._engine) as connection:
            return _rows(connection, uids)

    def unread_alarms(self, since: float) -> int:
        """Studies with suspected haemorrhage that nobody acknowledged; MOST_COUNTED stands for more."""
        query = _alarms(Priority.STAT, Wanted(since=since)).limit(MOST_COUNTED)
        with reading(self._engine) as connection:  # a COUNT would have no order, and so a slower plan
            return len(connection.execute(query).all())

    def study(self, uid: str) -> Row | None:
        """A row of the list, with all its series and jobs; None for a stranger."""
        with reading(self._engine) as connection:
            found = _rows(connection, [uid])
        return found[0] if found else None

    def series(self, series_uid: str) -> Row | None:
        """The study, the state and the newest analysed job of a series."""
        with reading(self._engine) as connection:
            row = connection.execute(select(series).where(series.c.series_instance_uid == series_uid)).first()
            if row is None:
                return None
            analysed = (
                select(jobs.c.id, jobs.c.findings, jobs.c.maps_path, jobs.c.analysed_at, jobs.c.revision)
                .add_columns(jobs.c.created_at)
                .where(jobs.c.series_instance_uid == series_uid, jobs.c.findings.is_not(None))
                .order_by(jobs.c.id.desc())
                .limit(1)
            )
            job = connection.execute(analysed).first()
            return {**row._mapping, "job": dict(job._mapping) if job else None}

    def files(self, series_uid: str) -> list[Row]:
        """The instances of a series as they were recorded: UID, path, header, size and time."""
        columns = (
            instances.c.sop_instance_uid,
            instances.c.path,
            instances.c.header,
            instances.c.size_bytes,
            instances.c.received_at,
        )
        query = select(*columns).where(instances.c.series_instance_uid == series_uid)
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def objects(self, job_ids: Sequence[int]) -> list[Row]:
        """What was made by these jobs, each with its deliveries."""
        mine = (objects.c.job_id.in_(job_ids), objects.c.output != SOURCE)
        made = select(objects).where(*mine).order_by(objects.c.created_at)
        going = select(deliveries).where(deliveries.c.job_id.in_(job_ids)).order_by(deliveries.c.destination)
        with reading(self._engine) as connection:
            found = [dict(row._mapping) | {"deliveries": []} for row in connection.execute(made)]
            by_uid = {row["sop_instance_uid"]: row for row in found}
            for row in connection.execute(going):
                if row.sop_instance_uid in by_uid:
                    by_uid[row.sop_instance_uid]["deliveries"].append(dict(row._mapping))
        return found

    def forwarded(self, job_ids: Sequence[int]) -> list[Row]:
        """How many source images go to each destination on account of these jobs, by state."""
        query = (
            select(deliveries.c.destination, deliveries.c.state, func.count().label("count"))
            .add_columns(func.max(deliveries.c.sent_at).label("sent_at"))
            .add_columns(func.max(deliveries.c.last_error).label("last_error"))
            .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
            .where(deliveries.c.job_id.in_(job_ids), objects.c.output == SOURCE)
            .group_by(deliveries.c.destination, deliveries.c.state)
            .order_by(deliveries.c.destination, deliveries.c.state)
        )
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def instance(self, sop_instance_uid: str) -> Row | None:
        """One received instance: path, series and study."""
        query = (
            select(instances.c.sop_instance_uid, instances.c.path, instances.c.series_instance_uid)
            .add_columns(series.c.study_instance_uid)
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(instances.c.sop_instance_uid == sop_instance_uid)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None

    def object(self, sop_instance_uid: str) -> Row | None:
        """One object, with the study it belongs to."""
        query = (
            select(objects, jobs.c.study_instance_uid)
            .join(jobs, jobs.c.id == objects.c.job_id)
            .where(objects.c.sop_instance_uid == sop_instance_uid, objects.c.output != SOURCE)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None


def _uids(connection: Connection, wanted: Wanted, limit: int, offset: int) -> list[str]:
    found: list[str] = []
    for query in _queries(wanted):
        part = connection.execute(query.limit(limit - len(found)).offset(offset)).scalars().all()
        found.extend(part)
        if len(found) >= limit:
            break
        if offset:
            offset = 0 if part else offset - _count(connection, query)
    return found


def _count(connection: Connection, query: Select[Any]) -> int:
    counted = select(func.count()).select_from(query.order_by(None).subquery())
    return int(connection.execute(counted).scalar_one())


def _queries(wanted: Wanted) -> tuple[Select[Any], ...]:
    """Statements that give study UIDs; the rows of the first come before those of the second."""
    if wanted.search:
        return (_searched(wanted.search),)
    if wanted.reading is Reading.ACKNOWLEDGED:
        return (_acknowledged(wanted),)
    raised = tuple(_alarms(priority, wanted) for priority in RAISED)
    match wanted.shown:
        case Shown.SUSPECTED:
            return raised[:1]
        case Shown.INDETERMINATE:
            return raised[1:]
        case Shown.NOT_ANALYSED:
            return (_by_job(wanted, jobs.c.state == JobState.FAILED, jobs.c.id == _current_id(jobs)),)
        case Shown.NOT_DETECTED:
            finished = jobs.c.state.in_((JobState.ANALYSED, JobState.COMPOSED))
            return (_by_job(wanted, jobs.c.priority == Priority.ROUTINE, finished, _speaks()),)
    return (*raised, _others(wanted))


def _searched(words: str) -> Select[Any]:
    newest = studies.c.last_received_at.desc()
    return select(studies.c.study_instance_uid).where(matching(words)).order_by(newest)


def matching(words: str) -> ColumnElement[bool]:
    """Studies whose patient ID or accession number begins like this, or with this Study Instance UID."""
    named = or_(
        begins(studies.c.patient_id, words),
        begins(studies.c.accession_number, words),
        studies.c.study_instance_uid == words,
    )
    return and_(named, studies.c.canary == 0)


def _acknowledged(wanted: Wanted) -> Select[Any]:
    """Studies whose word somebody acknowledged; of an earlier word it may well be said, too."""
    is_word = or_(
        and_(jobs.c.priority.in_(RAISED), _speaks()),
        and_(~_is_raised(), jobs.c.id == _standing_id(studies)),
    )
    query = (
        select(studies.c.study_instance_uid)
        .join(jobs, jobs.c.study_instance_uid == studies.c.study_instance_uid)
        .join(reviews, reviews.c.job_id == jobs.c.id)
        .where(_counts(), is_word, studies.c.last_received_at >= wanted.since, jobs.c.canary == 0)
        .order_by(reviews.c.acknowledged_at.desc())
    )
    match wanted.shown:
        case Shown.SUSPECTED:
            return query.where(jobs.c.priority == Priority.STAT)
        case Shown.INDETERMINATE:
            return query.where(jobs.c.priority == Priority.HIGH)
        case Shown.NOT_ANALYSED:
            return query.where(jobs.c.state == JobState.FAILED)
        case Shown.NOT_DETECTED:
            return query.where(jobs.c.priority == Priority.ROUTINE)
    return query


def _alarms(priority: Priority, wanted: Wanted) -> Select[Any]:
    return _by_job(wanted, jobs.c.priority == priority, _speaks())


def _by_job(wanted: Wanted, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Studies by their job, the newest first: an index on jobs finds them; in a window, that on arrivals."""
    query = (
        select(jobs.c.study_instance_uid)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
        .where(*conditions, jobs.c.canary == 0)
    )
    if wanted.since:
        query = query.where(studies.c.last_received_at >= wanted.since)
        query = query.order_by(studies.c.last_received_at.desc(), jobs.c.id.desc())
    else:
        query = query.order_by(jobs.c.id.desc())
    if wanted.reading is Reading.BOTH:
        return query
    return query.outerjoin(reviews, (reviews.c.job_id == jobs.c.id) & _counts()).where(
        reviews.c.job_id.is_(None)
    )


def _others(wanted: Wanted) -> Select[Any]:
    """Studies whose priority was not raised, by their last instance."""
    query = (
        select(studies.c.study_instance_uid)
        .where(~_is_raised(), studies.c.last_received_at >= wanted.since, studies.c.canary == 0)
        .order_by(studies.c.last_received_at.desc())
    )
    if wanted.reading is Reading.BOTH:
        return query
    current = jobs.alias("current")
    read = (
        select(reviews.c.job_id)
        .join(current, current.c.id == reviews.c.job_id)
        .where(
            current.c.id == _standing_id(studies),
            reviews.c.acknowledged_at >= func.coalesce(current.c.analysed_at, 0),
        )
        .exists()
    )
    return query.where(~read)


def _is_raised() -> ColumnElement[bool]:
    """Of a study: its newest word raised the priority."""
    word = jobs.alias("word")
    return select(word.c.id).where(word.c.id == _word_id(studies), word.c.priority.in_(RAISED)).exists()


def _counts() -> ColumnElement[bool]:
    """A review speaks of the word as it stands: nothing was analysed after it."""
    return reviews.c.acknowledged_at >= func.coalesce(jobs.c.analysed_at, 0)


def _speaks() -> ColumnElement[bool]:
    """Of a job with a priority: it is that of `_word_id`. Said so that PostgreSQL walks along the index."""
    newer = jobs.alias("newer")
    return and_(
        jobs.c.state != JobState.CANCELLED,
        ~exists().where(
            newer.c.study_instance_uid == jobs.c.study_instance_uid,
            newer.c.id > jobs.c.id,
            newer.c.priority.is_not(None),
            newer.c.state != JobState.CANCELLED,
        ),
    )


def _word_id(of: Any) -> Any:
    """The newest job of the same study that has a priority and was not cancelled."""
    spoken = jobs.alias("spoken")
    return (
        select(func.max(spoken.c.id))
        .where(
            spoken.c.study_instance_uid == of.c.study_instance_uid,
            spoken.c.priority.is_not(None),
            spoken.c.state != JobState.CANCELLED,
        )
        .correlate(of)
        .scalar_subquery()
    )


def _current_id(of: Any) -> Any:
    standing = jobs.alias("standing")
    return (
        select(func.max(standing.c.id))
        .where(standing.c.study_instance_uid == of.c.study_instance_uid, standing.c.state.not_in(_OVER))
        .correlate(of)
        .scalar_subquery()
    )


def _standing_id(of: Any) -> Any:
    """That of `_current_id`; where every job was cancelled or replaced, the last one (`current_job`)."""
    last = jobs.alias("last")
    any_id = select(func.max(last.c.id)).where(last.c.study_instance_uid == of.c.study_instance_uid)
    return func.coalesce(_current_id(of), any_id.correlate(of).scalar_subquery())


def _rows(connection: Connection, uids: Sequence[str]) -> list[Row]:
    """Studies in this order, each with `series`, `jobs`, `current`, `word`, `review` and what waits."""
    found = {
        row.study_instance_uid: dict(row._mapping)
        for row in connection.execute(select(studies).where(studies.c.study_instance_uid.in_(uids)))
    }
    for row in found.values():
        row.update(series=[], jobs=[], pending=0, given_up=0, sent=0)
    all_series = select(series).where(series.c.study_instance_uid.in_(uids))
    for item in connection.execute(all_series.order_by(series.c.series_number, series.c.first_received_at)):
        found[item.study_instance_uid]["series"].append(dict(item._mapping))
    light = [c for c in jobs.c if c.name != "findings"]
    for item in connection.execute(
        select(*light).where(jobs.c.study_instance_uid.in_(uids)).order_by(jobs.c.id)
    ):
        found[item.study_instance_uid]["jobs"].append(dict(item._mapping) | {"findings": None})
    for row in found.values():
        row["current"], row["word"] = current_job(row["jobs"]), word_of(row["jobs"])
    _add_findings(connection, found.values())
    _add_reviews(connection, found.values())
    _add_tallies(connection, found.values())
    return [found[uid] for uid in uids if uid in found]


def word_of(of_study: Sequence[Row]) -> Row | None:
    """The job whose word counts, of a study's jobs in order of their ids."""
    spoken = [j for j in of_study if j["priority"] and j["state"] != JobState.CANCELLED]
    return spoken[-1] if spoken and spoken[-1]["priority"] in RAISED else current_job(of_study)


def _add_findings(connection: Connection, rows: Any) -> None:
    """Only to the jobs that speak, and without their slices: most of what findings hold."""
    wanted = {job["id"]: job for row in rows for job in (row["current"], row["word"]) if job}
    query = select(jobs.c.id, without_slices(connection)).where(jobs.c.id.in_(list(wanted)))
    for job_id, found in connection.execute(query):
        wanted[job_id]["findings"] = {**found, "slices": []} if found else None


def without_slices(connection: Connection) -> ColumnElement[Any]:
    """The findings as the database hands them out without decoding the slices here."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import JSONB  # a node on SQLite need not load it

        return type_coerce(cast(jobs.c.findings, JSONB).op("-")("slices"), JSON)
    return func.json_remove(jobs.c.findings, "$.slices", type_=JSON)


def _add_reviews(connection: Connection, rows: Any) -> None:
    words = {row["word"]["id"]: row for row in rows if row["word"]}
    for row in rows:
        row["review"] = None
    for said in connection.execute(select(reviews).where(reviews.c.job_id.in_(list(words)))):
        row = words[said.job_id]
        if said.acknowledged_at >= (row["word"]["analysed_at"] or 0):
            row["review"] = dict(said._mapping)


def _add_tallies(connection: Connection, rows: Any) -> None:
    """How many objects of the current job wait, were given up, were sent; and the derived status."""
    names = {
        DeliveryState.PENDING: "pending",
        DeliveryState.FAILED: "given_up",
        DeliveryState.SENT: "sent",
        DeliveryState.COMMITTED: "sent",
    }
    current = {row["current"]["id"]: row for row in rows if row["current"]}
    query = (
        select(deliveries.c.job_id, deliveries.c.state, func.count())
        .where(deliveries.c.job_id.in_(list(current)), deliveries.c.state.in_(list(names)))
        .group_by(deliveries.c.job_id, deliveries.c.state)
    )
    for job_id, state, count in connection.execute(query):
        current[job_id][names[DeliveryState(state)]] += count
    for row in rows:
        row["status"] = study_status(row["series"], row["current"], row["pending"], row["given_up"])
