"""Heartbeats of a worker process: what it has loaded, or why it cannot work. Claims nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from node.domain.errors import TransientError
from node.liveness import process_name
from node.store.records import Records

log = logging.getLogger(__name__)

BEAT_S = 5.0
LEAVE_WITHIN_S = 2.0
REFUSES = "refuses"
"""Key of a heartbeat's detail: why this process takes no work."""


class Pulse:
    """One row, renewed by a thread of its own until `stop`."""

    def __init__(self, records: Records, role: str, detail: Callable[[], Mapping[str, Any]]) -> None:
        self.name = f"{role}@{process_name()}"
        self._records = records
        self._role = role
        self._detail = detail
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def once(self) -> None:
        try:
            self._records.views.beat(self.name, self._role, self._detail(), time.time())
        except TransientError as error:
            log.warning("heartbeat: %s", error)

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():  # a beat on its way would bring the row back
            self._thread.join(LEAVE_WITHIN_S)
        self._records.views.part(self.name)

    def _beat_forever(self) -> None:
        while True:
            try:
                self.once()
            except Exception:
                log.exception("heartbeat broke; it goes on")
            if self._over.wait(BEAT_S):
                return
