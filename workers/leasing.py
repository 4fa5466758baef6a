"""Keeps a lease while a series is read, and ends the process that hangs in it. Knows no job and no model."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node.domain.errors import TransientError
from node.meanwhile import meanwhile

log = logging.getLogger(__name__)

LEASE_S = 30.0
RENEW_S = 5.0


@contextmanager
def watched(
    what: str, timeout_s: float, setting: str, besides: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Ends the whole process when the block hangs, and calls `besides` now and then until it is over.

    No exception reaches native code that never returns; a lease it holds would keep the work for ever.
    `what` and `setting` (that of `timeout_s`) are for the log.
    """
    deadline = time.monotonic() + timeout_s

    def watch() -> None:
        if time.monotonic() >= deadline:
            log.critical("%s hangs: longer than %s; this worker ends", what, setting)
            logging.shutdown()
            os.kill(os.getpid(), signal.SIGKILL)
        besides()

    with meanwhile("lease", lambda: min(RENEW_S, max(deadline - time.monotonic(), 0)), watch):
        yield


@contextmanager
def leased(what: str, renew: Callable[[float], object], timeout_s: float, setting: str) -> Iterator[None]:
    """As `watched`, and keeps a lease: calls `renew(lease_until)` again and again while the block runs."""

    def renew_again() -> None:
        try:
            renew(time.time() + LEASE_S)
        except TransientError as error:
            log.warning("lease of %s: %s", what, error)

    with watched(what, timeout_s, setting, renew_again):
        yield
