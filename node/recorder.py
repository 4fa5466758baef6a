"""Records of instances that arrive at the same time share a transaction: whoever comes first writes for all.

Decides nothing, and waits for nobody: a single instance is recorded at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from node.domain.errors import TransientError
from node.store.arrivals import Arrivals, NewInstance

MOST_AT_ONCE = 100


@dataclass
class _Waiting:
    new: NewInstance
    is_done: bool = False
    recorded: bool = False
    error: TransientError | None = None


class Recorder:
    """One for each listener process."""

    def __init__(self, arrivals: Arrivals, clock: Callable[[], float], most_in_series: int) -> None:
        self._arrivals = arrivals
        self._clock = clock
        self._most_in_series = most_in_series
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._turn = threading.Lock()

    def record_new(self, new: NewInstance) -> bool:
        """Whether it is recorded; False when it needs more than that (`Arrivals.record_new`).

        Raises TransientError when the database is away.
        """
        mine = _Waiting(new)
        with self._queue_lock:
            self._queue.append(mine)
        while not mine.is_done:  # who held the turn before may have taken it along
            with self._turn:
                if not mine.is_done:
                    self._write(self._take())
        if mine.error is not None:
            raise TransientError(str(mine.error)) from mine.error
        return mine.recorded

    def _take(self) -> list[_Waiting]:
        with self._queue_lock:
            taken, self._queue = self._queue[:MOST_AT_ONCE], self._queue[MOST_AT_ONCE:]
        return taken

    def _write(self, waiting: list[_Waiting]) -> None:
        """Each of them is done after this, whatever happens."""
        try:
            news = [one.new for one in waiting]
            recorded = self._arrivals.record_new(news, self._clock(), self._most_in_series)
            for one in waiting:
                one.recorded = recorded
        except TransientError as error:
            for one in waiting:
                one.error = error
        finally:
            for one in waiting:
                one.is_done = True
