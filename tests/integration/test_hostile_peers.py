"""Peers that flood, dawdle, lie about lengths or never answer, on real sockets: they hinder nobody."""

from __future__ import annotations

import io
import os
import resource
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from node import accepting, transport
from node.deliver import Courier, carrier_to
from node.deliver import run as carry
from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.filemeta import file_head
from node.intake import Intake
from node.recorder import LATER_S
from node.scp import listener_of, open_socket
from node.settings import Destination, Scp, Settings, Tls
from node.spool import Spool
from node.store.records import Records, open_records
from node.transport import Server
from node.wholeness import MEGABYTE, Announced, understood
from tests.certificates import make_certificate
from tests.factories import ct_series
from tests.integration.test_housekeeping import Place
from tests.peers import eventually
from tests.ports import free_port
from tests.receivers import RECEIVERS

TIMEOUT_S = 2.0
SPARE = 8
SUCCESS = 0x0000


class Node:
    """A listener in this process."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        knocking: Callable[[int], None] = lambda port: None,
        **scp: object,
    ) -> None:
        """`knocking` is what peers do at the port before anybody looks who is there."""
        options = {"port": free_port(), "processes": 1, "timeout_s": TIMEOUT_S, **scp}
        self.settings = Settings(data_dir=folder, scp=Scp.model_validate(options))
        (folder / "spool").mkdir(parents=True)
        self.records: Records = open_records(self.settings)
        self.spool = Spool(folder / "spool")
        listening = open_socket(self.settings.scp)
        knocking(self.settings.scp.port)
        intake = Intake(self.spool, self.records, time.time, self.settings.scp, LATER_S)
        self.listener = listener_of(self.settings, self.records, intake)
        self.listener.start(listening)
        stack.callback(self.records.close)
        stack.callback(listening.close)
        stack.callback(self.listener.stop)

    @property
    def port(self) -> int:
        return self.settings.scp.port

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(source, 0))

    def takes(self, name: str = "kind", **options: Any) -> bool:
        """Whether a well-behaved peer is served meanwhile."""
        (ds,) = ct_series(1, rows=16, name=name)
        ae = AE("KIND")
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        assoc = ae.associate("127.0.0.1", self.port, ae_title="ICHNODE", **options)
        if not assoc.is_established:
            return False
        status = assoc.send_c_store(ds).get("Status")
        assoc.release()
        return status == SUCCESS


Starter = Callable[..., Node]


@pytest.fixture(params=RECEIVERS)
def start(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Starter]:
    monkeypatch.setattr(Server, "serve_forever", lambda self: BaseServer.serve_forever(self, 0.02))
    # it collects garbage every 60 rounds, which stops this very process for seconds once it is large
    monkeypatch.setattr(Server, "service_actions", lambda self: None)
    with ExitStack() as stack:
        yield lambda **scp: Node(tmp_path / f"n{free_port()}", stack, receiver=request.param, **scp)


def is_closed(peer: socket.socket) -> bool:
    """Whether the node ended the connection: end of file, an A-ABORT before it, or a reset."""
    peer.settimeout(10)
    with suppress(ConnectionError):
        while peer.recv(4096):
            pass
    return True


def association_request(node: Node) -> bytes:
    """A real A-ASSOCIATE-RQ, as pynetdicom sends it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as trap:
        ae = AE("SLOW")
        ae.acse_timeout = ae.network_timeout = 1
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        port = trap.getsockname()[1]
        thread = threading.Thread(
            target=lambda: ae.associate("127.0.0.1", port, ae_title="ICHNODE"), daemon=True
        )
        thread.start()
        peer, _ = trap.accept()
        head = peer.recv(6, socket.MSG_WAITALL)
        request = head + peer.recv(struct.unpack(">L", head[2:])[0], socket.MSG_WAITALL)
        peer.close()
        thread.join()
        return request


