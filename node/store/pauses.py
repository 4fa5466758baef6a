"""Which parts of the node stand still by an admin's wish: queue, destinations, channels. Decides nothing.

The wish is a row, so it outlives a restart; who claims jobs or takes what is due looks at it each time.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, Exists, delete, exists, select, update

from node.domain.lifecycle import JobState
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import jobs, pauses

QUEUE = "queue"


def of_destination(name: str) -> str:
    return f"destination:{name}"


def of_channel(name: str) -> str:
    return f"alert:{name}"


class Pauses:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self) -> dict[str, dict[str, Any]]:
        """{name: {paused_by, paused_at}}"""
        with reading(self._engine) as connection:
            return {row.name: dict(row._mapping) for row in connection.execute(select(pauses))}

    def pause(self, name: str, who: str, now: float) -> bool:
        """False when it is paused already."""
        row = {"name": name, "paused_by": who, "paused_at": now}
        with writing(self._engine) as connection:
            return insert_if_absent(connection, pauses, row)

    def resume(self, name: str) -> bool:
        """False when it was not paused. Jobs whose doorbell rang in vain are rung again at once."""
        with writing(self._engine) as connection:
            if not connection.execute(delete(pauses).where(pauses.c.name == name)).rowcount:
                return False
            if name == QUEUE:
                waiting = update(jobs).where(jobs.c.state == JobState.QUEUED)
                connection.execute(waiting.values(rung_at=None))
            return True


def standing_still(name: str) -> Exists:
    """A condition for a statement: this part is paused."""
    return exists().where(pauses.c.name == name)


def is_paused(connection: Connection, name: str) -> bool:
    return connection.execute(select(pauses.c.name).where(pauses.c.name == name)).first() is not None
