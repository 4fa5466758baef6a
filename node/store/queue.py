"""Every query about the line of waiting jobs: whose doorbell is rung, and which job a worker gets.

A worker that heard the doorbell gets the job whose turn it is by the database, whichever the message names:
a priority that came after the message still moves its study up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, select, update

from node.domain.lifecycle import JobState
from node.domain.orders import OrderPriority, Rules, Turn, Waiting, next_turn
from node.store import pauses
from node.store.engine import reading, writing
from node.store.held import is_held
from node.store.jobs import Job, Jobs
from node.store.tables import jobs

RACES = 20
"""Attempts at a job that others take at the same moment."""
HEAD = 100
"""So many of a line are rung for; who comes later is, once these are taken."""
ORDERED = (*OrderPriority, "")
"""What a job may be ordered as; empty: nobody said."""


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
        aged_before = now - line.rules.age_s
        reachable = [] if line.disk is None else [~is_held(jobs.c.series_instance_uid, line.disk)]
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.QUEUE):
                return None
            rows = [row for one in ORDERED for row in connection.execute(_head(one, 1, *reachable))]
            rows += connection.execute(_WAITING.where(jobs.c.id == rung, *reachable)).all()
        stats = [row for row in rows if row.ordered in line.rules.stat]
        others = [row for row in rows if row.ordered not in line.rules.stat]
        if line.stat_only:
            others = [row for row in others if row.created_at < aged_before]
        stat, other = _longest(stats), _longest(others)
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

        None of a paused queue. Of those that were not tried yet, the first HEAD of each ordered priority: any
        doorbell lets a worker take whose turn it is, so that more of them would only fill the broker.
        """
        tried = _WAITING.where(jobs.c.attempts > 0)  # in no order, so that the index finds them
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.QUEUE):
                return []
            rows = [row for one in ORDERED for row in connection.execute(_head(one, HEAD))]
            rows += connection.execute(tried).all()

        def is_urgent(row: Row) -> bool:
            return row.ordered in rules.stat or row.created_at < now - rules.age_s

        def is_due(row: Row) -> bool:
            unheard = row.rung_at is None or row.rung_at < rung_before
            return unheard or (is_urgent(row) and not row.rung_stat)

        due = sorted(filter(is_due, rows), key=lambda row: (not is_urgent(row), row.created_at))
        return [Ring(row.id, is_urgent(row)) for row in due[:limit]]

    def depths(self, now: float, rules: Rules) -> dict[Turn, Depth]:
        """What waits: ordered STAT, waiting so long that it counts as such, and the rest."""
        is_stat, aged = jobs.c.ordered.in_(rules.stat), jobs.c.created_at < now - rules.age_s
        turn = case((is_stat, Turn.STAT.value), (aged, Turn.AGED.value), else_=Turn.ROUTINE.value)
        query = (
            select(turn.label("turn"), func.count(), func.min(jobs.c.created_at))
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


_WAITING = select(jobs.c.id, jobs.c.created_at, jobs.c.ordered, jobs.c.rung_at, jobs.c.rung_stat).where(
    jobs.c.state == JobState.QUEUED
)


def _head(ordered: str, most: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Those not tried yet that wait longest, of one ordered priority; an index has them in order."""
    mine = _WAITING.where(jobs.c.attempts == 0, jobs.c.ordered == ordered, *conditions)
    return mine.order_by(jobs.c.created_at, jobs.c.id).limit(most)


def _longest(rows: Sequence[Row]) -> Waiting | None:
    """The one that waits longest."""
    found = min(rows, key=lambda row: (row.created_at, row.id), default=None)
    return Waiting(found.id, found.created_at) if found else None