@contextmanager
def no_descriptors() -> Iterator[None]:
    """None is left for this process while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first, held = os.dup(0), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + 64, hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in (first, *held):
            os.close(descriptor)


class TestAtTheListener:
    @pytest.mark.parametrize("announced", [2**30, 2**32 - 1])
    def test_a_pdu_that_announces_gigabytes_is_cut_off_before_it_is_read(
        self, announced: int, start: Starter
    ) -> None:
        node = start()
        sent = 0
        with closing(node.connect()) as peer, suppress(ConnectionError):
            peer.sendall(struct.pack(">BBL", 1, 0, announced))
            while sent < 64 * MEGABYTE:
                peer.sendall(bytes(MEGABYTE))
                sent += MEGABYTE
        assert sent < 32 * MEGABYTE, "more than what lies in buffers on the way"
        assert node.takes()

    def test_a_peer_that_trickles_a_pdu_byte_by_byte_is_cut_off(self, start: Starter) -> None:
        """No byte comes so late that silence would end it: only the bound on the whole PDU does."""
        node = start(timeout_s=2.0)
        request = association_request(node)
        for _ in range(3):
            held_s, longest_gap_s = self._trickle(node, request)
            if longest_gap_s < 2.0:  # else this machine itself was silent for too long, and nothing is shown
                break
        assert longest_gap_s < 2.0
        assert 1.5 < held_s < 0.5 * 0.1 * len(request), "cut off at the bound, long before the last byte"
        assert node.takes()

    def _trickle(self, node: Node, request: bytes) -> tuple[float, float]:
        """Until the node hangs up: how long it listened, and the longest pause between two bytes."""
        gaps, began = [0.0], time.monotonic()
        last = began
        with closing(node.connect()) as peer, suppress(ConnectionError):
            for byte in request:
                peer.sendall(bytes([byte]))
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
                peer.settimeout(0.1)
                with suppress(TimeoutError):
                    peer.recv(1024)  # end of file, an A-ABORT or a reset: it is over
                    break
        return time.monotonic() - began, max(gaps)

    def test_a_request_in_a_few_pieces_is_served_all_the_same(self, start: Starter) -> None:
        node = start()
        request = association_request(node)
        with closing(node.connect()) as peer:
            for at in range(0, len(request), 50):
                peer.sendall(request[at : at + 50])
                time.sleep(0.01)
            assert peer.recv(1) == b"\x02", "A-ASSOCIATE-AC (PS3.8 9.3.3)"

    def test_a_storm_of_silent_connections_leaves_room_and_ends(
        self, start: Starter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "SPARE_CONNECTIONS", SPARE)
        node = start(max_associations=4, timeout_s=4.0)
        threads_before = threading.active_count()
        with ExitStack() as stack:
            storm = []
            for _ in range(3 * (4 + SPARE)):
                with suppress(OSError):
                    storm.append(stack.enter_context(closing(node.connect())))
            bound = 2 * (4 + SPARE) + 10  # two threads an association, and what else there is
            most = 0
            for _ in range(60):  # they are accepted one after another
                most = max(most, threading.active_count() - threads_before)
                time.sleep(0.05)
            assert 4 < most <= bound
            eventually(lambda: node.takes("after the storm"), 20)
        eventually(lambda: threading.active_count() - threads_before < 10, 20)

    def test_tls_handshakes_that_stop_half_way_hinder_nobody_and_end(
        self, start: Starter, tmp_path: Path
    ) -> None:
        own = make_certificate(tmp_path, "node")
        node = start(tls=Tls(cert=own.cert, key=own.key), timeout_s=1.0)
        trusting = ssl.create_default_context(cafile=own.cert)
        with ExitStack() as stack:
            halves = [stack.enter_context(closing(node.connect())) for _ in range(8)]
            for peer in halves:
                peer.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # a ClientHello that announces 512 bytes
            assert node.takes(tls_args=(trusting, "localhost"))
            assert all(is_closed(peer) for peer in halves)

    def test_a_connection_that_is_reset_at_once_leaves_a_port_with_tls_open(
        self, start: Starter, tmp_path: Path
    ) -> None:
        """As a balancer's probe and a port scanner do."""

        def probe(port: int) -> None:
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        own = make_certificate(tmp_path, "node")
        node = start(knocking=probe, tls=Tls(cert=own.cert, key=own.key))
        assert node.takes(tls_args=(ssl.create_default_context(cafile=own.cert), "localhost"))

    def test_a_machine_that_has_no_thread_left_for_one_peer_serves_the_next(
        self, start: Starter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node, begin = start(), threading.Thread.start
        refused: list[str] = []

        def start_thread(thread: threading.Thread) -> None:
            if thread.name == "association" and not refused:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            begin(thread)

        monkeypatch.setattr(threading.Thread, "start", start_thread)
        with closing(node.connect()) as peer:
            peer.sendall(association_request(node))
            assert is_closed(peer)
        assert node.takes()

    def test_a_process_without_descriptors_says_so_in_few_lines_and_serves_again(
        self, start: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The streaming one wrote ten lines a second; pynetdicom's said nothing, and took a core."""
        monkeypatch.setattr(accepting, "TELL_EVERY_S", 0.5)
        node = start()

        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records if "accepted" in record.getMessage()]

        with closing(socket.socket()) as peer, caplog.at_level("WARNING"):
            began = time.monotonic()
            with no_descriptors():
                peer.connect(("127.0.0.1", node.port))
                eventually(lambda: len(told()) >= 3)
                lines = told()
            assert len(lines) <= 1 + (time.monotonic() - began) / accepting.TELL_EVERY_S
            assert all(
                line.startswith("no connection can be accepted: Too many open files") for line in lines
            )
            peer.sendall(association_request(node))
            assert peer.recv(1) == b"\x02"  # A-ASSOCIATE-AC, PS3.8 9.3.3
        assert told()[-1] == "connections are accepted again"
        assert node.takes()

    def test_a_data_set_without_end_is_cut_off_at_the_limit(self, start: Starter) -> None:
        node = start(max_instance_mb=1)
        (ds,) = ct_series(1, rows=1024, name="large")  # 2 MiB of pixels
        ae = AE("LARGE")
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = 10
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        assoc = ae.associate("127.0.0.1", node.port, ae_title="ICHNODE")
        assert assoc.is_established
        status = None
        with suppress(RuntimeError, ConnectionError):
            status = assoc.send_c_store(ds).get("Status")
        assert status != SUCCESS
        assert [p for p in node.spool.root.rglob("*") if p.is_file()] == []
        assert node.takes()


def deflated(data: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush()


class TestBombs:
    def understood(self, data: bytes) -> Instance:
        (ds,) = ct_series(1, rows=16, name="bomb")
        syntax = str(DeflatedExplicitVRLittleEndian)
        announced = Announced(str(ds.SOPClassUID), str(ds.SOPInstanceUID), syntax, "CT1", "a")
        head = file_head(announced)
        return understood(announced, io.BytesIO(head + data), len(head), 16 * MEGABYTE)

    def test_what_inflates_beyond_the_limit_is_refused_without_inflating_it(self) -> None:
        bomb = deflated(bytes(200 * MEGABYTE))
        assert len(bomb) < MEGABYTE // 4
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(PermanentError) as caught:
            self.understood(bomb)
        assert caught.value.code == "INSTANCE_TOO_LARGE"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024, "KiB"

    def test_a_deflated_image_within_the_limit_is_understood(self) -> None:
        (ds,) = ct_series(1, rows=16, name="bomb")
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        stream = io.BytesIO()
        dcmwrite(stream, ds, enforce_file_format=True)
        whole = stream.getvalue()
        at = 144 + struct.unpack("<I", whole[140:144])[0]
        instance = self.understood(whole[at:])
        assert instance.sop_instance_uid == ds.SOPInstanceUID


class TestDestinations:
    def test_one_that_accepts_and_never_answers_delays_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "spool").mkdir()
        records = open_records(Settings(data_dir=tmp_path))
        place = Place(records, Spool(tmp_path / "spool"))
        release, stop = threading.Event(), threading.Event()
        answers = {
            "mute": lambda event: int(release.wait(60)) and 0xA700,
            "kind": lambda event: SUCCESS,
        }
        with ExitStack() as stack:
            stack.callback(records.close)
            threads = []
            for name, answer in answers.items():
                port = free_port()
                ae = AE(name.upper())
                ae.add_supported_context(CTImageStorage)
                handlers = [(evt.EVT_C_STORE, answer)]
                server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
                stack.callback(server.shutdown)
                to = Destination(name=name, ae_title=name.upper(), port=port)
                courier = Courier(to, carrier_to(to, "ICHNODE"), records, place.spool)
                thread = threading.Thread(target=carry, args=(courier, stop.wait), daemon=True)
                threads.append(thread)
            place.destinations = ("mute", "kind")
            place.composed(place.study("a"), image=ct_series(1, rows=16, name="result")[0])
            for thread in threads:
                thread.start()

            def states() -> dict[str, str]:
                return {d["destination"]: d["state"] for d in records.views.deliveries()}

            eventually(lambda: states() == {"mute": "PENDING", "kind": "SENT"}, 30)
            assert not release.is_set() and all(thread.is_alive() for thread in threads)
            stop.set()
            release.set()
            for thread in threads:
                thread.join(30)
