"""Every query about work on series before they are complete: which worker is at it. Decides nothing.

Who is named here has no right to anything. It spares double work, and tells whom to ask first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, or_, select, update

from node.domain.lifecycle import JobState, SeriesState
from node.store.engine import reading, writing
from node.store.tables import heartbeats, instances, jobs, series
from node.store.views import ALIVE_S


@dataclass(frozen=True)
class Arrived:
    """What is there of a series, and its state; None: it is not recorded."""

    state: SeriesState | None
    paths: tuple[str, ...]
    """Spool paths of its instances, in order of arrival."""


class Early:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, series_uid: str, worker: str) -> bool:
        """The worker reads along with a series that arrives. False where another one does, or did."""
        mine = (series.c.series_instance_uid == series_uid, series.c.early_by.is_(None))
        with writing(self._engine) as connection:
            claimed = update(series).where(*mine).values(early_by=worker)
            return connection.execute(claimed).rowcount == 1

    def take_over(self, series_uid: str, worker: str) -> None:
        """The worker begins with the series, whoever was at it before."""
        with writing(self._engine) as connection:
            mine = update(series).where(series.c.series_instance_uid == series_uid)
            connection.execute(mine.values(early_by=worker))

    def give_back(self, series_uids: Sequence[str], worker: str) -> None:
        """The worker has other things to do."""
        mine = (series.c.series_instance_uid.in_(series_uids), series.c.early_by == worker)
        with writing(self._engine) as connection:
            connection.execute(update(series).where(*mine).values(early_by=None))

    def who_has(self, job_id: int) -> str | None:
        """The worker that is at the series of a job that waits, or was when it died.

        None where nobody is, the job waits no longer, or others wait, too.
        """
        query = select(jobs.c.id, series.c.early_by).join(
            series, series.c.series_instance_uid == jobs.c.series_instance_uid
        )
        with reading(self._engine) as connection:
            waiting = connection.execute(query.where(jobs.c.state == JobState.QUEUED).limit(2)).all()
        return waiting[0].early_by if len(waiting) == 1 and waiting[0].id == job_id else None

    def begun(self, job_ids: Sequence[int]) -> dict[int, str]:
        """The worker that is at the series of each job; no entry where none is."""
        if not job_ids:
            return {}
        query = select(jobs.c.id, series.c.early_by).join(
            series, series.c.series_instance_uid == jobs.c.series_instance_uid
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query.where(jobs.c.id.in_(job_ids), series.c.early_by.is_not(None)))
            return {row.id: row.early_by for row in rows}

    def is_alive(self, worker: str, now: float) -> bool:
        """Whether it was heard of lately."""
        mine = (heartbeats.c.process == f"worker@{worker}", heartbeats.c.seen_at > now - ALIVE_S)
        with reading(self._engine) as connection:
            return connection.execute(select(heartbeats.c.process).where(*mine)).first() is not None

    def arrived(self, series_uid: str, disk: str | None) -> Arrived:
        """What is there of a series, on this disk or where every machine finds it."""
        query = select(instances.c.path).where(
            instances.c.series_instance_uid == series_uid,
            or_(instances.c.held_by.is_(None), instances.c.held_by == disk),
        )
        with reading(self._engine) as connection:
            state = connection.execute(
                select(series.c.state).where(series.c.series_instance_uid == series_uid)
            ).scalar()
            paths = connection.execute(query.order_by(instances.c.received_at)).scalars()
            return Arrived(SeriesState(state) if state else None, tuple(paths))
