"""Every query about jobs and the objects made from them. A claim is a lease, never a broker's message."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Update,
    and_,
    case,
    exists,
    null,
    or_,
    select,
    update,
)

from node.domain.acquisition import Acquisition
from node.domain.announcing import Audience, Stage
from node.domain.errors import IllegalTransition
from node.domain.findings import Findings, Priority, Reason, most_urgent
from node.domain.lifecycle import JOBS, DeliveryState, JobEvent, JobState, SeriesState, after, sources
from node.store import pauses, quality
from node.store.alerts import tell
from node.store.deliveries import NewDelivery, add_deliveries, overtake
from node.store.engine import insert_if_absent, reading, writing
from node.store.held import is_held
from node.store.tables import deliveries, jobs, objects, removals, series, studies

SOURCE = "source"
"""The `output` of an object that is a received instance, handed on because a rule says so."""
_EMPTIED = ("rung_at", "reported_at", "reason_code", "reason_text", "lease_owner", "lease_until")
NOTHING_KNOWN = Acquisition()
_FROM_THE_START = {"attempts": 0, **dict.fromkeys(_EMPTIED)}


@dataclass(frozen=True)
class Job:
    id: int
    series_instance_uid: str
    study_instance_uid: str
    revision: int
    state: JobState
    attempts: int
    priority: Priority | None
    """Known as soon as the classes are, and kept when the job fails after that."""
    reason: Reason | None
    lease_owner: str | None
    lease_until: float | None
    created_at: float
    analysed_at: float | None
    findings: Findings | None
    maps_path: str | None
    is_canary: bool = False
    """Of the node's own phantom: alarms nobody, counts nowhere."""
    reported_priority: Priority | None = None
    """The most urgent one that was reported so far, whatever a later analysis of it says."""


