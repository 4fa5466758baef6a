"""Every query of the queue of audit messages: what happened and was not yet told to the repository.

An event is queued in the transaction of what it tells of, and leaves the queue once it was sent; so a
repository that is down for a week hears of it all the same, and perhaps of the last ones twice. Without a
repository in the settings nothing is queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, or_, select, update

from node.store.engine import reading, writing
from node.store.tables import audit_queue, studies

GATHER_S = 30.0
"""Objects of one study that go to one destination within this time are told in one message."""
SENT = "sent"
AUDITED = "audited"
"""Execution option of an engine: a repository wants to hear of what happens."""


@dataclass(frozen=True)
class Event:
    """What happened. `who` and `address`: a user, a peer, a process, or the name of a destination."""

    action: str
    at: float
    who: str
    address: str = ""
    study_instance_uid: str | None = None
    detail: str = ""
    objects: Mapping[str, int] = field(default_factory=dict)
    """How many instances of each SOP class."""


@dataclass(frozen=True)
class Queued:
    """An event that waits, and whom it concerns as far as the records know."""

    id: int
    event: Event
    patient_id: str
    patient_name: str
    accession_number: str


def is_wanted(connection: Connection) -> bool:
    """Whether there is a repository to tell."""
    return bool(connection.get_execution_options().get(AUDITED))


def enqueue(connection: Connection, event: Event) -> None:
    """In the transaction of what it tells of."""
    if is_wanted(connection):
        connection.execute(insert(audit_queue).values(**_values(event), next_try_at=event.at))


def enqueue_sent(connection: Connection, event: Event) -> None:
    """As `enqueue`, but joins what the same destination got of the same study just before."""
    if not is_wanted(connection):
        return
    gathering = (
        audit_queue.c.action == SENT,
        audit_queue.c.study_instance_uid == event.study_instance_uid,
        audit_queue.c.who == event.who,
        audit_queue.c.next_try_at > event.at,
        audit_queue.c.attempts == 0,
        audit_queue.c.lease_until.is_(None),
    )
    columns = select(audit_queue.c.id, audit_queue.c.objects)
    row = connection.execute(columns.where(*gathering).limit(1).with_for_update()).first()
    if row is None:
        values = {**_values(event), "next_try_at": event.at + GATHER_S}
        connection.execute(insert(audit_queue).values(**values))
        return
    more = dict(row.objects)
    for sop_class, count in event.objects.items():
        more[sop_class] = more.get(sop_class, 0) + count
    connection.execute(update(audit_queue).where(audit_queue.c.id == row.id).values(objects=more))


class AuditQueue:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, event: Event) -> None:
        """On its own, where there is no transaction of what it tells of."""
        if self._engine.get_execution_options().get(AUDITED):
            with writing(self._engine) as connection:
                enqueue(connection, event)

    def take(self, now: float, lease_until: float, limit: int) -> list[Queued]:
        """What is due, oldest first, leased to the caller."""
        due = (
            audit_queue.c.next_try_at <= now,
            or_(audit_queue.c.lease_until.is_(None), audit_queue.c.lease_until < now),
        )
        with reading(self._engine) as connection:
            if connection.execute(select(audit_queue.c.id).where(*due).limit(1)).first() is None:
                return []
        chosen = select(audit_queue.c.id).where(*due).order_by(audit_queue.c.id).limit(limit)
        with writing(self._engine) as connection:
            ids = list(connection.execute(chosen.with_for_update(skip_locked=True)).scalars())
            mine = audit_queue.c.id.in_(ids)
            connection.execute(update(audit_queue).where(mine).values(lease_until=lease_until))
            query = (
                select(audit_queue, studies.c.patient_id, studies.c.patient_name, studies.c.accession_number)
                .outerjoin(studies, studies.c.study_instance_uid == audit_queue.c.study_instance_uid)
                .where(mine)
                .order_by(audit_queue.c.id)
            )
            return [_queued(row) for row in connection.execute(query)]

    def sent(self, ids: Sequence[int]) -> None:
        with writing(self._engine) as connection:
            connection.execute(delete(audit_queue).where(audit_queue.c.id.in_(ids)))

    def failed(self, ids: Sequence[int], error: str, next_try_at: float) -> None:
        with writing(self._engine) as connection:
            values = {"next_try_at": next_try_at, "lease_until": None, "last_error": error[:500]}
            mine = audit_queue.c.id.in_(ids)
            statement = update(audit_queue).where(mine).values(attempts=audit_queue.c.attempts + 1, **values)
            connection.execute(statement)

    def standing(self) -> dict[str, Any]:
        """`waiting`, the time of the `oldest`, and the `error` of the last try; None where nothing waits."""
        with reading(self._engine) as connection:
            count, oldest = connection.execute(select(func.count(), func.min(audit_queue.c.at))).one()
            tried = select(audit_queue.c.last_error).where(audit_queue.c.last_error.is_not(None))
            error = connection.execute(tried.order_by(audit_queue.c.id).limit(1)).scalar()
            return {"waiting": count, "oldest": oldest, "error": error}

    def waiting(self, limit: int) -> list[dict[str, Any]]:
        """What waits, the oldest first; without names of patients."""
        query = select(audit_queue).order_by(audit_queue.c.id).limit(limit)
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _values(event: Event) -> dict[str, Any]:
    """Cut to what the columns hold: peers choose their own names."""
    return {
        "action": event.action[:32],
        "at": event.at,
        "who": event.who.replace("\0", "")[:64],
        "address": event.address.replace("\0", "")[:64],
        "study_instance_uid": event.study_instance_uid,
        "detail": event.detail.replace("\0", "")[:500],
        "objects": dict(event.objects),
        "attempts": 0,
    }


def _queued(row: Row) -> Queued:
    event = Event(
        row.action, row.at, row.who, row.address, row.study_instance_uid, row.detail, row.objects or {}
    )
    return Queued(row.id, event, row.patient_id or "", row.patient_name or "", row.accession_number or "")
