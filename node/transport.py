"""Connections of peers that mean no good: bounds in bytes, in time and in number. Knows no DIMSE.

pynetdicom reads a PDU of whatever length its first six bytes announce, for as long as it trickles in, and
makes a thread for every connection before it counts associations. Here a PDU is bounded, and so is the
time it may take, and connections beyond the limit are closed at once. As a requestor it would wait without
end for a peer that stops in the middle of a PDU, or reads no more; `bound` sees to that.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from socketserver import BaseServer
from typing import Any, cast

from pynetdicom import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from node.accepting import Accepting
from node.dul.limits import LONGEST_PDU_BYTES, MAXIMUM_PDU_BYTES

SPARE_CONNECTIONS = 64
"""Connections beyond max_associations, so that one too many is still told why (PS3.8 9.3.4)."""


PAUSES_WITHIN_S = 5.0
"""pynetdicom's thread of an association pauses within milliseconds, where it still runs."""


class BoundedSocket(AssociationSocket):
    """Reads no PDU that is longer, or takes longer, than is decent."""

    longest_bytes = LONGEST_PDU_BYTES

    def recv(self, nr_bytes: int) -> bytearray:
        """`nr_bytes` from the peer; fewer when it closed the connection. Raises OSError out of bounds."""
        if nr_bytes > self.longest_bytes:
            raise OSError(f"a PDU of {nr_bytes} bytes is announced, {MAXIMUM_PDU_BYTES} were agreed on")
        peer = cast(socket.socket, self.socket)
        patience_s = peer.gettimeout()
        deadline = time.monotonic() + (patience_s or 3600.0)
        received = bytearray(nr_bytes)
        view, count = memoryview(received), 0
        try:
            while count < nr_bytes:
                if (left_s := deadline - time.monotonic()) <= 0:
                    raise TimeoutError("the peer takes too long for one PDU")
                peer.settimeout(left_s)
                if not (more := peer.recv_into(view[count:])):
                    break
                count += more
        finally:
            view.release()
            peer.settimeout(patience_s)
        del received[count:]
        return received


class BoundedAssociation(Association):
    """Whose senders do not wait without end for its own thread to pause: it may be gone, or stuck."""

    _paused = False
    _restless_since = 0.0

    @property
    def _is_paused(self) -> bool:
        return self._paused or time.monotonic() - self._restless_since > PAUSES_WITHIN_S

    @_is_paused.setter
    def _is_paused(self, value: bool) -> None:
        self._paused, self._restless_since = value, time.monotonic()


def bound(association: Association, patience_s: float, longest_pdu_bytes: int) -> None:
    """For an association of our own, once it is connected: the peer's silence, or its being busy, ends it.

    `patience_s` is for one PDU, and for a peer that reads nothing of what is sent.
    """
    connection = cast(AssociationSocket, association.dul.socket)
    cast(socket.socket, connection.socket).settimeout(patience_s)
    association.__class__, connection.__class__ = BoundedAssociation, BoundedSocket
    association._is_paused = False  # from now on
    cast(BoundedSocket, connection).longest_bytes = max(longest_pdu_bytes, LONGEST_PDU_BYTES)


class _Handler(RequestHandler):
    """pynetdicom's own, with a bounded socket."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        unbounded = cast(AssociationSocket, association.dul.socket)
        unbounded.__class__ = BoundedSocket  # made by pynetdicom, which offers no other way
        return association


class Server(ThreadedAssociationServer):
    """Accepts on a socket that several processes share; a slow peer holds up its own thread only."""

    listening: socket.socket
    admits: Callable[[str, int, int], bool]
    """(address, connections in all, connections of it) → whether to go on with one that was just opened."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "request_handler": _Handler})
        self._door = Accepting()

    def server_bind(self) -> None:
        cast(socket.socket, self.socket).close()  # the one that socketserver made for itself
        self.socket = self.listening
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """The socket listens already."""

    def shutdown(self) -> None:
        """Accept no more. (pynetdicom's own would also strike the server off a list it is not on.)"""
        BaseServer.shutdown(self)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        client, address = self._door.accept(self.listening)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(self.ae.network_timeout)
        if self.ssl_context:  # the handshake waits for the association's own thread
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False closes the connection before a thread is made for it."""
        active = self.active_associations
        of_peer = sum(association.requestor.address == client_address[0] for association in active)
        return self.admits(client_address[0], len(active), of_peer)
