"""Wakes threads of this process that look for work, so that it need not wait for their next look.

Promises nothing: whoever misses a nudge, or works in another process, looks by the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Nudge:
    """From one thread to any number of others."""

    def __init__(self) -> None:
        self._sleepers: list[threading.Event] = []

    def give(self) -> None:
        for sleeper in self._sleepers:
            sleeper.set()

    def waiting(self, stopping: Callable[[float], bool]) -> Callable[[float], bool]:
        """As `stopping`, for one thread: waits so many seconds at most, or until a nudge; whether to stop.

        A nudge that came meanwhile counts, so that none is lost between a look and the wait behind it. That
        it is time to stop is noticed after the wait: it is for short ones.
        """
        sleeper = threading.Event()
        self._sleepers.append(sleeper)

        def wait(seconds: float) -> bool:
            sleeper.wait(seconds)
            sleeper.clear()
            return stopping(0)

        return wait
