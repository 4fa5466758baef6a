"""Keeps house beside the clock: the scan at start, room on the disk, listeners that fell silent, wrong times.

Nothing here is on the way of a study; all of it can be done again, and by several processes, without harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from node.contained import contained
from node.dates import Dates
from node.domain.errors import TransientError
from node.liveness import is_gone, is_visible
from node.retention import DAY_S, Retention
from node.scan import Scan, close_associations_of
from node.settings import Settings
from node.spool import Spool
from node.store.records import Records
from node.watch import Watch

log = logging.getLogger(__name__)

TICK_S = 5.0
PAUSE_S = 15.0
SCAN_EVERY_S = DAY_S
SILENT_S = 60.0
"""A listener whose heartbeat stood still for so long is over, wherever it ran."""
SWEEP_AFTER_S = 7 * DAY_S
KEEP_ORDERS_S = 30 * DAY_S
"""An order that met no study for so long is forgotten."""
KEEP_COMPARISONS_S = 30 * DAY_S
"""A comparison with an archive that was made so long ago, and what is missing no longer."""
LONGEST_LEASE_S = 600.0


class Housekeeper:
    """One round after another. Time that passes is measured by a clock that nobody sets."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        spool: Spool,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._spool = spool
        self._scan = Scan(records, spool)
        self._retention = Retention(settings, records, spool)
        waits_s = [max(d.retry_max_s, d.commitment_wait_s) for d in settings.destination]
        waits_s += [alert.retry_max_s for alert in settings.alert]
        self._longest_wait_s = max(waits_s, default=0.0)
        self._watch = Watch(records, settings.drift, elapsed)
        self._dates = Dates(records.keeping, elapsed)
        self._elapsed = elapsed
        self._next_scan = elapsed()
        self._next_sweep = elapsed()
        self._heard: dict[str, tuple[float | None, float]] = {}

    def round(self, now: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Raises TransientError when the database, or the bucket, is away."""
        self._close_silent_listeners(now)
        self._release_leases_of_the_dead()
        if count := self._records.keeping.undo_the_future(now, self._longest_wait_s, LONGEST_LEASE_S):
            log.warning("the system's clock was set back: %d rows that lay in the future are due now", count)
        old_counts = self._dates.are_believed(now)
        if old_counts and self._elapsed() >= self._next_sweep:
            self._records.keeping.sweep(now - SWEEP_AFTER_S)
            self._records.orders.forget(now - KEEP_ORDERS_S)
            self._records.gaps.sweep(now - KEEP_COMPARISONS_S)
            self._next_sweep = self._elapsed() + SCAN_EVERY_S
        self._retention.finish()  # a scan would take what is left of a removal for new
        if self._elapsed() >= self._next_scan:
            with contained(log, "the scan of the spool broke; it is done again in a day"):
                self._scan.run(stopping)
            self._next_scan = self._elapsed() + SCAN_EVERY_S
        self._retention.round(now, by_age=old_counts)
        self._watch.round(now)  # last: what goes wrong in statistics must not fill the disk

    def _release_leases_of_the_dead(self) -> None:
        """What a killed deliverer had taken is sent at once, not when its lease runs out."""
        for owner in filter(is_gone, self._records.deliveries.lease_owners()):
            count = self._records.deliveries.release(owner)
            log.warning("%s is gone; the %d deliveries it had taken are due again", owner, count)
        for owner in filter(is_gone, self._records.alerts.lease_owners()):
            count = self._records.alerts.release(owner)
            log.warning("%s is gone; the %d alerts it had taken are due again", owner, count)

    def _close_silent_listeners(self, now: float) -> None:
        """What a listener that is gone left open in the records is over; so of a deliverer, by C-GET."""
        open_ones = self._records.arrivals.open_listeners()
        if not open_ones:
            self._heard.clear()
            return
        processes = self._records.views.processes(now)
        seen_at = {p["process"].partition("@")[2]: p["seen_at"] for p in processes}
        before, at = self._heard, self._elapsed()
        self._heard = {}
        for listener in open_ones:
            beat = seen_at.get(listener)
            last, since = before.get(listener, (beat, at))
            self._heard[listener] = (beat, since if beat == last else at)
            silent = at - self._heard[listener][1] > SILENT_S and not is_visible(listener)
            if silent or is_gone(listener):
                log.warning("listener %s is gone; what it had open is closed as aborted", listener)
                close_associations_of(listener, self._records, self._spool)


def run(
    housekeeper: Housekeeper,
    stopping: Callable[[float], bool],
    leads: Callable[[], bool] = lambda: True,
) -> None:
    """Keep house while it `leads`, until `stopping(seconds)` says so. What goes wrong is tried again."""
    wait_s = 0.0
    while not stopping(wait_s):
        try:
            if leads():
                housekeeper.round(time.time(), lambda: stopping(0) or not leads())
            wait_s = TICK_S
        except TransientError as error:
            log.error("housekeeping waits: %s", error)
            wait_s = PAUSE_S
        except Exception:
            log.exception("housekeeping broke; it goes on")
            wait_s = PAUSE_S
