"""Every query that lists things for people: studies, jobs, deliveries, processes. Changes only heartbeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, Row, Select, case, delete, func, select, update

from node.domain.findings import Priority
from node.domain.lifecycle import DeliveryState, JobState, SeriesState
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import deliveries, heartbeats, instances, jobs, objects, series, studies

ALIVE_S = 15
"""A process that has not been seen for this long counts as gone."""
BROKE = "broke"
"""Key of a heartbeat's detail: its process ended by an error, and is not alive any more."""


class Views:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def studies(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest studies with their series and the status derived from them, newest first."""
        with reading(self._engine) as connection:
            newest = (
                select(studies)
                .where(studies.c.canary == 0)
                .order_by(studies.c.last_received_at.desc())
                .limit(limit)
            )
            found = [dict(row._mapping) for row in connection.execute(newest)]
            mine = newest.subquery()
            uids = select(mine.c.study_instance_uid)  # and no list of them: a statement binds only so many
            by_study = _grouped(
                connection.execute(
                    select(series)
                    .where(series.c.study_instance_uid.in_(uids))
                    .order_by(series.c.series_number, series.c.first_received_at)
                )
            )
            columns = (
                jobs.c.id,
                jobs.c.study_instance_uid,
                jobs.c.series_instance_uid,
                jobs.c.revision,
                jobs.c.state,
                jobs.c.priority,
                jobs.c.reason_code,
                jobs.c.reason_text,
                jobs.c.findings,
            )
            job_rows = _grouped(
                connection.execute(
                    select(*columns).where(jobs.c.study_instance_uid.in_(uids)).order_by(jobs.c.id)
                )
            )
            undelivered = connection.execute(
                select(jobs.c.study_instance_uid, deliveries.c.state, func.count(deliveries.c.id))
                .join(deliveries, deliveries.c.job_id == jobs.c.id)
                .where(
                    jobs.c.study_instance_uid.in_(uids),
                    deliveries.c.state.in_((DeliveryState.PENDING, DeliveryState.FAILED)),
                )
                .group_by(jobs.c.study_instance_uid, deliveries.c.state)
            )
            waiting = {(uid, state): count for uid, state, count in undelivered}
        for study in found:
            uid = study["study_instance_uid"]
            study["series"] = by_study.get(uid, [])
            study["job"] = current_job(job_rows.get(uid, []))
            pending = waiting.get((uid, DeliveryState.PENDING), 0)
            given_up = waiting.get((uid, DeliveryState.FAILED), 0)
            study["undelivered"], study["given_up"] = pending + given_up, given_up
            study["status"] = study_status(study["series"], study["job"], pending, given_up)
        return found

    def jobs(self, limit: int = 100) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            query = _jobs().order_by(jobs.c.id.desc()).limit(limit)
            return [dict(row._mapping) for row in connection.execute(query)]

    def queue(self, limit: int = 100) -> list[dict[str, Any]]:
        """Jobs that are still to be done: those in work first, then the waiting ones, oldest first."""
        order = {JobState.RUNNING: 0, JobState.ANALYSED: 1, JobState.QUEUED: 2}
        with reading(self._engine) as connection:
            query = (
                _jobs()
                .where(jobs.c.state.in_(list(order)))
                .order_by(case(order, value=jobs.c.state), jobs.c.created_at)
                .limit(limit)
            )
            return [dict(row._mapping) for row in connection.execute(query)]

    def alarms(self, since: float, limit: int = 50) -> list[dict[str, Any]]:
        """Studies received since then whose newest word is STAT, newest first.

        Each with the job that said so, and how many of its results are undelivered. A later revision
        takes an alarm back only once it has a word of its own.
        """
        spoken = jobs.alias("spoken")
        newest_word = (
            select(func.max(spoken.c.id))
            .where(
                spoken.c.study_instance_uid == jobs.c.study_instance_uid,
                spoken.c.priority.is_not(None),
                spoken.c.state != JobState.CANCELLED,
            )
            .scalar_subquery()
        )
        undelivered = (
            select(func.count(deliveries.c.id))
            .where(
                deliveries.c.job_id == jobs.c.id,
                deliveries.c.urgent == 1,
                deliveries.c.state.in_((DeliveryState.PENDING, DeliveryState.FAILED)),
            )
            .scalar_subquery()
            .label("undelivered")
        )
        columns = (jobs.c.state, jobs.c.priority, jobs.c.reason_text, jobs.c.findings, undelivered)
        with reading(self._engine) as connection:
            query = (
                select(studies, jobs.c.id.label("job_id"), *columns)
                .join(jobs, jobs.c.study_instance_uid == studies.c.study_instance_uid)
                .where(
                    jobs.c.id == newest_word,
                    jobs.c.priority == Priority.STAT,
                    jobs.c.canary == 0,
                    studies.c.last_received_at >= since,
                )
                .order_by(studies.c.last_received_at.desc())
                .limit(limit)
            )
            return [dict(row._mapping) for row in connection.execute(query)]

    def undelivered(self, limit: int = 200) -> list[dict[str, Any]]:
        """Deliveries waiting or given up, positive results first, and the oldest of each first."""
        of_patient = (studies.c.patient_id, studies.c.accession_number)
        with reading(self._engine) as connection:
            query = (
                _deliveries()
                .add_columns(*of_patient)
                .join(jobs, jobs.c.id == deliveries.c.job_id)
                .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
                .where(deliveries.c.state.in_((DeliveryState.PENDING, DeliveryState.FAILED)))
                .order_by(deliveries.c.urgent.desc(), deliveries.c.created_at, deliveries.c.id)
                .limit(limit)
            )
            return [dict(row._mapping) for row in connection.execute(query)]

    def deliveries(self, limit: int = 200) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            query = _deliveries().order_by(deliveries.c.id.desc()).limit(limit)
            return [dict(row._mapping) for row in connection.execute(query)]

    def deliveries_of(self, job_id: int) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            query = _deliveries().where(deliveries.c.job_id == job_id).order_by(deliveries.c.rank)
            return [dict(row._mapping) for row in connection.execute(query)]

    def job_times(self, job_id: int) -> dict[str, float | None]:
        """When the job's last instance came, when it was analysed, when its first object was sent."""
        with reading(self._engine) as connection:
            row = connection.execute(
                select(
                    func.max(instances.c.received_at).label("received_at"),
                    func.max(jobs.c.created_at).label("created_at"),
                    func.max(jobs.c.analysed_at).label("analysed_at"),
                )
                .select_from(jobs)
                .join(instances, instances.c.series_instance_uid == jobs.c.series_instance_uid)
                .where(jobs.c.id == job_id)
            ).one()
            sent = select(func.min(deliveries.c.sent_at)).where(deliveries.c.job_id == job_id)
            return {**row._mapping, "first_sent_at": connection.execute(sent).scalar()}

    def counts(self) -> dict[str, dict[str, int]]:
        """How many series, jobs and deliveries stand in each state."""
        with reading(self._engine) as connection:

            def by_state(column: Any) -> dict[str, int]:
                return dict(connection.execute(select(column, func.count()).group_by(column)).all())

            return {
                "series": by_state(series.c.state),
                "jobs": by_state(jobs.c.state),
                "deliveries": by_state(deliveries.c.state),
            }

    def beat(self, process: str, role: str, detail: Mapping[str, Any], now: float) -> None:
        """This process is alive."""
        with writing(self._engine) as connection:
            seen = update(heartbeats).where(heartbeats.c.process == process)
            if not connection.execute(seen.values(seen_at=now, detail=dict(detail))).rowcount:
                row = {"process": process, "role": role, "started_at": now, "seen_at": now}
                insert_if_absent(connection, heartbeats, row | {"detail": dict(detail)})

    def part(self, process: str) -> None:
        """This process ends in good order."""
        with writing(self._engine) as connection:
            connection.execute(delete(heartbeats).where(heartbeats.c.process == process))

    def processes(self, now: float) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(heartbeats).order_by(heartbeats.c.role, heartbeats.c.process))
            return [{**row._mapping, "alive": _is_alive(row, now)} for row in rows]


