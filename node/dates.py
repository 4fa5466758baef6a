"""Whether the system's date may be believed when it says that something is old. Sets no clock.

A clock that leaps ahead (an empty battery, a wrong time server) makes everything old at once. A node that was
switched off for long looks the same, and loses nothing by waiting for a day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from node.store.keeping import Keeping

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
LEAP_S = 3 * DAY_S
"""A node at work leaves a scan each day: what is further apart is a leap, or time in which it was off."""
TRIED_S = DAY_S
"""For so long the clock goes on after a leap until it is believed: somebody may set it right meanwhile."""


class Dates:
    """For one process. `elapsed` is a clock that nobody sets."""

    def __init__(self, keeping: Keeping, elapsed: Callable[[], float]) -> None:
        self._keeping = keeping
        self._elapsed = elapsed
        self._offset_s: float | None = None
        self._since = elapsed()
        """From then on this process saw no leap."""
        self._told = False

    def are_believed(self, now: float) -> bool:
        """To be asked again and again. Raises TransientError when the database is away."""
        elapsed = self._elapsed()
        if self._offset_s is None or abs(now - elapsed - self._offset_s) > LEAP_S:
            self._since = elapsed
        self._offset_s = now - elapsed
        believed = elapsed - self._since >= TRIED_S or is_tried(self._keeping.scan_times(), now)
        if not believed and not self._told:
            text = "the system's date leapt ahead, or the node was off for more than %.0f days; nothing is "
            log.error(text + "removed for its age within the next day: is the date right?", LEAP_S / DAY_S)
        self._told = not believed
        return believed


def is_tried(times: Iterable[float], now: float) -> bool:
    """Whether the node was at work for a day since the latest leap, by its scans; or there was none."""
    since = now
    for at in sorted((at for at in times if at <= now), reverse=True):
        if since - at > LEAP_S:
            return now - since >= TRIED_S
        since = at
    return True
