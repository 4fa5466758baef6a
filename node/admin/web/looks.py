"""Which looks at patient data have their line in the trail already. Writes none itself.

A page that refreshes itself every few seconds leaves one line when it is opened and one an hour after that.
What a request says of itself is not believed: a refresh of what was never opened is a look like any other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from threading import Lock

LASTS_S = 3600.0
"""After so long the same eyes on the same thing are a look of their own."""


class Looks:
    def __init__(self) -> None:
        self._noted: dict[Hashable, float] = {}
        self._lock = Lock()

    def goes_on(self, look: Hashable, now: float) -> bool:
        """Whether the trail has a recent line of it; `now`: s, on a clock that never goes back."""
        with self._lock:
            return now - self._noted.get(look, -LASTS_S) < LASTS_S

    def noted(self, looks: Iterable[Hashable], now: float) -> None:
        """The trail has a line of them now."""
        with self._lock:
            self._noted = {one: at for one, at in self._noted.items() if now - at < LASTS_S}
            self._noted |= dict.fromkeys(looks, now)
