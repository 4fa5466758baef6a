"""Looks now and then whether what the scanners send and what the model says still looks as it used to.

Runs beside the clock; changes nothing but its own notes, and may be run by several processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from node.quality.counts import FEATURES
from node.quality.drift import shifts
from node.settings import Drift
from node.store.records import Records

log = logging.getLogger(__name__)

LOOK_EVERY_S = 600.0
STILL_USED_S = 30 * 86400.0
"""A scanner of which nothing came for longer is no longer judged."""


def reference_start(drift: Drift) -> float:
    """When the reference may begin, in local time."""
    begin = drift.reference_from
    return datetime(begin.year, begin.month, begin.day).timestamp() if begin else 0.0


def look(records: Records, drift: Drift, now: float) -> None:
    """Judge every scanner in use. Raises TransientError when the database is away."""
    used = sorted(records.drifts.scanners(now - STILL_USED_S))
    before = {(row["scanner"], row["feature"]) for row in records.drifts.drifting()}
    sizes = (drift.reference_studies, drift.recent_studies)
    for scanner in used:
        sides = records.drifts.sides(scanner, sizes, reference_start(drift))
        found = shifts(*sides) if sides else []
        records.drifts.store(scanner, found, now)
        for shift in found:
            if shift.drifted and (scanner, shift.feature) not in before:
                what = f"{FEATURES[shift.feature]} was {shift.before}, is {shift.after}"
                log.warning("drift of %s: %s; see the page Quality", scanner, what)
    records.drifts.forget_others(used)


class Watch:
    """Looks when its time has come, by a clock that nobody sets."""

    def __init__(self, records: Records, drift: Drift, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._drift = drift
        self._elapsed = elapsed
        self._next = elapsed()

    def round(self, now: float) -> None:
        if self._elapsed() >= self._next:
            self._records.pairs.count_days(now)
            look(self._records, self._drift, now)
            self._next = self._elapsed() + LOOK_EVERY_S
