"""Who may come in: every rule alone, where two of them meet, and refusals that must not fill a log."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from unittest.mock import Mock

import pytest
from pydantic import ValidationError

from node import accepting
from node.accepting import Accepting
from node.domain.admission import (
    REMEMBERED,
    Caller,
    RefusalNotes,
    Rules,
    is_inside,
    networks,
    refuse,
    refuse_address,
)
from node.settings import Scp, Web

CT = Caller("10.0.0.5", "CT1", "ICHNODE")


def code(rules: Rules, caller: Caller = CT, in_all: int = 0, of_peer: int = 0) -> str:
    found = refuse(rules, caller, in_all, of_peer)
    return found.code if found else ""


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.0.0.5", True),
        ("10.0.1.5", False),
        ("::ffff:10.0.0.5", True),
        ("192.168.1.1", True),
        ("192.168.1.2", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("fe80::1%eth0", True),
        ("", False),
        ("no address", False),
    ],
)
def test_an_address_in_a_network(address: str, inside: bool) -> None:
    allowed = networks(["10.0.0.0/24", "192.168.1.1", "2001:db8::/32", "fe80::/10"])
    assert is_inside(address, allowed) is inside
    assert is_inside(address, ()), "no list: from anywhere"
    refusal = refuse_address(Rules("ICHNODE", networks=allowed), address)
    assert (refusal is None) is inside


@pytest.mark.parametrize("wrong", ["10.0.0.5/24", "10.0.0", "pacs.example.org", "10.0.0.0/33", ""])
def test_an_address_that_is_none_is_told_at_the_start(wrong: str) -> None:
    for section in (Scp, Web):
        with pytest.raises(ValidationError, match="write an address or a network"):
            section.model_validate({"addresses": [wrong]})


def test_nothing_set_lets_anybody_in() -> None:
    assert refuse(Rules("ICHNODE"), Caller("203.0.113.9", "WHOEVER", "WHATEVER"), 0, 0) is None


def test_the_calling_ae_title() -> None:
    rules = Rules("ICHNODE", frozenset({"CT1"}))
    assert code(rules) == ""
    refused = refuse(rules, Caller("10.0.0.5", "CT2", "ICHNODE"), 0, 0)
    assert refused and (refused.result, refused.source, refused.diagnostic) == (1, 1, 3)
    assert code(rules, Caller("10.0.0.5", " CT1 ", "ICHNODE")) == "", "blanks around it mean nothing"


def test_the_called_ae_title() -> None:
    wrong = Caller("10.0.0.5", "CT1", "ANY-SCP")
    assert code(Rules("ICHNODE"), wrong) == ""
    refused = refuse(Rules("ICHNODE", check_called_ae=True), wrong, 0, 0)
    assert refused and (refused.result, refused.source, refused.diagnostic) == (1, 1, 7)


@pytest.mark.parametrize(
    ("in_all", "of_peer", "expected"),
    [
        (7, 5, ""),
        (7, 6, "TOO_MANY_OF_PEER"),
        (8, 0, "TOO_MANY_ASSOCIATIONS"),
        (8, 6, "TOO_MANY_ASSOCIATIONS"),
    ],
)
def test_one_peer_never_takes_all(in_all: int, of_peer: int, expected: str) -> None:
    assert code(Rules("ICHNODE", max_associations=8), in_all=in_all, of_peer=of_peer) == expected


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (64, 48)])
def test_the_share_of_one_peer_is_never_nothing(most: int, share: int) -> None:
    assert Rules("ICHNODE", max_associations=most).of_one_peer == share
    assert Rules("ICHNODE", max_associations=most, max_per_peer=5).of_one_peer == 5


def test_a_limit_is_told_as_one_that_passes() -> None:
    refused = refuse(Rules("ICHNODE", max_associations=1), CT, 1, 0)
    assert refused and (refused.result, refused.source, refused.diagnostic) == (2, 3, 2)


def test_the_settings_say_all_of_it() -> None:
    scp = Scp(addresses=("10.0.0.0/24",), calling_ae_titles=(" CT1 ",), max_associations_per_peer=2)
    rules = scp.admission
    assert rules.calling_ae_titles == {"CT1"} and rules.of_one_peer == 2 and len(rules.networks) == 1


class TestNotes:
    def test_a_peer_that_knocks_on_and_on_is_written_down_once_a_minute_with_its_count(self) -> None:
        notes = RefusalNotes(period_s=60)
        written = [notes.count("10.0.0.5", "X", second) for second in range(180)]
        assert [n for n in written if n] == [1, 60, 60]

    def test_another_peer_or_another_reason_is_news(self) -> None:
        notes = RefusalNotes()
        assert notes.count("10.0.0.5", "X", 0) == notes.count("10.0.0.6", "X", 0) == 1
        assert notes.count("10.0.0.5", "Y", 0) == 1 and notes.count("10.0.0.5", "X", 1) == 0

    def test_an_ipv6_peer_is_its_network(self) -> None:
        notes = RefusalNotes()
        assert notes.count("2001:db8::1", "X", 0) == 1
        assert notes.count("2001:db8::2", "X", 0) == 0
        assert notes.count("2001:db8:1::1", "X", 0) == 1

    def test_a_crowd_fills_no_memory(self) -> None:
        notes = RefusalNotes()
        for number in range(3 * REMEMBERED):
            notes.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "X", 0)
        assert len(notes._last) == REMEMBERED


class TestAccepting:
    def test_a_shortage_is_told_at_its_start_now_and_then_with_its_count_and_at_its_end(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accepting, "RETRY_S", 0.0)
        clock_s = iter(range(0, 1000, 20))
        door, none_left = Accepting(lambda: next(clock_s)), OSError(errno.EMFILE, "Too many open files")
        failing = Mock(**{"accept.side_effect": none_left})
        quicker = Mock(**{"accept.side_effect": BlockingIOError(errno.EAGAIN, "")})
        with socket.create_server(("127.0.0.1", 0)) as listening:
            for at in (*[failing] * 4, quicker, listening, *[failing] * 3):
                with suppress(OSError), socket.create_connection(listening.getsockname()):
                    door.accept(at)[0].close()
        text = "no connection can be accepted: Too many open files"
        assert [record.getMessage() for record in caplog.records] == [
            f"{text}; it is tried again",
            f"{text} (3 times since the last note); it is tried again",
            "connections are accepted again",
            f"{text} (3 times since the last note); it is tried again",
        ]
