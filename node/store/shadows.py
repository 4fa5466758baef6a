"""Every query about what the shadow model reads: which series, whose turn it is, what came of it.

Touches no row of a study, series, job or delivery: whatever happens here, the node's own word stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Update, and_, exists, func, or_, select, update

from node.domain.findings import Findings, ModelIdentity, Reason
from node.domain.lifecycle import SHADOWS, JobState, ShadowEvent, ShadowState, sources
from node.store import quality
from node.store.engine import insert_if_absent, reading, writing
from node.store.pair_days import changed
from node.store.tables import analyses, jobs, series, shadows, studies

Row = dict[str, Any]
ANALYSED = (JobState.ANALYSED, JobState.COMPOSED)
RACES = 20
NOT_DRAWN = Reason("NOT_DRAWN", "not of the share that is read in the shadow")
BACKLOG = Reason("BACKLOG", "too many others waited for the shadow model")
TOO_OLD = Reason("TOO_OLD", "its turn did not come in time")
OVERTAKEN = Reason("OVERTAKEN", "its job counts no more, or its images are gone")
OTHER_MODEL = Reason("OTHER_MODEL", "another model reads in the shadow by now")


@dataclass(frozen=True)
class ShadowModel:
    """A model that reads in silence, as its worker loaded it."""

    pipeline: str
    identity: ModelIdentity


@dataclass(frozen=True)
class Drawn:
    """A series of the active model's that the shadow model has no row for."""

    job_id: int
    study_instance_uid: str
    series_instance_uid: str
    revision: int


@dataclass(frozen=True)
class Shadowing:
    """One series that is to be read in the shadow, or is."""

    id: int
    job_id: int
    series_instance_uid: str
    revision: int
    attempts: int
    lease_owner: str | None
    lease_until: float | None


