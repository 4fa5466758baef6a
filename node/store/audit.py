"""The trail of what people saw and did. Rows are added and read; nothing here, nor the database, changes one.

It holds user names, UIDs and numbers of jobs and deliveries, and never a patient's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from node.store.audit_queue import Event, enqueue
from node.store.engine import reading, writing
from node.store.tables import audit

LONGEST_DETAIL = 500
REFUSED_PEER = "refused-peer"
"""The listener would not talk to somebody; `who` is the calling AE title, as it was given."""
REFUSED_VISITOR = "refused-visitor"
"""The console would not talk to an address."""


@dataclass(frozen=True)
class Actor:
    """Who acts: a user, the local machine, or the command line; with the role and the address then."""

    name: str
    role: str
    address: str


class Audit:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(
        self, actor: Actor, action: str, now: float, *, study_uid: str | None = None, detail: str = ""
    ) -> None:
        """Raises TransientError when it cannot be written: what leaves no trace must not be done."""
        with writing(self._engine) as connection:
            add_entry(connection, actor, action, now, study_uid=study_uid, detail=detail)

    def entries(
        self, limit: int = 100, before: int | None = None, who: str = "", study_uid: str = ""
    ) -> list[dict[str, Any]]:
        """The newest first, from before entry `before` on; of one user or study where they are given."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.id < before)
        if who:
            query = query.where(audit.c.who == who)
        if study_uid:
            query = query.where(audit.c.study_instance_uid == study_uid)
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def add_entry(
    connection: Connection,
    actor: Actor,
    action: str,
    now: float,
    *,
    study_uid: str | None = None,
    detail: str = "",
) -> None:
    """A line in the transaction of what it tells of."""
    row = {
        "at": now,
        "who": actor.name[:64],
        "role": actor.role,
        "address": actor.address[:64],
        "action": action,
        "study_instance_uid": study_uid,
        "detail": detail.replace("\0", "")[:LONGEST_DETAIL],
    }
    connection.execute(insert(audit).values(**row))
    enqueue(connection, Event(action, now, actor.name, actor.address, study_uid, detail))
