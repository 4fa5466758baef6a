"""Sends what waits in the audit queue to the repository of the settings, again and again until it is taken.

Never in anybody's way: a repository that is down costs only the time until it hears of what happened.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from node.audit import messages, syslog
from node.audit.messages import About, Peer, Reporter
from node.domain.errors import TransientError
from node.settings import Destination, Settings
from node.store.audit_queue import Event, Queued
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 1.0
BATCH = 200
LEASE_S = 60.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


class Forwarder:
    """One for each process that forwards; a lease in the database keeps two of them apart."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self._repository = settings.audit
        self._queue = records.audit_queue
        self._host = socket.gethostname()
        source = self._repository.source or self._host
        self._reporter = Reporter(source, settings.scp.ae_title.strip(), self._host, self._repository.site)
        self._destinations = {d.name: d for d in settings.destination}
        self._failures = 0

    def round(self, now: float) -> float:
        """Send one batch. Returns how many seconds to leave the repository alone."""
        batch = self._queue.take(now, now + LEASE_S, BATCH)
        if not batch:
            return TICK_S
        ids = [queued.id for queued in batch]
        try:
            syslog.send(self._repository, [self._line(queued) for queued in batch], self._host)
        except TransientError as error:
            self._failures += 1
            pause_s = min(SHORTEST_PAUSE_S * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE_S)
            log.error("%d audit messages wait: %s; again in %.0f s", len(batch), error, pause_s)
            self._queue.failed(ids, str(error), now + pause_s)
            return pause_s
        self._failures = 0
        self._queue.sent(ids)
        return 0.0 if len(batch) == BATCH else TICK_S

    def _line(self, queued: Queued) -> syslog.Line:
        event = queued.event
        about = About(queued.patient_id, queued.patient_name, queued.accession_number)
        content = messages.build(event, self._reporter, about, self._peer(event))
        return syslog.Line(event.at, content, event.action in messages.FAILURES)

    def _peer(self, event: Event) -> Peer | None:
        """Of what was sent only the name of the destination is on record."""
        destination = self._destinations.get(event.who) if event.action == "sent" else None
        return _peer_of(destination) if destination else None


def _peer_of(destination: Destination) -> Peer:
    return Peer(destination.ae_title or destination.name, destination.url or destination.host)


def run(forwarder: Forwarder, stopping: Callable[[float], bool]) -> None:
    """Forward until `stopping(seconds)` says so. Whatever goes wrong is logged, and tried again."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            wait_s = forwarder.round(time.time())
        except TransientError as error:
            log.error("audit messages wait: %s", error)
            wait_s = SHORTEST_PAUSE_S
        except Exception:
            log.exception("sending audit messages broke; it goes on")
            wait_s = LONGEST_PAUSE_S
