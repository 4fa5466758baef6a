"""The sender on the node's own upper layer against scripted peers: windows, fragments, what is no answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node import scu, shipment
from node.deliver import carrier_to
from node.domain.errors import TransientError
from node.dul.asking import Accepted
from node.scu import AssociationBroke, Outcome, Parcel, Peer
from node.shipment import StreamingPeer
from node.transcode import in_syntax
from tests.delivering import Pacs, data_set, pacs_at
from tests.factories import ct_series
from tests.raw_peer import COMMAND, LAST, element, item, pdu, pdv

CT, EXPLICIT = str(CTImageStorage), str(ExplicitVRLittleEndian)
Turn = Callable[["Scripted", list[bytes]], None]


class Scripted:
    """Accepts one association as it is told and gathers its C-STOREs; shares no line with the sender."""

    def __init__(
        self, answer: Turn, *, window: bytes = b"", maximum: int = 16384, stores: int = 1, results: int = 0,
        syntax: str = EXPLICIT, releases: bool = True, pause_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.answer, self.window, self.maximum, self.stores, self.results, self.syntax = (
            answer, window, maximum, stores, results, syntax,
        )  # fmt: skip
        self.releases = releases
        self.pause_s = pause_s
        self.request, self.longest_pdu = b"", 0
        self.data: list[bytes] = []
        self.released = False
        self._server = socket.create_server(("127.0.0.1", 0))
        if pause_s:  # else what it does not read yet has room in its buffer
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._thread.join(10)

    def read(self) -> tuple[int, bytes]:
        head = self._exactly(6)
        kind, length = struct.unpack(">BxI", head)
        return kind, self._exactly(length)

    def respond(self, command: bytes, status: int = 0, message_id: int | None = None) -> None:
        """A C-STORE-RSP in two fragments."""
        known = struct.unpack_from("<H", command, command.index(element(0x0110, b"\0\0")[:8]) + 8)[0]
        body = element(0x0100, struct.pack("<H", 0x8001))
        body += element(0x0120, struct.pack("<H", known if message_id is None else message_id))
        body += element(0x0800, struct.pack("<H", 0x0101)) + element(0x0900, struct.pack("<H", status))
        body += element(0x0902, b"no room ") if status else b""
        whole = element(0x0000, struct.pack("<I", len(body))) + body
        self.connection.sendall(pdu(4, pdv(1, COMMAND, whole[:20]) + pdv(1, COMMAND | LAST, whole[20:])))

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.connection.recv(count - len(found))
            if not more:
                raise ConnectionError
            found += more
        return found

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self.connection, _ = self._server.accept()
            with self.connection:
                _, self.request = self.read()
                user = item(0x51, struct.pack(">I", self.maximum)) + self.window
                context = item(0x21, bytes((1, 0, self.results, 0)) + item(0x40, self.syntax.encode()))
                self.connection.sendall(pdu(2, self.request[:68] + context + item(0x50, user)))
                self.answer(self, [self._gather() for _ in range(self.stores)])
                while True:
                    kind, _ = self.read()
                    if kind == 5 and self.releases:
                        self.released = True
                        self.connection.sendall(pdu(6, bytes(4)))

    def _gather(self) -> bytes:
        """The command of the next C-STORE, once its data set is whole."""
        parts = {COMMAND: b"", 0: b""}
        while True:
            time.sleep(self.pause_s)
            kind, body = self.read()
            if kind != 4:
                raise ConnectionError(f"PDU type {kind}")
            self.longest_pdu = max(self.longest_pdu, len(body))
            while body:
                length, _, control = struct.unpack_from(">IBB", body)
                parts[control & COMMAND] += body[6 : 4 + length]
                body = body[4 + length :]
            if control == LAST:
                self.data.append(parts[0])
                return parts[COMMAND]


@pytest.fixture
def parcels(tmp_path: Path) -> list[Parcel]:
    made = []
    for number, ds in enumerate(ct_series(3, rows=64, name="shipped")):
        dcmwrite(tmp_path / f"{number}.dcm", ds, enforce_file_format=True)
        made.append(Parcel(number, tmp_path / f"{number}.dcm", CT))
    return made


def send(peer: Scripted, parcels: list[Parcel], **changes: object) -> list[Outcome]:
    return list(StreamingPeer(pacs_at(peer.port, **changes), "ICHNODE").send(parcels))


def all_good(peer: Scripted, commands: list[bytes]) -> None:
    for command in commands:
        peer.respond(command)


@pytest.mark.parametrize("maximum", [0, 128, 1030, 131072])
@pytest.mark.parametrize("chunk", [1500, 2**20])
def test_the_bytes_of_the_file_arrive_in_pdus_that_the_peer_takes(
    maximum: int, chunk: int, parcels: list[Parcel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipment, "CHUNK_BYTES", chunk)
    with Scripted(all_good, maximum=maximum) as peer:
        assert send(peer, parcels[:1]) == [Outcome(0, True, "0x0000", "")]
    assert peer.data == [data_set(parcels[0].file.read_bytes())]
    assert peer.longest_pdu <= (maximum or 2**20)
    assert peer.released


@pytest.mark.parametrize("as_stored", [True, False])
def test_whoever_waits_sees_the_bytes_go(
    as_stored: bool, parcels: list[Parcel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipment, "CHUNK_BYTES", 1500)
    moves = list[int]()
    watched = replace(parcels[0], moved=lambda: moves.append(1))
    with Scripted(all_good, syntax=EXPLICIT if as_stored else str(ImplicitVRLittleEndian)) as peer:
        assert [one.accepted for one in send(peer, [watched])] == [True]
    assert len(moves) >= len(peer.data[0]) / 1500


@pytest.fixture
def large(tmp_path: Path) -> Parcel:
    """16 MiB: more than the buffers of a loopback connection hold."""
    ds = ct_series(1, rows=64, name="large")[0]
    ds.Rows = ds.Columns = 2896
    ds.PixelData = bytes(2 * 2896 * 2896)
    dcmwrite(tmp_path / "large.dcm", ds, enforce_file_format=True)
    return Parcel(0, tmp_path / "large.dcm", CT)


@pytest.mark.parametrize("sender", ["streaming", "pynetdicom"])
def test_a_peer_that_reads_slowly_is_waited_for_as_long_as_bytes_go_out(
    sender: str, large: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", 2.0)
    moves = list[float]()
    watched = replace(large, moved=lambda: moves.append(time.monotonic()))
    with Scripted(all_good, maximum=131072, pause_s=0.03) as peer:
        began = time.monotonic()
        carrier = carrier_to(pacs_at(peer.port, sender=sender), "ICHNODE")
        assert [one.accepted for one in carrier.send([watched])] == [True]
        took_s = time.monotonic() - began
    assert took_s > 3, "or the test shows nothing"
    assert moves[-1] - moves[0] > took_s / 3


def test_no_window_is_asked_for_unless_the_settings_want_one(parcels: list[Parcel]) -> None:
    with Scripted(all_good, window=item(0x53, struct.pack(">HH", 4, 1))) as peer:
        send(peer, parcels[:1])
    assert item(0x53, struct.pack(">HH", 3, 1)) not in peer.request
    with Scripted(all_good) as other:
        send(other, parcels[:1], operations=3)
    assert item(0x53, struct.pack(">HH", 3, 1)) in other.request


@pytest.mark.parametrize("agreed", [0, 3, 9])
def test_several_are_outstanding_where_the_peer_agrees_and_answers_find_their_request(
    agreed: int, parcels: list[Parcel]
) -> None:
    def backwards(peer: Scripted, commands: list[bytes]) -> None:
        for number, command in enumerate(reversed(commands)):
            peer.respond(command, 0xA700 if number == 0 else 0)

    window = item(0x53, struct.pack(">HH", agreed, 1))
    with Scripted(backwards, window=window, stores=3) as peer:
        outcomes = send(peer, parcels, operations=3)
    assert [(one.key, one.accepted) for one in outcomes] == [(2, False), (1, True), (0, True)]
    assert outcomes[0].text == "status 0xA700 (no room)"


def test_a_peer_that_breaks_off_in_the_midst_of_several(parcels: list[Parcel]) -> None:
    def one_and_gone(peer: Scripted, commands: list[bytes]) -> None:
        peer.respond(commands[0])
        peer.connection.shutdown(socket.SHUT_RDWR)

    with Scripted(one_and_gone, window=item(0x53, struct.pack(">HH", 3, 1)), stores=3) as peer:
        outcomes = StreamingPeer(pacs_at(peer.port, operations=3), "ICHNODE").send(parcels)
        assert next(outcomes).key == 0
        with pytest.raises(AssociationBroke, match="no answer") as broke:
            next(outcomes)
    assert broke.value.key == 1


def reply(data: bytes) -> Turn:
    return lambda peer, commands: peer.connection.sendall(data)


NOT_ANSWERS: dict[str, Turn] = {
    "an abort": reply(pdu(7, bytes(4))),
    "a release": reply(pdu(5, bytes(4))),
    "another PDU": reply(pdu(2, bytes(68))),
    "no PDU": reply(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a PDU without end": reply(struct.pack(">BxI", 4, 2**31)),
    "a lying length": reply(pdu(4, struct.pack(">IBB", 500, 1, 3) + bytes(20))),
    "a data set": reply(pdu(4, pdv(1, LAST, bytes(20)))),
    "no command": reply(pdu(4, pdv(1, COMMAND | LAST, b"\1" * 40))),
    "an echo": reply(pdu(4, pdv(1, COMMAND | LAST, element(0x0100, b"\x30\x80") + element(0x0800, b"\1\1")))),
    "half a response": reply(pdu(4, pdv(1, COMMAND, bytes(8)))),
    "somebody else's": lambda peer, commands: peer.respond(commands[0], 0, 77),
}


@pytest.mark.parametrize("name", NOT_ANSWERS)
def test_what_is_no_answer_is_told_and_never_taken_for_success(
    name: str, parcels: list[Parcel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", 0.3)
    with Scripted(NOT_ANSWERS[name]) as peer, pytest.raises(AssociationBroke, match="pacs") as broke:
        send(peer, parcels[:1])
    assert broke.value.key == 0


@pytest.mark.parametrize("sender", ["streaming", "pynetdicom"])
@pytest.mark.parametrize("result", [1, 2, 3, 4])
def test_a_context_that_is_refused_by_an_accept_is_not_used(
    result: int, sender: str, parcels: list[Parcel]
) -> None:
    with Scripted(all_good, results=result) as peer:
        outcomes = list(carrier_to(pacs_at(peer.port, sender=sender), "ICHNODE").send(parcels))
    assert [(one.key, one.accepted, one.status) for one in outcomes] == [(n, False, "") for n in range(3)]
    assert f"does not accept SOP class {CT}" in outcomes[0].text
    assert peer.data == []


@pytest.mark.parametrize(
    "answer", [b"GET / HTTP/1.1\r\n", pdu(2, bytes(8)), pdu(3, bytes(9)), pdu(7, bytes(4)), b""]
)
def test_who_answers_no_association_is_not_reached(answer: bytes, parcels: list[Parcel]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        to = pacs_at(server.getsockname()[1])
        with pytest.raises(TransientError, match="cannot be reached"):
            list(StreamingPeer(to, "ICHNODE").send(parcels))
        thread.join(10)


def test_a_file_that_shrinks_while_it_is_sent_ends_the_association(
    parcels: list[Parcel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipment, "CHUNK_BYTES", 2000)
    file = parcels[0].file
    real = shipment.Packed.pieces

    def shrinking(self: shipment.Packed) -> Iterator[tuple[shipment.Bytes, bool]]:
        for piece in real(self):
            yield piece
            file.write_bytes(file.read_bytes()[:3000])

    monkeypatch.setattr(shipment.Packed, "pieces", shrinking)
    with Scripted(all_good) as peer, pytest.raises(AssociationBroke, match="shorter"):
        send(peer, parcels)
    assert peer.data == []


@pytest.mark.parametrize("sender", ["streaming", "pynetdicom"])
def test_a_peer_that_accepts_another_syntax_than_was_proposed_gets_that(
    sender: str, parcels: list[Parcel]
) -> None:
    implicit = in_syntax(dcmread(parcels[0].file), ImplicitVRLittleEndian)
    stream = BytesIO()
    dcmwrite(stream, implicit, enforce_file_format=True)
    with Scripted(all_good, syntax=str(ImplicitVRLittleEndian)) as peer:
        (outcome,) = carrier_to(pacs_at(peer.port, sender=sender), "ICHNODE").send(parcels[:1])
    assert outcome.accepted
    assert peer.data == [data_set(stream.getvalue())]


def test_a_file_that_cannot_be_read_is_not_taken_for_one_that_is_under_way(parcels: list[Parcel]) -> None:
    def rot(peer: Scripted, commands: list[bytes]) -> None:
        raise AssertionError("it should not come so far")

    class Rotting(StreamingPeer):
        def _window(self, accepted: Accepted) -> int:
            parcels[1].file.unlink()
            return 3

    with Scripted(rot, stores=3) as peer, pytest.raises(AssociationBroke) as broke:
        list(Rotting(pacs_at(peer.port, operations=3), "ICHNODE").send(parcels))
    assert broke.value.key == 1, "the first one is on its way, and nothing is wrong with it"


def test_a_peer_that_answers_no_release_holds_up_the_next_batch_for_seconds_only(
    parcels: list[Parcel],
) -> None:
    with Scripted(all_good, releases=False) as peer:
        began = time.monotonic()
        assert [one.accepted for one in send(peer, parcels[:1])] == [True]
        assert time.monotonic() - began < 15


def test_a_caller_that_stops_midway_leaves_no_connection_open(parcels: list[Parcel]) -> None:
    with Scripted(all_good) as peer:
        outcomes = StreamingPeer(pacs_at(peer.port), "ICHNODE").send(parcels)
        assert next(outcomes).accepted
        outcomes.close()  # type: ignore[attr-defined]
        peer._thread.join(5)
        assert not peer._thread.is_alive()
    assert not peer.released


def test_the_setting_brings_pynetdicom_back(parcels: list[Parcel]) -> None:
    assert type(carrier_to(pacs_at(1), "ICHNODE")) is StreamingPeer
    with Pacs() as pacs:
        plain = carrier_to(pacs_at(pacs.port, sender="pynetdicom"), "ICHNODE")
        assert type(plain) is Peer
        assert [one.accepted for one in plain.send(parcels)] == [True] * 3
        assert len(pacs.kept) == 3
