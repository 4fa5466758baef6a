"""Every query about what is kept: which studies may go, what is recorded of which file, and wrong times.

Removing goes in two transactions, with the files between them: the first takes the rows of the instances
away and writes down which files follow, the second says that they are gone. Decides nothing by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from node.domain.instance import Instance
from node.domain.lifecycle import AlertState, DeliveryState, GapState, JobState, SeriesState, ShadowState
from node.store import quality
from node.store.engine import reading, writing
from node.store.held import is_held
from node.store.jobs import SOURCE
from node.store.priors import a_header
from node.store.subscriptions import is_locked
from node.store.tables import (
    alerts,
    associations,
    audit_queue,
    canaries,
    commitments,
    comparisons,
    deliveries,
    gaps,
    heartbeats,
    incidents,
    instances,
    jobs,
    objects,
    removals,
    scans,
    series,
    shadows,
    studies,
    ups_events,
    ups_subscriptions,
    workitems,
)

UNDECIDED = (SeriesState.RECEIVING, SeriesState.COMPLETE)
AT_WORK = (JobState.QUEUED, JobState.RUNNING, JobState.ANALYSED)
REPORTED = (JobState.COMPOSED, JobState.FAILED)
UNDELIVERED = (DeliveryState.PENDING, DeliveryState.FAILED)
BEING_FETCHED = (GapState.WANTED, GapState.FETCHED)
SCANS_KEPT = 100
LONGEST_COMMITMENT_S = 90 * 86400.0
"""An answer to a question that is older still comes to nobody."""
LONGEST_OTHER_WAIT_S = 3600.0
"""No fetch from an archive, no event for a reader, and no audit message is put off for longer."""


@dataclass(frozen=True)
class Removable:
    """A study whose every result was delivered, as it stood when it was looked at."""

    study_instance_uid: str
    last_received_at: float


@dataclass(frozen=True)
class Removal:
    """Files that are to go; no record names them any more."""

    id: int
    study_instance_uid: str
    cause: str
    paths: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class Held:
    """A file that a record names, and the objects it belongs to."""

    path: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


class Keeping:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def removable(self, before: float, committing: Collection[str], limit: int = 50) -> list[Removable]:
        """Studies silent since `before` with nothing undecided, unanalysed or undelivered; oldest first.

        `committing` names the destinations whose SENT is not enough: they must have COMMITTED.
        """
        with reading(self._engine) as connection:
            query = (
                select(studies.c.study_instance_uid, studies.c.last_received_at)
                .where(*_may_go(before, committing))
                .order_by(studies.c.last_received_at)
                .limit(limit)
            )
            return [Removable(*row) for row in connection.execute(query)]

    def begin(
        self, study: Removable, committing: Collection[str], cause: str, beside: Sequence[str], now: float
    ) -> Removal | None:
        """Take the records of the study's files away. None when it changed since it was looked at.

        `beside` are files of the study that no record names.
        """
        uid = study.study_instance_uid
        mine = (studies.c.study_instance_uid == uid, studies.c.last_received_at == study.last_received_at)
        with writing(self._engine) as connection:
            seen = update(studies).where(*mine, *_may_go(study.last_received_at, committing))
            if connection.execute(seen.values(files_removed_at=now)).rowcount != 1:
                return None
            held = _files_of(connection, uid)
            paths = list(dict.fromkeys([*(path for path, _ in held), *beside]))
            size = sum(size for _, size in held)
            of_study = select(series.c.series_instance_uid).where(series.c.study_instance_uid == uid)
            _keep_headers(connection, uid)
            connection.execute(delete(instances).where(instances.c.series_instance_uid.in_(of_study)))
            connection.execute(
                update(series).where(series.c.study_instance_uid == uid).values(instance_count=0)
            )
            connection.execute(update(jobs).where(jobs.c.study_instance_uid == uid).values(maps_path=None))
            row = {"study_instance_uid": uid, "cause": cause, "files": len(paths), "size_bytes": size}
            made = connection.execute(insert(removals).values(**row, begun_at=now, paths=paths))
            (removal_id,) = made.inserted_primary_key or (0,)
            return Removal(removal_id, uid, cause, tuple(paths), size)

    def unfinished(self) -> list[Removal]:
        """Removals that were begun and may have files left."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(removals).where(removals.c.finished_at.is_(None)))
            return [
                Removal(r.id, r.study_instance_uid, r.cause, tuple(r.paths or ()), r.size_bytes) for r in rows
            ]

    def leaving(self) -> set[str]:
        """Files that are about to be deleted, if they are not by now."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(removals.c.paths).where(removals.c.finished_at.is_(None)))
            return {path for paths in rows.scalars() for path in paths or ()}

    def finish(self, removal: Removal, now: float) -> None:
        """Every file of it is gone. Of the node's own phantoms not even this is kept."""
        with writing(self._engine) as connection:
            if removal.cause == "canary":
                connection.execute(delete(removals).where(removals.c.id == removal.id))
                return
            mine = update(removals).where(removals.c.id == removal.id)
            connection.execute(mine.values(finished_at=now, paths=None))

    def was_removed(self, study_uid: str, since: float) -> bool:
        """Whether the files of a study were taken away after then."""
        mine = (removals.c.study_instance_uid == study_uid, removals.c.begun_at > since)
        with reading(self._engine) as connection:
            return connection.execute(select(removals.c.id).where(*mine).limit(1)).first() is not None

    def removed(self, limit: int = 100) -> list[dict[str, Any]]:
        """What retention took away, newest first."""
        columns = [c for c in removals.c if c.name != "paths"]
        with reading(self._engine) as connection:
            query = select(*columns).order_by(removals.c.begun_at.desc()).limit(limit)
            return [dict(row._mapping) for row in connection.execute(query)]

    def forget(self, before: float) -> int:
        """Delete the records of studies whose files are gone and that came before then. Returns how many.

        Those with a workitem that a subscriber locked stay.
        """
        waiting = exists().where(
            alerts.c.study_instance_uid == studies.c.study_instance_uid,
            alerts.c.state == AlertState.PENDING,
        )
        mine = workitems.c.study_instance_uid == studies.c.study_instance_uid
        locked = exists().where(mine, is_locked(workitems.c.sop_instance_uid))
        gone = and_(
            studies.c.files_removed_at.is_not(None), studies.c.last_received_at < before, ~waiting, ~locked
        )
        with writing(self._engine) as connection:
            uids = (
                connection.execute(select(studies.c.study_instance_uid).where(gone).limit(500))
                .scalars()
                .all()
            )
            _forget(connection, uids)
            return len(uids)

    def begin_canary(self, study_uid: str, now: float) -> Removal:
        """Take every record of one of the node's own phantoms away; its files follow."""
        with writing(self._engine) as connection:
            held = _files_of(connection, study_uid)
            paths, size = [path for path, _ in held], sum(size for _, size in held)
            of_study = select(series.c.series_instance_uid).where(series.c.study_instance_uid == study_uid)
            connection.execute(delete(instances).where(instances.c.series_instance_uid.in_(of_study)))
            _forget(connection, [study_uid])
            row = {"study_instance_uid": study_uid, "cause": "canary", "files": len(paths)}
            made = connection.execute(
                insert(removals).values(**row, size_bytes=size, begun_at=now, paths=paths)
            )
            (removal_id,) = made.inserted_primary_key or (0,)
            return Removal(removal_id, study_uid, "canary", tuple(paths), size)

    def sweep(self, before: float) -> None:
        """Forget associations, processes and questions about commitment that ended before then and that
        nothing refers to.
        """
        long_before = before - LONGEST_COMMITMENT_S
        with writing(self._engine) as connection:
            used = exists().where(instances.c.association_id == associations.c.id)
            connection.execute(delete(associations).where(associations.c.closed_at < before, ~used))
            connection.execute(delete(heartbeats).where(heartbeats.c.seen_at < before))
            answered = commitments.c.answered_at < before
            connection.execute(delete(commitments).where(or_(answered, commitments.c.asked_at < long_before)))
            newest = select(func.max(scans.c.id)).scalar_subquery()
            connection.execute(delete(scans).where(scans.c.id <= newest - SCANS_KEPT))

    def paths_of(self, sop_uids: Collection[str]) -> dict[str, str]:
        """The recorded path of each of these instances that is recorded."""
        with reading(self._engine) as connection:
            query = select(instances.c.sop_instance_uid, instances.c.path)
            rows = connection.execute(query.where(instances.c.sop_instance_uid.in_(sop_uids)))
            return {row.sop_instance_uid: row.path for row in rows}

    def repoint(self, sop_uid: str, lost: str, found: str, held_by: str | None = None) -> None:
        """The file of an instance is gone, and the same bytes lie elsewhere, on that disk."""
        mine = (instances.c.sop_instance_uid == sop_uid, instances.c.path == lost)
        with writing(self._engine) as connection:
            connection.execute(update(instances).where(*mine).values(path=found, held_by=held_by))

    def all_paths(self) -> set[str]:
        """Every file that a record names: images, results of jobs, objects."""
        with reading(self._engine) as connection:
            rows = (
                select(instances.c.path),
                select(objects.c.path).join(jobs, jobs.c.id == objects.c.job_id).where(_files_are_there()),
                select(jobs.c.maps_path).where(jobs.c.maps_path.is_not(None)),
            )
            return {path for query in rows for path in connection.execute(query).scalars()}

    def received_files(self, after: str = "", limit: int = 1000) -> list[Held]:
        """Files of instances that every machine finds, in the order of their UIDs, after `after`."""
        with reading(self._engine) as connection:
            query = (
                select(
                    instances.c.path,
                    instances.c.sop_instance_uid,
                    series.c.series_instance_uid,
                    series.c.study_instance_uid,
                )
                .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
                .where(instances.c.sop_instance_uid > after, instances.c.held_by.is_(None))
                .order_by(instances.c.sop_instance_uid)
                .limit(limit)
            )
            return [Held(*row) for row in connection.execute(query)]

    def unsent_files(self) -> list[Held]:
        """Files of objects of our own that are still to be sent."""
        with reading(self._engine) as connection:
            query = (
                select(
                    objects.c.path,
                    objects.c.sop_instance_uid,
                    objects.c.series_instance_uid,
                    jobs.c.study_instance_uid,
                )
                .join(jobs, jobs.c.id == objects.c.job_id)
                .join(deliveries, deliveries.c.sop_instance_uid == objects.c.sop_instance_uid)
                .where(deliveries.c.state == DeliveryState.PENDING, objects.c.output != SOURCE)
                .distinct()
            )
            return [Held(*row) for row in connection.execute(query)]

    def job_files(self, job_id: int) -> tuple[JobState | None, set[str]]:
        """The state of a job, and the files its records name; None for a job that is not there."""
        with reading(self._engine) as connection:
            row = connection.execute(
                select(jobs.c.state, jobs.c.maps_path).where(jobs.c.id == job_id)
            ).first()
            made = connection.execute(select(objects.c.path).where(objects.c.job_id == job_id)).scalars()
            paths = {*made, *([row.maps_path] if row and row.maps_path else [])}
            return (JobState(row.state) if row else None), paths

    def scanned(self, process: str, begun_at: float, finished_at: float, counts: dict[str, Any]) -> None:
        with writing(self._engine) as connection:
            row = {"process": process, "begun_at": begun_at, "finished_at": finished_at, "counts": counts}
            connection.execute(insert(scans).values(**row))

    def last_scan(self) -> dict[str, Any] | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(scans).order_by(scans.c.id.desc()).limit(1)).first()
            return dict(row._mapping) if row else None

    def scan_times(self) -> list[float]:
        """When each of the last scans began."""
        with reading(self._engine) as connection:
            return list(connection.execute(select(scans.c.begun_at)).scalars())

    def undo_the_future(self, now: float, longest_wait_s: float, longest_lease_s: float) -> int:
        """A clock that was set back must not make anything wait until it has caught up. Returns the rows."""
        soon = now + 5
        pending = deliveries.c.state == DeliveryState.PENDING
        untold = alerts.c.state == AlertState.PENDING
        receiving = series.c.state == SeriesState.RECEIVING
        unread = shadows.c.state == ShadowState.WAITING
        uncommitted = deliveries.c.state == DeliveryState.SENT
        wanted = gaps.c.state == GapState.WANTED
        wrong: tuple[tuple[Any, tuple[ColumnElement[bool], ...], dict[str, Any]], ...] = (
            (studies, (studies.c.last_received_at > soon,), {"last_received_at": now}),
            (series, (receiving, series.c.last_received_at > soon), {"last_received_at": now}),
            (jobs, (jobs.c.state == JobState.QUEUED, jobs.c.rung_at > soon), {"rung_at": None}),
            (jobs, (jobs.c.state == JobState.QUEUED, jobs.c.created_at > soon), {"created_at": now}),
            (heartbeats, (heartbeats.c.seen_at > soon,), {"seen_at": now}),
            (shadows, (unread, shadows.c.rung_at > soon), {"rung_at": None}),
            (deliveries, (pending, deliveries.c.next_try_at > soon + longest_wait_s), {"next_try_at": now}),
            (deliveries, (pending, deliveries.c.lease_until > soon + longest_lease_s), {"lease_until": None}),
            (
                deliveries,
                (uncommitted, deliveries.c.next_try_at > soon + longest_wait_s),
                {"next_try_at": now},
            ),
            (
                deliveries,
                (uncommitted, deliveries.c.lease_until > soon + longest_lease_s),
                {"lease_until": None},
            ),
            (deliveries, (uncommitted, deliveries.c.sent_at > soon), {"sent_at": now}),
            (gaps, (wanted, gaps.c.next_try_at > soon + LONGEST_OTHER_WAIT_S), {"next_try_at": now}),
            (audit_queue, (audit_queue.c.next_try_at > soon + LONGEST_OTHER_WAIT_S,), {"next_try_at": now}),
            (ups_events, (ups_events.c.next_try_at > soon + LONGEST_OTHER_WAIT_S,), {"next_try_at": now}),
            (comparisons, (comparisons.c.slot.is_not(None), comparisons.c.asked_at > soon), {"slot": None}),
            (canaries, (canaries.c.slot.is_not(None), canaries.c.begun_at > soon), {"slot": None}),
            (alerts, (untold, alerts.c.next_try_at > soon + longest_wait_s), {"next_try_at": now}),
            (alerts, (untold, alerts.c.lease_until > soon + longest_lease_s), {"lease_until": None}),
        )
        with reading(self._engine) as connection:
            found = [
                part for part in wrong if connection.execute(select(part[0]).where(*part[1]).limit(1)).first()
            ]
        if not found:
            return 0
        with writing(self._engine) as connection:
            return sum(connection.execute(update(t).where(*w).values(**v)).rowcount for t, w, v in found)


