"""The streaming receiver on real sockets: odd PDUs, noise, other makers' senders, memory, order of deeds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from sqlalchemy import select

from node import receiver
from node import spool as node_spool
from node.store.arrivals import Arrivals
from node.store.tables import associations
from tests.factories import ct_series
from tests.integration.test_hostile_peers import Node
from tests.integration.test_scp import write
from tests.orthanc import plain_orthanc
from tests.peers import eventually, requires
from tests.raw_peer import COMMAND, LAST, RawPeer, Stored, command, pdu, pdv, request, store_pdus, stored
from workers.demo import Orthanc

CT, VERIFICATION, COMMITMENT = str(CTImageStorage), "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), "1.2.840.10008.1.2"
SUCCESS = 0x0000
ECHO, STORE = 0x0030, 0x0001


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(tmp_path / "node", stack, receiver="streaming")


@pytest.fixture
def image(tmp_path: Path) -> Stored:
    return stored(write(tmp_path / "a.dcm", ct_series(1, name="receiver")[0]))


def rows(node: Node) -> int:
    return sum(1 for path in node.spool.root.rglob("*.dcm"))


def parts(node: Node) -> list[Path]:
    return [path for path in node.spool.root.rglob("*") if path.is_file() and path.suffix != ".dcm"]


def store_head(what: Stored) -> bytes:
    return command(STORE, 1, what.sop_class_uid, what.sop_instance_uid)


class TestOddPdus:
    def test_command_and_data_in_one_pdu(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        head, data = store_head(image), image.data
        mixed = pdv(1, COMMAND, head[:9]) + pdv(1, COMMAND | LAST, head[9:])
        mixed += pdv(1, 0, data[:7]) + pdv(1, 0, b"") + pdv(1, 0, data[7:3000]) + pdv(1, LAST, data[3000:])
        peer.socket.sendall(pdu(4, mixed))
        assert peer.status() == SUCCESS
        peer.release()

    def test_two_messages_in_one_pdu(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT]), (VERIFICATION, [IMPLICIT])])
        echo = pdv(3, COMMAND | LAST, command(ECHO, 2, VERIFICATION, has_data=False))
        peer.socket.sendall(
            pdu(4, echo + pdv(1, COMMAND | LAST, store_head(image)) + pdv(1, LAST, image.data) + echo)
        )
        assert [peer.status() for _ in range(3)] == [SUCCESS] * 3
        peer.release()

    def test_fragments_of_every_small_size(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        peer.socket.sendall(pdu(4, pdv(1, COMMAND | LAST, store_head(image))))
        at, size = 0, 1
        while at < len(image.data):
            piece = image.data[at : at + size]
            at, size = at + size, size + 1
            peer.socket.sendall(pdu(4, pdv(1, LAST if at >= len(image.data) else 0, piece)))
        assert peer.status() == SUCCESS
        peer.release()

    def test_segments_of_one_byte(self, node: Node) -> None:
        connection = socket.create_connection(("127.0.0.1", node.port), timeout=20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echo = pdu(4, pdv(1, COMMAND | LAST, command(ECHO, 2, VERIFICATION, has_data=False)))
        for byte in request([(VERIFICATION, [IMPLICIT])]) + echo:
            connection.sendall(bytes([byte]))
        assert connection.recv(1) == b"\x02"
        connection.close()

    @pytest.mark.parametrize("maximum", [0, 1, 20, 2**32 - 1])
    def test_whatever_the_peer_can_take(self, maximum: int, node: Node, image: Stored) -> None:
        """0: any size (PS3.8 D.1.1); our response is put together of as many fragments as it needs."""
        peer = RawPeer(node.port, [(CT, [EXPLICIT])], maximum)
        assert peer.store(image) == SUCCESS
        peer.release()

    def test_a_release_amid_a_data_set_is_no_end_in_good_order(self, node: Node, image: Stored) -> None:
        """The image never came: the study must not count as sent to its end."""
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        assert peer.store(image) == SUCCESS
        peer.socket.sendall(pdu(4, pdv(1, COMMAND | LAST, store_head(image)) + pdv(1, 0, image.data[:999])))
        peer.release()
        eventually(lambda: not node.records.arrivals.open_listeners(), 20)
        with node.records.engine.connect() as connection:
            assert connection.execute(select(associations.c.outcome)).scalars().all() == ["aborted"]

    def test_contexts_that_nobody_supports(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [("1.2.3", [EXPLICIT]), (CT, ["1.2.3"]), (CT, [EXPLICIT])])
        assert peer.results() == [3, 4, 0]
        peer.socket.sendall(store_pdus(image, 1, 16384, context_id=5))
        assert peer.status() == SUCCESS
        peer.socket.sendall(store_pdus(image, 1, 16384, context_id=1))
        assert peer.read()[0] == 7, "an A-ABORT"


class TestOtherRequests:
    @pytest.mark.parametrize(
        ("field", "status"),
        [(0x20, 0x0122), (0x21, 0x0122), (0x10, 0x0122), (0x110, 0x0118), (0x130, 0x0118), (0x0666, 0x0211)],
    )
    def test_are_refused_and_the_association_goes_on(
        self, field: int, status: int, node: Node, image: Stored
    ) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        peer.socket.sendall(pdu(4, pdv(1, COMMAND | LAST, command(field, 1, CT)) + pdv(1, LAST, bytes(8))))
        assert peer.status() == status
        assert peer.store(image) == SUCCESS
        peer.release()

    def test_another_sop_class_than_its_context(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [("1.2.840.10008.5.1.4.1.1.4", [EXPLICIT]), (VERIFICATION, [IMPLICIT])])
        assert peer.store(image) == 0x0122
        peer.socket.sendall(store_pdus(image, 2, 16384, context_id=3))
        assert peer.status() == 0x0122
        echo = pdv(1, COMMAND | LAST, command(ECHO, 2, VERIFICATION, has_data=False))
        peer.socket.sendall(pdu(4, echo))
        assert peer.status() == 0x0122
        assert rows(node) == 0 and parts(node) == []
        peer.release()

    def test_a_report_in_a_context_of_another_class(self, node: Node) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        report = pdv(1, COMMAND | LAST, command(0x0100, 1, COMMITMENT)) + pdv(1, LAST, b"")
        peer.socket.sendall(pdu(4, report))
        assert peer.status() == 0x0118
        peer.release()


class TestAborts:
    @pytest.mark.parametrize(
        ("sent", "reason"),
        [
            (pdu(9, bytes(4)), 1), (pdu(2, bytes(100)), 6), (pdu(6, bytes(4)), 2),
            (pdu(1, bytes(80)), 2), (pdu(4, b"\0\0\0\x01\x01\x03"), 6), (pdu(4, b"\0\0\0\xff\x01\x03abc"), 6),
            (pdu(4, b"\0\0"), 6), (pdu(5, bytes(40)), 6),
        ],
        ids=["unknown", "AC", "RP", "RQ", "PDV of 1", "PDV beyond", "half a PDV", "long release"],
    )  # fmt: skip
    def test_what_has_no_place_in_an_association(self, sent: bytes, reason: int, node: Node) -> None:
        peer = RawPeer(node.port, [(VERIFICATION, [IMPLICIT])])
        peer.socket.sendall(sent)
        assert peer.read() == (7, bytes((0, 0, 2, reason))), "A-ABORT of the provider (PS3.8 9.3.8)"

    def test_half_an_instance_leaves_nothing(self, node: Node, image: Stored) -> None:
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        peer.socket.sendall(store_pdus(image, 1, 16384)[:-100])
        eventually(lambda: parts(node))
        peer.socket.close()
        eventually(lambda: not parts(node))
        assert rows(node) == 0 and node.takes()

    @seed(20261121)
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    def test_noise_in_a_conversation_hinders_nobody(self, node: Node, data: st.DataObject) -> None:
        echo = pdu(4, pdv(1, COMMAND | LAST, command(ECHO, 2, VERIFICATION, has_data=False)))
        whole = bytearray(request([(VERIFICATION, [IMPLICIT])]) + echo + echo + pdu(5, bytes(4)))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(whole) - 1))
            whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        noisy = socket.create_connection(("127.0.0.1", node.port), timeout=20)
        with closing(noisy), suppress(OSError):
            noisy.sendall(whole)
            noisy.shutdown(socket.SHUT_WR)
            while noisy.recv(4096):
                pass
        peer = RawPeer(node.port, [(VERIFICATION, [IMPLICIT])])
        peer.socket.sendall(echo)
        assert peer.status() == SUCCESS
        peer.release()


def post(orthanc: Orthanc, path: str, body: bytes) -> Any:
    url = f"http://127.0.0.1:{orthanc.http_port}{path}"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
        return json.load(answer)


def test_a_peer_that_reads_no_answer_holds_up_no_stop(tmp_path: Path) -> None:
    with ExitStack() as stack:
        node = Node(tmp_path / "node", stack, receiver="streaming", timeout_s=30.0)
        peer = RawPeer(node.port, [(VERIFICATION, [IMPLICIT])])
        echo = pdu(4, pdv(1, COMMAND | LAST, command(ECHO, 2, VERIFICATION, has_data=False)))
        peer.socket.settimeout(1.0)
        with suppress(TimeoutError):
            while True:
                peer.socket.sendall(1000 * echo)
        began = time.monotonic()
        node.listener.stop()
        assert time.monotonic() - began < 10
        peer.socket.close()


class TestSenders:
    def test_dcmsend_with_deflated_and_plain_images(self, node: Node, tmp_path: Path) -> None:
        requires("dcmsend", "dcmconv")
        paths = [write(tmp_path / f"{i}.dcm", ds) for i, ds in enumerate(ct_series(3, name="dcmsend"))]
        squeezed = tmp_path / "deflated.dcm"
        subprocess.run(["dcmconv", "+td", str(paths[0]), str(squeezed)], check=True, timeout=30)
        sent = [str(path) for path in (squeezed, *paths[1:])]
        command_line = ["dcmsend", "-aec", "ICHNODE", "--decompress-never", "127.0.0.1", str(node.port)]
        subprocess.run([*command_line, *sent], check=True, timeout=60)
        kept = [dcmread(path) for path in node.spool.root.rglob("*.dcm")]
        syntaxes = sorted(str(ds.file_meta.TransferSyntaxUID) for ds in kept)
        assert syntaxes == sorted([str(DeflatedExplicitVRLittleEndian), EXPLICIT, EXPLICIT])

    def test_orthanc(self, node: Node, tmp_path: Path) -> None:
        series = ct_series(3, name="orthanc")
        modalities = {"node": ["ICHNODE", "127.0.0.1", node.port]}
        orthanc = plain_orthanc(tmp_path / "orthanc", DicomModalities=modalities)
        with closing(orthanc):
            held = [post(orthanc, "/instances", write(tmp_path / "a.dcm", ds).read_bytes()) for ds in series]
            post(orthanc, "/modalities/node/store", json.dumps([one["ID"] for one in held]).encode())
        assert {str(dcmread(path).SOPInstanceUID) for path in node.spool.root.rglob("*.dcm")} == {
            str(ds.SOPInstanceUID) for ds in series
        }


class TestWork:
    def test_success_is_said_last(self, node: Node, image: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
        """Data on disk, name on disk, record, then the answer; of a later slice the record may follow."""
        done: list[str] = []

        def note(owner: Any, name: str, what: str) -> None:
            real = getattr(owner, name)

            def noted(*args: Any, **options: Any) -> Any:
                result = real(*args, **options)
                done.append(what if result is not False else f"no {what}")
                return result

            monkeypatch.setattr(owner, name, noted)

        note(os, "fdatasync", "data")
        note(os, "rename", "name")
        note(node_spool, "_sync_folder", "folder")
        note(Arrivals, "record_new", "record")
        note(Arrivals, "record", "record")
        send = receiver.Association.send
        monkeypatch.setattr(
            receiver.Association,
            "send",
            lambda *args: (done.append("answer"), send(*args)),  # before it is read
        )
        peer = RawPeer(node.port, [(CT, [EXPLICIT])])
        first, second = (
            Stored(CT, uid, EXPLICIT, image.data.replace(image.sop_instance_uid.encode(), uid.encode()))
            for uid in (image.sop_instance_uid, image.sop_instance_uid[:-1] + "9")
        )
        assert peer.store(first) == SUCCESS
        assert done[-3:] == ["folder", "record", "answer"], "a series that begins"
        assert done.index("data") < done.index("name") < len(done) - done[::-1].index("folder") - 1
        done.clear()
        assert peer.store(second) == SUCCESS
        assert [what for what in done if what != "record"] == ["data", "name", "folder", "answer"]
        peer.release()
        assert done.count("record") == 1, "before the release is answered"

    def test_an_instance_is_never_held_in_memory(self, node: Node, image: Stored) -> None:
        """200 MiB behind the header of an image."""
        peer, process = RawPeer(node.port, [(CT, [EXPLICIT])]), psutil.Process()
        assert peer.store(image) == SUCCESS
        before, most = process.memory_info().rss, 0
        peer.socket.sendall(pdu(4, pdv(1, COMMAND | LAST, store_head(image)) + pdv(1, 0, image.data)))
        piece = pdu(4, pdv(1, 0, bytes(131066)))
        for number in range(1600):
            peer.socket.sendall(piece)
            if number % 50 == 0:
                most = max(most, process.memory_info().rss)
        peer.socket.sendall(pdu(4, pdv(1, LAST, b"")))
        assert peer.status() == SUCCESS
        assert most - before < 24 * 2**20
        peer.release()

    def test_associations_that_wait_cost_no_cpu(self, node: Node) -> None:
        others = {thread.native_id for thread in threading.enumerate()}
        peers = [RawPeer(node.port, [(VERIFICATION, [IMPLICIT])]) for _ in range(8)]
        threads = {thread.native_id for thread in threading.enumerate()} - others
        before = cpu_s(threads)
        time.sleep(1.0)
        assert len(threads) == 8 and cpu_s(threads) - before <= 0.02
        for peer in peers:
            peer.release()


def cpu_s(threads: set[int | None]) -> float:
    """User and system time of these threads of this process."""
    return sum(t.user_time + t.system_time for t in psutil.Process().threads() if t.id in threads)
