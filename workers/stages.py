"""A line of threads that do one kind of work, STAT first. Knows neither jobs nor networks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)


class Waits(Protocol):
    """What can stand in line."""

    @property
    def is_stat(self) -> bool: ...


One = TypeVar("One", bound=Waits)


class Stage(Generic[One]):
    """Does `work` on what is put in, up to `most` at a time; STAT is never done together with routine."""

    def __init__(self, name: str, work: Callable[[list[One]], None], threads: int = 1, most: int = 1) -> None:
        """`work` looks after its own errors; what it did not think of is left to the log."""
        self._work = work
        self._most = most
        self._waiting: list[One] = []
        self._changed = threading.Condition()
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, one: One) -> None:
        with self._changed:
            self._waiting.append(one)
            self._changed.notify()

    def close(self, *, empty: bool = False) -> list[One]:
        """End once what is begun is done (with `empty`, all that waits); what was not begun is given back."""
        with self._changed:
            self._is_open = False
            left = [] if empty else self._waiting
            self._waiting = self._waiting if empty else []
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        return left

    def _run(self) -> None:
        while some := self._next():
            try:
                self._work(some)
            except Exception:
                log.exception("%s broke", threading.current_thread().name)
            some.clear()  # while this waits, nothing that is done may take up memory

    def _next(self) -> list[One]:
        """What to do now; nothing when the line is closed."""
        with self._changed:
            while not self._waiting:
                if not self._is_open:
                    return []
                self._changed.wait()
            some = chosen(self._waiting, self._most)
            self._waiting = [one for one in self._waiting if one not in some]
            return some


def chosen(waiting: list[One], most: int) -> list[One]:
    """Up to `most` of what waits: STAT alone where there is any, else the first that came."""
    return ([one for one in waiting if one.is_stat] or waiting)[:most]
