"""Peers that stop in the middle: whoever asks them or sends to them is told, and never waits without end."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node import scu, transport
from node.domain.errors import TransientError
from node.scu import Parcel, Peer
from node.settings import Destination
from tests.factories import ct_series
from tests.raw_peer import APPLICATION, item, pdu

PATIENCE_S = 0.5
ENOUGH_S = 30.0
LARGER_THAN_BUFFERS = 32 * 2**20
Behaviour = Callable[[socket.socket], None]


def _read(connection: socket.socket) -> bytes:
    (length,) = struct.unpack(">2xI", connection.recv(6, socket.MSG_WAITALL))
    return connection.recv(length, socket.MSG_WAITALL)


def _accept(connection: socket.socket) -> None:
    """Every presentation context, in the first transfer syntax that is offered."""
    asked, at, answers = _read(connection), 68, b""
    while at < len(asked):
        kind, length = struct.unpack_from(">BxH", asked, at)
        if kind == 0x20:
            syntax = asked[asked.index(b"\x40\0", at) :]
            name = item(0x40, syntax[4 : 4 + struct.unpack_from(">H", syntax, 2)[0]])
            answers += item(0x21, bytes((asked[at + 4], 0, 0, 0)) + name)
        at += 4 + length
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4")
    head = struct.pack(">HH", 1, 0) + asked[4:36] + bytes(32) + item(0x10, APPLICATION)
    connection.sendall(pdu(2, head + answers + item(0x50, user)))


def _stops_while_negotiating(connection: socket.socket) -> None:
    _read(connection)
    connection.sendall(pdu(2, bytes(200))[:16])


def _stops_within_its_answer(connection: socket.socket) -> None:
    _accept(connection)
    _read(connection)
    connection.sendall(pdu(4, bytes(200))[:16])


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Destination]]:
    """A peer that behaves so, and keeps its connection open."""
    open_ones: list[socket.socket] = []

    def begin(behaviour: Behaviour) -> Destination:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        open_ones.append(listening)

        def run() -> None:
            connection, _ = listening.accept()
            open_ones.append(connection)
            behaviour(connection)

        threading.Thread(target=run, daemon=True).start()
        return Destination(name="stuck", ae_title="STUCK", host="127.0.0.1", port=listening.getsockname()[1])

    yield begin
    for one in open_ones:
        one.close()


def _come_back(work: Callable[[], Any]) -> list[BaseException | None]:
    """What the work raised, None for nothing; empty where it never came back."""
    ends: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            ends.append(None)
        except TransientError as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENOUGH_S)
    return ends


@pytest.mark.parametrize("behaviour", [_stops_while_negotiating, _stops_within_its_answer])
def test_a_peer_that_stops_within_a_pdu_is_given_up(
    behaviour: Behaviour, serve: Callable[[Behaviour], Destination], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", PATIENCE_S)
    ends = _come_back(Peer(serve(behaviour), "ICHNODE").echo)
    assert [type(end) for end in ends] == [TransientError]
    assert "stuck (STUCK at 127.0.0.1" in str(ends[0])


def test_a_peer_that_reads_nothing_more_is_given_up(
    serve: Callable[[Behaviour], Destination], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", PATIENCE_S)
    (ds,) = ct_series(1, 16, 16)
    ds.add_new("PixelData", "OW", bytes(LARGER_THAN_BUFFERS))
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "large.dcm", enforce_file_format=True)
    parcel = Parcel(1, tmp_path / "large.dcm", str(ds.SOPClassUID))
    ends = _come_back(lambda: list(Peer(serve(_accept), "ICHNODE").send([parcel])))
    assert [type(end) for end in ends] == [scu.AssociationBroke]


def test_a_thread_that_does_not_pause_holds_up_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """pynetdicom waits for its own thread of an association before it sends."""
    monkeypatch.setattr(transport, "PAUSES_WITHIN_S", 0.2)
    stuck, over = threading.Event(), threading.Event()
    ae = AE("PACS")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0)])
    where = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=server.server_address[1])
    assoc = Peer(where, "ICHNODE").associate([build_context(Verification)])
    take = assoc.dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        if block:
            return take(block)
        stuck.set()
        over.wait(ENOUGH_S)
        return None, None

    assoc.dimse.get_msg = get_msg  # type: ignore[method-assign]
    assert stuck.wait(ENOUGH_S)
    answers: list[int] = []
    try:
        assert _come_back(lambda: answers.append(int(assoc.send_c_echo().Status))) == [None]
    finally:
        over.set()
        scu.let_go(assoc)
        server.shutdown()
    assert answers == [0x0000]