@dataclass(frozen=True)
class NewObject:
    """An object just written to the spool."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    output: str
    path: str
    size_bytes: int


@dataclass(frozen=True)
class Word:
    """What was found, and who wants to be told of it."""

    stage: Stage
    findings: Findings
    audiences: Sequence[Audience]
    now: float


@dataclass(frozen=True)
class Alarm:
    """What was reported as urgent of a study."""

    series_instance_uid: str
    revision: int
    priority: Priority


class Jobs:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, job_id: int) -> Job | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
            return _job(row) if row else None

    def latest_of_study(self, study_uid: str) -> list[Job]:
        """Jobs of a study that are not superseded, cancelled or outdated, newest first."""
        over = (JobState.SUPERSEDED, JobState.CANCELLED)
        mine = (jobs.c.study_instance_uid == study_uid, jobs.c.state.not_in(over), ~is_outdated())
        with reading(self._engine) as connection:
            query = select(jobs).where(*mine)
            return [_job(row) for row in connection.execute(query.order_by(jobs.c.id.desc()))]

    def claim(self, job_id: int, owner: str, lease_until: float, now: float) -> Job | None:
        """QUEUED → RUNNING under a lease; None when it is not to be had, or the queue is paused."""
        with writing(self._engine) as connection:
            won = connection.execute(
                _move(job_id, JobEvent.CLAIMED)
                .where(~pauses.standing_still(pauses.QUEUE))
                .values(
                    lease_owner=owner, lease_until=lease_until, started_at=now, attempts=jobs.c.attempts + 1
                )
            ).rowcount
            if not won:
                return None
            return _job(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())

    def renew(self, job_id: int, owner: str, lease_until: float) -> bool:
        """False when the lease was lost: the worker must throw its work away."""
        return self._change(
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.lease_owner == owner, jobs.c.state == JobState.RUNNING)
            .values(lease_until=lease_until)
        )

    def store_priority(self, job_id: int, owner: str, priority: Priority, word: Word | None = None) -> bool:
        """The early word, before masks and pictures are made, and its alerts."""
        held = (jobs.c.id == job_id, jobs.c.lease_owner == owner, jobs.c.state == JobState.RUNNING)
        return self._speak(job_id, update(jobs).where(*held).values(priority=priority), word)

    def store_analysis(
        self,
        job_id: int,
        owner: str,
        findings: Findings,
        maps_path: str,
        now: float,
        audiences: Sequence[Audience] = (),
        acquired: Acquisition = NOTHING_KNOWN,
    ) -> bool:
        """With the alerts to `audiences`, and the row for the statistics. False when the lease was lost."""
        statement = _move(job_id, JobEvent.ANALYSIS_STORED, owner).values(
            findings=findings.to_json(), priority=findings.priority, maps_path=maps_path, analysed_at=now
        )
        with writing(self._engine) as connection:
            if connection.execute(statement).rowcount != 1:
                return False
            _tell(connection, job_id, Word(Stage.FINAL, findings, audiences, now))
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
            if not row.canary:
                quality.record(connection, (job_id, row.study_instance_uid), findings, acquired, now)
            return True

    def fail(self, job_id: int, reason: Reason, owner: str | None = None) -> bool:
        """For good; the not-analysed report follows."""
        return self._change(
            _move(job_id, JobEvent.FAILED_FOR_GOOD, owner).values(
                reason_code=reason.code, reason_text=reason.text, reported_at=None
            )
        )

    def put_back(self, job_id: int, owner: str, reason: Reason, counts: bool = True) -> bool:
        """RUNNING → QUEUED after a transient failure; rung again later. Unless it `counts` as an attempt,
        there was none.
        """
        attempts = jobs.c.attempts - (0 if counts else 1)
        return self._change(
            _move(job_id, JobEvent.FAILED_TRANSIENTLY, owner).values(
                reason_code=reason.code,
                reason_text=reason.text,
                lease_owner=None,
                lease_until=None,
                attempts=attempts,
            )
        )

    def give_back(self, job_id: int, owner: str) -> bool:
        """RUNNING → QUEUED as if it had never been taken: nothing was begun. Rung at once."""
        return self._change(
            _move(job_id, JobEvent.GIVEN_BACK, owner).values(
                attempts=jobs.c.attempts - 1, lease_owner=None, lease_until=None, rung_at=None
            )
        )

    def running(self) -> list[Job]:
        with reading(self._engine) as connection:
            query = select(jobs).where(jobs.c.state == JobState.RUNNING)
            return [_job(row) for row in connection.execute(query)]

    def expire(self, job: Job) -> bool:
        """RUNNING → QUEUED because its worker is gone, unless the lease was renewed since `job` was read."""
        return self._change(
            _move(job.id, JobEvent.LEASE_EXPIRED, job.lease_owner)
            .where(jobs.c.lease_until == job.lease_until)
            .values(lease_owner=None, lease_until=None, rung_at=None)
        )

    def lost(self, job: Job, reason: Reason) -> bool:
        """RUNNING → FAILED for the same cause, once too often; like `expire`, not if it was renewed."""
        return self._change(
            _move(job.id, JobEvent.FAILED_FOR_GOOD, job.lease_owner)
            .where(jobs.c.lease_until == job.lease_until)
            .values(reason_code=reason.code, reason_text=reason.text, reported_at=None)
        )

    def to_report(self, limit: int = 50, disk: str | None = None, last: Collection[int] = ()) -> list[Job]:
        """Analysed or failed jobs whose objects are not stored yet; the most urgent first, `last` behind all.

        With a `disk`, none whose images another one alone has.
        """
        near = () if disk is None else (~is_held(jobs.c.series_instance_uid, disk),)
        unreported = jobs.c.reported_at.is_(None)
        with reading(self._engine) as connection:
            query = (
                select(jobs)
                .where(jobs.c.state.in_((JobState.ANALYSED, JobState.FAILED)), unreported, *near)
                .order_by(
                    case((jobs.c.id.in_(last), 1), else_=0),
                    case((jobs.c.priority == Priority.STAT, 0), else_=1),
                    jobs.c.created_at,
                )
                .limit(limit)
            )
            return [_job(row) for row in connection.execute(query)]

    def store_objects(
        self,
        job: Job,
        made: Sequence[NewObject],
        going: Sequence[NewDelivery],
        now: float,
        routing: Mapping[str, Any] | None = None,
        word: Word | None = None,
    ) -> bool:
        """The objects, their deliveries, the alerts and the job's new state in one transaction.

        Deliveries of what was composed of the series before, and not sent yet, are overtaken by `going`.
        `routing` says why each destination gets what it gets, where there are rules.
        """
        values = {
            "reported_at": now,
            "routing": null() if routing is None else dict(routing),
            "reported_priority": most_urgent(job.priority, job.reported_priority),
        }
        with writing(self._engine) as connection:
            if job.state == JobState.ANALYSED:
                statement = _move(job.id, JobEvent.OBJECTS_STORED).values(**values)
            else:
                still_failed = (jobs.c.id == job.id, jobs.c.state == JobState.FAILED)
                statement = update(jobs).where(*still_failed).values(**values)
            if connection.execute(statement).rowcount != 1:
                return False
            for item in made:
                row = {**vars(item), "job_id": job.id, "created_at": now}
                if not insert_if_absent(connection, objects, row) and item.output != SOURCE:
                    again = update(objects).where(objects.c.sop_instance_uid == item.sop_instance_uid)
                    connection.execute(again.values(created_at=now))
            add_deliveries(connection, job.id, going, now)
            overtake(connection, job.series_instance_uid)
            _tell(connection, job.id, word)
            return True

    def predecessor(self, job: Job, output: str) -> NewObject | None:
        """The newest object of this kind made before, for an earlier revision or before a retry.

        None that waits to be sent everywhere: it will be overtaken, and a reader would look for it in vain.
        """
        goes = deliveries.c.sop_instance_uid == objects.c.sop_instance_uid
        came = deliveries.c.state.in_((DeliveryState.SENT, DeliveryState.COMMITTED))
        with reading(self._engine) as connection:
            row = connection.execute(
                select(objects)
                .join(jobs, jobs.c.id == objects.c.job_id)
                .where(
                    jobs.c.series_instance_uid == job.series_instance_uid,
                    jobs.c.revision <= job.revision,
                    objects.c.output == output,
                    or_(~exists().where(goes), exists().where(goes, came)),
                )
                .order_by(jobs.c.revision.desc(), objects.c.created_at.desc())
            ).first()
            return object_of(row) if row else None

    def earlier_alarm(self, job: Job) -> Alarm | None:
        """The gravest alarm that was reported of the study before; of several, the latest of this series.

        One that was to be analysed again was reported, whatever became of that; so was what an earlier
        analysis of this very revision said. Later revisions of the series do not count.
        """
        own = jobs.c.series_instance_uid == job.series_instance_uid
        grave_first = case((jobs.c.reported_priority == Priority.STAT, 0), else_=1)
        own_first = case((own, 0), else_=1)
        with reading(self._engine) as connection:
            row = connection.execute(
                select(jobs.c.series_instance_uid, jobs.c.revision, jobs.c.reported_priority)
                .where(
                    jobs.c.study_instance_uid == job.study_instance_uid,
                    or_(~own, jobs.c.revision <= job.revision),
                    jobs.c.reported_priority.in_((Priority.STAT, Priority.HIGH)),
                )
                .order_by(grave_first, own_first, jobs.c.revision.desc())
            ).first()
            if row is None:
                return None
            return Alarm(row.series_instance_uid, row.revision, Priority(row.reported_priority))

    def known_objects(self, job_id: int) -> dict[str, NewObject]:
        """Objects already stored for a job, by SOP Instance UID."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(objects).where(objects.c.job_id == job_id))
            return {row.sop_instance_uid: object_of(row) for row in rows}

    def made(self, job_id: int, output: str) -> tuple[set[str], set[str]]:
        """SOP Instance UIDs of the objects of one kind that a job ever made, and of those it made last."""
        mine = (objects.c.job_id == job_id, objects.c.output == output)
        with reading(self._engine) as connection:
            query = select(objects.c.sop_instance_uid, objects.c.created_at).where(*mine)
            at = {row.sop_instance_uid: row.created_at for row in connection.execute(query)}
        last = max(at.values(), default=0.0)
        return set(at), {uid for uid, made_at in at.items() if made_at == last}

    def cancel(self, job_id: int) -> None:
        """Raises IllegalTransition when the job is past being cancelled."""
        self._by_admin(job_id, JobEvent.CANCELLED_BY_ADMIN, {})

    def retry(self, job_id: int) -> None:
        """At once, from the start.

        Raises IllegalTransition unless the job FAILED or was CANCELLED, and nothing of its series came since.
        """
        self._by_admin(job_id, JobEvent.RETRIED_BY_ADMIN, _FROM_THE_START)

    def reanalyse(self, job_id: int) -> None:
        """What was sent stays sent, and its priority stands until the new word.

        Raises IllegalTransition unless the job is COMPOSED, and the latest word about its series.
        """
        self._by_admin(job_id, JobEvent.REANALYSED_BY_ADMIN, _FROM_THE_START)

    def _by_admin(self, job_id: int, event: JobEvent, values: dict[str, Any]) -> None:
        with writing(self._engine) as connection:
            state = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar()
            if state is None:
                raise IllegalTransition(f"there is no job {job_id}; `ichnode jobs` lists them")
            after(JOBS, JobState(state), event)
            if event != JobEvent.CANCELLED_BY_ADMIN:
                _require_files(connection, job_id)
                _require_latest(connection, job_id)
            if connection.execute(_move(job_id, event).values(**values)).rowcount != 1:
                raise IllegalTransition(f"job {job_id} changed just now; look at it again")

    def _speak(self, job_id: int, statement: Update, word: Word | None) -> bool:
        with writing(self._engine) as connection:
            if connection.execute(statement).rowcount != 1:
                return False
            _tell(connection, job_id, word)
            return True

    def _change(self, statement: Update) -> bool:
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount == 1