class Shadows:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unread(self, sha256: str, since: float, limit: int = 200) -> list[Drawn]:
        """What other models analysed since then, and this one has no row for; the oldest first."""
        mine = exists().where(shadows.c.job_id == analyses.c.job_id, shadows.c.model_sha256 == sha256)
        query = (
            select(jobs.c.id, jobs.c.study_instance_uid, jobs.c.series_instance_uid, jobs.c.revision)
            .join(analyses, analyses.c.job_id == jobs.c.id)
            .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
            .where(
                analyses.c.analysed_at >= since,
                analyses.c.model_sha256 != sha256,
                jobs.c.state.in_(ANALYSED),
                studies.c.files_removed_at.is_(None),
                ~mine,
            )
            .order_by(analyses.c.analysed_at)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [Drawn(*row) for row in connection.execute(query)]

    def want(self, model: ShadowModel, drawn: Drawn, left_out: Reason | None, now: float) -> bool:
        """Put a series in line, or write down why not. False when somebody did so before."""
        identity = model.identity
        row: Row = {
            **vars(drawn),
            "model_name": identity.name[:64],
            "model_version": identity.version[:64],
            "model_sha256": identity.sha256,
            "pipeline": model.pipeline,
            "state": ShadowState.SKIPPED if left_out else ShadowState.WAITING,
            "attempts": 0,
            "created_at": now,
        }
        if left_out:
            row |= {"reason_code": left_out.code, "reason_text": left_out.text, "finished_at": now}
        with writing(self._engine) as connection:
            return insert_if_absent(connection, shadows, row)

    def waiting(self) -> int:
        """How many are to be read, or are being read."""
        open_ones = shadows.c.state.in_((ShadowState.WAITING, ShadowState.RUNNING))
        with reading(self._engine) as connection:
            return int(connection.execute(select(func.count()).where(open_ones)).scalar_one())

    def leave_out(self, sha256: str, before: float, now: float) -> int:
        """What waits since before then, or for another model, is not read any more. Returns how many."""
        stale = _move(ShadowEvent.LEFT_OUT, now).where(shadows.c.state == ShadowState.WAITING)
        late = stale.where(shadows.c.created_at < before).values(**_because(TOO_OLD))
        other = stale.where(shadows.c.model_sha256 != sha256).values(**_because(OTHER_MODEL))
        with reading(self._engine) as connection:
            due = or_(shadows.c.created_at < before, shadows.c.model_sha256 != sha256)
            found = select(shadows.c.id).where(shadows.c.state == ShadowState.WAITING, due).limit(1)
            if connection.execute(found).first() is None:
                return 0
        with writing(self._engine) as connection:
            return sum(connection.execute(statement).rowcount for statement in (late, other))

    def to_ring(self, rung_before: float, limit: int) -> list[int]:
        """Rows whose doorbell is to be rung, the oldest first; none while a job of the active model waits."""
        unheard = or_(shadows.c.rung_at.is_(None), shadows.c.rung_at < rung_before)
        query = select(shadows.c.id).where(shadows.c.state == ShadowState.WAITING, unheard, ~_others_wait())
        with reading(self._engine) as connection:
            return list(connection.execute(query.order_by(shadows.c.created_at).limit(limit)).scalars())

    def rung(self, number: int, now: float) -> None:
        with writing(self._engine) as connection:
            connection.execute(update(shadows).where(shadows.c.id == number).values(rung_at=now))

    def take(self, rung: int, sha256: str, owner: str, lease_until: float, now: float) -> Shadowing | None:
        """Claim the oldest that waits for this model; None while a job of the active model waits.

        One that was tried before is only taken when its own doorbell `rung`, so that it comes no sooner.
        """
        turn = or_(shadows.c.attempts == 0, shadows.c.id == rung)
        mine = (shadows.c.state == ShadowState.WAITING, shadows.c.model_sha256 == sha256, turn)
        oldest = select(shadows.c.id).where(*mine, ~_others_wait()).order_by(shadows.c.created_at).limit(1)
        for _ in range(RACES):
            with writing(self._engine) as connection:
                number = connection.execute(oldest).scalar()
                if number is None:
                    return None
                if not _still_counts(connection, number):
                    left_out = _move(ShadowEvent.LEFT_OUT, now).where(shadows.c.id == number)
                    connection.execute(left_out.values(**_because(OVERTAKEN)))
                    continue
                claimed = _move(ShadowEvent.CLAIMED).where(shadows.c.id == number)
                values = {"lease_owner": owner, "lease_until": lease_until, "started_at": now}
                if connection.execute(claimed.values(**values, attempts=shadows.c.attempts + 1)).rowcount:
                    return _shadowing(connection.execute(select(shadows).where(shadows.c.id == number)).one())
        return None

    def renew(self, number: int, owner: str, lease_until: float) -> bool:
        """False when the lease was lost."""
        held = update(shadows).where(*_held(number, owner))
        with writing(self._engine) as connection:
            return connection.execute(held.values(lease_until=lease_until)).rowcount == 1

    def store(self, number: int, owner: str, findings: Findings, now: float) -> bool:
        """What the model read. False when the lease was lost, or the job counts no more."""
        with writing(self._engine) as connection:
            if not _still_counts(connection, number):
                left_out = _move(ShadowEvent.LEFT_OUT, now).where(*_held(number, owner))
                connection.execute(left_out.values(**_because(OVERTAKEN)))
                return False
            read = _move(ShadowEvent.READ, now).where(*_held(number, owner))
            nothing_wrong = {"reason_code": None, "reason_text": None}
            stored = connection.execute(read.values(**quality.outcome(findings), **nothing_wrong)).rowcount
            of_job = select(analyses.c.analysed_at).join(shadows, shadows.c.job_id == analyses.c.job_id)
            changed(connection, *connection.execute(of_job.where(shadows.c.id == number)).scalars())
            return stored == 1

    def fail(self, number: int, owner: str, reason: Reason, now: float) -> bool:
        """For good."""
        return self._change(
            _move(ShadowEvent.FAILED_FOR_GOOD, now).where(*_held(number, owner)).values(**_because(reason))
        )

    def put_back(self, number: int, owner: str, reason: Reason) -> bool:
        """To be tried once more, later."""
        return self._change(
            _move(ShadowEvent.FAILED_TRANSIENTLY).where(*_held(number, owner)).values(**_because(reason))
        )

    def running(self) -> list[Shadowing]:
        with reading(self._engine) as connection:
            query = select(shadows).where(shadows.c.state == ShadowState.RUNNING)
            return [_shadowing(row) for row in connection.execute(query)]

    def lost(self, taken: Shadowing, most_attempts: int, now: float) -> bool:
        """Its worker is gone: to be tried again, or given up; not if it was renewed meanwhile."""
        if taken.attempts >= most_attempts:
            text = f"the shadow worker died or hung in each of {taken.attempts} attempts; see its log"
            statement = _move(ShadowEvent.FAILED_FOR_GOOD, now).values(
                **_because(Reason("WORKER_LOST", text))
            )
        else:
            statement = _move(ShadowEvent.LEASE_EXPIRED)
        held = (*_held(taken.id, taken.lease_owner or ""), shadows.c.lease_until == taken.lease_until)
        return self._change(statement.where(*held))

    def counts(self) -> dict[str, int]:
        """How many rows stand in each state, skipped ones by reason: {"DONE": 7, "SKIPPED BACKLOG": 2}."""
        query = select(shadows.c.state, shadows.c.reason_code, func.count()).group_by(
            shadows.c.state, shadows.c.reason_code
        )
        found: dict[str, int] = {}
        with reading(self._engine) as connection:
            for state, code, count in connection.execute(query):
                name = f"{state} {code}" if state == ShadowState.SKIPPED else state
                found[name] = found.get(name, 0) + count
        return found

    def oldest_waiting(self) -> float | None:
        """Since when the oldest waits."""
        query = select(func.min(shadows.c.created_at)).where(shadows.c.state == ShadowState.WAITING)
        with reading(self._engine) as connection:
            return connection.execute(query).scalar()

    def failures(self, limit: int = 20) -> list[Row]:
        """What was given up, the latest first."""
        query = select(shadows).where(shadows.c.state == ShadowState.FAILED)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(shadows.c.finished_at.desc()).limit(limit))
            return [dict(row._mapping) for row in rows]

    def models(self) -> list[Row]:
        """Each model that has read something in the shadow, the latest first: identity, pipeline, `last_at`.

        By the digest of its weights, along the index; what it is called is what it was called last.
        """
        done, digest = shadows.c.state == ShadowState.DONE, shadows.c.model_sha256
        columns = (shadows.c.model_name, shadows.c.model_version, digest, shadows.c.pipeline)
        latest = select(*columns, shadows.c.finished_at.label("last_at")).where(done)
        latest = latest.order_by(shadows.c.finished_at.desc()).limit(1)
        rows: list[Row] = []
        with reading(self._engine) as connection:
            known: str | None = ""
            while known := connection.execute(select(func.min(digest)).where(done, digest > known)).scalar():
                rows.append(dict(connection.execute(latest.where(digest == known)).one()._mapping))
        return sorted(rows, key=lambda row: row["last_at"] or 0.0, reverse=True)

    def _change(self, statement: Update) -> bool:
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount == 1


