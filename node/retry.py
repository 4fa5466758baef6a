"""When a delivery, an alert or a peer is tried again, and when never. Decides only; knows no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Patience(Protocol):
    """The settings of a peer that say how long to go on trying."""

    @property
    def retry_base_s(self) -> float: ...

    @property
    def retry_max_s(self) -> float: ...

    @property
    def give_up_h(self) -> float: ...


class Waiting(Protocol):
    """What is to reach it."""

    @property
    def urgent(self) -> bool: ...

    @property
    def created_at(self) -> float: ...


def back_off_s(attempts: int, peer: Patience, chance: float) -> float:
    """Doubling from retry_base_s to retry_max_s; `chance` in 0…1 spreads tries over the upper half."""
    longest = min(peer.retry_base_s * 2 ** min(attempts, 30), peer.retry_max_s)
    return longest * (0.5 + 0.5 * chance)


def is_hopeless(due: Waiting, peer: Patience, now: float) -> bool:
    """A positive result is never given up."""
    return not due.urgent and now - due.created_at > peer.give_up_h * 3600


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
