"""Audit messages to a real repository (rsyslog): each transport, outages, and what is queued when."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lxml import etree

from node.admin.doctor import _audit
from node.audit import syslog
from node.audit.forward import Forwarder
from node.domain.errors import TransientError
from node.liveness import process_name
from node.settings import AuditRepository, Destination, PeerTls, Settings
from node.spool import Spool
from node.store.audit import Actor
from node.store.audit_queue import GATHER_S, Event, enqueue_sent
from node.store.records import Records, open_records
from tests.certificates import make_certificate
from tests.integration.test_housekeeping import Place
from tests.peers import eventually
from tests.rsyslog import Rsyslog

ANNA = Actor("anna", "viewer", "10.0.0.9")
SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[1] / "audit.rng"))
PACS = Destination(name="pacs", ae_title="PACS", host="pacs.example.org")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Node:
    """Records that are audited, and the forwarder."""

    def __init__(self, folder: Path, stack: ExitStack, repository: AuditRepository) -> None:
        (folder / "spool").mkdir(exist_ok=True)
        self.settings = Settings(data_dir=folder, audit=repository, destination=(PACS,))
        self.records: Records = open_records(self.settings)
        stack.callback(self.records.close)
        self.spool = Spool(folder / "spool")
        self.forwarder = Forwarder(self.settings, self.records)

    @property
    def waiting(self) -> int:
        return int(self.records.audit_queue.standing()["waiting"])

    def login(self, name: str = "anna", now: float | None = None) -> None:
        self.records.audit.write(Actor(name, "viewer", "10.0.0.9"), "login", now or time.time())


def start(folder: Path, stack: ExitStack, transport: str = "tcp") -> tuple[Node, Rsyslog]:
    own = make_certificate(folder, "repository") if transport == "tls" else None
    peer = Rsyslog(folder, transport, own)
    stack.callback(peer.stop)
    tls = PeerTls(ca=own.cert) if own else PeerTls()
    host = "localhost" if own else "127.0.0.1"
    repository = AuditRepository.model_validate(
        {"host": host, "port": peer.port, "transport": transport, "tls": tls, "site": "St. Elsewhere"}
    )
    return Node(folder, stack, repository), peer


def users(peer: Rsyslog) -> list[str]:
    """Who took part first in each message that came, in order; each of them valid."""
    found = []
    for message in peer.received():
        root = etree.fromstring(message.content.strip().removeprefix("\ufeff").encode())
        SCHEMA.assertValid(root)
        assert (message.priority, message.application, message.message_id) == (
            "85",
            "ichnode",
            "DICOM+RFC3881",
        )
        found.append(root.find("ActiveParticipant").get("UserID"))
    return found


@pytest.mark.parametrize("transport", ["tls", "tcp", "udp"])
def test_a_login_reaches_the_repository(transport: str, tmp_path: Path, stack: ExitStack) -> None:
    node, peer = start(tmp_path, stack, transport)
    node.login("Jörg")
    node.login("anna")
    assert node.waiting == 2
    node.forwarder.round(time.time() + 1)
    assert node.waiting == 0
    eventually(lambda: len(peer.received()) == 2)
    assert users(peer) == ["Jörg", "anna"]
    assert "0 messages wait" in _audit(node.settings)


def test_a_repository_that_is_down_hears_of_everything_later_once_and_in_order(
    tmp_path: Path, stack: ExitStack
) -> None:
    node, peer = start(tmp_path, stack)
    now = time.time()
    node.login("before", now)
    assert node.forwarder.round(now) < 5
    eventually(lambda: users(peer) == ["before"])
    peer.stop()
    node.login("during", now + 1)
    pauses = [node.forwarder.round(now + 1000 * n) for n in range(1, 9)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
    with pytest.raises(TransientError, match="refused"):
        syslog.check(node.settings.audit)
    node.login("later", now + 2)
    assert "refused" in node.records.audit_queue.standing()["error"]
    again = Forwarder(node.settings, node.records)  # the process was restarted meanwhile
    assert again.round(now) <= 1 and node.waiting == 2, "not due yet"
    peer.start()
    again.round(now + 1e5)
    eventually(lambda: len(peer.received()) == 3)
    assert users(peer) == ["before", "during", "later"] and node.waiting == 0


def test_what_a_repository_threw_away_unread_counts_as_not_sent(tmp_path: Path, stack: ExitStack) -> None:
    """It takes the connection and resets it: sendall() alone would have called that sent."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def reset() -> None:
        client, _ = listening.accept()
        time.sleep(0.2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    thread = threading.Thread(target=reset)
    thread.start()
    repository = AuditRepository(host="127.0.0.1", port=listening.getsockname()[1], transport="tcp")
    node = Node(tmp_path, stack, repository)
    node.login()
    assert node.forwarder.round(time.time() + 1) == 5
    thread.join()
    assert node.waiting == 1


def test_a_repository_with_another_certificate_gets_nothing(tmp_path: Path, stack: ExitStack) -> None:
    node, peer = start(tmp_path, stack, "tls")
    other = make_certificate(tmp_path, "other")
    repository = node.settings.audit.model_copy(update={"tls": PeerTls(ca=other.cert)})
    with pytest.raises(TransientError, match="certificate"):
        syslog.send(repository, [syslog.Line(0.0, b"<AuditMessage/>")], "host")
    assert peer.received() == []


def test_received_and_sent_are_told_by_study_with_the_patient_and_the_log_names_nobody(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node, peer = start(tmp_path, stack)
    place = Place(node.records, node.spool)
    study = place.study("a", slices=3, PatientName="Doe^Jane", PatientID="P-7")
    node.records.arrivals.open_association("a2", process_name(), ("CT2", "10.0.0.2"), place.now)
    node.records.arrivals.close_association("a2", "released", place.now)
    assert node.waiting == 0, "one that brought nothing is no transfer"
    node.records.arrivals.close_association("a1", "released", place.now)
    node.records.arrivals.close_association("a1", "released", place.now)
    assert node.waiting == 1
    place.delivered(study)
    assert node.waiting == 2
    node.forwarder.round(place.now)
    assert node.waiting == 1, "what goes out of one study is gathered for a while"
    node.forwarder.round(place.now + GATHER_S + 1)
    eventually(lambda: len(peer.received()) == 2)
    assert users(peer) == ["CT1", socket.gethostname()]
    for message in peer.received():
        assert study in message.content and "Doe^Jane" in message.content and "P-7" in message.content
    assert 'NumberOfInstances="3"' in peer.received()[0].content
    assert 'UserID="PACS"' in peer.received()[1].content and "pacs.example.org" in peer.received()[1].content
    assert "Doe" not in caplog.text


def test_what_a_killed_listener_had_open_is_told_too(tmp_path: Path, stack: ExitStack) -> None:
    node = Node(tmp_path, stack, AuditRepository(host="127.0.0.1"))
    place = Place(node.records, node.spool)
    place.study("a")
    node.records.arrivals.close_associations_of(process_name(), place.now)
    (queued,) = node.records.audit_queue.take(place.now, place.now + 1, 10)
    assert queued.event.action == "received" and queued.event.detail == "association aborted"
    assert sum(queued.event.objects.values()) == 3


def test_objects_to_one_destination_are_one_message_and_none_is_forgotten(
    tmp_path: Path, stack: ExitStack
) -> None:
    node = Node(tmp_path, stack, AuditRepository(host="127.0.0.1"))
    queue = node.records.audit_queue

    def sent(at: float, to: str, sop_class: str) -> None:
        with node.records.engine.begin() as connection:
            enqueue_sent(connection, Event("sent", at, to, study_instance_uid="1.2", objects={sop_class: 1}))

    for at, to, sop_class in (
        (0.0, "pacs", "1"),
        (1.0, "pacs", "2"),
        (2.0, "pacs", "1"),
        (3.0, "other", "1"),
    ):
        sent(at, to, sop_class)
    taken = queue.take(GATHER_S + 1, GATHER_S + 100, 10)
    assert [(q.event.who, q.event.objects) for q in taken] == [("pacs", {"1": 2, "2": 1})]
    sent(GATHER_S + 2, "pacs", "3")
    assert node.waiting == 3, "one that is on its way is not added to"


def test_a_node_without_a_repository_queues_nothing(tmp_path: Path, stack: ExitStack) -> None:
    node = Node(tmp_path, stack, AuditRepository())
    node.login()
    Place(node.records, node.spool).delivered(Place(node.records, node.spool).study("a"))
    node.records.arrivals.close_association("a1", "released", time.time())
    assert node.waiting == 0 and len(node.records.audit.entries()) == 1


def test_two_forwarders_take_no_message_twice(tmp_path: Path, stack: ExitStack) -> None:
    node = Node(tmp_path, stack, AuditRepository(host="127.0.0.1"))
    node.login(now=1.0)
    queue = node.records.audit_queue
    assert len(queue.take(2.0, 62.0, 10)) == 1 and queue.take(3.0, 63.0, 10) == []
    assert len(queue.take(62.5, 120.0, 10)) == 1, "the lease of one that died runs out"
