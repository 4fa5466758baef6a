"""Puts what was analysed in line for the shadow model, and rings for it. Decides on no study.

It waits for whatever the active model still has to do, and is bounded: in number, in time and in attempts.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from node.broker import Doorbell
from node.domain.errors import TransientError
from node.domain.findings import ModelIdentity, Reason
from node.leases import LeaseWatch
from node.settings import Settings
from node.store.records import Records
from node.store.shadows import BACKLOG, NOT_DRAWN, Drawn, ShadowModel

log = logging.getLogger(__name__)

ROLE = "shadow-worker"
TICK_S = 2.0
PAUSE_S = 15.0
RING_AGAIN_S = 60.0
AT_ONCE = 4
"""Doorbells rung in one round: a worker that heard one takes the oldest, so more would only lie in Redis."""
HOUR_S = 3600.0


class Shadowing:
    """One round after another."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        doorbell: Doorbell,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings.shadow
        self._records = records
        self._doorbell = doorbell
        self._leases = LeaseWatch(elapsed)

    def round(self, now: float) -> None:
        """Raises TransientError when the database is away."""
        self._recover(now)
        model = living(self._records, now)
        if model is None:
            return
        oldest = now - self._settings.max_age_h * HOUR_S
        if count := self._records.shadows.leave_out(model.identity.sha256, oldest, now):
            log.warning("%d series are not read in the shadow: too late, or the model changed", count)
        self._line_up(model, oldest, now)
        self._ring(now)

    def _line_up(self, model: ShadowModel, oldest: float, now: float) -> None:
        shadows = self._records.shadows
        waiting, left_out = shadows.waiting(), 0
        for drawn in shadows.unread(model.identity.sha256, oldest):
            why = self._why_not(drawn, waiting)
            if shadows.want(model, drawn, why, now):
                waiting += why is None
                left_out += why is BACKLOG
        if left_out:
            log.warning("%d series are not read in the shadow: %d wait already", left_out, waiting)

    def _why_not(self, drawn: Drawn, waiting: int) -> Reason | None:
        if place_of(drawn) >= self._settings.share:
            return NOT_DRAWN
        return BACKLOG if waiting >= self._settings.max_backlog else None

    def _recover(self, now: float) -> None:
        """A worker that went silent loses what it read; what takes workers down is given up."""
        running = self._records.shadows.running()
        self._leases.look(running)
        for taken in running:
            over = self._leases.is_over(taken, now)
            if over and self._records.shadows.lost(taken, self._settings.max_attempts, now):
                log.warning("shadow reading %d of job %d lost its worker", taken.id, taken.job_id)

    def _ring(self, now: float) -> None:
        for number in self._records.shadows.to_ring(now - RING_AGAIN_S, AT_ONCE):
            try:
                self._doorbell.ring_shadow(number)
            except TransientError as error:
                log.warning("cannot ring for shadow reading %d, trying again: %s", number, error)
                return
            self._records.shadows.rung(number, now)


def place_of(drawn: Drawn) -> float:
    """0 to 1, by the series' UID alone: below the share it is read, on every host and after every restart."""
    digest = hashlib.sha256(drawn.series_instance_uid.encode("utf-8", "surrogatepass")).digest()
    return float(int.from_bytes(digest[:6], "big")) / 256**6


def living(records: Records, now: float) -> ShadowModel | None:
    """The model that a living shadow worker has loaded; of several the one that started last."""
    loaded = [p for p in records.views.processes(now) if p["role"] == ROLE and p["alive"] and is_loaded(p)]
    if not loaded:
        return None
    detail = max(loaded, key=lambda p: float(p["started_at"]))["detail"]
    return ShadowModel(
        detail["pipeline"], ModelIdentity(detail["model"], detail["version"], detail["sha256"])
    )


def is_loaded(process: dict[str, Any]) -> bool:
    """By its heartbeat."""
    return {"pipeline", "model", "version", "sha256"} <= process["detail"].keys()


def run(
    shadowing: Shadowing, stopping: Callable[[float], bool], leads: Callable[[], bool] = lambda: True
) -> None:
    """While it `leads`, until `stopping(seconds)` says so. What goes wrong is tried again."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            if leads():
                shadowing.round(time.time())
            wait_s = TICK_S
        except TransientError as error:
            log.error("the shadow waits: %s", error)
            wait_s = PAUSE_S
        except Exception:
            log.exception("the shadow broke; it goes on")
            wait_s = PAUSE_S
