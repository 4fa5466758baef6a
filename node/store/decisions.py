"""Every query about what is decided on: which series are complete, which is analysed, and why not the others.

Decides nothing itself: it moves states as it is told, and only along the transition table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Row, exists, func, or_, select, update

from node.domain.eligibility import SkipCode
from node.domain.findings import Reason
from node.domain.instance import Instance
from node.domain.lifecycle import SERIES, JobState, SeriesEvent, SeriesState, sources
from node.domain.patients import Person
from node.domain.sender import Carriage, Habit, Peer
from node.store.engine import insert_if_absent, reading, writing
from node.store.jobs import is_outdated, supersede_older
from node.store.tables import analyses, associations, instances, jobs, series, shadows, studies

HABIT_OF = 20
"""Associations of a peer, the latest, by which its habit is judged."""


@dataclass(frozen=True)
class SeriesRow:
    series_instance_uid: str
    study_instance_uid: str
    description: str
    state: SeriesState
    revision: int
    last_received_at: float
    completed_at: float | None
    instance_count: int
    early_by: str | None
    """The worker that is at it before it is complete, or was (node.store.early)."""


@dataclass(frozen=True)
class Gathered:
    """What is known of one series at one moment."""

    instances: tuple[Instance, ...]
    associations_open: int
    """Open associations whose latest instance belongs to this series."""
    aborted: bool
    """The association that brought the latest instance broke off."""


class Decisions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def receiving(self, silent_since: float) -> list[SeriesRow]:
        """Series still RECEIVING that got nothing since `silent_since`."""
        return self._series(
            series.c.state == SeriesState.RECEIVING, series.c.last_received_at <= silent_since
        )

    def of_study(self, study_uid: str) -> list[SeriesRow]:
        return self._series(series.c.study_instance_uid == study_uid)

    def _series(self, *conditions: object) -> list[SeriesRow]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(series).where(*conditions).order_by(series.c.first_received_at))  # type: ignore[arg-type]
            return [_series_row(row) for row in rows]

    def gather(self, series_uid: str) -> Gathered:
        """The instances of a series, and how the associations that carried it stand."""
        mine = instances.c.series_instance_uid == series_uid
        later = instances.alias("later")
        moved_on = exists().where(
            later.c.association_id == instances.c.association_id,
            later.c.received_at > instances.c.received_at,
            later.c.series_instance_uid != series_uid,
        )
        with reading(self._engine) as connection:
            headers = connection.execute(select(instances.c.header).where(mine)).scalars().all()
            still_open = connection.execute(
                select(func.count(func.distinct(associations.c.id)))
                .join(instances, instances.c.association_id == associations.c.id)
                .where(mine, associations.c.closed_at.is_(None), ~moved_on)
            ).scalar_one()
            last_outcome = connection.execute(
                select(associations.c.outcome)
                .join(instances, instances.c.association_id == associations.c.id)
                .where(mine)
                .order_by(instances.c.received_at.desc())
                .limit(1)
            ).scalar()
        return Gathered(tuple(Instance.from_json(h) for h in headers), still_open, last_outcome == "aborted")

    def carriage(self, study_uid: str) -> Carriage:
        """Over which associations a study came, whatever its series."""
        query = (
            select(associations.c.id, associations.c.calling_ae, associations.c.address)
            .add_columns(associations.c.outcome)
            .join(instances, instances.c.association_id == associations.c.id)
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(series.c.study_instance_uid == study_uid)
            .distinct()
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        peers = frozenset(Peer(row.calling_ae, row.address) for row in rows)
        return Carriage(peers, len(rows), sum(row.outcome == "released" for row in rows))

    def habit(self, peer: Peer, since: float, but_study: str, limit: int = HABIT_OF) -> Habit:
        """How many associations each study took that the latest `limit` associations of a peer brought."""
        latest = (
            select(associations.c.id)
            .where(
                associations.c.closed_at >= since,
                associations.c.calling_ae == peer.calling_ae,
                associations.c.address == peer.address,
            )
            .order_by(associations.c.closed_at.desc())
            .limit(limit)
        )
        count = func.count(func.distinct(instances.c.association_id))
        brought = instances.c.association_id.in_(latest)
        touched = select(series.c.study_instance_uid).join(
            instances, instances.c.series_instance_uid == series.c.series_instance_uid
        )
        query = (
            select(count)
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(
                series.c.study_instance_uid.in_(touched.where(brought)),
                series.c.study_instance_uid != but_study,
            )
            .group_by(series.c.study_instance_uid)
            .having(func.count() >= 2)
        )
        with reading(self._engine) as connection:
            return Habit(tuple(connection.execute(query).scalars()))

    def persons(self, study_uid: str) -> dict[str, set[Person]]:
        """Whom the instances of each series of a study name as their patient."""
        who = (instances.c.header["patient_id"].as_string(), instances.c.header["patient_name"].as_string())
        query = (
            select(series.c.series_instance_uid, *who)
            .join(instances, instances.c.series_instance_uid == series.c.series_instance_uid)
            .where(series.c.study_instance_uid == study_uid)
            .distinct()
        )
        found: dict[str, set[Person]] = {}
        with reading(self._engine) as connection:
            for uid, patient_id, patient_name in connection.execute(query):
                found.setdefault(uid, set()).add(Person(patient_id or "", patient_name or ""))
        return found

    def settle(self, row: SeriesRow, now: float, notes: Sequence[str] = ()) -> bool:
        """RECEIVING → COMPLETE, unless something arrived since `row` was read."""
        with writing(self._engine) as connection:
            result = connection.execute(
                update(series)
                .where(
                    series.c.series_instance_uid == row.series_instance_uid,
                    series.c.state.in_(sources(SERIES, SeriesEvent.SETTLED)),
                    series.c.revision == row.revision,
                    series.c.last_received_at == row.last_received_at,
                )
                .values(state=SeriesState.COMPLETE, completed_at=now, notes=list(notes))
            )
            return result.rowcount == 1

    def undecided_studies(self) -> list[str]:
        """Studies that hold a COMPLETE series."""
        with reading(self._engine) as connection:
            query = select(series.c.study_instance_uid).where(series.c.state == SeriesState.COMPLETE)
            return list(connection.execute(query.distinct()).scalars())

    def decide(
        self,
        chosen: SeriesRow | None,
        refused: Sequence[tuple[SeriesRow, Reason]],
        now: float,
        notes: Sequence[str] = (),
    ) -> int | None:
        """COMPLETE → ACCEPTED | SKIPPED for a whole study at once; the chosen series gets its job.

        Returns the job's id. A series that changed meanwhile is left for the next round; when it is the
        chosen one, so is the whole study, since the others were weighed against it.
        """
        with writing(self._engine) as connection:
            if chosen is not None and not _decided(
                connection, chosen.series_instance_uid, chosen.revision, SeriesEvent.CHOSEN, None, now
            ):
                return None
            for row, reason in refused:
                _decided(connection, row.series_instance_uid, row.revision, SeriesEvent.REFUSED, reason, now)
            if chosen is None:
                return None
            _add_notes(connection, chosen.series_instance_uid, notes)
            return _new_job(connection, chosen, JobState.QUEUED, None, now)

    def reopen_second_choices(self, since: float = 0.0) -> int:
        """SKIPPED → COMPLETE for series, come since then, that only gave way to another, where nothing comes
        of that one.

        It failed for good; or its images changed, and what they are now was refused (`is_outdated`).
        """
        of_study = jobs.c.study_instance_uid == series.c.study_instance_uid
        sibling = series.alias("sibling")
        undecided = exists().where(
            sibling.c.study_instance_uid == series.c.study_instance_uid,
            sibling.c.state.in_((SeriesState.RECEIVING, SeriesState.COMPLETE)),
        )
        failed = exists().where(of_study, jobs.c.state == JobState.FAILED)
        over = (JobState.FAILED, JobState.SUPERSEDED)
        alive = exists().where(of_study, jobs.c.state.not_in(over), ~is_outdated())
        with writing(self._engine) as connection:
            return connection.execute(
                update(series)
                .where(
                    series.c.state.in_(sources(SERIES, SeriesEvent.RECONSIDERED)),
                    series.c.last_received_at >= since,
                    series.c.reason_code == SkipCode.OTHER_SERIES_CHOSEN,
                    ~alive,
                    or_(failed, ~undecided),
                )
                .values(
                    state=SERIES[SeriesState.SKIPPED, SeriesEvent.RECONSIDERED],
                    reason_code=None,
                    reason_text=None,
                )
            ).rowcount

    def unanswered_studies(self, silent_since: float, since: float = 0.0) -> list[str]:
        """Decided studies, come since `since` and quiet since `silent_since`, of which no series has a job
        that still counts.
        """
        job, mine = (
            jobs.c.study_instance_uid == studies.c.study_instance_uid,
            series.c.study_instance_uid == studies.c.study_instance_uid,
        )
        query = select(studies.c.study_instance_uid).where(
            ~exists().where(job, jobs.c.state != JobState.SUPERSEDED, ~is_outdated()),
            studies.c.last_received_at.between(since, silent_since),
            exists().where(mine, series.c.modality == "CT"),
            ~exists().where(mine, series.c.state != SeriesState.SKIPPED),
        )
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def refuse_study(self, best: SeriesRow, reason: Reason, now: float, in_silence: bool = False) -> int:
        """A job that fails at once, so that the PACS hears why nothing was analysed. Returns its id.

        `in_silence` is for a series of several patients: a report would be filed under one of them.
        """
        with writing(self._engine) as connection:
            job_id = _new_job(connection, best, JobState.FAILED, reason, now)
            if in_silence:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(reported_at=now))
            return job_id

    def notes(self, series_uid: str) -> tuple[str, ...]:
        """Remarks on a series that belong into its findings."""
        with reading(self._engine) as connection:
            query = select(series.c.notes).where(series.c.series_instance_uid == series_uid)
            return tuple(connection.execute(query).scalar() or ())

    def reason_of(self, series_uid: str) -> Reason | None:
        with reading(self._engine) as connection:
            row = connection.execute(
                select(series.c.reason_code, series.c.reason_text).where(
                    series.c.series_instance_uid == series_uid
                )
            ).first()
            return Reason(row.reason_code, row.reason_text) if row and row.reason_code else None


def _series_row(row: Row) -> SeriesRow:
    return SeriesRow(
        row.series_instance_uid,
        row.study_instance_uid,
        row.description,
        SeriesState(row.state),
        row.revision,
        row.last_received_at,
        row.completed_at,
        row.instance_count,
        row.early_by,
    )


def _decided(
    connection: Connection, uid: str, revision: int, event: SeriesEvent, reason: Reason | None, now: float
) -> bool:
    result = connection.execute(
        update(series)
        .where(
            series.c.series_instance_uid == uid,
            series.c.revision == revision,
            series.c.state.in_(sources(SERIES, event)),
        )
        .values(
            state=SERIES[SeriesState.COMPLETE, event],
            decided_at=now,
            reason_code=reason.code if reason else None,
            reason_text=reason.text if reason else None,
        )
    )
    return result.rowcount == 1


def _add_notes(connection: Connection, uid: str, notes: Sequence[str]) -> None:
    mine = series.c.series_instance_uid == uid
    known = connection.execute(select(series.c.notes).where(mine)).scalar() or []
    connection.execute(update(series).where(mine).values(notes=[*known, *notes]))


def _new_job(
    connection: Connection, row: SeriesRow, state: JobState, reason: Reason | None, now: float
) -> int:
    supersede_older(connection, row.series_instance_uid, row.revision)
    of_study = studies.c.study_instance_uid == row.study_instance_uid
    values = {
        "series_instance_uid": row.series_instance_uid,
        "study_instance_uid": row.study_instance_uid,
        "canary": connection.execute(select(studies.c.canary).where(of_study)).scalar() or 0,
        "ordered": connection.execute(select(studies.c.order_priority).where(of_study)).scalar() or "",
        "revision": row.revision,
        "state": state,
        "created_at": now,
        "reason_code": reason.code if reason else None,
        "reason_text": reason.text if reason else None,
    }
    insert_if_absent(connection, jobs, {**values, **_new_number(connection)})
    return connection.execute(
        select(jobs.c.id).where(
            jobs.c.series_instance_uid == row.series_instance_uid, jobs.c.revision == row.revision
        )
    ).scalar_one()


def _new_number(connection: Connection) -> dict[str, int]:
    """SQLite would give that of a forgotten job again, whose figures outlive it. PostgreSQL never does."""
    if connection.dialect.name != "sqlite":
        return {}
    numbers = (jobs.c.id, analyses.c.job_id, shadows.c.job_id)
    return {"id": 1 + max(connection.execute(select(func.max(one))).scalar() or 0 for one in numbers)}
