"""Noise and broken messages against the real listener, the intake and the API: refused, or taken whole.

Seeded and short; `tests/fuzz` holds harnesses that run for as long as somebody lets them.
"""

from __future__ import annotations

import logging
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from node.admin.passwords import digest, hashed
from node.admin.web.app import make_app
from node.domain.permissions import Role
from node.settings import Destination, Settings
from node.store.records import Records, open_records
from tests import wire
from tests.factories import ct_series
from tests.integration.test_hostile_peers import Node, Starter, start
from tests.site import SUBDURAL, Site

__all__ = ["start"]  # a fixture

SUCCESS = 0x0000
ANSWERS = {None, SUCCESS, 0x0111, 0xA700, 0xA900, 0xC000}
"""PS3.4 B.2.3, or the connection ends. Never 0x0110: that would be a fault of our own."""


def seeded(examples: int) -> settings:
    """The same examples each time: what CI finds, everybody finds."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


Edit = tuple[float, str, bytes]
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["write", "insert", "cut", "end"]), st.binary(min_size=1, max_size=8)
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """`data` with each edit made at its place, given as a part of the length."""
    for place, how, more in edits:
        at = int(place * len(data))
        after = {"write": at + len(more), "insert": at, "cut": at + len(more), "end": len(data)}[how]
        data = data[:at] + (b"" if how in ("cut", "end") else more) + data[after:]
    return data


def spoken(node: Node, data: bytes) -> None:
    """Say it all, say no more, and listen until the other side ends."""
    with node.connect() as peer, suppress(ConnectionError):
        peer.settimeout(20)
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


def asked(node: Node, request: bytes, message: bytes, patience_s: float = 20) -> int | None:
    """The status that a message gets over an association opened for it; None where none comes in time."""
    with node.connect() as peer:
        peer.settimeout(20)
        peer.sendall(request)
        assert wire.read_pdu(peer)[0] == wire.ASSOCIATE_AC
        peer.settimeout(patience_s)
        with suppress(ConnectionError, TimeoutError):
            peer.sendall(message)
            return wire.status_of(wire.read_pdu(peer))
        return None


@pytest.fixture
def no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing was logged with a traceback: each refusal was foreseen."""
    caplog.set_level(logging.INFO)
    yield
    assert [r.getMessage() for r in caplog.records if r.exc_info and r.name.startswith("node")] == []


