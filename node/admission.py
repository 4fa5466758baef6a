"""The door of the listener: asks node.domain.admission, and writes down whom it refused. Knows no PDU.

A refusal goes to the log and to the audit trail, but the same one at most once a minute, with its count.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from node import transport
from node.domain.admission import Caller, Refusal, RefusalNotes, Rules, refuse, refuse_address
from node.domain.errors import TransientError
from node.store.audit import REFUSED_PEER, Actor
from node.store.records import Records

log = logging.getLogger(__name__)


class Doorman:
    """One for each listener process; may be asked by many threads at once."""

    def __init__(self, rules: Rules, records: Records, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._records = records
        self._elapsed = elapsed
        self._notes = RefusalNotes()
        self._lock = threading.Lock()

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
        try:
            detail = f"{refusal.code}: {refusal.text}{times}"
            self._records.audit.write(actor, REFUSED_PEER, time.time(), detail=detail)
        except TransientError as error:
            log.error("the refusal is not in the audit trail: %s", error)
