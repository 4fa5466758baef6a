"""Who leads, where several processes could do the same: the clock, housekeeping, composing, a destination.

A leader renews a row; who waits takes it once the row stood still, or its holder is dead. Time is measured
by clocks that nobody sets, and each side by its own: a leader that could not renew for STEP_DOWN_S stops by
itself, before anybody else begins after SILENT_S. What is led is safe to do twice all the same: every change
of a state is guarded in the database. So a leader spares double work and storms, and guards no truth.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from node.domain.errors import TransientError
from node.liveness import is_gone, process_name
from node.store.leaders import Lead
from node.store.records import Records

log = logging.getLogger(__name__)

LOOK_S = 2.0
STEP_DOWN_S = 8.0
SILENT_S = 12.0
HANGS_S = 300.0
"""A leader whose work did not ask for so long whether it still leads hangs, and lets others go on."""


class Candidate:
    """One process and what it would lead. `took(name, before)` is called when it takes over from a holder."""

    def __init__(
        self,
        records: Records,
        names: Collection[str],
        *,
        took: Callable[[str, str], None] = lambda name, before: None,
        holder: str = "",
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._names = tuple(names)
        self._took = took
        self._holder = holder or process_name()
        self._elapsed = elapsed
        self._held: dict[str, Lead] = {}
        self._renewed: dict[str, float] = {}
        """When the last renewal that succeeded was begun."""
        self._asked: dict[str, float] = {}
        self._seen: dict[str, tuple[Lead, float]] = {}
        """What others hold, and since when it stood like this."""

    def leads(self, name: str) -> bool:
        """Ask before each round of work; asking is also the sign that the work goes on."""
        now = self._elapsed()
        self._asked[name] = now
        return name in self._held and now - self._renewed[name] < STEP_DOWN_S

    def leading(self) -> list[str]:
        """What it leads at the moment, in words for people."""
        now = self._elapsed()
        return sorted(n for n in self._held if now - self._renewed.get(n, -STEP_DOWN_S) < STEP_DOWN_S)

    def look(self, now: float) -> None:
        """Renew what is held, and take what nobody holds any more. Raises TransientError."""
        self._renew()
        rows = self._records.leaders.all()
        for name in self._names:
            if name not in self._held and not self._hangs(name):
                self._stand_for(name, rows.get(name), now)

    def _renew(self) -> None:
        began = self._elapsed()
        hanging = {name: lead for name, lead in self._held.items() if self._hangs(name)}
        for name in hanging:
            log.critical("%s did nothing for %.0f s; another process may take over", name, HANGS_S)
            del self._held[name]
        self._records.leaders.resign(list(hanging.values()))
        if not self._held:
            return
        kept = {lead.name: lead for lead in self._records.leaders.renew(list(self._held.values()))}
        for name in self._held.keys() - kept.keys():
            log.warning("%s was taken over by another process", name)
        self._renewed = {**self._renewed, **dict.fromkeys(kept, began)}
        self._held = kept

    def _hangs(self, name: str) -> bool:
        asked = self._asked.setdefault(name, self._elapsed())
        return self._elapsed() - asked > HANGS_S

    def _stand_for(self, name: str, row: Lead | None, now: float) -> None:
        if not self._is_free(name, row):
            return
        began = self._elapsed()
        lead = self._records.leaders.take(name, row, self._holder, now)
        if lead is None:
            return
        before = row.holder if row else ""
        if before:
            log.warning("%s is gone or silent; this process leads %s from now on", before, name)
            self._took(name, before)
        else:
            log.info("this process leads %s", name)
        self._renewed[name] = began
        self._held[name] = lead  # last: from now on `leads` says yes

    def _is_free(self, name: str, row: Lead | None) -> bool:
        if row is None or not row.holder:
            return True
        seen, since = self._seen.get(name, (row, self._elapsed()))
        self._seen[name] = (row, since if row == seen else self._elapsed())
        return is_gone(row.holder) or self._elapsed() - self._seen[name][1] > SILENT_S

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Look again and again while the block runs; leave what is held to others at its end."""
        over = threading.Event()

        def look_again() -> None:
            away = False
            while True:
                try:
                    self.look(time.time())
                    away = False
                except TransientError as error:
                    log.log(logging.DEBUG if away else logging.WARNING, "who leads cannot be told: %s", error)
                    away = True
                except Exception:  # a thread that ended would leave all it leads to nobody, in silence
                    log.exception("looking who leads broke; it goes on")
                if over.wait(LOOK_S):
                    return

        thread = threading.Thread(target=look_again, name="leadership", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=2)
            with suppress(TransientError):
                self._records.leaders.resign(list(self._held.values()))
