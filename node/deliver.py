"""Sends what is due to each destination and writes down what came of it. Builds and decides nothing else."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from node.domain.errors import TransientError
from node.scu import Outcome, Parcel, Peer
from node.settings import Destination, Settings
from node.spool import Spool
from node.store.deliveries import Due
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.25
LEASE_S = 90
BATCH = 100


class Courier:
    """Carries the deliveries of one destination. A dead destination delays no other."""

    def __init__(self, destination: Destination, peer: Peer, records: Records, spool: Spool) -> None:
        self._destination = destination
        self._peer = peer
        self._records = records
        self._spool = spool

    def round(self, now: Callable[[], float] = time.time) -> bool:
        """Send one batch of what is due. Returns False when the destination could not be reached."""
        name = self._destination.name
        batch = self._records.deliveries.take_due(name, now(), now() + LEASE_S, BATCH)
        if not batch:
            return True
        left = {due.id: due for due in batch}
        parcels = [Parcel(d.id, self._spool.absolute(d.path), d.sop_class_uid) for d in batch]
        leased_until = now() + LEASE_S
        try:
            for outcome in self._peer.send(parcels):
                self._write_down(left.pop(outcome.key), outcome, now())
                if left and leased_until - now() < LEASE_S / 2:
                    leased_until = now() + LEASE_S
                    self._records.deliveries.extend(list(left), leased_until)
        except TransientError as error:
            log.warning("%d deliveries wait: %s", len(left), error)
            for due in left.values():
                self._write_down(due, Outcome(due.id, False, "", str(error)), now())
            return False
        return True

    def _write_down(self, due: Due, outcome: Outcome, now: float) -> None:
        deliveries = self._records.deliveries
        if outcome.accepted:
            if outcome.text:
                log.warning("%s took %s with %s", self._peer.name, due.sop_instance_uid, outcome.text)
            deliveries.sent(due.id, outcome.status, now)
        elif is_hopeless(due, self._destination, now):
            log.error("delivery %d is given up: %s", due.id, outcome.text)
            deliveries.give_up(due.id, outcome.text, outcome.status)
        else:
            delay = back_off_s(due.attempts, self._destination, random.random())
            deliveries.failed(due.id, outcome.text, outcome.status, now + delay)


def back_off_s(attempts: int, destination: Destination, chance: float) -> float:
    """Doubling from retry_base_s to retry_max_s; `chance` in 0…1 spreads tries over the upper half."""
    longest = min(destination.retry_base_s * 2 ** min(attempts, 30), destination.retry_max_s)
    return longest * (0.5 + 0.5 * chance)


def is_hopeless(due: Due, destination: Destination, now: float) -> bool:
    """A positive result is never given up."""
    return not due.urgent and now - due.created_at > destination.give_up_h * 3600


def run(courier: Courier, pause_s: float, stopping: Callable[[float], bool]) -> None:
    """Carry until `stopping(seconds)` says so; after a failure wait `pause_s` before trying another batch.

    Whatever goes wrong is written to the log: a courier that ended would leave its destination in silence.
    """
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            wait_s = TICK_S if courier.round() else pause_s
        except TransientError as error:
            log.error("delivering waits: %s", error)
            wait_s = pause_s
        except Exception:
            log.exception("delivering broke; it goes on")
            wait_s = pause_s


def start_couriers(
    settings: Settings, records: Records, spool: Spool, stopping: Callable[[float], bool]
) -> list[threading.Thread]:
    """One thread for each destination."""
    threads = []
    for destination in settings.destination:
        courier = Courier(destination, Peer(destination, settings.scp.ae_title), records, spool)
        thread = threading.Thread(
            target=run,
            args=(courier, destination.retry_base_s, stopping),
            name=f"deliver-{destination.name}",
            daemon=True,
        )
        thread.start()
        threads.append(thread)
    return threads
