"""Whatever goes wrong at a channel names the peer and what to look at, in the same way for every type."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from threading import Event, Thread

import pytest

from node.channels.catalogue import CHANNELS, channel_of
from node.domain.errors import PermanentError, TransientError
from node.settings import AnyAlert, Email, Fhir, Hl7, Settings, UpsPush, Webhook
from tests.alerting import Receiver, alert_of, told
from tests.ports import free_port

MAIL = {"sender": "node@example.org", "recipients": ("reader@example.org",), "security": "none"}
ALERTS: dict[str, Callable[[int], AnyAlert]] = {
    "webhook": lambda port: alert_of(Webhook, "ward", timeout_s=1, url=f"http://127.0.0.1:{port}/hook"),
    "hl7": lambda port: alert_of(Hl7, "ward", timeout_s=1, port=port),
    "email": lambda port: alert_of(Email, "ward", timeout_s=1, port=port, **MAIL),
    "fhir": lambda port: alert_of(Fhir, "ward", timeout_s=1, url=f"http://127.0.0.1:{port}/fhir"),
    "ups": lambda port: alert_of(UpsPush, "ward", timeout_s=1, ae_title="RIS", port=port),
}
ANSWERS = {"nothing and goes": b"", "no protocol": b"220 \x00\xff\x0b\x1c\r\n\r\n" * 20}
NEXT_STEP = re.compile(r"[;,] [^;]*(\?|check |set |log says why|must |change )")


@contextlib.contextmanager
def saying(answer: bytes | None) -> Iterator[int]:
    """A port where each caller hears this and is hung up on; None: nothing, as long as it waits."""
    over = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError), server.accept()[0] as caller:
                    if answer is None:
                        over.wait()
                    caller.sendall(answer or b"")

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        over.set()


def error_of(kind: str, port: int, act: str) -> str:
    channel = channel_of(ALERTS[kind](port), Settings())
    with pytest.raises((TransientError, PermanentError)) as caught:
        channel.probe() if act == "probe" else channel.send(told())
    return str(caught.value)


def assert_helps(text: str, port: int) -> None:
    assert "ward" in text and f":{port}" in text, text
    assert NEXT_STEP.search(text), text


def test_every_type_is_here() -> None:
    assert ALERTS.keys() == CHANNELS.keys()


@pytest.mark.parametrize("act", ["probe", "send"])
@pytest.mark.parametrize("kind", ALERTS)
def test_nobody_there(kind: str, act: str) -> None:
    port = free_port()
    text = error_of(kind, port, act)
    assert_helps(text, port)
    assert "cannot be reached" in text and "is it running" in text


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", ALERTS)
def test_somebody_else_there(kind: str, answer: str) -> None:
    with saying(ANSWERS[answer]) as port:
        assert_helps(error_of(kind, port, "send"), port)


@pytest.mark.parametrize("kind", ["webhook", "hl7", "email", "fhir"])
def test_somebody_who_never_answers(kind: str) -> None:
    with saying(None) as port:
        assert_helps(error_of(kind, port, "send"), port)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 429, 500, 503])
@pytest.mark.parametrize("kind", ["webhook", "fhir"])
def test_every_status_has_its_step(kind: str, status: int) -> None:
    with Receiver(lambda _: (status, b'{"words": "of its own"}')) as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
        text = error_of(kind, port, "send")
    assert f"HTTP {status}" in text
    assert re.search(r"; (check|it |raise|its log)", text), text