def _keep_headers(connection: Connection, study_uid: str) -> None:
    """Of each analysed series one header: who was examined, and when, if the patient comes again."""
    analysed = select(jobs.c.series_instance_uid).where(
        jobs.c.study_instance_uid == study_uid, jobs.c.findings.is_not(None)
    )
    for uid in connection.execute(analysed.distinct()).scalars().all():
        header = connection.execute(a_header(uid)).scalar()
        if header:
            kept = replace(Instance.from_json(header), per_frame=()).to_json()
            mine = update(series).where(series.c.series_instance_uid == uid)
            connection.execute(mine.values(kept_header=kept))


def _forget(connection: Connection, uids: Sequence[str]) -> None:
    """Every record of studies whose instances have none any more, but what was counted."""
    quality.forget(connection, uids)
    of_studies = select(jobs.c.id).where(jobs.c.study_instance_uid.in_(uids))
    offered = select(workitems.c.sop_instance_uid).where(workitems.c.study_instance_uid.in_(uids))
    for table, key in (
        (ups_subscriptions, ups_subscriptions.c.sop_instance_uid.in_(offered)),
        (alerts, alerts.c.study_instance_uid.in_(uids)),
        (deliveries, deliveries.c.job_id.in_(of_studies)),
        (objects, objects.c.job_id.in_(of_studies)),
        (jobs, jobs.c.study_instance_uid.in_(uids)),
        (series, series.c.study_instance_uid.in_(uids)),
        (gaps, and_(gaps.c.study_instance_uid.in_(uids), gaps.c.state.not_in(BEING_FETCHED))),
        (incidents, incidents.c.study_instance_uid.in_(uids)),
        (studies, studies.c.study_instance_uid.in_(uids)),
    ):
        connection.execute(delete(table).where(key))


