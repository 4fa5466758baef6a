"""Every query about storage commitment: what to ask, what was asked, what was answered. Asks nobody."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, or_, select, update

from node.domain.lifecycle import DeliveryEvent, DeliveryState
from node.liveness import process_name
from node.store import pauses
from node.store.deliveries import Due, dues, move, overtake
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import commitments, deliveries, jobs


@dataclass(frozen=True)
class Asked:
    """A request that was made: `transaction_uid` is the name both sides know it by (PS3.4 J.3.2.1)."""

    transaction_uid: str
    destination: str
    asked_at: float


class Commitments:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def to_ask(
        self, destination: str, now: float, longest_s: float, lease_until: float, limit: int
    ) -> list[Due]:
        """SENT deliveries whose commitment is to be asked for, oldest first, leased like those to be sent.

        For `longest_s` each. What counts is how long it was asked for, not the date: days on which the node
        was off, or by which its clock leapt, are none.
        """
        waiting = (
            deliveries.c.destination == destination,
            deliveries.c.state == DeliveryState.SENT,
            deliveries.c.asked_s < longest_s,
            deliveries.c.next_try_at <= now,
            or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until < now),
        )
        with reading(self._engine) as connection:
            if pauses.is_paused(connection, pauses.of_destination(destination)):
                return []
            if connection.execute(select(deliveries.c.id).where(*waiting).limit(1)).first() is None:
                return []
        with writing(self._engine) as connection:
            rows = dues(connection, waiting, (deliveries.c.sent_at, deliveries.c.id), limit)
            ids = [row.id for row in rows]
            lease = {"lease_until": lease_until, "lease_owner": process_name()}
            connection.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(**lease))
            return rows

    def asked(self, request: Asked) -> None:
        """Write a request down before it is made: the answer may be quicker than we are."""
        with writing(self._engine) as connection:
            insert_if_absent(connection, commitments, vars(request))

    def wait(self, ids: Sequence[int], now: float, wait_s: float = 0.0, error: str | None = None) -> None:
        """Ask for these again after so long, unless they are committed by that time."""
        with writing(self._engine) as connection:
            still_sent = (deliveries.c.id.in_(ids), deliveries.c.state == DeliveryState.SENT)
            statement = update(deliveries).where(*still_sent)
            statement = statement.values(next_try_at=now + wait_s, asked_s=deliveries.c.asked_s + wait_s)
            connection.execute(statement.values(lease_until=None, last_error=error))

    def find(self, transaction_uid: str) -> Asked | None:
        with reading(self._engine) as connection:
            query = select(commitments).where(commitments.c.transaction_uid == transaction_uid)
            row = connection.execute(query).first()
            return Asked(row.transaction_uid, row.destination, row.asked_at) if row else None

    def concerned(self, request: Asked, sop_instance_uids: Collection[str]) -> list[Due]:
        """Deliveries that such an answer is about: those not sent anew since the question."""
        with reading(self._engine) as connection:
            about = (
                deliveries.c.destination == request.destination,
                deliveries.c.sop_instance_uid.in_(sop_instance_uids),
                deliveries.c.state == DeliveryState.SENT,
                deliveries.c.sent_at <= request.asked_at,
            )
            return dues(connection, about, (deliveries.c.id,), len(sop_instance_uids))

    def committed(self, request: Asked, sop_instance_uids: Collection[str], now: float) -> int:
        """SENT → COMMITTED. Returns how many."""
        with writing(self._engine) as connection:
            mine = (
                deliveries.c.destination == request.destination,
                deliveries.c.sop_instance_uid.in_(sop_instance_uids),
            )
            statement = move(DeliveryEvent.COMMITMENT_CONFIRMED).where(*mine)
            values = {"committed_at": now, "last_error": None, "lease_until": None}
            return connection.execute(statement.values(**values)).rowcount

    def refused(self, delivery_id: int, error: str, status: str, next_try_at: float) -> bool:
        """SENT → PENDING: it will be sent again, unless a newer result of its series took its place."""
        with writing(self._engine) as connection:
            statement = move(DeliveryEvent.COMMITMENT_REFUSED).where(deliveries.c.id == delivery_id)
            values = {"last_error": error, "last_status": status, "next_try_at": next_try_at}
            if connection.execute(statement.values(lease_until=None, **values)).rowcount != 1:
                return False
            of_job = select(jobs.c.series_instance_uid).join(deliveries, deliveries.c.job_id == jobs.c.id)
            series_uid = connection.execute(of_job.where(deliveries.c.id == delivery_id)).scalar_one()
            overtake(connection, series_uid)
            return True

    def answered(self, transaction_uid: str, now: float) -> None:
        with writing(self._engine) as connection:
            mine = commitments.c.transaction_uid == transaction_uid
            connection.execute(update(commitments).where(mine).values(answered_at=now))