def _is_alive(row: Row[Any], now: float) -> bool:
    return now - row.seen_at < ALIVE_S and BROKE not in row.detail


def _jobs() -> Select[Any]:
    return (
        select(jobs, series.c.description, studies.c.patient_id, studies.c.accession_number)
        .add_columns(studies.c.order_priority, studies.c.order_source)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
    )


def _deliveries() -> Select[Any]:
    return select(
        deliveries, objects.c.output, objects.c.sop_class_uid, objects.c.path, objects.c.series_instance_uid
    ).join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)


def _grouped(rows: Any) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.study_instance_uid, []).append(dict(row._mapping))
    return groups


def current_job(of_study: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The job that speaks for the study: the newest one that still counts."""
    counting = [j for j in of_study if j["state"] not in (JobState.SUPERSEDED, JobState.CANCELLED)]
    return (counting or of_study)[-1] if of_study else None


def study_status(
    of_study: Sequence[dict[str, Any]], job: dict[str, Any] | None, pending: int, given_up: int
) -> str:
    """One word for where the study stands; derived, never stored. The numbers are of its deliveries."""
    if any(s["state"] == SeriesState.RECEIVING for s in of_study):
        return "RECEIVING"
    if job is None:
        undecided = any(s["state"] == SeriesState.COMPLETE for s in of_study)
        return "DECIDING" if undecided else "NOTHING TO ANALYSE"
    if job["state"] == JobState.COMPOSED:
        return "DELIVERING" if pending else "UNDELIVERED" if given_up else "DONE"
    if job["state"] == JobState.FAILED:
        return "NOT ANALYSED"
    return str(job["state"])
