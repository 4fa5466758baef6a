"""One association as requestor, in the thread that uses it. Knows no DIMSE; whatever goes wrong is `Over`.

The acceptor's side, with the whole state machine, is in `association`. A requestor that does one thing after
another needs of it: ask (Sta5), send and read (Sta6), release (Sta7), abort.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from node.dul import pdu
from node.dul.asking import Accepted, Self, Titles, encode, encode_request, read_accept, read_reject
from node.dul.association import AS_USER, COMMAND, LAST
from node.dul.limits import LONGEST_PDU_BYTES, MAXIMUM_PDU_BYTES
from node.dul.pdu import AssociateReject, InvalidPdu, ProposedContext
from node.dul.stream import ConnectionOver, PeerTooSlow, Stream

_PDV_ALONE = struct.Struct(">BxIIBB")
_PDV = struct.Struct(">IBB")
MOST_RESPONSE_BYTES = 64 * 1024
"""A command set is some hundred bytes long; whoever sends more does not mean well."""
RELEASED_WITHIN_S = 5.0
"""Who asks for a release has all answers: what comes of it no longer matters, and others wait."""
MOST_BUFFERS = 512  # IOV_MAX is 1024 on Linux; less is as quick

Bytes = bytes | memoryview


class Over(Exception):
    """There is no association any more: it broke, was aborted, or nothing came in time."""


class Requestor:
    """Made of a connection that was just opened; `silence_s` is the longest wait for the peer."""

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self._stream = Stream(connection, lambda: None)
        self._longest = 2
        """Bytes of a presentation data value, an even number, that fit into the PDUs the peer takes."""
        self._command = bytearray()
        self.is_established = False
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else small PDUs wait some 40 ms

    def ask(
        self, titles: Titles, contexts: Sequence[ProposedContext], own: Self
    ) -> Accepted | AssociateReject:
        """Raises Over when neither is answered."""
        self._send([encode_request(titles, contexts, own)])
        kind, body = self._read_pdu(LONGEST_PDU_BYTES)
        with self._valid():
            if kind == pdu.ASSOCIATE_RJ:
                return read_reject(body)
            if kind != pdu.ASSOCIATE_AC:
                raise InvalidPdu(f"PDU type 0x{kind:02X} in answer to a request for an association")
            accepted = read_accept(body)
        most = min(accepted.maximum_length or MAXIMUM_PDU_BYTES, MAXIMUM_PDU_BYTES) - _PDV.size
        self._longest = max(most & ~1, 2)
        self.is_established = True
        return accepted

    def send(self, context_id: int, command: bytes, pieces: Iterator[tuple[Bytes, bool]] | None) -> None:
        """A command, and its data set in `pieces`, of which the last says so. Raises Over."""
        waiting = list(self._pdus(context_id, COMMAND, command, True))
        for piece, is_last in pieces or ():
            self._send([*waiting, *self._pdus(context_id, 0, piece, is_last)])
            waiting = []
        if waiting:
            self._send(waiting)

    def command(self) -> bytes:
        """The next command set that comes. Raises Over."""
        while True:
            kind, body = self._read_pdu(MOST_RESPONSE_BYTES)
            if kind == pdu.P_DATA_TF:
                if self._take(body):
                    found, self._command = bytes(self._command), bytearray()
                    return found
            elif kind == pdu.RELEASE_RQ:
                with contextlib.suppress(Over):
                    self._send([encode(pdu.RELEASE_RP)])
                self._end("the peer released the association")
            elif kind == pdu.ABORT:
                self._end("the peer aborted the association")
            else:
                self._end(f"the peer sent PDU type 0x{kind:02X}")

    def release(self) -> None:
        """In good order, where that is still possible; the connection is closed in any case."""
        with contextlib.suppress(Over):
            if self.is_established:
                self._silence_s = min(self._silence_s, RELEASED_WITHIN_S)
                self._send([encode(pdu.RELEASE_RQ)])
                while self._read_pdu(LONGEST_PDU_BYTES)[0] == pdu.P_DATA_TF:
                    pass  # what is on its way may still come (PS3.8 7.2.1)
        self.close()

    def abort(self) -> None:
        """At once: what is outstanding gets no answer."""
        with contextlib.suppress(Over):
            if self.is_established:
                self._send([pdu.encode_abort(AS_USER, 0)])
        self.close()

    def close(self) -> None:
        self.is_established = False
        with contextlib.suppress(OSError):
            self._connection.close()

    def _pdus(self, context_id: int, control: int, piece: Bytes, is_last: bool) -> Iterator[Bytes]:
        """Of one presentation data value each, none longer than the peer takes (PS3.8 9.3.5)."""
        view, size = memoryview(piece), len(piece)
        for at in range(0, max(size, 1), self._longest):
            part = view[at : at + self._longest]
            last = LAST if is_last and at + self._longest >= size else 0
            yield _PDV_ALONE.pack(pdu.P_DATA_TF, len(part) + 6, len(part) + 2, context_id, control | last)
            yield part

    def _take(self, body: bytes) -> bool:
        """The PDVs of one P-DATA-TF (PS3.8 9.3.5); True once a command set is whole."""
        at, whole = 0, False
        with self._valid():
            while at < len(body):
                if whole or len(body) - at < _PDV.size:
                    raise InvalidPdu("a presentation data value is cut short, or one too many")
                length, _, control = _PDV.unpack_from(body, at)
                if length < 2 or at + 4 + length > len(body) or not control & COMMAND:
                    raise InvalidPdu("a presentation data value that is no command")
                self._command += body[at + _PDV.size : at + 4 + length]
                if len(self._command) > MOST_RESPONSE_BYTES:
                    raise InvalidPdu("a command set without an end")
                at += 4 + length
                whole = bool(control & LAST)
        return whole

    def _read_pdu(self, most: int) -> tuple[int, bytes]:
        self._stream.deadline = time.monotonic() + self._silence_s
        try:
            kind, length = pdu.HEADER.unpack(self._stream.read(6))
            with self._valid():
                if length > most:
                    raise InvalidPdu(f"a PDU of {length} bytes")
            return kind, self._stream.read(length)
        except ConnectionOver as error:
            self._end("the peer closed the connection", error)
        except PeerTooSlow as error:
            self._end(f"the peer did not answer for {self._silence_s:g} s", error)

    def _send(self, buffers: Sequence[Bytes]) -> None:
        try:
            self._connection.settimeout(self._silence_s)
            if isinstance(self._connection, ssl.SSLSocket):
                self._connection.sendall(b"".join(buffers))
            else:
                _send_all(self._connection, buffers)
        except TimeoutError as error:
            self._end(f"the peer took nothing for {self._silence_s:g} s", error)
        except OSError as error:
            self._end(f"the connection broke: {error.strerror or error}", error)

    @contextlib.contextmanager
    def _valid(self) -> Iterator[None]:
        try:
            yield
        except InvalidPdu as error:
            with contextlib.suppress(Over):
                self._send([pdu.encode_abort(2, error.reason)])
            self._end(f"the peer sent what is no PDU: {error}", error)

    def _end(self, why: str, cause: Exception | None = None) -> NoReturn:
        self.close()
        raise Over(why) from cause


def _send_all(connection: socket.socket, buffers: Sequence[Bytes]) -> None:
    views = [memoryview(one) for one in buffers if len(one)]
    at = 0
    while at < len(views):
        sent = connection.sendmsg(views[at : at + MOST_BUFFERS])
        while at < len(views) and sent >= len(views[at]):
            sent -= len(views[at])
            at += 1
        if sent:
            views[at] = views[at][sent:]