@pytest.mark.usefixtures("no_fault_of_ours")
class TestListener:
    def test_broken_association_requests(self, start: Starter) -> None:
        node, request = start(timeout_s=5.0), wire.association_request()

        @seeded(40)
        @given(EDITS)
        def attempt(edits: list[Edit]) -> None:
            spoken(node, edited(request, edits))

        attempt()
        assert node.takes()

    def test_noise_in_place_of_pdus(self, start: Starter) -> None:
        node, request = start(timeout_s=5.0), wire.association_request()

        @seeded(40)
        @given(st.integers(0, 9), st.binary(max_size=300), st.booleans())
        def attempt(kind: int, body: bytes, associated: bool) -> None:
            pdu = struct.pack(">BBL", kind, 0, len(body)) + body
            spoken(node, (request if associated else b"") + pdu)

        attempt()
        assert node.takes()

    def test_broken_messages_of_an_association(self, start: Starter) -> None:
        """The whole conversation with edits: command set, fragments and their lengths."""
        node, request = start(timeout_s=5.0), wire.association_request()
        (image,) = ct_series(1, rows=16, name="fuzz")
        message = b"".join(wire.store(image, piece=300))

        @seeded(40)
        @given(EDITS)
        def attempt(edits: list[Edit]) -> None:
            assert asked(node, request, edited(message, edits), 0.2) in {*ANSWERS, 0x0122, 0x0118, 0x0211}

        attempt()
        assert node.takes()

    def test_broken_data_sets_are_refused_or_taken_whole(self, start: Starter) -> None:
        """What is answered with Success lies in the spool byte for byte."""
        node, request = start(timeout_s=5.0), wire.association_request()
        (image,) = ct_series(1, rows=16, name="fuzz")
        whole = wire.encoded(image)
        header = whole.index(struct.pack("<HH", 0x7FE0, 0x0010))
        seen = set()

        @seeded(50)
        @given(EDITS, st.booleans())
        def attempt(edits: list[Edit], in_header: bool) -> None:
            at = header if in_header else len(whole)
            data = edited(whole[:at], edits) + whole[at:]
            status = asked(node, request, b"".join(wire.store(image, data)))
            seen.add(status)
            assert status in ANSWERS
            if status == SUCCESS:
                assert any(file.read_bytes().endswith(data) for file in node.spool.root.rglob("*.dcm"))

        attempt()
        assert {SUCCESS, 0xC000} <= seen, "some are taken and some are not, or nothing was tried"
        assert node.takes()
        for file in node.spool.root.rglob("*.dcm"):
            dcmread(file, stop_before_pixels=True)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[TestClient, Records]]:
    """The API of a node with a study, asked with an admin's token."""
    (tmp_path / "spool").mkdir()
    own = Settings(data_dir=tmp_path, destination=(Destination(name="pacs", ae_title="PACS"),))
    with ExitStack() as stack:
        records = open_records(own)
        stack.callback(records.close)
        Site(records, own).composed("1.2.3", SUBDURAL)
        now = time.time()
        records.people.add("anna", Role.ADMIN, hashed("correct horse battery"), now)
        records.people.add_token(digest("token"), "anna", Role.ADMIN, "fuzz", (now, now + 9999))
        base = "http://127.0.0.1:8080"
        client = TestClient(make_app(own, records), base_url=base, raise_server_exceptions=False)
        client.headers["Authorization"] = "Bearer token"
        yield client, records


def test_no_input_of_the_api_is_a_fault_of_the_node(console: tuple[TestClient, Records]) -> None:
    """Each operation of the OpenAPI description with values that nobody meant: 2xx to 4xx, never 5xx."""
    client, _ = console
    schema = client.get("/api/v1/openapi.json").json()
    chance = random.Random(20261121)
    tried = 0
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for _ in range(12):
                asked_for, query = _filled(path, operation.get("parameters", []), chance)
                body = _body(chance) if "requestBody" in operation else None
                answer = client.request(method, asked_for, params=query, content=body)
                fine = answer.status_code < 500 or (path, answer.status_code) == ("/readyz", 503)
                assert fine, (method, asked_for, query, body, answer.text)
                tried += 1
    assert tried > 100


def test_a_body_that_is_no_text_is_the_senders_fault(console: tuple[TestClient, Records]) -> None:
    """Found by the test above: the answer repeated the body, and could not be written."""
    answer = console[0].post("/api/v1/routing", content=b"\xff\xfe")
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body"]


STRANGE: list[Callable[[random.Random], str]] = [
    lambda r: str(r.choice([0, -1, 2**31, 2**63, -(2**63) - 1, 10**40, 1.5, "NaN", "1e309", "true"])),
    lambda r: "".join(chr(r.choice([0x0, 0x9, 0x25, 0x2E, 0x2F, 0xE9, 0x202E, 0x1F600])) for _ in range(9)),
    lambda r: r.choice(
        ["", "..", "../../etc/passwd", "%00", "1.2.3", "' OR 1=1 --", "*", "\\", "null", "[]"]
    ),
    lambda r: "9" * r.choice([65, 200, 3000]),
]


def _filled(path: str, parameters: list[dict[str, Any]], chance: random.Random) -> tuple[str, dict[str, str]]:
    query = {}
    for parameter in parameters:
        value = chance.choice(STRANGE)(chance)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value or "0", safe=""))
        elif chance.random() < 0.8:
            query[parameter["name"]] = value
    return path, query


def _body(chance: random.Random) -> bytes:
    return chance.choice([b"", b"{", b"null", b"[]", b'{"a": 1e999}', b"\xff\xfe", b"x=%00&y", b"[" * 2000])
