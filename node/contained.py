"""What breaks in one thing is told in the log and stays there: what comes behind it is done all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from node.domain.errors import TransientError


@contextmanager
def contained(log: logging.Logger, complaint: str) -> Iterator[None]:
    """Log `complaint` and the traceback of whatever is raised. A TransientError passes: it concerns all."""
    try:
        yield
    except TransientError:
        raise
    except Exception:
        log.exception(complaint)
