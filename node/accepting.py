"""Accepts connections, also where descriptors run out, which takes few lines. Speaks to no peer."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

TELL_EVERY_S = 60.0
RETRY_S = 0.1
"""As long as it lasts the socket stays readable: without a pause the attempts take a core."""


class Accepting:
    """For one thread. The first failure is told, then one a period with the count since, then the end."""

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._told_at = -math.inf
        self._held_back = 0
        self._fails = False

    def accept(self, listening: socket.socket) -> tuple[socket.socket, Any]:
        """Connection and address. Raises OSError where there is none: another process was quicker, or why
        none could be accepted, after a pause.
        """
        try:
            accepted = listening.accept()
        except BlockingIOError:
            raise
        except OSError as error:
            self._note(error)
            time.sleep(RETRY_S)
            raise
        if self._fails:
            log.warning("connections are accepted again")
            self._fails = False
        return accepted

    def _note(self, error: OSError) -> None:
        now = self._elapsed()
        self._held_back += 1
        if now - self._told_at < TELL_EVERY_S:
            return
        since = f" ({self._held_back} times since the last note)" if self._held_back > 1 else ""
        log.error("no connection can be accepted: %s%s; it is tried again", error.strerror or error, since)
        self._told_at, self._held_back, self._fails = now, 0, True
