"""One association as acceptor, in the thread that calls `run`: PDUs in, by the state machine, PDUs out.

What the PDUs carry is the user's: a `User` decides, takes fragments and hears how the association ended.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Protocol

from node.dul import pdu
from node.dul.limits import LONGEST_PDU_BYTES
from node.dul.machine import Action, Event, State, step
from node.dul.negotiation import Context, in_force
from node.dul.pdu import AssociateAccept, AssociateReject, AssociateRequest, InvalidPdu
from node.dul.stream import ConnectionOver, PeerTooSlow, Stream

log = logging.getLogger(__name__)

LAST, COMMAND = 0x02, 0x01  # message control header, PS3.8 E.2
AS_USER, AS_PROVIDER = 0, 2  # source of an A-ABORT, PS3.8 9.3.8
UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6  # its reasons
MOST_DISCARDED_BYTES = 4 * 1024 * 1024
"""What is read of a peer that goes on sending after its association ended; then the connection is closed."""
_PDV = struct.Struct(">IBB")
_PDV_ALONE = struct.Struct(">BxIIBB")
_EVENTS = {
    pdu.ASSOCIATE_RQ: Event.ASSOCIATE_RQ,
    pdu.ASSOCIATE_AC: Event.ASSOCIATE_AC,
    pdu.ASSOCIATE_RJ: Event.ASSOCIATE_RJ,
    pdu.P_DATA_TF: Event.DATA,
    pdu.RELEASE_RQ: Event.RELEASE_RQ,
    pdu.RELEASE_RP: Event.RELEASE_RP,
    pdu.ABORT: Event.ABORTED,
}


class ProtocolError(Exception):
    """The user cannot go on with this peer: the association is aborted."""


class User(Protocol):
    """Who uses the service: DIMSE."""

    def decide(self, request: AssociateRequest) -> AssociateAccept | AssociateReject: ...

    def established(self, association: Association) -> None: ...

    def fragment(self, context_id: int, control: int, pieces: Iterable[memoryview | bytes]) -> None:
        """One PDV; `pieces` must be used up. May call `association.send`. Raises ProtocolError."""

    def before_refill(self) -> None:
        """Pieces handed out so far are about to be overwritten."""

    def releasing(self) -> None:
        """The peer wants to release, and is told that it may after this."""

    def ended(self, released: bool) -> None:
        """Called once, if `established` was."""


class Association:
    """Made of a connection that was just accepted."""

    def __init__(self, connection: socket.socket, user: User, timeout_s: float) -> None:
        self._connection = connection
        self._user = user
        self._timeout_s = timeout_s
        self._stream = Stream(connection, user.before_refill)
        self._state = State.IDLE
        self._sending = threading.Lock()
        self._released = False
        self._told = False
        self._answer: AssociateAccept | AssociateReject | None = None
        self._reason = UNEXPECTED_PDU
        self.address = address_of(connection)
        self.request = AssociateRequest(0, "", "", "", ())
        self.contexts: dict[int, Context] = {}

    @property
    def is_established(self) -> bool:
        return self._state is State.ESTABLISHED

    @property
    def peer(self) -> str:
        """For logs."""
        return f"{self.request.calling_ae or 'a peer'} at {self.address}"

    def run(self) -> None:
        """Until the connection is closed. Raises nothing that a peer can cause."""
        try:
            self._happen(Event.CONNECTED)
            while self._state is not State.IDLE:
                self._step()
        finally:
            self._end()
            with contextlib.suppress(OSError):
                self._connection.close()

    def stop(self) -> None:
        """Abort, from another thread; `run` ends soon after. A peer that reads nothing is not told."""
        if self._sending.acquire(blocking=False):
            with contextlib.suppress(OSError):
                if self.is_established:
                    self._connection.settimeout(1.0)
                    self._connection.send(pdu.encode_abort(AS_USER, 0))
            self._sending.release()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)  # of TLS, the connection beneath

    def send(self, context_id: int, control: int, data: bytes) -> None:
        """A command or data set, in as many fragments as the peer's PDUs need."""
        longest = max((self.request.maximum_length or LONGEST_PDU_BYTES) - 6, 2) & ~1
        for at in range(0, max(len(data), 1), longest):
            part = data[at : at + longest]
            last = control | LAST if at + longest >= len(data) else control
            head = _PDV_ALONE.pack(pdu.P_DATA_TF, len(part) + 6, len(part) + 2, context_id, last)
            self._happen(Event.SEND_DATA, head + part)

    def _step(self) -> None:
        """Wait for what comes next, and let it happen."""
        try:
            if self._state is State.AWAITING_CLOSE:
                self._linger()
            else:
                self._read_pdu()
        except ConnectionOver:
            self._happen(Event.CLOSED)
        except PeerTooSlow:
            self._too_slow()
        except InvalidPdu as error:
            log.warning("%s sends what is no PDU: %s", self.peer, error)
            self._reason = error.reason
            self._happen(Event.INVALID)
        except ProtocolError as error:
            log.warning("%s is aborted: %s", self.peer, error)
            self._happen(Event.ABORT)

    def _too_slow(self) -> None:
        """ARTIM where it runs (PS3.8 9.1.5); else the silence that the node bears with."""
        if self._state in (State.AWAITING_REQUEST, State.AWAITING_CLOSE):
            self._happen(Event.ARTIM_EXPIRED)
            return
        log.warning("%s was silent, or took too long for one PDU; aborted", self.peer)
        self._happen(Event.ABORT)

    def _linger(self) -> None:
        """Let the peer read what was sent last, and close; then close."""
        self._stream.discard(MOST_DISCARDED_BYTES)
        self._happen(Event.ARTIM_EXPIRED)

    def _read_pdu(self) -> None:
        is_established = self._state is State.ESTABLISHED
        if is_established:
            self._allow_time()
            self._stream.await_some()
            if self._take_whole():
                return
        kind, length = self._stream.unpack(pdu.HEADER)
        if is_established:
            self._allow_time()
        event = _EVENTS.get(kind)
        if event is None:
            raise InvalidPdu(f"PDU type 0x{kind:02X}", UNRECOGNISED_PDU)
        if length > LONGEST_PDU_BYTES:
            raise InvalidPdu(f"a PDU of {length} bytes is announced, {LONGEST_PDU_BYTES} are the most")
        if event is Event.DATA and is_established:
            self._take_data(length)
            return
        if length > 4 and event not in (Event.ASSOCIATE_RQ, Event.DATA):
            raise InvalidPdu(f"a PDU of type 0x{kind:02X} with {length} bytes")
        body = self._stream.read(length)
        if event is Event.ASSOCIATE_RQ and self._state is State.AWAITING_REQUEST:
            self.request = pdu.read_request(body)
        self._reason = UNEXPECTED_PDU
        self._happen(event)

    def _allow_time(self) -> None:
        self._stream.allow(self._timeout_s)

    def _happen(self, event: Event, data: bytes = b"") -> None:
        """One event: what the table says is done, and the state it leads to is entered."""
        action, state = step(event, self._state)
        if action is Action.SEND_DATA or action is Action.SEND_DATA_LATE:
            self._transmit(data)
            return
        self._state = state
        self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Action.START_ARTIM:
                self._allow_time()
            case Action.DECIDE:
                self._decide()
            case Action.INDICATE_RELEASE:
                self._released = True
                self._user.releasing()
                self._happen(Event.RELEASE)
            case Action.SEND_AC:
                self._accept()
            case Action.SEND_RJ:
                self._reject()
            case Action.SEND_RELEASE_RP:
                self._transmit_last(pdu.encode_release_response())
                self._end()
            case Action.SEND_ABORT_AS_USER | Action.SEND_ABORT_AS_PROVIDER | Action.ABORT_AGAIN:
                self._abort(AS_USER if action is Action.SEND_ABORT_AS_USER else AS_PROVIDER)
            case _:  # the others close the connection, which `run` does, or do nothing
                pass

    def _decide(self) -> None:
        self._answer = self._user.decide(self.request)
        is_rejected = isinstance(self._answer, AssociateReject)
        self._happen(Event.REJECT if is_rejected else Event.ACCEPT)

    def _accept(self) -> None:
        assert isinstance(self._answer, AssociateAccept)
        self.contexts = in_force(self.request, self._answer)
        self._told = True
        self._user.established(self)
        self._transmit(pdu.encode_accept(self._answer, self.request))

    def _reject(self) -> None:
        assert isinstance(self._answer, AssociateReject)
        words = f"result {self._answer.result}, source {self._answer.source}, reason {self._answer.reason}"
        log.info("%s is rejected (%s, PS3.8 9.3.4)", self.peer, words)
        self._transmit_last(pdu.encode_reject(self._answer))

    def _abort(self, source: int) -> None:
        reason = self._reason if source == AS_PROVIDER else 0
        self._transmit_last(pdu.encode_abort(source, reason))
        self._end()

    def _transmit(self, data: bytes) -> None:
        with self._sending:
            self._allow_time()
            self._stream.send(data)

    def _transmit_last(self, data: bytes) -> None:
        """The peer may be gone already; then reading on will tell."""
        with contextlib.suppress(ConnectionOver, PeerTooSlow):
            self._transmit(data)

    def _take_whole(self) -> bool:
        """P-DATA-TF PDUs of one value each, as nearly all are, that lie in the buffer; False without any.

        The same as `_take_data` would do with them, in fewer steps: fragments of one data set that follow one
        another go to the user as one.
        """
        view, begin, end = self._stream.window()
        at = begin
        pieces: list[memoryview] = []
        of_pieces = 0
        while end - at >= _PDV_ALONE.size:
            kind, length, item_length, context_id, control = _PDV_ALONE.unpack_from(view, at)
            after = at + pdu.HEADER.size + length
            if kind != pdu.P_DATA_TF or after > end or item_length + 4 != length or item_length < 2:
                break
            if pieces and (context_id != of_pieces or control & COMMAND):
                self._user.fragment(of_pieces, 0, pieces)
                pieces = []
            pieces.append(view[at + _PDV_ALONE.size : after])
            at, of_pieces = after, context_id
            self._stream.skip_to(at)
            if control:
                self._user.fragment(context_id, control, pieces)
                pieces = []
        if pieces:
            self._user.fragment(of_pieces, 0, pieces)
        return at > begin

    def _take_data(self, length: int) -> None:
        """DT-2: the PDVs of one P-DATA-TF (PS3.8 9.3.5), each handed on while it comes; the state stays."""
        while length:
            if length < _PDV.size:
                raise InvalidPdu("a presentation data value is cut short")
            item_length, context_id, control = self._stream.unpack(_PDV)
            if item_length < 2 or item_length + 4 > length:
                raise InvalidPdu(f"a presentation data value of {item_length} bytes in {length}")
            length -= item_length + 4
            self._user.fragment(context_id, control, self._stream.pieces(item_length - 2))

    def _end(self) -> None:
        """The user hears once how it ended."""
        if self._told:
            self._told = False
            self._user.ended(self._released)


def address_of(connection: socket.socket) -> str:
    """Of the other end; empty when it is gone."""
    try:
        return str(connection.getpeername()[0])
    except OSError:
        return ""
