"""Every query about who leads: one row for each part of the node that only one process may play at a time.

Decides nothing: who may be deposed, and when, is for node.leadership to say.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Engine, select, update

from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import deliveries, leaders

CLOCK, HOUSEKEEPING, COMPOSE, ORDERS = "clock", "housekeeping", "compose", "orders"


def of_destination(name: str) -> str:
    """Whoever sends to this destination."""
    return f"deliver:{name}"


@dataclass(frozen=True)
class Lead:
    """Who leads. `beat` counts its renewals; a holder of "" is nobody."""

    name: str
    holder: str
    term: int
    beat: int
    since: float


class Leaders:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self) -> dict[str, Lead]:
        """By name."""
        columns = (leaders.c.name, leaders.c.holder, leaders.c.term, leaders.c.beat, leaders.c.since)
        with reading(self._engine) as connection:
            return {row.name: Lead(*row) for row in connection.execute(select(*columns))}

    def take(self, name: str, seen: Lead | None, holder: str, now: float) -> Lead | None:
        """Lead from now on, unless somebody else took it, or renewed it, since it was `seen`."""
        new = Lead(name, holder, (seen.term if seen else 0) + 1, 0, now)
        with writing(self._engine) as connection:
            if seen is None:
                return new if insert_if_absent(connection, leaders, vars(new)) else None
            unchanged = (
                leaders.c.name == name,
                leaders.c.holder == seen.holder,
                leaders.c.term == seen.term,
                leaders.c.beat == seen.beat,
            )
            taken = update(leaders).where(*unchanged).values(**vars(new))
            return new if connection.execute(taken).rowcount == 1 else None

    def renew(self, held: Collection[Lead]) -> list[Lead]:
        """Those of them that were not taken by others, each a beat on."""
        kept = []
        with writing(self._engine) as connection:
            for lead in held:
                mine = (
                    leaders.c.name == lead.name,
                    leaders.c.holder == lead.holder,
                    leaders.c.term == lead.term,
                )
                beat = lead.beat + 1
                if connection.execute(update(leaders).where(*mine).values(beat=beat)).rowcount == 1:
                    kept.append(Lead(lead.name, lead.holder, lead.term, beat, lead.since))
        return kept

    def resign(self, held: Collection[Lead]) -> None:
        """Leave them to others at once."""
        with writing(self._engine) as connection:
            for lead in held:
                mine = (leaders.c.name == lead.name, leaders.c.term == lead.term)
                connection.execute(update(leaders).where(*mine).values(holder=""))

    def release_leases(self, destination: str, owner: str) -> int:
        """What a deposed holder had taken to send to this destination is due again. Returns how many."""
        held = (
            deliveries.c.destination == destination,
            deliveries.c.lease_owner == owner,
            deliveries.c.lease_until.is_not(None),
        )
        with writing(self._engine) as connection:
            return connection.execute(update(deliveries).where(*held).values(lease_until=None)).rowcount
