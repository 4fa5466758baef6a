"""The door of the listener: asks node.domain.admission, and writes down whom it refused. Knows no PDU.

A refusal goes to the log and to the audit trail, but the same one at most once a minute, with its count. The
trail is written in a thread of its own: however long that takes, nobody waits for it at the door.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from node import transport
from node.domain.admission import Caller, Refusal, RefusalNotes, Rules, refuse, refuse_address
from node.domain.errors import TransientError
from node.store.audit import REFUSED_PEER, Actor
from node.store.records import Records

log = logging.getLogger(__name__)

MOST_UNWRITTEN = 1000
"""Refusals that wait for the trail; beyond them the log alone has them."""
Line = tuple[Actor, float, str]
"""Who was refused, when, and why."""


class Doorman:
    """One for each listener process; may be asked by many threads at once."""

    def __init__(self, rules: Rules, records: Records, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._records = records
        self._elapsed = elapsed
        self._notes = RefusalNotes()
        self._lock = threading.Lock()
        self._unwritten: queue.Queue[Line | None] = queue.Queue(MOST_UNWRITTEN)
        self._writer: threading.Thread | None = None

    def close(self, within_s: float) -> None:
        """Wait, but not for longer, until the trail has what was refused so far."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(queue.Full):
                self._unwritten.put(None, timeout=within_s)
                writer.join(within_s)

    def knows(self, address: str) -> bool:
        """Whether to listen at all to who connects from there."""
        refusal = refuse_address(self._rules, address)
        if refusal is not None:
            self._note(Caller(address, "", ""), refusal)
        return refusal is None

    def has_room(self, in_all: int, of_peer: int) -> bool:
        """Whether one more is let in: some more than associations are, so that one too many is told why."""
        spare = transport.SPARE_CONNECTIONS
        room = in_all < self._rules.max_associations + spare
        return room and of_peer < self._rules.of_one_peer + math.ceil(spare / 2)

    def refuse(self, caller: Caller, open_in_all: int, open_of_peer: int) -> Refusal | None:
        """None for a caller that may come in; else what to answer. The counts are without this one."""
        refusal = refuse(self._rules, caller, open_in_all, open_of_peer)
        if refusal is not None:
            self._note(caller, refusal)
        return refusal

    def _note(self, caller: Caller, refusal: Refusal) -> None:
        with self._lock:
            count = self._notes.count(caller.address, refusal.code, self._elapsed())
        if not count:
            return
        name = f"{caller.calling_ae.strip()!r} at {caller.address}" if caller.calling_ae else caller.address
        times = f" ({count} times since the last note)" if count > 1 else ""
        log.warning("refused %s: %s: %s%s", name, refusal.code, refusal.text, times)
        actor = Actor(caller.calling_ae.strip() or "unknown", "", caller.address)
        self._write_down((actor, time.time(), f"{refusal.code}: {refusal.text}{times}"))

    def _write_down(self, line: Line) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="refusals", daemon=True)
                self._writer.start()
        try:
            self._unwritten.put_nowait(line)
        except queue.Full:
            log.error("the refusal is not in the audit trail: %d wait for it already", MOST_UNWRITTEN)

    def _write(self) -> None:
        while (line := self._unwritten.get()) is not None:
            actor, at, detail = line
            try:
                self._records.audit.write(actor, REFUSED_PEER, at, detail=detail)
            except TransientError as error:
                log.error("the refusal is not in the audit trail: %s", error)
            except Exception:
                log.exception("the refusal is not in the audit trail: %s", detail)
