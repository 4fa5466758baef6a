"""Whether whoever took a piece of work is gone. Measured by a clock nobody sets; changes no row.

Time in which nobody looked says nothing: while the database was away no lease could be renewed, either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from node.liveness import is_gone

SEEN_SILENT_S = 12.0
"""More than two renewals of a lease that a worker left out."""
MOST_COUNTED_S = 2.0
"""Of the time between two looks."""
LONGEST_LEASE_S = 60.0
"""No lease lasts longer; one that seems to was given before the clock was set back."""


class Leased(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def lease_owner(self) -> str | None: ...

    @property
    def lease_until(self) -> float | None: ...


class LeaseWatch:
    """The leases as last seen, and since when each was not renewed."""

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._looked_at = elapsed()
        self._watched_s = 0.0
        """Of all the time so far."""
        self._seen: dict[int, tuple[tuple[str | None, float | None], float]] = {}

    def look(self, rows: Iterable[Leased]) -> None:
        """At all that is in work; what is not named any more is forgotten."""
        now = self._elapsed()
        self._watched_s += min(now - self._looked_at, MOST_COUNTED_S)
        self._looked_at = now
        self._seen = {row.id: self._look_at(row) for row in rows}

    def is_over(self, row: Leased, now: float) -> bool:
        """Its owner is dead or silent. The system's clock may be set; alone it decides nothing."""
        unrenewed_s = self._watched_s - self._seen[row.id][1]
        ran_out = (row.lease_until or 0) < now
        return is_gone(row.lease_owner or "") or unrenewed_s > (SEEN_SILENT_S if ran_out else LONGEST_LEASE_S)

    def _look_at(self, row: Leased) -> tuple[tuple[str | None, float | None], float]:
        lease = (row.lease_owner, row.lease_until)
        seen, since = self._seen.get(row.id, (lease, self._watched_s))
        return (lease, since) if lease == seen else (lease, self._watched_s)
