"""The listener's door against real peers: addresses, called AE titles, one that wants all associations."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing

import pytest
from pynetdicom import AE, Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from tests.integration.test_hostile_peers import Node, Starter, is_closed, start
from tests.peers import eventually

__all__ = ["start"]  # a fixture


def associate(node: Node, source: str = "127.0.0.1", called: str = "ICHNODE") -> Association:
    ae = AE("CT1")
    ae.acse_timeout = ae.network_timeout = 10
    ae.add_requested_context(Verification)
    return ae.associate("127.0.0.1", node.port, ae_title=called, bind_address=(source, 0))


def trail(node: Node) -> list[tuple[str, str, str]]:
    rows = node.records.audit.entries()
    return [(row["action"], row["address"], row["detail"].partition(":")[0]) for row in rows]


def test_a_stranger_gets_no_answer_and_one_line(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    node = start(addresses=["127.0.0.2"])
    assert associate(node, "127.0.0.2").is_established
    with caplog.at_level(logging.WARNING, "node.admission"):
        for _ in range(5):
            with closing(node.connect()) as peer:
                assert is_closed(peer)
    assert not associate(node, "127.0.0.1").is_established
    (line,) = [r.getMessage() for r in caplog.records if r.name == "node.admission"]
    assert line.startswith("refused 127.0.0.1: ADDRESS_NOT_ALLOWED: ") and "scp.addresses" in line
    eventually(lambda: trail(node) == [("refused-peer", "127.0.0.1", "ADDRESS_NOT_ALLOWED")])


def test_who_calls_somebody_else_is_told_so(start: Starter) -> None:
    node = start(check_called_ae=True)
    assert associate(node).is_established
    wrong = associate(node, called="OTHER")
    assert wrong.is_rejected
    answer = wrong.acceptor.primitive
    assert answer and (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 7)
    eventually(lambda: trail(node) == [("refused-peer", "127.0.0.1", "CALLED_AE_WRONG")])


def test_a_name_that_is_not_on_the_list_is_in_the_trail(start: Starter) -> None:
    node = start(calling_ae_titles=["CT2"])
    assert associate(node).is_rejected
    eventually(lambda: len(trail(node)) == 1)
    (row,) = node.records.audit.entries()
    assert row["who"] == "CT1" and "scp.calling_ae_titles" in row["detail"]


def test_one_peer_leaves_room_for_another(start: Starter) -> None:
    node = start(max_associations=4, timeout_s=20.0)
    greedy = [associate(node) for _ in range(4)]
    assert [a.is_established for a in greedy] == [True, True, True, False], "three quarters of them"
    assert associate(node, "127.0.0.2").is_established
    assert associate(node, "127.0.0.3").is_rejected, "now the node is full"
    expected = [
        ("refused-peer", "127.0.0.3", "TOO_MANY_ASSOCIATIONS"),
        ("refused-peer", "127.0.0.1", "TOO_MANY_OF_PEER"),
    ]
    eventually(lambda: trail(node) == expected)
    greedy[0].release()
    eventually(lambda: associate(node, "127.0.0.3").is_established)


def test_a_trail_that_is_slow_to_write_holds_up_nobody(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk or database may take its time: whoever may come in comes in, and who may not is told."""
    node = start(addresses=["127.0.0.1", "127.0.0.2"], calling_ae_titles=["KIND"])
    slow, write = threading.Event(), node.records.audit.write
    monkeypatch.setattr(node.records.audit, "write", lambda *a, **k: slow.wait(20) and write(*a, **k))
    began = time.monotonic()
    with closing(node.connect("127.0.0.3")) as stranger:
        assert is_closed(stranger)
    assert associate(node).is_rejected
    assert node.takes()
    assert time.monotonic() - began < 10
    slow.set()
    eventually(lambda: len(trail(node)) == 2)


def test_what_was_refused_last_is_in_the_trail_of_a_listener_that_stops(start: Starter) -> None:
    node = start(calling_ae_titles=["CT2"])
    assert associate(node).is_rejected
    node.listener.stop()
    assert len(trail(node)) == 1
