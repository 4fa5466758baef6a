"""The streaming listener: C-STORE, C-ECHO and N-EVENT-REPORT on the upper layer of `node.dul`.

Decides nothing. A thread for each connection; one that waits costs no CPU. Data sets go from the socket's
buffer to disk through `node.intake`, and nothing as large as an image is ever held in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

from pydicom.uid import UID
from pynetdicom.dsutils import decode

from node import commitment
from node.accepting import Accepting
from node.admission import Doorman
from node.dimse.command import C_ECHO_RQ, C_STORE_RQ, EVENT_TYPE, N_EVENT_REPORT_RQ
from node.dimse.conversation import (
    NO_SUCH_SOP_CLASS,
    SOP_CLASS_NOT_SUPPORTED,
    Answer,
    Conversation,
    Fixed,
    Gathered,
    Request,
    Sink,
)
from node.domain.admission import Caller, Refusal
from node.domain.errors import TransientError
from node.dul.association import Association, ProtocolError, address_of
from node.dul.negotiation import acceptance, refusal
from node.dul.pdu import AssociateAccept, AssociateReject, AssociateRequest
from node.intake import OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS, Arrival, Intake
from node.liveness import process_name
from node.offer import STORAGE_COMMITMENT, VERIFICATION, offer
from node.settings import Settings
from node.store.records import Records
from node.visits import Visit
from node.wholeness import Announced

log = logging.getLogger(__name__)

STOP_WITHIN_S = 2.0
WAIT_S, MOST_WAIT_S = 0.002, 0.02
"""For each association that this process has, before it takes another: one that has fewer comes first."""


class Receiver:
    """One listener process' share of the SCP."""

    def __init__(
        self, settings: Settings, records: Records, intake: Intake, tls: ssl.SSLContext | None = None
    ) -> None:
        self.settings, self.records, self.intake = settings, records, intake
        self.offer = offer()
        self.doorman = Doorman(settings.scp.admission, records)
        self.name = process_name()
        self._tls = tls
        self._threads: dict[threading.Thread, Association] = {}
        self._admitted: set[Association] = set()
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._accepting: threading.Thread | None = None

    def start(self, listening: socket.socket) -> None:
        """Serve on `listening` in threads, until `stop`."""
        self._accepting = threading.Thread(target=self._accept, args=(listening,), name="scp", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Accept no more, abort what is open, and wait a moment for it to end."""
        os.eventfd_write(self._wake, 1)
        if self._accepting is not None:
            self._accepting.join(STOP_WITHIN_S)
        with self._lock:
            threads = dict(self._threads)
        for association in threads.values():
            association.stop()
        deadline = time.monotonic() + STOP_WITHIN_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self.doorman.close(STOP_WITHIN_S)

    def admit(self, association: Association) -> Refusal | None:
        """Give the association a place among those that are open; or say why not."""
        asked = association.request
        caller = Caller(association.address, asked.calling_ae, asked.called_ae)
        with self._lock:  # one after another, or several would take the last place
            peers = [other.address for other in self._admitted]
            refusal = self.doorman.refuse(caller, len(peers), peers.count(caller.address))
            if refusal is None:
                self._admitted.add(association)
        return refusal

    def _accept(self, listening: socket.socket) -> None:
        poller, door = select.poll(), Accepting()
        poller.register(listening, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not any(descriptor == self._wake for descriptor, _ in poller.poll()):
            time.sleep(min(len(self._threads) * WAIT_S, MOST_WAIT_S))
            try:
                connection, _ = door.accept(listening)
            except OSError:  # another process was quicker, or there are no descriptors left
                continue
            try:
                self._serve(connection)
            except Exception:  # reset already, or no thread for it: the next one is served
                log.exception("a connection cannot be served")
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """In a thread of its own; a stranger, and what is beyond all limits, is closed at once."""
        if not self._lets_in(address_of(connection)):
            connection.close()
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:  # the handshake waits for the thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        peer = Peer(self)
        association = Association(connection, peer, self.settings.scp.timeout_s)
        peer.association = association
        thread = threading.Thread(
            target=self._run, args=(association, connection), name="association", daemon=True
        )
        with self._lock:  # which it needs at its end
            thread.start()
            self._threads[thread] = association

    def _lets_in(self, address: str) -> bool:
        """Some connections more than associations are let in, so that one too many is told why."""
        with self._lock:
            peers = [association.address for association in self._threads.values()]
        return self.doorman.knows(address) and self.doorman.has_room(len(peers), peers.count(address))

    def _run(self, association: Association, connection: socket.socket) -> None:
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(self.settings.scp.timeout_s)
                connection.do_handshake()
            association.run()
        except OSError as error:
            log.warning("no TLS with %s: %s", address_of(connection), error)
        except Exception:
            log.exception("an association with %s failed", association.peer)
        finally:
            connection.close()
            with self._lock:
                self._admitted.discard(association)
                del self._threads[threading.current_thread()]


class Peer:
    """The user of one association: a `node.dul.association.User`."""

    association: Association

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        services: dict[int, Callable[[Request], Sink]] = {
            C_ECHO_RQ: self._echo,
            C_STORE_RQ: self._store,
            N_EVENT_REPORT_RQ: self._report,
        }
        self._conversation = Conversation(services)
        self._recorder = receiver.intake.recorder
        self._visit = self._visit_of("", "")

    def decide(self, request: AssociateRequest) -> AssociateAccept | AssociateReject:
        if (reject := refusal(request)) is not None:
            return reject
        refused = self._receiver.admit(self.association)
        if refused is not None:
            return AssociateReject(refused.result, refused.source, refused.diagnostic)
        return acceptance(request, self._receiver.offer)

    def established(self, association: Association) -> None:
        self._visit = self._visit_of(association.request.calling_ae, association.address)

    def fragment(self, context_id: int, control: int, pieces: Iterable[memoryview | bytes]) -> None:
        self._conversation.fragment(self.association, context_id, control, pieces)

    def before_refill(self) -> None:
        self._conversation.flush()

    def releasing(self) -> None:
        with contextlib.suppress(TransientError):  # `ended` sees to it
            self._recorder.flush()

    def ended(self, released: bool) -> None:
        is_whole = released and not self._conversation.is_amid
        self._conversation.abandon()
        self._visit.close(is_whole)

    def _visit_of(self, calling_ae: str, address: str) -> Visit:
        receiver = self._receiver
        return Visit(receiver.records, self._recorder, receiver.name, calling_ae, address)

    def _echo(self, request: Request) -> Sink:
        served = request.context.abstract_syntax == VERIFICATION
        return Fixed(SUCCESS if served else SOP_CLASS_NOT_SUPPORTED)

    def _store(self, request: Request) -> Sink:
        command, context = request.command, request.context
        if (
            context.abstract_syntax in (VERIFICATION, STORAGE_COMMITMENT)
            or command.sop_class_uid != context.abstract_syntax
        ):
            return Fixed(SOP_CLASS_NOT_SUPPORTED)
        calling_ae = self.association.request.calling_ae
        try:
            announced = Announced(
                command.sop_class_uid,
                command.sop_instance_uid,
                context.transfer_syntax,
                calling_ae,
                self._visit.association_id(),
            )
            return Storing(self._receiver.intake.begin(announced))
        except TransientError as error:
            log.error("cannot record an association: %s", error)
            return Fixed(OUT_OF_RESOURCES)
        except Exception:
            log.exception("C-STORE of %s failed", command.sop_instance_uid)
            return Fixed(PROCESSING_FAILURE)

    def _report(self, request: Request) -> Sink:
        """A destination answers a request for storage commitment."""
        event_type = {EVENT_TYPE: request.command.number(EVENT_TYPE) or 0}
        if request.context.abstract_syntax != STORAGE_COMMITMENT:
            return Fixed(NO_SUCH_SOP_CLASS, event_type)

        def answer(data: bytes) -> Iterable[Answer]:
            return (Answer(self._take_in(data, UID(request.context.transfer_syntax)), event_type),)

        return Gathered(answer)

    def _take_in(self, data: bytes, syntax: UID) -> int:
        receiver = self._receiver
        try:
            ds = decode(BytesIO(data), syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
            return commitment.take_in(ds, receiver.records, receiver.settings.destination, time.time())
        except Exception:
            log.exception("N-EVENT-REPORT of %s failed", self.association.request.calling_ae)
            return PROCESSING_FAILURE


class Storing:
    """A data set on its way into the intake. A fault that nobody foresaw costs this instance alone."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._failed = False

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        try:
            if not self._failed:
                self._arrival.write(pieces)
        except Exception:
            log.exception("C-STORE of %s failed", self._arrival.announced.sop_instance_uid)
            self._fail()
        if self._arrival.is_too_large:
            raise ProtocolError("the instance is too large (scp.max_instance_mb); cut off")

    def end(self) -> Iterable[Answer]:
        status = PROCESSING_FAILURE
        try:
            if not self._failed:
                status = self._arrival.end()
        except Exception:
            log.exception("C-STORE of %s failed", self._arrival.announced.sop_instance_uid)
            self._fail()
        return (Answer(status),)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._arrival.abandon()

    def _fail(self) -> None:
        self._failed = True
        self.abandon()
