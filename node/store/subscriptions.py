"""Every query about who wants to hear of workitems, and what they are still to be told (PS3.4 CC.2.3, 2.4).

What is to be told is written in the transaction that changes the workitem, and leaves only when it was taken
or nobody took it for a day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Text,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    text,
    type_coerce,
    update,
)

from node.domain.workitems import FILTERED, GLOBAL, Event, StepState
from node.store.engine import insert_if_absent, reading, writing
from node.store.steps import AT_ONCE, Item, Values, items, parts
from node.store.tables import ups_events, ups_subscriptions, ups_watchers, workitems

ALL = (GLOBAL, FILTERED)
LONGEST_ERROR = 500
_LOCK = 0x757073  # "ups"; any number that nobody else takes
_STATE, _READINESS = "00741000", "00404041"  # Procedure Step State, Input Readiness State


@dataclass(frozen=True)
class Due:
    """One N-EVENT-REPORT; `content` is its Event Information, as DICOM JSON, None where it cannot be read."""

    id: int
    sop_instance_uid: str
    event: int
    """node.domain.workitems.Event, or what another version of the node wrote."""
    content: Values | None
    attempts: int
    created_at: float


@dataclass(frozen=True)
class Matching:
    """Keys of a subscriber (DICOM JSON), and whether a workitem matches them."""

    keys: Values
    holds: Callable[[Item], bool]


@dataclass(frozen=True)
class Standing:
    """What a subscriber hears of, and how telling it goes."""

    ae_title: str
    to_all: bool
    matching: Values | None
    """The keys of one who wants all that match, as DICOM JSON."""
    workitems: int
    locks: int
    waiting: int
    """Events it is still to be told."""
    oldest_at: float | None
    told_at: float | None
    failing_since: float | None
    last_error: str
    given_up: int


class Subscriptions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def subscribe(self, ae: str, uid: str, lock: bool, now: float) -> bool:
        """From now on `ae` hears of this workitem. False for a stranger.

        It is told the present state at once. With `lock` the workitem is kept after its end, until `ae` says
        otherwise.
        """
        with writing(self._engine) as connection:
            state = connection.execute(_state(uid).with_for_update()).scalar()
            if state is None:
                return False
            _subscribe(connection, ae, uid, lock, now)
            _tell(connection, (ae,), uid, Event.STATE, state_report(state), now)
            return True

    def subscribe_to_all(
        self, ae: str, lock: bool, since: float, now: float, matching: Matching | None = None
    ) -> None:
        """From now on `ae` hears of every workitem served since then and to come; of those that match.

        Takes the place of what it said of all before; what it said of one workitem stays (PS3.4 CC.2.3).
        """
        uid = FILTERED if matching else GLOBAL
        with writing(self._engine) as connection:
            alone(connection)
            there = select(workitems.c.sop_instance_uid).where(served(since))
            connection.execute(there.with_for_update()).all()  # who changes one now is told of, or seen below
            connection.execute(delete(ups_subscriptions).where(*_of_all(ae)))
            row = _row(ae, uid, lock, now) | {"matching": matching.keys if matching else null()}
            connection.execute(insert(ups_subscriptions).values(**row))
            if matching:
                rows = [
                    (item.uid, item.state)
                    for part in parts(connection, served(since))
                    for item in items(connection, part, AT_ONCE)
                    if matching.holds(item)
                ]
            else:
                query = select(workitems.c.sop_instance_uid, workitems.c.state).where(served(since))
                rows = [(row.sop_instance_uid, row.state) for row in connection.execute(query)]
            for one, state in rows:
                if insert_if_absent(connection, ups_subscriptions, _row(ae, one, lock, now)):
                    _tell(connection, (ae,), one, Event.STATE, state_report(state), now)

    def unsubscribe(self, ae: str, uid: str) -> bool:
        """From this workitem; from everything where it is GLOBAL or FILTERED. False for a stranger."""
        everything = uid in ALL
        with writing(self._engine) as connection:
            if not everything and connection.execute(_state(uid)).first() is None:
                return False
            for table in (ups_subscriptions, ups_events):
                mine = delete(table).where(table.c.receiving_ae == ae)
                one = mine.where(table.c.sop_instance_uid == uid)
                connection.execute(mine if everything else one)
            return True

    def suspend(self, ae: str) -> None:
        """No subscription to workitems to come; those to workitems that are there stay."""
        with writing(self._engine) as connection:
            connection.execute(delete(ups_subscriptions).where(*_of_all(ae)))

    def due(self, ae: str, now: float, limit: int) -> list[Due]:
        """What `ae` is to be told now, in its order; of one workitem nothing overtakes what waits."""
        mine = ups_events.c.receiving_ae == ae
        waits = (
            select(ups_events.c.sop_instance_uid, func.min(ups_events.c.id).label("first"))
            .where(mine, ups_events.c.next_try_at > now)
            .group_by(ups_events.c.sop_instance_uid)
            .subquery()
        )
        content = type_coerce(ups_events.c.content, Text).label("raw")
        query = (
            select(*(column for column in ups_events.c if column.name != "content"), content)
            .outerjoin(waits, waits.c.sop_instance_uid == ups_events.c.sop_instance_uid)
            .where(mine, or_(waits.c.first.is_(None), ups_events.c.id < waits.c.first))
            .order_by(ups_events.c.id)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            Due(row.id, row.sop_instance_uid, row.event, _read(row.raw), row.attempts, row.created_at)
            for row in rows
        ]

    def told(self, one: Due) -> None:
        """It was taken."""
        with writing(self._engine) as connection:
            connection.execute(delete(ups_events).where(*_this(one)))

    def give_up(self, one: Due, ae: str) -> None:
        """Nobody took it for too long."""
        with writing(self._engine) as connection:
            if connection.execute(delete(ups_events).where(*_this(one))).rowcount:
                _watch(connection, ae, given_up=ups_watchers.c.given_up + 1)

    def went_well(self, ae: str, now: float) -> None:
        """What was due to `ae` was taken."""
        with writing(self._engine) as connection:
            _watch(connection, ae, told_at=now, failing_since=None, last_error=None)

    def went_wrong(self, ae: str, why: str, now: float, told: bool = False) -> None:
        """`ae` is away, or does not take an event; others it was told."""
        with writing(self._engine) as connection:
            since = func.coalesce(ups_watchers.c.failing_since, now)
            more = {"told_at": now} if told else {}
            _watch(connection, ae, failing_since=since, last_error=why[:LONGEST_ERROR], **more)

    def standing(self, aes: Sequence[str]) -> list[Standing]:
        """How each of these stands, in that order."""
        of = ups_subscriptions.c
        query = select(of.receiving_ae, of.sop_instance_uid, of.deletion_lock, of.matching)
        backlog = select(ups_events.c.receiving_ae, func.count(), func.min(ups_events.c.created_at))
        with reading(self._engine) as connection:
            to_all = {
                row.receiving_ae: row for row in connection.execute(query.where(of.sop_instance_uid.in_(ALL)))
            }
            one_by_one = {
                row[0]: row[1:]
                for row in connection.execute(
                    select(of.receiving_ae, func.count(), func.sum(of.deletion_lock))
                    .where(of.sop_instance_uid.not_in(ALL))
                    .group_by(of.receiving_ae)
                )
            }
            waiting = {
                row[0]: row[1:] for row in connection.execute(backlog.group_by(ups_events.c.receiving_ae))
            }
            watched = {row.receiving_ae: row for row in connection.execute(select(ups_watchers))}
        found = []
        for ae in aes:
            whole, went = to_all.get(ae), watched.get(ae)
            count, locks = one_by_one.get(ae, (0, 0))
            due, oldest = waiting.get(ae, (0, None))
            found.append(
                Standing(
                    ae,
                    to_all=whole is not None and whole.sop_instance_uid == GLOBAL,
                    matching=whole.matching if whole else None,
                    workitems=count,
                    locks=int(locks or 0),
                    waiting=due,
                    oldest_at=oldest,
                    told_at=went.told_at if went else None,
                    failing_since=went.failing_since if went else None,
                    last_error=(went.last_error if went else None) or "",
                    given_up=went.given_up if went else 0,
                )
            )
        return found

    def wait(self, next_try_at: Sequence[tuple[Due, float]]) -> None:
        """These events were not taken: when to try each of them again."""
        with writing(self._engine) as connection:
            for one, at in next_try_at:
                values = {"attempts": ups_events.c.attempts + 1, "next_try_at": at}
                connection.execute(update(ups_events).where(*_this(one)).values(**values))

    def forget(self, known: Sequence[str]) -> None:
        """Of AE titles that the settings no longer name, and of workitems that are gone."""
        gone = ups_subscriptions.c.sop_instance_uid.not_in(select(workitems.c.sop_instance_uid))
        with writing(self._engine) as connection:
            for table in (ups_subscriptions, ups_events, ups_watchers):
                connection.execute(delete(table).where(table.c.receiving_ae.not_in(known)))
            orphans = delete(ups_subscriptions).where(gone, ups_subscriptions.c.sop_instance_uid.not_in(ALL))
            connection.execute(orphans)


def _read(raw: Any) -> Values | None:
    """The JSON of one event, which a driver may have read already: what is none concerns no other event."""
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except ValueError:
        return None


def _this(one: Due) -> tuple[ColumnElement[bool], ...]:
    """The event itself: SQLite gives the number of the last one that is gone to the next."""
    columns = ups_events.c
    return (
        columns.id == one.id,
        columns.sop_instance_uid == one.sop_instance_uid,
        columns.event == one.event,
        columns.created_at == one.created_at,
    )


def born(
    connection: Connection, item: Item, matches: Callable[[Item, str, Values], bool], now: float
) -> None:
    """A workitem is new: who subscribed to all has subscribed to it, and is told. Its maker is `alone`."""
    to_all = select(ups_subscriptions).where(ups_subscriptions.c.sop_instance_uid.in_(ALL))
    for row in connection.execute(to_all).all():
        if row.matching is None or matches(item, row.receiving_ae, row.matching):
            lock = bool(row.deletion_lock)
            insert_if_absent(connection, ups_subscriptions, _row(row.receiving_ae, item.uid, lock, now))
    report(connection, item.uid, Event.STATE, state_report(StepState.SCHEDULED), now)


def served(since: float) -> ColumnElement[bool]:
    """Of a row of `workitems`: it changed since then, or a subscriber locked it."""
    return or_(workitems.c.changed_at >= since, is_locked(workitems.c.sop_instance_uid))


def is_locked(uid: ColumnElement[str]) -> ColumnElement[bool]:
    """A subscriber wants this workitem to be kept."""
    of = ups_subscriptions.c
    return exists().where(of.sop_instance_uid == uid, of.deletion_lock == 1)


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


def alone(connection: Connection) -> None:
    """Nobody subscribes to all while workitems are made, else neither would see the other; nor does another
    process make them. SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _state(uid: str) -> Select[Any]:
    return select(workitems.c.state).where(workitems.c.sop_instance_uid == uid)


def _of_all(ae: str) -> tuple[ColumnElement[bool], ...]:
    return ups_subscriptions.c.receiving_ae == ae, ups_subscriptions.c.sop_instance_uid.in_(ALL)


def _subscribe(connection: Connection, ae: str, uid: str, lock: bool, now: float) -> None:
    """To one workitem; the last word about its lock counts."""
    of = ups_subscriptions.c
    if not insert_if_absent(connection, ups_subscriptions, _row(ae, uid, lock, now)):
        mine = update(ups_subscriptions).where(of.receiving_ae == ae, of.sop_instance_uid == uid)
        connection.execute(mine.values(deletion_lock=int(lock)))


def _row(ae: str, uid: str, lock: bool, now: float) -> Values:
    return {"receiving_ae": ae, "sop_instance_uid": uid, "subscribed_at": now, "deletion_lock": int(lock)}


def _watch(connection: Connection, ae: str, **values: Any) -> None:
    insert_if_absent(connection, ups_watchers, {"receiving_ae": ae, "given_up": 0})
    mine = update(ups_watchers).where(ups_watchers.c.receiving_ae == ae)
    connection.execute(mine.values(**values))


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
