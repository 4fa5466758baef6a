"""Every query about deliveries: one row for each object and destination, with its next try. Sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Update, bindparam, func, or_, select, update

from node.domain.errors import IllegalTransition
from node.domain.lifecycle import DELIVERIES, DeliveryEvent, DeliveryState, after, sources
from node.liveness import process_name
from node.store import pauses
from node.store.audit_queue import SENT, Event, enqueue_sent, is_wanted
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import deliveries, instances, jobs, objects

SOURCE_RANK = 1_000_000
"""From this rank on it is source images: no result waits behind those of another study."""


@dataclass(frozen=True)
class NewDelivery:
    sop_instance_uid: str
    destination: str
    rank: int
    urgent: bool


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come, with the object it carries."""

    id: int
    job_id: int
    sop_instance_uid: str
    sop_class_uid: str
    path: str
    attempts: int
    created_at: float
    urgent: bool


@dataclass(frozen=True)
class Taken:
    """What a destination accepted, and when; from then on its commitment may be asked for."""

    id: int
    status: str
    at: float


class Deliveries:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take_due(self, destination: str, now: float, lease_until: float, limit: int = 200) -> list[Due]:
        """Due deliveries of a destination, leased so that nobody else sends them.

        Urgent ones first, then those that failed least often: what a peer chokes on holds up no other.
        """
        due = (
            deliveries.c.destination == destination,
            deliveries.c.state == DeliveryState.PENDING,
            deliveries.c.next_try_at <= now,
            or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until < now),
        )
        with reading(self._engine) as connection:  # the usual answer is "nothing", and locks nobody out
            if pauses.is_paused(connection, pauses.of_destination(destination)):
                return []
            if connection.execute(select(deliveries.c.id).where(*due).limit(1)).first() is None:
                return []
        order = (
            deliveries.c.urgent.desc(),
            deliveries.c.rank >= SOURCE_RANK,
            deliveries.c.attempts,
            deliveries.c.job_id,
            deliveries.c.rank,
        )
        with writing(self._engine) as connection:
            rows = dues(connection, due, order, limit)
            ids = [row.id for row in rows]
            lease = {"lease_until": lease_until, "lease_owner": process_name()}
            connection.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(**lease))
            return rows

    def hasten(self, destination: str, now: float) -> int:
        """The destination is back: what waited for its next try is due. Returns how many."""
        waiting = (
            deliveries.c.destination == destination,
            deliveries.c.state == DeliveryState.PENDING,
            deliveries.c.next_try_at > now,
            deliveries.c.last_status == "",  # no answer at all; what was refused keeps its own pace
        )
        with writing(self._engine) as connection:
            return connection.execute(update(deliveries).where(*waiting).values(next_try_at=now)).rowcount

    def lease_owners(self) -> set[str]:
        """The processes that hold leases."""
        with reading(self._engine) as connection:
            query = select(deliveries.c.lease_owner).where(deliveries.c.lease_until.is_not(None))
            held = query.where(deliveries.c.lease_owner.is_not(None)).distinct()
            return set(connection.execute(held).scalars())

    def release(self, owner: str) -> int:
        """The owner is gone: what it held may be taken at once. Returns how many."""
        mine = (deliveries.c.lease_owner == owner, deliveries.c.lease_until.is_not(None))
        with writing(self._engine) as connection:
            return connection.execute(update(deliveries).where(*mine).values(lease_until=None)).rowcount

    def extend(self, ids: Sequence[int], lease_until: float) -> None:
        """Keep the lease on deliveries that are still waiting their turn in a batch."""
        with writing(self._engine) as connection:
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_(ids)).values(lease_until=lease_until)
            )

    def sent(self, delivery_id: int, status: str, now: float) -> bool:
        """False when it was sent or given up before."""
        return self.sent_all([Taken(delivery_id, status, now)]) == 1

    def sent_all(self, taken: Sequence[Taken]) -> int:
        """In one transaction; what was overtaken on its way is SENT as well. Returns how many moved."""
        moved = 0
        with writing(self._engine) as connection:
            wanted = is_wanted(connection)
            for one in taken:
                values = {"delivery": one.id, "status": one.status, "now": one.at}
                if connection.execute(_SENT, values).rowcount == 1:
                    moved += 1
                    if wanted:
                        enqueue_sent(connection, _event(connection, one.id, one.at))
        return moved

    def failed(self, delivery_id: int, error: str, status: str, next_try_at: float) -> bool:
        return self._change(
            _move(delivery_id, DeliveryEvent.ATTEMPT_FAILED).values(
                next_try_at=next_try_at,
                last_error=error,
                last_status=status,
                attempts=deliveries.c.attempts + 1,
            )
        )

    def postpone(self, ids: Sequence[int], error: str, next_try_at: float) -> None:
        """Give back what was taken but never tried."""
        with writing(self._engine) as connection:
            mine = (deliveries.c.id.in_(ids), deliveries.c.state == DeliveryState.PENDING)
            values = {"next_try_at": next_try_at, "last_error": error, "lease_until": None}
            connection.execute(update(deliveries).where(*mine).values(**values))

    def give_up(self, delivery_id: int, error: str, status: str) -> bool:
        return self._change(
            _move(delivery_id, DeliveryEvent.GIVEN_UP).values(
                last_error=error, last_status=status, attempts=deliveries.c.attempts + 1
            )
        )

    def retry(self, delivery_id: int, now: float) -> None:
        """At once, whether given up or waiting. Raises IllegalTransition if it was sent or overtaken."""
        with writing(self._engine) as connection:
            state = connection.execute(
                select(deliveries.c.state).where(deliveries.c.id == delivery_id)
            ).scalar()
            if state is None:
                raise IllegalTransition(
                    f"there is no delivery {delivery_id}; `ichnode deliveries` lists them"
                )
            mine = deliveries.c.id == delivery_id
            if state == DeliveryState.PENDING:
                connection.execute(update(deliveries).where(mine).values(next_try_at=now))
                return
            after(DELIVERIES, DeliveryState(state), DeliveryEvent.RETRIED_BY_ADMIN)
            statement = _move(delivery_id, DeliveryEvent.RETRIED_BY_ADMIN)
            connection.execute(statement.values(next_try_at=now, created_at=now))

    def retry_all(self, destination: str, now: float) -> int:
        """What was given up, of one destination or ("") of all, at once. Returns how many."""
        statement = move(DeliveryEvent.RETRIED_BY_ADMIN).values(next_try_at=now, created_at=now)
        if destination:
            statement = statement.where(deliveries.c.destination == destination)
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount

    def waiting(self, job_id: int) -> int:
        """How many deliveries of a job are still to be sent."""
        with reading(self._engine) as connection:
            query = select(deliveries.c.id).where(
                deliveries.c.job_id == job_id, deliveries.c.state == DeliveryState.PENDING
            )
            return len(connection.execute(query).all())

    def _change(self, statement: Update) -> bool:
        with writing(self._engine) as connection:
            return connection.execute(statement.values(lease_until=None)).rowcount == 1


