"""Every query about the line of waiting jobs: whose doorbell is rung, and which job a worker gets.

A worker that heard the doorbell gets the job whose turn it is by the database, whichever the message names:
a priority that came after the message still moves its study up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Engine, and_, case, func, or_, select, update

from node.domain.lifecycle import JobState
from node.domain.orders import Rules, Turn, Waiting, next_turn
from node.store import pauses
from node.store.engine import reading, writing
from node.store.held import is_held
from node.store.jobs import Job, Jobs
from node.store.tables import jobs, studies

RACES = 20
"""Attempts at a job that others take at the same moment."""


@dataclass(frozen=True)
class Ring:
    """A job whose doorbell is to be rung, and whether among the STAT ones."""

    job_id: int
    stat: bool


@dataclass(frozen=True)
class Line:
    """How a worker stands in line: by which rules, what it owes, and whether it takes routine at all."""

    rules: Rules = field(default_factory=Rules)
    owed: bool = False
    """Its last STAT job went before one that had aged (node.domain.orders.next_turn)."""
    stat_only: bool = False
    disk: str | None = None
    """Files that another disk than this alone has are out of the worker's reach; None: none is."""


@dataclass(frozen=True)
class Depth:
    """How many jobs wait for this turn, and since when the oldest does."""

    waiting: int
    oldest: float | None


@dataclass(frozen=True)
class Taken:
    """A job under a lease; `owed` is what the worker's next Line says."""

    job: Job
    turn: Turn
    owed: bool


class Queue:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs = Jobs(engine)

    def take(self, rung: int, owner: str, lease_until: float, now: float, line: Line) -> Taken | None:
        """Claim the job whose turn it is; None when there is none, or the queue is paused.

        A job that was tried before is only taken when its own doorbell `rung`, so that it comes no sooner.
        """
        for _ in range(RACES):
            found = self._whose_turn(rung, now, line)
            if found is None:
                return None
            waiting, turn, owed = found
            job = self._jobs.claim(waiting.job_id, owner, lease_until, now)
            if job is not None:
                return Taken(job, turn, owed)
        return None

    def _whose_turn(self, rung: int, now: float, line: Line) -> tuple[Waiting, Turn, bool] | None:
        is_stat, aged_before = _is_stat(line.rules), now - line.rules.age_s
        head = (
            select(jobs.c.id, jobs.c.created_at)
            .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
            .where(jobs.c.state == JobState.QUEUED, or_(jobs.c.attempts == 0, jobs.c.id == rung))
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(1)
        )
        if line.disk is not None:
            head = head.where(~is_held(jobs.c.series_instance_uid, line.disk))
        others = head.where(~is_stat)
        if line.stat_only:
            others = others.where(jobs.c.created_at < aged_before)
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.QUEUE):
                return None
            rows = [connection.execute(query).first() for query in (head.where(is_stat), others)]
        stat, other = (Waiting(row.id, row.created_at) if row else None for row in rows)
        found = next_turn(stat, other, aged_before, line.owed)
        if found is None:
            return None
        aged_waits = other is not None and other.since < aged_before
        return *found, found[1] is Turn.STAT and aged_waits

    def is_empty(self) -> bool:
        """No job waits for a worker, in a queue that is not paused."""
        waiting = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).limit(1)
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.QUEUE):
                return False
            return connection.execute(waiting).first() is None

    def to_ring(self, rung_before: float, now: float, rules: Rules, limit: int = 200) -> list[Ring]:
        """QUEUED jobs whose doorbell was not rung since then, or not yet as STAT; STAT and the oldest first.

        None of a paused queue.
        """
        urgent = or_(_is_stat(rules), jobs.c.created_at < now - rules.age_s)
        unheard = or_(jobs.c.rung_at.is_(None), jobs.c.rung_at < rung_before)
        moved_up = and_(urgent, func.coalesce(jobs.c.rung_stat, 0) == 0)
        rank = case((urgent, 0), else_=1)
        query = (
            select(jobs.c.id, rank.label("rank"))
            .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
            .where(jobs.c.state == JobState.QUEUED, or_(unheard, moved_up))
            .order_by(rank, jobs.c.created_at)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.QUEUE):
                return []
            return [Ring(row.id, row.rank == 0) for row in connection.execute(query)]

    def depths(self, now: float, rules: Rules) -> dict[Turn, Depth]:
        """What waits: ordered STAT, waiting so long that it counts as such, and the rest."""
        is_stat, aged = _is_stat(rules), jobs.c.created_at < now - rules.age_s
        turn = case((is_stat, Turn.STAT.value), (aged, Turn.AGED.value), else_=Turn.ROUTINE.value)
        query = (
            select(turn.label("turn"), func.count(), func.min(jobs.c.created_at))
            .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
            .where(jobs.c.state == JobState.QUEUED)
            .group_by("turn")
        )
        with reading(self._engine) as connection:
            found = {Turn(row[0]): Depth(row[1], row[2]) for row in connection.execute(query)}
        return {turn: found.get(turn, Depth(0, None)) for turn in Turn}

    def rung(self, ring: Ring, now: float) -> None:
        with writing(self._engine) as connection:
            mine = update(jobs).where(jobs.c.id == ring.job_id)
            connection.execute(mine.values(rung_at=now, rung_stat=int(ring.stat)))


def _is_stat(rules: Rules) -> ColumnElement[bool]:
    """Of a study: ordered so that it goes first. Never NULL, so that its negation holds for the rest."""
    return func.coalesce(studies.c.order_priority, "").in_(rules.stat)
