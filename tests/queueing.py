"""Short hands for tests of the queue: who is to be rung."""

from __future__ import annotations

from node.domain.orders import Rules
from node.store.queue import Ring
from node.store.records import Records

__all__ = ["Ring", "ringing"]


def ringing(records: Records, rung_before: float) -> list[int]:
    """The jobs whose doorbell is to be rung, in order."""
    return [ring.job_id for ring in records.queue.to_ring(rung_before, rung_before, Rules())]