def _tell(connection: Connection, job_id: int, word: Word | None) -> None:
    if word is not None and not _is_canary(connection, job_id):
        tell(connection, job_id, word.findings, word.stage, word.audiences, word.now)


def _is_canary(connection: Connection, job_id: int) -> bool:
    return bool(connection.execute(select(jobs.c.canary).where(jobs.c.id == job_id)).scalar())


def _require_files(connection: Connection, job_id: int) -> None:
    """Raises IllegalTransition when retention removed what the job would read."""
    of_job = select(studies.c.files_removed_at).join(
        jobs, jobs.c.study_instance_uid == studies.c.study_instance_uid
    )
    if connection.execute(of_job.where(jobs.c.id == job_id)).scalar() is not None:
        raise IllegalTransition(f"the files of job {job_id}'s study were removed; send the study again")


def _require_latest(connection: Connection, job_id: int) -> None:
    """Raises IllegalTransition when images came since: they would be told under the UIDs of the older."""
    query = (
        select(jobs.c.revision, jobs.c.series_instance_uid, series.c.revision.label("newest"))
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .where(jobs.c.id == job_id)
    )
    row = connection.execute(query).one()
    if row.revision < row.newest:
        text = (
            f"job {job_id} is of revision {row.revision} of its series, and revision {row.newest} came since"
        )
        raise IllegalTransition(f"{text}; have the job of that one analysed again")


