"""Webhook: the announcement as a JSON document by HTTP POST, signed. Holds no patient's data unless asked.

The signature is HMAC-SHA256 (RFC 2104) over `timestamp.body`, so that an old message cannot be played
again later; the receiver compares the timestamp with its clock. 2xx means that it has the message.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import requests

from node import __version__, https
from node.channels.contract import Receipt
from node.channels.http import exchange
from node.credentials import secret
from node.domain.announcing import Announcement
from node.domain.errors import SettingsError, TransientError
from node.outputs import wording
from node.settings import Webhook

SCHEMA = "ichnode-alert/1"
SIGNATURE, TIMESTAMP, IDENTIFIER = "X-Ichnode-Signature", "X-Ichnode-Timestamp", "X-Ichnode-Alert"


class WebhookChannel:
    """`console` is the root of links to the console."""

    def __init__(self, settings: Webhook, console: str, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._console = console
        self._now = now
        self._name = f"webhook {settings.name} ({settings.url})"

    def check(self) -> None:
        self._session().close()
        self._key()

    def probe(self) -> str:
        """By OPTIONS, which changes nothing; any answer will do."""
        with self._session() as session:
            try:
                timeout_s = self._settings.timeout_s
                answer = session.options(self._settings.url, timeout=timeout_s, allow_redirects=False)
            except requests.RequestException as error:
                raise TransientError(https.unreachable(self._name, error)) from error
        return f"{self._name} answers OPTIONS with HTTP {answer.status_code}"

    def send(self, told: Announcement) -> Receipt:
        content = document(told, self._console, self._settings.patient_data)
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"ichnode/{__version__}",
            IDENTIFIER: told.identifier,
        }
        try:
            headers |= signed(body, self._key(), int(self._now()))
            session = self._session()
        except SettingsError as error:  # it was there at the start; an admin may put it back
            raise TransientError(str(error)) from error
        request = requests.Request("POST", self._settings.url, data=body, headers=headers)
        with session:
            answer = exchange(session, request, self._settings.timeout_s, self._name)
        return Receipt(True, f"HTTP {answer.status}")

    def _session(self) -> requests.Session:
        return https.session(self._settings.tls, f"alert {self._settings.name}")

    def _key(self) -> bytes:
        return secret(self._settings.secret).encode() if self._settings.secret else b""


def signed(body: bytes, key: bytes, timestamp: int) -> dict[str, str]:
    """The headers that prove who sent the body, and when; without a key the time alone."""
    headers = {TIMESTAMP: str(timestamp)}
    if key:
        digest = hmac.new(key, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
        headers[SIGNATURE] = f"sha256={digest}"
    return headers


def document(told: Announcement, console: str, patient_data: bool) -> dict[str, Any]:
    """The announcement as docs/alerts.md describes it."""
    found, subject = told.findings, told.subject
    mask = found.segmentation
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "id": told.identifier,
        "test": told.test,
        "number": told.number,
        "stage": told.stage.lower(),
        "made_at": _time(told.made_at),
        "last_slice_at": _time(told.last_slice_at),
        "study_instance_uid": told.study_instance_uid,
        "series_instance_uid": found.series_instance_uid,
        "revision": found.revision,
        "reading_priority": told.reading_priority,
        "priority": found.priority,
        "headline": wording.HEADLINES[wording.verdict(found)],
        "classes": {
            name: {"probability": round(one.probability, 4), "present": one.present}
            for name, one in found.classes.items()
        },
        "not_evaluated": list(found.not_evaluated),
        "volume_ml": round(mask.volume_ml, 2) if mask else None,
        "side": mask.side if mask else None,
        "expansion": found.comparison.expansion if found.comparison else None,
        "reason": {"code": found.reason.code, "text": found.reason.text} if found.reason else None,
        "corrects": {
            "number": told.corrects.number,
            "revision": told.corrects.revision,
            "priority": told.corrects.priority,
        }
        if told.corrects
        else None,
        "model": {"name": found.model.name, "version": found.model.version, "sha256": found.model.sha256},
        "console_url": f"{console}/study/{quote(told.study_instance_uid, safe='')}",
        "notice": wording.RESEARCH_USE,
    }
    if patient_data:
        content["patient"] = {
            "id": subject.patient_id,
            "issuer": subject.issuer_of_patient_id,
            "name": subject.patient_name,
            "birth_date": subject.patient_birth_date,
            "accession_number": subject.accession_number,
        }
    return content


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
