"""Every query of the queue's page and of the metrics: backlog, throughput, dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, and_, case, false, func, or_, select, update

from node.domain.lifecycle import DeliveryState, JobState
from node.domain.orders import OrderPriority
from node.store.engine import insert_if_absent, reading, writing
from node.store.jobs import SOURCE
from node.store.tables import deliveries, echoes, instances, jobs, objects, series, studies

Row = dict[str, Any]
MOST_TIMED = 2000
UNSENT = (DeliveryState.PENDING, DeliveryState.FAILED)
_WORK = {JobState.RUNNING: 0, JobState.ANALYSED: 1, JobState.QUEUED: 2}


class Console:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def counts(self) -> dict[str, dict[str, int]]:
        """Jobs in each state, and deliveries that are not sent; what was sent is too many to count."""
        by_job = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        unsent = (
            select(deliveries.c.state, func.count())
            .where(deliveries.c.state.in_(UNSENT))
            .group_by(deliveries.c.state)
        )
        with reading(self._engine) as connection:
            return {
                "jobs": dict(connection.execute(by_job).all()),
                "deliveries": dict(connection.execute(unsent).all()),
            }

    def work(self, limit: int = 50, stat: Sequence[str] = (OrderPriority.STAT,)) -> list[Row]:
        """Jobs still to be done: in work, then waiting; of these ordered in `stat` first, then the oldest."""
        order = case(_WORK, value=jobs.c.state)
        waits = and_(
            jobs.c.state == JobState.QUEUED, func.coalesce(studies.c.order_priority, "").not_in(stat)
        )
        open_ = jobs.c.state.in_(list(_WORK))
        rank = case((waits, 1), else_=0)
        return self._rows(_jobs().where(open_).order_by(order, rank, jobs.c.created_at).limit(limit))

    def failed_jobs(self, limit: int = 50) -> list[Row]:
        """The newest first."""
        failed = jobs.c.state == JobState.FAILED
        return self._rows(_jobs().where(failed).order_by(jobs.c.created_at.desc()).limit(limit))

    def finished(self, limit: int = 15) -> list[Row]:
        """The latest analysed."""
        done = jobs.c.analysed_at.is_not(None)
        return self._rows(_jobs().where(done).order_by(jobs.c.analysed_at.desc()).limit(limit))

    def unsent(self, state: DeliveryState, limit: int = 50, destination: str = "") -> list[Row]:
        """Deliveries waiting or given up: positive results first, then the oldest, then as they are sent."""
        order = (deliveries.c.urgent.desc(), deliveries.c.created_at, deliveries.c.rank, deliveries.c.id)
        query = _deliveries().where(deliveries.c.state == state).order_by(*order).limit(limit)
        return self._rows(query.where(deliveries.c.destination == destination) if destination else query)

    def uncommitted(self, sent_before: Mapping[str, float], limit: int = 50) -> list[Row]:
        """What each destination took before that time and never committed to, the oldest first."""
        late = _is_late(sent_before)
        return self._rows(_deliveries().where(late).order_by(deliveries.c.sent_at).limit(limit))

    def count_uncommitted(self, sent_before: Mapping[str, float]) -> dict[str, int]:
        """How many of them there are, by destination."""
        query = select(deliveries.c.destination, func.count()).where(_is_late(sent_before))
        with reading(self._engine) as connection:
            rows = connection.execute(query.group_by(deliveries.c.destination)).all()
        found: dict[str, int] = {row[0]: row[1] for row in rows}
        return {name: found.get(name, 0) for name in sent_before}

    def count_given_up(self, destination: str = "") -> int:
        """How many deliveries were given up, of one destination or of all."""
        query = select(func.count()).where(deliveries.c.state == DeliveryState.FAILED)
        if destination:
            query = query.where(deliveries.c.destination == destination)
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def oldest_unsent_positive(self) -> Row | None:
        query = (
            select(deliveries.c.created_at, deliveries.c.destination, jobs.c.study_instance_uid)
            .join(jobs, jobs.c.id == deliveries.c.job_id)
            .where(deliveries.c.state.in_(UNSENT), deliveries.c.urgent == 1)
            .order_by(deliveries.c.created_at)
            .limit(1)
        )
        found = self._rows(query)
        return found[0] if found else None

    def destinations(self, names: Sequence[str]) -> dict[str, Row]:
        """Backlog, what was overtaken, last sending and last echo of each, and of others with a backlog."""
        backlog = (
            select(deliveries.c.destination, deliveries.c.state, deliveries.c.urgent, func.count())
            .where(deliveries.c.state.in_(UNSENT))
            .group_by(deliveries.c.destination, deliveries.c.state, deliveries.c.urgent)
        )
        overtaken = (
            select(deliveries.c.destination, func.count())
            .where(deliveries.c.state == DeliveryState.SUPERSEDED)
            .group_by(deliveries.c.destination)
        )
        found = {name: _nothing() for name in names}
        with reading(self._engine) as connection:
            for name, state, urgent, count in connection.execute(backlog):
                of = found.setdefault(name, _nothing())
                of["pending" if state == DeliveryState.PENDING else "given_up"] += count
                of["urgent"] += count if urgent else 0
            for name, count in connection.execute(overtaken):
                if name in found:
                    found[name]["superseded"] = count
            for name in found:
                last = select(func.max(deliveries.c.sent_at)).where(deliveries.c.destination == name)
                found[name]["last_sent_at"] = connection.execute(last).scalar()
                troubled = (
                    select(deliveries.c.last_error)
                    .where(deliveries.c.destination == name, deliveries.c.state == DeliveryState.PENDING)
                    .where(deliveries.c.last_error.is_not(None))
                    .limit(1)
                )
                found[name]["error"] = connection.execute(troubled).scalar() or ""
            for row in connection.execute(select(echoes).where(echoes.c.destination.in_(list(found)))):
                found[row.destination]["echo"] = dict(row._mapping)
        return found

    def echoes(self, names: Sequence[str]) -> dict[str, Row]:
        """The last test of each."""
        rows = self._rows(select(echoes).where(echoes.c.destination.in_(names)))
        return {row["destination"]: row for row in rows}

    def echoed(self, destination: str, ok: bool, text: str, now: float) -> None:
        values = {"at": now, "ok": int(ok), "text": text[:2000]}
        with writing(self._engine) as connection:
            if not insert_if_absent(connection, echoes, {"destination": destination, **values}):
                mine = echoes.c.destination == destination
                connection.execute(update(echoes).where(mine).values(**values))

    def times(self, since: float) -> list[Row]:
        """When what was analysed since then had come, was analysed, and was first sent; the newest first."""
        first_sent = (
            select(func.min(deliveries.c.sent_at)).where(deliveries.c.job_id == jobs.c.id).scalar_subquery()
        )
        query = (
            select(jobs.c.id, jobs.c.created_at, jobs.c.started_at, jobs.c.analysed_at)
            .add_columns(series.c.last_received_at.label("received_at"), first_sent.label("first_sent_at"))
            .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
            .where(jobs.c.analysed_at >= since, jobs.c.canary == 0)
            .order_by(jobs.c.analysed_at.desc())
            .limit(MOST_TIMED)
        )
        return self._rows(query)

    def bytes_since(self, since: float) -> int:
        """Bytes of what was received and of what was made since then."""
        came = select(func.sum(instances.c.size_bytes)).where(instances.c.received_at >= since)
        made = (
            select(func.sum(objects.c.size_bytes))
            .join(jobs, jobs.c.id == objects.c.job_id)
            .where(jobs.c.analysed_at >= since, objects.c.output != SOURCE)
        )
        with reading(self._engine) as connection:
            return sum(int(connection.execute(query).scalar() or 0) for query in (came, made))

    def _rows(self, query: Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _nothing() -> Row:
    counts = {"pending": 0, "given_up": 0, "urgent": 0, "superseded": 0}
    return {**counts, "last_sent_at": None, "echo": None, "error": ""}


def _is_late(sent_before: Mapping[str, float]) -> ColumnElement[bool]:
    return or_(
        false(),
        *(
            and_(
                deliveries.c.destination == name,
                deliveries.c.state == DeliveryState.SENT,
                deliveries.c.sent_at < before,
            )
            for name, before in sent_before.items()
        ),
    )


def _deliveries() -> Select[Any]:
    """With what they carry, and of whom."""
    return (
        select(deliveries, objects.c.output, jobs.c.study_instance_uid, studies.c.patient_id)
        .add_columns(studies.c.accession_number)
        .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
    )


def _jobs() -> Select[Any]:
    columns = [c for c in jobs.c if c.name != "findings"]
    return (
        select(*columns, series.c.description, studies.c.patient_id, studies.c.accession_number)
        .add_columns(studies.c.order_priority, studies.c.order_source)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
    )