def supersede_older(connection: Connection, series_uid: str, revision: int) -> None:
    """Jobs of earlier revisions make way, unless their objects are already stored."""
    connection.execute(
        update(jobs)
        .where(
            jobs.c.series_instance_uid == series_uid,
            jobs.c.revision < revision,
            jobs.c.state.in_(sources(JOBS, JobEvent.NEWER_REVISION)),
        )
        .values(state=JobState.SUPERSEDED)
    )


def is_outdated() -> ColumnElement[bool]:
    """Of a job: it was reported, then images of its series changed or came late, and what they are now was
    refused. What came again after retention had taken the images says nothing about them.
    """
    own, gone = series.alias("own"), removals.alias("gone")
    refused = exists().where(
        own.c.series_instance_uid == jobs.c.series_instance_uid,
        own.c.revision > jobs.c.revision,
        own.c.state == SeriesState.SKIPPED,
    )
    removed = exists().where(
        gone.c.study_instance_uid == jobs.c.study_instance_uid, gone.c.begun_at > jobs.c.created_at
    )
    return and_(
        jobs.c.state == JobState.COMPOSED,
        refused.correlate_except(own),
        ~removed.correlate_except(gone),
    )


def _move(job_id: int, event: JobEvent, owner: str | None = None) -> Update:
    """An UPDATE that changes the state only from the states in which the table lists `event`."""
    came_from = sources(JOBS, event)
    statement = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(came_from))
    if owner is not None:
        statement = statement.where(jobs.c.lease_owner == owner)
    return statement.values(state=JOBS[came_from[0], event])


def _job(row: Row) -> Job:
    return Job(
        id=row.id,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        revision=row.revision,
        state=JobState(row.state),
        attempts=row.attempts,
        priority=Priority(row.priority) if row.priority else None,
        reason=Reason(row.reason_code, row.reason_text or "") if row.reason_code else None,
        lease_owner=row.lease_owner,
        lease_until=row.lease_until,
        created_at=row.created_at,
        analysed_at=row.analysed_at,
        findings=Findings.from_json(row.findings) if row.findings else None,
        maps_path=row.maps_path,
        is_canary=bool(row.canary),
        reported_priority=Priority(row.reported_priority) if row.reported_priority else None,
    )


def object_of(row: Row) -> NewObject:
    """A row of the table `objects`."""
    return NewObject(
        row.sop_instance_uid,
        row.sop_class_uid,
        row.series_instance_uid,
        row.output,
        row.path,
        row.size_bytes,
    )
