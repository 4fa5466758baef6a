"""Sends what is due to each destination and writes down what came of it. Builds and decides nothing else."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node import commitment
from node.domain.errors import OutOfReach, PermanentError, TransientError
from node.nudge import Nudge
from node.retry import LONGEST_BREAK_S, Breaker, back_off_s, is_hopeless
from node.scu import (
    CONNECTION_TIMEOUT_S,
    RESPONSE_TIMEOUT_S,
    AssociationBroke,
    NothingAccepted,
    Outcome,
    Parcel,
    Peer,
)
from node.settings import Destination, Settings
from node.shipment import StreamingPeer
from node.spool import Spool
from node.store.commitments import Asked
from node.store.deliveries import Due, Taken
from node.store.leaders import of_destination
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.25
LEASE_S = 2.0 * (CONNECTION_TIMEOUT_S + 2 * RESPONSE_TIMEOUT_S)
"""Twice the longest silence: connecting, associating, one object."""
BATCH = 100
NOTED_AT_ONCE = 50
NOTED_AFTER_S = 0.2
"""What a destination took is written down in one transaction for so many objects, or after that long."""
MOST_BREAKS = 2
"""A peer that breaks off at one object may take the next; one that does so again is left alone for now."""


class Carrier(Protocol):
    """Whatever can bring objects to a destination, by DIMSE or by DICOMweb."""

    @property
    def name(self) -> str: ...

    def check(self) -> None: ...

    def echo(self) -> None: ...

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]: ...


def carrier_to(destination: Destination, calling_ae: str) -> Carrier:
    """The carrier that the settings of a destination ask for."""
    if not destination.url and destination.sender == "pynetdicom":
        return Peer(destination, calling_ae)
    if not destination.url:
        return StreamingPeer(destination, calling_ae)
    from node.stow import WebPeer  # a node without DICOMweb need not load it

    return WebPeer(destination)


class Courier:
    """Carries the deliveries of one destination. A dead destination delays no other."""

    def __init__(
        self,
        destination: Destination,
        peer: Carrier,
        records: Records,
        spool: Spool,
        moves: Callable[[], object] = lambda: None,
    ) -> None:
        """`moves` is called after each object: a slow batch is at work, and does not hang."""
        self._destination = destination
        self._peer = peer
        self._records = records
        self._spool = spool
        self._moves = moves
        self._breaker = Breaker(destination.retry_base_s)
        self._asked_s = 0.0
        """For how long the destination asked to be left alone."""
        self._leased_until = 0.0
        self._taken: list[Taken] = []
        """…by the destination, and not written down yet."""
        self._noted_at = time.monotonic()

    def pause_s(self) -> float:
        """A round did not reach the destination: how many seconds to leave it alone."""
        asked_s, self._asked_s = min(self._asked_s, LONGEST_BREAK_S), 0.0
        return max(self._breaker.failed(random.random()), asked_s)

    def round(self, now: Callable[[], float] = time.time) -> bool:
        """Send one batch of what is due, or else ask for commitment of what was sent.

        Returns False when the destination could not be reached.
        """
        self._note()
        name = self._destination.name
        self._leased_until = now() + LEASE_S
        batch = self._records.deliveries.take_due(name, now(), self._leased_until, BATCH)
        if batch:
            return self._send(batch, now)
        return self._ask(now) if self._destination.commitment else True

    def _send(self, batch: Sequence[Due], now: Callable[[], float]) -> bool:
        left = {due.id: due for due in batch}
        try:
            files = self._files(batch)
        except OutOfReach as error:  # no fault of the destination, and no attempt
            log.warning("%d deliveries wait: %s", len(batch), error)
            again = now() + back_off_s(0, self._destination, random.random())
            self._records.deliveries.postpone(list(left), str(error), again)
            return True
        self._extend(left, now)  # files may be long in coming
        for _ in range(MOST_BREAKS):
            try:
                self._send_once(left, files, now)
                return True
            except AssociationBroke as error:
                log.warning("%s", error)
                self._write_down(left.pop(error.key), Outcome(error.key, False, "", str(error)), now())
                reason = str(error)
                if not left:
                    return False
                self._leased_until = now() + LEASE_S
                self._records.deliveries.extend(list(left), self._leased_until)
            except TransientError as error:
                log.warning("%d deliveries wait: %s", len(left), error)
                self._asked_s = error.after_s
                for due in left.values():
                    self._write_down(due, Outcome(due.id, False, "", str(error)), now(), error.after_s)
                return False
            except Exception as error:
                if left:
                    self._set_aside(left, error, now)
                raise
        again = now() + back_off_s(0, self._destination, random.random())
        self._records.deliveries.postpone(list(left), reason, again)
        return False

    def _set_aside(self, left: dict[int, Due], error: Exception, now: Callable[[], float]) -> None:
        """What nobody thought of: the object whose turn it was may be why, and holds up no other."""
        suspect = left.pop(next(iter(left)))
        text = f"{type(error).__name__}; see the log of the node"
        self._write_down(suspect, Outcome(suspect.id, False, "broke", text), now())
        self._records.deliveries.postpone(list(left), "another object could not be sent", now())

    def _files(self, batch: Sequence[Due]) -> dict[int, Path]:
        """What is to be sent, at hand, by delivery. A file that is not there, or not whole, opens as such."""
        try:
            found = self._spool.fetch([due.path for due in batch])
        except PermanentError as error:
            log.error("a file that is to be sent cannot be used: %s", error)
            found = [self._one_file(due) for due in batch]
        return {due.id: file for due, file in zip(batch, found, strict=True)}

    def _one_file(self, due: Due) -> Path:
        try:
            (file,) = self._spool.fetch([due.path])
            return file
        except PermanentError:
            return self._spool.absolute(due.path)

    def _send_once(self, left: dict[int, Due], files: dict[int, Path], now: Callable[[], float]) -> None:
        """Over one association; takes out of `left` what got an answer."""
        moved = partial(self._keep, left, now)
        parcels = [Parcel(d.id, files[d.id], d.sop_class_uid, moved) for d in left.values()]
        try:
            self._take_outcomes(parcels, left, now)
        finally:
            self._note()

    def _take_outcomes(
        self, parcels: Sequence[Parcel], left: dict[int, Due], now: Callable[[], float]
    ) -> None:
        for outcome in self._peer.send(parcels):
            self._write_down(left.pop(outcome.key), outcome, now())
            is_due = time.monotonic() - self._noted_at >= NOTED_AFTER_S
            if is_due or len(self._taken) >= NOTED_AT_ONCE or not left:
                self._note()
            if outcome.accepted and self._breaker.answered():
                self._note()
                count = self._records.deliveries.hasten(self._destination.name, now())
                log.info("%s is back; %d deliveries are due", self._peer.name, count)
            self._extend(left, now)

    def _keep(self, left: dict[int, Due], now: Callable[[], float]) -> None:
        """Bytes go out: an object that takes long is no reason for another process to send it, too."""
        self._moves()
        try:
            self._extend(left, now)
        except TransientError as error:  # no reason to break off what is on its way
            log.warning("the lease of %d deliveries is not extended: %s", len(left), error)

    def _extend(self, left: dict[int, Due], now: Callable[[], float]) -> None:
        """The lease of what waits for an answer, or for its turn."""
        if left and self._leased_until - now() < LEASE_S / 2:
            self._records.deliveries.extend(list(left), now() + LEASE_S)
            self._leased_until = now() + LEASE_S

    def _write_down(self, due: Due, outcome: Outcome, now: float, after_s: float = 0.0) -> None:
        """A destination that asks to be left alone for `after_s` is, up to its longest wait."""
        self._moves()
        deliveries = self._records.deliveries
        if outcome.accepted:
            if outcome.text:
                log.warning("%s took %s with %s", self._peer.name, due.sop_instance_uid, outcome.text)
            self._taken.append(Taken(due.id, outcome.status, now))
            return
        self._note()
        if is_hopeless(due, self._destination, now):
            log.error("delivery %d is given up: %s", due.id, outcome.text)
            deliveries.give_up(due.id, outcome.text, outcome.status)
        else:
            patience_s = min(after_s, self._destination.retry_max_s)
            delay = max(back_off_s(due.attempts, self._destination, random.random()), patience_s)
            deliveries.failed(due.id, outcome.text, outcome.status, now + delay)

    def _note(self) -> None:
        """Write down what the destination took. A crash before that sends the same again, under its UID.

        While the database is away it is kept. Raises TransientError.
        """
        if self._taken:
            self._records.deliveries.sent_all(self._taken)
        self._taken, self._noted_at = [], time.monotonic()

    def _ask(self, now: Callable[[], float]) -> bool:
        """Ask the destination to commit to what it took lately."""
        d, peer, commitments = self._destination, self._peer, self._records.commitments
        batch = commitments.to_ask(d.name, now(), d.give_up_h * 3600, now() + LEASE_S, BATCH)
        if not batch or not isinstance(peer, Peer):
            return True
        ids = [due.id for due in batch]
        uid = generate_uid(prefix=None)
        commitments.asked(Asked(uid, d.name, now()))

        def answer(ds: Dataset) -> int:
            return commitment.take_in(ds, self._records, (d,), now())

        try:
            commitment.ask(peer, uid, batch, answer)
        except TransientError as error:
            log.warning("%d deliveries stay without commitment: %s", len(batch), error)
            commitments.wait(ids, now(), d.retry_max_s, str(error))
            return isinstance(error, NothingAccepted)  # it is there, and new results need not wait
        commitments.wait(ids, now(), d.commitment_wait_s, "storage commitment is asked for, no answer yet")
        return True


def run(
    courier: Courier,
    stopping: Callable[[float], bool],
    leads: Callable[[], bool] = lambda: True,
    nudge: Nudge | None = None,
) -> None:
    """Carry while it `leads`, until `stopping(seconds)` says so; after a failure wait the courier's pause.

    A `nudge` says that there may be something to carry; it ends no pause. Whatever goes wrong is written to
    the log: a courier that ended would leave its destination in silence.
    """
    waiting = nudge.waiting(stopping) if nudge else stopping
    wait_s = TICK_S
    while not (waiting if wait_s == TICK_S else stopping)(wait_s):
        try:
            wait_s = TICK_S if not leads() or courier.round() else courier.pause_s()
        except TransientError as error:
            log.error("delivering waits: %s", error)
            wait_s = courier.pause_s()
        except Exception:
            log.exception("delivering broke; it goes on")
            wait_s = courier.pause_s()


def start_couriers(
    settings: Settings,
    records: Records,
    spool: Spool,
    stopping: Callable[[float], bool],
    leads: Callable[[str], bool] = lambda name: True,
    nudge: Nudge | None = None,
) -> list[threading.Thread]:
    """One thread for each destination, at work while this process `leads` there; a `nudge` makes them look.

    Raises SettingsError when one of them cannot be spoken to at all.
    """
    carriers = [(d, carrier_to(d, settings.scp.ae_title)) for d in settings.destination]
    for _, carrier in carriers:
        carrier.check()
    threads = []
    for destination, carrier in carriers:
        leads_here = partial(leads, of_destination(destination.name))
        courier = Courier(destination, carrier, records, spool, leads_here)
        thread = threading.Thread(
            target=run,
            args=(courier, stopping, leads_here, nudge),
            name=f"deliver-{destination.name}",
            daemon=True,
        )
        thread.start()
        threads.append(thread)
    return threads