def _event(connection: Connection, delivery_id: int, now: float) -> Event:
    """For the audit repository: which destination got an object of which study."""
    query = (
        select(deliveries.c.destination, objects.c.sop_class_uid, jobs.c.study_instance_uid)
        .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .where(deliveries.c.id == delivery_id)
    )
    destination, sop_class, study_uid = connection.execute(query).one()
    return Event(SENT, now, destination, study_instance_uid=study_uid, objects={sop_class: 1})


def add_deliveries(connection: Connection, job_id: int, new: Sequence[NewDelivery], now: float) -> None:
    """Each object goes to each destination once, however often this is called.

    What was overtaken, and belongs to the latest result again, is due again.
    """
    for item in new:
        row = {
            "sop_instance_uid": item.sop_instance_uid,
            "job_id": job_id,
            "destination": item.destination,
            "rank": item.rank,
            "urgent": int(item.urgent),
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "created_at": now,
            "next_try_at": now,
        }
        if not insert_if_absent(connection, deliveries, row):
            mine = (
                deliveries.c.sop_instance_uid == item.sop_instance_uid,
                deliveries.c.destination == item.destination,
            )
            due = {"urgent": int(item.urgent), "created_at": now, "next_try_at": now}
            connection.execute(move(DeliveryEvent.COMPOSED_AGAIN).where(*mine).values(**due))


def overtake(connection: Connection, series_uid: str) -> None:
    """Of the results of a series each destination is to get those that were composed for it last.

    What is older and was not sent is SUPERSEDED, whatever its kind: arriving late, it would be shown as the
    latest. Source images are no results.
    """
    query = (
        select(deliveries.c.id, deliveries.c.destination, deliveries.c.state)
        .add_columns(jobs.c.revision, objects.c.created_at)
        .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .where(jobs.c.series_instance_uid == series_uid, deliveries.c.rank < SOURCE_RANK)
    )
    rows = connection.execute(query).all()
    latest: dict[str, tuple[int, float]] = {}
    for row in rows:
        age = (row.revision, row.created_at)
        latest[row.destination] = max(age, latest.get(row.destination, age))
    unsent = sources(DELIVERIES, DeliveryEvent.OVERTAKEN)
    older = [
        row.id
        for row in rows
        if row.state in unsent and (row.revision, row.created_at) < latest[row.destination]
    ]
    if older:
        statement = move(DeliveryEvent.OVERTAKEN).where(deliveries.c.id.in_(older))
        connection.execute(statement.values(lease_until=None))


def dues(connection: Connection, where: Sequence[Any], order: Sequence[Any], limit: int) -> list[Due]:
    """Deliveries with the objects they carry; rows that another process holds are passed over.

    Of a source image that came again the file that counts now is sent.
    """
    rows = connection.execute(
        select(
            deliveries,
            objects.c.sop_class_uid,
            func.coalesce(instances.c.path, objects.c.path).label("path"),
        )
        .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .outerjoin(instances, instances.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .where(*where)
        .order_by(*order)
        .limit(limit)
        .with_for_update(skip_locked=True, of=deliveries)
    )
    return [
        Due(
            row.id,
            row.job_id,
            row.sop_instance_uid,
            row.sop_class_uid,
            row.path,
            row.attempts,
            row.created_at,
            bool(row.urgent),
        )
        for row in rows
    ]


def move(event: DeliveryEvent) -> Update:
    """An UPDATE of deliveries that may take this event, to the state that the table names."""
    came_from = sources(DELIVERIES, event)
    return (
        update(deliveries)
        .where(deliveries.c.state.in_(came_from))
        .values(state=DELIVERIES[came_from[0], event])
    )


_SENT = (  # built once: it runs for every object
    move(DeliveryEvent.ACCEPTED_BY_PEER)
    .where(deliveries.c.id == bindparam("delivery"))
    .values(
        sent_at=bindparam("now"),
        next_try_at=bindparam("now"),
        last_status=bindparam("status"),
        last_error=None,
        attempts=deliveries.c.attempts + 1,
        lease_until=None,
        asked_s=0.0,
    )
)


def _move(delivery_id: int, event: DeliveryEvent) -> Update:
    return move(event).where(deliveries.c.id == delivery_id)
