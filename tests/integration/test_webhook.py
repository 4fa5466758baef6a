"""The webhook against an HTTP server: what it says, how it is signed, and what its answers mean."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from node.channels.contract import Rejected
from node.channels.webhook import WebhookChannel, document
from node.domain.announcing import Stage
from node.domain.errors import SettingsError, TransientError
from node.domain.findings import Priority
from node.settings import Settings, Webhook
from node.store.records import open_records
from tests.alerting import Receiver, Request, alert_of, house, told
from tests.certificates import make_certificate, server_context
from tests.ports import free_port
from tests.site import SUBDURAL, findings

CONSOLE = "https://ichnode.example.org"


def channel(url: str, now: float = 1000.0, **changes: Any) -> WebhookChannel:
    return WebhookChannel(alert_of(Webhook, url=url, **changes), CONSOLE, lambda: now)


def test_what_is_said() -> None:
    said = document(told(), CONSOLE, patient_data=False)
    assert said == {
        "schema": "ichnode-alert/1",
        "id": told().identifier,
        "test": False,
        "number": 1,
        "stage": "final",
        "made_at": "2026-09-21T14:13:32.500+00:00",
        "last_slice_at": "2026-09-21T14:13:20.000+00:00",
        "study_instance_uid": "1.2.3",
        "series_instance_uid": "series",
        "revision": 1,
        "reading_priority": "STAT",
        "priority": "STAT",
        "headline": "HAEMORRHAGE SUSPECTED",
        "classes": {
            "any": {"probability": 0.94, "present": True},
            "epidural": {"probability": 0.02, "present": False},
            "intraparenchymal": {"probability": 0.02, "present": False},
            "intraventricular": {"probability": 0.02, "present": False},
            "subarachnoid": {"probability": 0.02, "present": False},
            "subdural": {"probability": 0.914, "present": True},
        },
        "not_evaluated": [],
        "volume_ml": 23.4,
        "side": None,
        "expansion": None,
        "reason": None,
        "corrects": None,
        "model": {"name": "test", "version": "1", "sha256": "0" * 64},
        "console_url": f"{CONSOLE}/study/1.2.3",
        "notice": "Research use only - not for diagnosis",
    }


def test_the_patient_is_named_only_on_request() -> None:
    hidden = json.dumps(document(told(), CONSOLE, patient_data=False), ensure_ascii=False)
    assert not [word for word in ("PID-7", "Müller", "ACC-7", "1956", "Schädel") if word in hidden]
    shown = document(told(), CONSOLE, patient_data=True)["patient"]
    assert shown == {
        "id": "PID-7",
        "issuer": "HOSP",
        "name": "Müller^Jürgen^^Dr.",
        "birth_date": "19560102",
        "accession_number": "ACC-7",
    }


def test_a_correction_keeps_the_priority_and_says_what_it_corrects() -> None:
    said = document(told(findings(), last=told()), CONSOLE, patient_data=False)
    assert (said["reading_priority"], said["priority"], said["headline"]) == (
        "STAT",
        "ROUTINE",
        "NO HAEMORRHAGE DETECTED",
    )
    assert said["corrects"] == {"number": 1, "revision": 1, "priority": Priority.STAT}


def test_the_receiver_can_check_who_sent_it_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "k3y")
    with Receiver() as receiver:
        receipt = channel(receiver.url, secret="env:HOOK_KEY").send(told())
    (got,) = receiver.got
    assert (receipt.acknowledged, receipt.status) == (True, "HTTP 204")
    assert got.headers["X-Ichnode-Timestamp"] == "1000"
    expected = hmac.new(b"k3y", b"1000." + got.body, hashlib.sha256).hexdigest()
    assert got.headers["X-Ichnode-Signature"] == f"sha256={expected}"
    assert got.headers["X-Ichnode-Alert"] == json.loads(got.body)["id"] == told().identifier
    assert got.headers["Content-Type"] == "application/json"


def test_without_a_key_nothing_is_signed() -> None:
    with Receiver() as receiver:
        channel(receiver.url).send(told())
    assert "X-Ichnode-Signature" not in receiver.got[0].headers


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_a_refusal_is_shown_with_its_words(status: int) -> None:
    with Receiver(lambda _: (status, b"no such ward")) as receiver, pytest.raises(Rejected) as caught:
        channel(receiver.url).send(told())
    assert caught.value.status == f"HTTP {status}" and "no such ward" in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_who_asks_for_patience_is_asked_again(status: int) -> None:
    with Receiver(lambda _: (status, b"")) as receiver, pytest.raises(TransientError, match=str(status)):
        channel(receiver.url).send(told())


def test_a_redirection_is_not_followed() -> None:
    with Receiver(lambda _: (307, b"")) as receiver, pytest.raises(Rejected, match="points elsewhere"):
        channel(receiver.url).send(told())
    assert len(receiver.got) == 1


def test_nobody_there_and_nobody_answering() -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(f"http://127.0.0.1:{free_port()}/").send(told())
    with Receiver(late(1.5)) as receiver, pytest.raises(TransientError, match="does not answer within"):
        channel(receiver.url, timeout_s=0.3).send(told())


def late(seconds: float) -> Callable[[Request], tuple[int, bytes]]:
    import time

    def respond(_: Request) -> tuple[int, bytes]:
        time.sleep(seconds)
        return 204, b""

    return respond


def test_over_tls_with_an_authority_of_the_site(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "server")
    with Receiver(tls=server_context(certificate)) as receiver:
        assert channel(receiver.url, tls={"ca": certificate.cert}).send(told()).acknowledged
        with pytest.raises(TransientError, match=r"tls\.ca"):
            channel(receiver.url).send(told())


def test_a_key_that_is_gone_is_told_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Receiver() as receiver:
        there = channel(receiver.url, secret="env:HOOK_KEY")
        with pytest.raises(SettingsError, match="HOOK_KEY is empty"):
            there.check()
        with pytest.raises(TransientError, match="HOOK_KEY is empty"):
            there.send(told())
        monkeypatch.setenv("HOOK_KEY", "s3cr3t-key")
        there.check()
        there.send(told())
    assert "s3cr3t" not in caplog.text


def test_probing_tells_nothing() -> None:
    with Receiver() as receiver:
        assert "HTTP 204" in channel(receiver.url).probe()
    assert [(got.method, got.body) for got in receiver.got] == [("OPTIONS", b"")]
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(f"http://127.0.0.1:{free_port()}/").probe()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "http://hooks.example.org/x"}, "use https"),
        ({"url": "ftp://hooks.example.org/x"}, "is no address"),
        ({"url": "https://user:word@hooks.example.org/x"}, "is no address"),
        ({"url": "https://h/", "secret": "hunter2"}, "secret"),
        ({"url": "https://h/", "when": "sometimes"}, "when"),
    ],
)
def test_settings_that_would_leak_or_mean_nothing_are_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Webhook(**changes)  # type: ignore[arg-type]


def test_from_the_early_word_to_the_receiver(tmp_path: Path) -> None:
    records = open_records(Settings(data_dir=tmp_path))
    with Receiver() as receiver:
        of = house(records, alert_of(Webhook, url=receiver.url))
        job = of.alarmed()
        assert of.herald().round() == 0
        assert of.word(job, SUBDURAL, Stage.FINAL)
        assert of.herald().round() == 0
    first, second = (json.loads(got.body) for got in receiver.got)
    assert (first["stage"], first["number"], second["stage"], second["number"]) == (
        "preliminary",
        1,
        "final",
        2,
    )
    assert of.states() == ["ACKNOWLEDGED"] * 2
    records.close()
