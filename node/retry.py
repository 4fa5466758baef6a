"""When a delivery is tried again, and when never. Decides only; knows no clock and no database."""

from __future__ import annotations

from node.settings import Destination
from node.store.deliveries import Due


def back_off_s(attempts: int, destination: Destination, chance: float) -> float:
    """Doubling from retry_base_s to retry_max_s; `chance` in 0…1 spreads tries over the upper half."""
    longest = min(destination.retry_base_s * 2 ** min(attempts, 30), destination.retry_max_s)
    return longest * (0.5 + 0.5 * chance)


def is_hopeless(due: Due, destination: Destination, now: float) -> bool:
    """A positive result is never given up."""
    return not due.urgent and now - due.created_at > destination.give_up_h * 3600
