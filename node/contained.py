"""What breaks in one thing is told in the log and stays there: what comes behind it is done all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node.domain.errors import TransientError

LONGEST_PAUSE_S = 60.0


@contextmanager
def contained(log: logging.Logger, complaint: str) -> Iterator[None]:
    """Log `complaint` and the traceback of whatever is raised. A TransientError passes: it concerns all."""
    try:
        yield
    except TransientError:
        raise
    except Exception:
        log.exception(complaint)


class Setbacks:
    """How often in a row each thing broke, by name; it is tried again after 1, 2, 4 … seconds, 60 at most."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._counts: dict[str, tuple[int, float]] = {}

    def is_due(self, name: str) -> bool:
        return name not in self._counts or self._elapsed() >= self._counts[name][1]

    def broke(self, name: str) -> int:
        """Once more. Returns how often by now."""
        count = self._counts.get(name, (0, 0.0))[0] + 1
        pause_s = min(2.0 ** min(count - 1, 10), LONGEST_PAUSE_S)
        self._counts[name] = count, self._elapsed() + pause_s
        return count

    def forget(self, name: str) -> None:
        """It went well, or is not tried any more."""
        self._counts.pop(name, None)