def _may_go(before: float, committing: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    """What must hold of a row of `studies` for its files to be removed."""
    mine = series.c.study_instance_uid == studies.c.study_instance_uid
    job = jobs.c.study_instance_uid == studies.c.study_instance_uid
    sent = and_(job, deliveries.c.job_id == jobs.c.id)
    unreported = and_(jobs.c.state == JobState.FAILED, jobs.c.reported_at.is_(None))
    uncommitted = and_(deliveries.c.state == DeliveryState.SENT, deliveries.c.destination.in_(committing))
    nowhere = and_(
        jobs.c.state.in_(REPORTED),
        jobs.c.routing.is_(None),  # by a rule nobody may get it; without rules a destination is missing
        ~exists().where(deliveries.c.job_id == jobs.c.id).correlate(jobs),
    )
    return (
        studies.c.files_removed_at.is_(None),
        studies.c.canary == 0,
        studies.c.last_received_at <= before,
        exists().where(mine),
        ~exists().where(mine, series.c.state.in_(UNDECIDED)),
        ~exists().where(mine, is_held(series.c.series_instance_uid)),
        ~exists().where(job, or_(jobs.c.state.in_(AT_WORK), unreported, nowhere)),
        ~exists().where(sent, or_(deliveries.c.state.in_(UNDELIVERED), uncommitted)),
        or_(exists().where(job), ~exists().where(mine, series.c.modality == "CT")),
    )


def _files_are_there() -> ColumnElement[bool]:
    """Of a job: retention did not take away what belongs to its study."""
    gone = exists().where(
        studies.c.study_instance_uid == jobs.c.study_instance_uid, studies.c.files_removed_at.is_not(None)
    )
    return ~gone.correlate(jobs)


def _files_of(connection: Connection, study_uid: str) -> list[tuple[str, int]]:
    """(path, bytes) of every file that a record of the study names."""
    received = (
        select(instances.c.path, instances.c.size_bytes)
        .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
        .where(series.c.study_instance_uid == study_uid)
    )
    made = (
        select(objects.c.path, objects.c.size_bytes)
        .join(jobs, jobs.c.id == objects.c.job_id)
        .where(jobs.c.study_instance_uid == study_uid, objects.c.output != SOURCE)
    )
    maps = select(jobs.c.maps_path).where(
        jobs.c.study_instance_uid == study_uid, jobs.c.maps_path.is_not(None)
    )
    files = [
        (row.path, int(row.size_bytes)) for query in (received, made) for row in connection.execute(query)
    ]
    return [*files, *((path, 0) for path in connection.execute(maps).scalars())]
