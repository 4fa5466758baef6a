"""Every query about who wants to hear of workitems, and what they are still to be told (PS3.4 CC.2.3, 2.4).

What is to be told is written in the transaction that changes the workitem, and leaves only when it was taken
or nobody took it for a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, text, update

from node.domain.workitems import GLOBAL, Event, StepState
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import ups_events, ups_subscriptions, workitems

Values = dict[str, Any]
_LOCK = 0x757073  # "ups"; any number that nobody else takes
_STATE, _READINESS = "00741000", "00404041"  # Procedure Step State, Input Readiness State


@dataclass(frozen=True)
class Due:
    """One N-EVENT-REPORT; `content` is its Event Information, as DICOM JSON."""

    id: int
    sop_instance_uid: str
    event: Event
    content: Values
    attempts: int
    created_at: float


class Subscriptions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def subscribe(self, ae: str, uid: str, now: float) -> bool:
        """From now on `ae` hears of this workitem, or of all there are and will be. False for a stranger.

        It is told the present state at once, of every workitem it had not subscribed to.
        """
        with writing(self._engine) as connection:
            if uid == GLOBAL:
                _alone(connection)
            rows = connection.execute(_named(uid).with_for_update()).all()
            if not rows and uid != GLOBAL:
                return False
            if uid == GLOBAL:
                insert_if_absent(connection, ups_subscriptions, _row(ae, GLOBAL, now))
            for row in rows:
                new = insert_if_absent(connection, ups_subscriptions, _row(ae, row.sop_instance_uid, now))
                if new or uid != GLOBAL:
                    _tell(connection, (ae,), row.sop_instance_uid, Event.STATE, state_report(row.state), now)
            return True

    def unsubscribe(self, ae: str, uid: str) -> bool:
        """From this workitem; from everything where it is GLOBAL. False for a stranger."""
        with writing(self._engine) as connection:
            if uid != GLOBAL and connection.execute(_named(uid)).first() is None:
                return False
            for table in (ups_subscriptions, ups_events):
                mine = delete(table).where(table.c.receiving_ae == ae)
                one = mine.where(table.c.sop_instance_uid == uid)
                connection.execute(mine if uid == GLOBAL else one)
            return True

    def suspend(self, ae: str) -> None:
        """No subscription to workitems to come; those to workitems that are there stay."""
        with writing(self._engine) as connection:
            mine = (ups_subscriptions.c.receiving_ae == ae, ups_subscriptions.c.sop_instance_uid == GLOBAL)
            connection.execute(delete(ups_subscriptions).where(*mine))

    def due(self, ae: str, now: float, limit: int) -> list[Due]:
        """What `ae` is to be told now, in the order it happened; nothing while the first of it must wait."""
        query = select(ups_events).where(ups_events.c.receiving_ae == ae).order_by(ups_events.c.id)
        with reading(self._engine) as connection:
            rows = connection.execute(query.limit(limit)).all()
        if rows and rows[0].next_try_at > now:
            return []
        return [
            Due(row.id, row.sop_instance_uid, Event(row.event), row.content, row.attempts, row.created_at)
            for row in rows
        ]

    def told(self, event_id: int) -> None:
        """It was taken, or is given up."""
        with writing(self._engine) as connection:
            connection.execute(delete(ups_events).where(ups_events.c.id == event_id))

    def wait(self, event_id: int, next_try_at: float) -> None:
        """It was not taken."""
        values = {"attempts": ups_events.c.attempts + 1, "next_try_at": next_try_at}
        with writing(self._engine) as connection:
            connection.execute(update(ups_events).where(ups_events.c.id == event_id).values(**values))

    def forget(self, known: Sequence[str]) -> None:
        """Of AE titles that the settings no longer name, and of workitems that are gone."""
        gone = ups_subscriptions.c.sop_instance_uid.not_in(select(workitems.c.sop_instance_uid))
        with writing(self._engine) as connection:
            for table in (ups_subscriptions, ups_events):
                connection.execute(delete(table).where(table.c.receiving_ae.not_in(known)))
            orphans = delete(ups_subscriptions).where(gone, ups_subscriptions.c.sop_instance_uid != GLOBAL)
            connection.execute(orphans)


def born(connection: Connection, uid: str, now: float) -> None:
    """A workitem is new: who subscribed to all has subscribed to it, and is told."""
    _alone(connection)
    globally = select(ups_subscriptions.c.receiving_ae).where(ups_subscriptions.c.sop_instance_uid == GLOBAL)
    for ae in connection.execute(globally).scalars().all():
        insert_if_absent(connection, ups_subscriptions, _row(ae, uid, now))
    report(connection, uid, Event.STATE, state_report(StepState.SCHEDULED), now)


def report(connection: Connection, uid: str, event: Event, content: Values, now: float) -> int:
    """To be told to all who subscribed to a workitem; how many there are."""
    mine = select(ups_subscriptions.c.receiving_ae).where(ups_subscriptions.c.sop_instance_uid == uid)
    readers = connection.execute(mine).scalars().all()
    _tell(connection, readers, uid, event, content, now)
    return len(readers)


def state_report(state: str, **more: Values) -> Values:
    """The Event Information of a UPS State Report (PS3.4 Table CC.2.4-1)."""
    return {
        _STATE: {"vr": "CS", "Value": [str(state)]},
        _READINESS: {"vr": "CS", "Value": ["READY"]},
        **more,
    }


def _alone(connection: Connection) -> None:
    """Nobody subscribes to all while a workitem is made, else neither would see the other. SQLite's writers
    are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _named(uid: str) -> Any:
    query = select(workitems.c.sop_instance_uid, workitems.c.state)
    return query if uid == GLOBAL else query.where(workitems.c.sop_instance_uid == uid)


def _row(ae: str, uid: str, now: float) -> Values:
    return {"receiving_ae": ae, "sop_instance_uid": uid, "subscribed_at": now}


def _tell(
    connection: Connection, readers: Sequence[str], uid: str, event: Event, content: Values, now: float
) -> None:
    rows = [
        {
            "receiving_ae": ae,
            "sop_instance_uid": uid,
            "event": int(event),
            "content": content,
            "created_at": now,
            "next_try_at": now,
            "attempts": 0,
        }
        for ae in readers
    ]
    if rows:
        connection.execute(insert(ups_events), rows)