def _others_wait() -> ColumnElement[bool]:
    """A job of the active model waits for a worker."""
    return exists().where(jobs.c.state == JobState.QUEUED)


def _still_counts(connection: Connection, number: int) -> bool:
    """Its job speaks for its series as it is, and the images are there."""
    query = (
        select(jobs.c.id)
        .join(shadows, shadows.c.job_id == jobs.c.id)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
        .where(
            shadows.c.id == number,
            jobs.c.state.in_(ANALYSED),
            series.c.revision == jobs.c.revision,
            studies.c.files_removed_at.is_(None),
        )
    )
    return connection.execute(query).first() is not None


def _held(number: int, owner: str) -> tuple[ColumnElement[bool], ...]:
    running = shadows.c.state == ShadowState.RUNNING
    return (and_(shadows.c.id == number, shadows.c.lease_owner == owner, running),)


def _move(event: ShadowEvent, finished_at: float | None = None) -> Update:
    """An UPDATE that changes the state only from the states in which the table lists `event`."""
    came_from = sources(SHADOWS, event)
    values: Row = {"state": SHADOWS[came_from[0], event]}
    if event is not ShadowEvent.CLAIMED:
        values |= {"lease_owner": None, "lease_until": None}
    if finished_at is not None:
        values["finished_at"] = finished_at
    return update(shadows).where(shadows.c.state.in_(came_from)).values(**values)


def _because(reason: Reason) -> Mapping[str, str]:
    return {"reason_code": reason.code[:64], "reason_text": reason.text[:2000]}


def _shadowing(row: Any) -> Shadowing:
    return Shadowing(
        row.id,
        row.job_id,
        row.series_instance_uid or "",
        row.revision,
        row.attempts,
        row.lease_owner,
        row.lease_until,
    )
