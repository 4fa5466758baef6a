"""When a delivery or a destination is tried again, and when never. Decides only; knows no clock."""

from __future__ import annotations

from dataclasses import dataclass

from node.settings import Destination
from node.store.deliveries import Due


def back_off_s(attempts: int, destination: Destination, chance: float) -> float:
    """Doubling from retry_base_s to retry_max_s; `chance` in 0…1 spreads tries over the upper half."""
    longest = min(destination.retry_base_s * 2 ** min(attempts, 30), destination.retry_max_s)
    return longest * (0.5 + 0.5 * chance)


def is_hopeless(due: Due, destination: Destination, now: float) -> bool:
    """A positive result is never given up."""
    return not due.urgent and now - due.created_at > destination.give_up_h * 3600


LONGEST_BREAK_S = 60.0


@dataclass
class Breaker:
    """Leaves a destination that cannot be reached alone, ever longer, so that its return is not a storm."""

    base_s: float
    failures: int = 0

    def failed(self, chance: float) -> float:
        """Seconds to leave it alone; doubling, and spread by `chance` in 0…1 over the upper half."""
        longest = min(self.base_s * 2 ** min(self.failures, 30), max(self.base_s, LONGEST_BREAK_S))
        self.failures += 1
        return longest * (0.5 + 0.5 * chance)

    def answered(self) -> bool:
        """It took something. True when it had been left alone before: what waits for it is due now."""
        was_open, self.failures = self.failures > 0, 0
        return was_open
