"""An association on loopback: what its user hears does not depend on how the bytes come."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable

import pytest
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from node.dul.association import COMMAND, LAST, Association
from node.dul.negotiation import acceptance
from node.dul.pdu import AssociateAccept, AssociateRequest
from node.offer import offer
from tests.raw_peer import pdu, pdv, request

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
TWO_CONTEXTS = [(str(CTImageStorage), [EXPLICIT]), (str(CTImageStorage), [IMPLICIT])]


class Heard:
    """A user that writes down what it hears; data fragments that follow one another as one."""

    def __init__(self) -> None:
        self.fragments: list[tuple[int, int, bytes]] = []
        self.calls = 0
        self.ends: list[bool] = []

    def decide(self, request: AssociateRequest) -> AssociateAccept:
        return acceptance(request, offer())

    def established(self, association: Association) -> None:
        pass

    def fragment(self, context_id: int, control: int, pieces: Iterable[memoryview | bytes]) -> None:
        self.calls += 1
        data = b"".join(map(bytes, pieces))
        if self.fragments and self.fragments[-1][:2] == (context_id, 0) and not control & COMMAND:
            data = self.fragments.pop()[2] + data
        self.fragments.append((context_id, control, data))

    def before_refill(self) -> None:
        pass

    def releasing(self) -> None:
        pass

    def ended(self, released: bool) -> None:
        self.ends.append(released)


def hear(sent: bytes, segments: int) -> Heard:
    """What is heard of `sent`, which comes in so many pieces, between a request and a release."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    user = Heard()
    thread = threading.Thread(target=Association(ours, user, 20.0).run)
    thread.start()
    with theirs:
        theirs.settimeout(20.0)
        theirs.sendall(request(TWO_CONTEXTS))
        assert theirs.recv(65536)[0] == 2
        step = -(-len(sent) // segments)
        for at in range(0, len(sent), step):
            theirs.sendall(sent[at : at + step])
        theirs.sendall(pdu(5, bytes(4)))
        assert theirs.recv(65536)[0] == 6
    thread.join(20.0)
    return user


def data(*values: bytes) -> bytes:
    """A PDU for each."""
    return b"".join(pdu(4, value) for value in values)


COMMAND_HEARD = (1, 3, b"command")
MESSAGES = {
    "one data set": (
        data(pdv(1, 3, b"command"), pdv(1, 0, b"a"), pdv(1, 0, b"b"), pdv(1, 2, b"c")),
        [COMMAND_HEARD, (1, 2, b"abc")],
    ),
    "a last one without bytes": (
        data(pdv(1, 3, b"command"), pdv(1, 0, b"ab"), pdv(1, 2, b"")),
        [COMMAND_HEARD, (1, 2, b"ab")],
    ),
    "two in two contexts": (
        data(pdv(1, 0, b"a"), pdv(1, 2, b"b"), pdv(3, 0, b"c"), pdv(3, 2, b"d")),
        [(1, 2, b"ab"), (3, 2, b"cd")],
    ),
    "another context amid one": (
        data(pdv(1, 0, b"a"), pdv(3, 0, b"b"), pdv(1, 2, b"c")),
        [(1, 0, b"a"), (3, 0, b"b"), (1, 2, b"c")],
    ),
    "a command amid one": (
        data(pdv(1, 0, b"a"), pdv(1, 1, b"com"), pdv(1, 3, b"mand"), pdv(1, 2, b"b")),
        [(1, 0, b"a"), (1, 1, b"com"), (1, 3, b"mand"), (1, 2, b"b")],
    ),
    "several values in a PDU": (
        data(pdv(1, 0, b"a "), pdv(1, 0, b"two ") + pdv(1, 0, b"in one "), pdv(1, 2, b"b")),
        [(1, 2, b"a two in one b")],
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("segments", [1, 5, 40])
def test_what_is_heard_is_the_same_however_the_bytes_come(name: str, segments: int) -> None:
    sent, heard = MESSAGES[name]
    user = hear(sent, segments)
    assert (user.fragments, user.ends) == (heard, [True])


def test_a_data_set_that_lies_in_the_buffer_is_heard_at_once() -> None:
    sent = data(pdv(1, 3, b"command"), *[pdv(1, 0, bytes(100))] * 200, pdv(1, LAST, b"end"))
    heard = hear(sent, 1)
    assert heard.fragments == [(1, 3, b"command"), (1, LAST, bytes(20000) + b"end")]
    assert heard.calls < 20, "not once for each of the 200"
