"""A child process that ought to run. One that keeps dying is started again ever more slowly.

Ends no child: whoever has several knows in which order they go.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

log = logging.getLogger(__name__)

RESTART_AT_MOST_S = 30.0


@dataclass
class Tended(ABC):
    name: str
    started_at: float = field(default=0.0, kw_only=True)
    deaths: int = field(default=0, kw_only=True)
    restart_at: float = field(default=0.0, kw_only=True)

    restart_after_s: ClassVar[float] = 1.0
    """After a first death; doubling from there."""

    @abstractmethod
    def launch(self) -> None:
        """Raises OSError where there is no room for one more process."""

    @abstractmethod
    def ended(self) -> int | None:
        """The status of a child that is over, told once. None while it runs, and where there is none."""

    @property
    @abstractmethod
    def is_there(self) -> bool:
        """It was launched, and has not `ended`."""

    def start(self) -> None:
        """Raises OSError as `launch` does."""
        self.started_at = time.monotonic()
        self.launch()

    def tend(self) -> None:
        """Notice a death; restart when its time has come."""
        now = time.monotonic()
        if (status := self.ended()) is not None:
            if now - self.started_at > RESTART_AT_MOST_S:
                self.deaths = 0
            self._put_off(f"ended with status {status}", now)
        if not self.is_there and now >= self.restart_at:
            try:
                self.start()
            except OSError as error:  # no memory for one more process: the others go on
                self._put_off(f"cannot be started: {error}", now)

    def _put_off(self, why: str, now: float) -> None:
        delay = min(self.restart_after_s * 2 ** min(self.deaths, 30), RESTART_AT_MOST_S)
        log.error("%s %s; again in %.1f s", self.name, why, delay)
        self.deaths, self.restart_at = self.deaths + 1, now + delay
