"""Alerts in real records, and an HTTP receiver that answers as it is told, for tests of channels."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from node.announce import Herald
from node.channels.catalogue import channel_of
from node.domain.announcing import Announcement, Occasion, Stage, Subject, announcement
from node.domain.findings import Findings
from node.settings import AnyAlert, Settings
from node.store.jobs import Word
from node.store.records import Records
from tests.site import SUBDURAL, Site

SUBJECT = Subject(
    "PID-7", "HOSP", "Müller^Jürgen^^Dr.", "19560102", "ACC-7", "20261120", "101500.000", "CT Schädel nativ"
)
HEADER = {
    "patient_id": SUBJECT.patient_id,
    "issuer_of_patient_id": SUBJECT.issuer_of_patient_id,
    "patient_name": SUBJECT.patient_name,
    "patient_birth_date": SUBJECT.patient_birth_date,
    "accession_number": SUBJECT.accession_number,
    "study_date": SUBJECT.study_date,
    "study_time": SUBJECT.study_time,
    "study_description": SUBJECT.study_description,
}


def told(
    findings: Findings = SUBDURAL, stage: Stage = Stage.FINAL, last: Announcement | None = None
) -> Announcement:
    occasion = Occasion("a", "1.2.3", SUBJECT, 1_790_000_000.0, 1_790_000_012.5)
    return announcement(occasion, stage, findings, last, last.number + 1 if last else 1)


@dataclass
class House:
    """A node with channels; results are stored as the worker stores them."""

    records: Records
    settings: Settings
    site: Site = field(init=False)

    def __post_init__(self) -> None:
        self.site = Site(self.records)

    def word(
        self,
        job: int,
        findings: Findings,
        stage: Stage = Stage.PRELIMINARY,
        now: float = 0.0,
        who: str = "worker",
    ) -> bool:
        """Stored by the worker; the early word, or the whole analysis."""
        jobs, audiences = self.records.jobs, self.settings.audiences
        if stage is Stage.FINAL:
            return jobs.store_analysis(job, who, findings, "maps", now, audiences)
        assert findings.priority
        return jobs.store_priority(job, who, findings.priority, Word(stage, findings, audiences, now))

    def alarmed(self, study: str = "1.1", findings: Findings = SUBDURAL, now: float = 0.0) -> int:
        """A job whose early word has been spoken."""
        job = self.site.running(study, **HEADER)
        assert self.word(job, findings, now=now)
        return job

    def herald(self, name: str = "") -> Herald:
        alert = next(a for a in self.settings.alert if name in ("", a.name))
        return Herald(alert, channel_of(alert, self.settings), self.records)

    def rows(self, channel: str = "") -> list[dict[str, Any]]:
        """Oldest first."""
        return [r for r in reversed(self.records.alerts.latest()) if channel in ("", r["channel"])]

    def states(self, channel: str = "") -> list[str]:
        return [row["state"] for row in self.rows(channel)]


def house(records: Records, *alerts: AnyAlert) -> House:
    return House(records, Settings(alert=alerts))


@dataclass
class Request:
    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Receiver:
    """An HTTP server on loopback; `respond` gives status and body of each answer. Port 0: any.

    `headers` go out with every answer; `respond` may change them.
    """

    respond: Callable[[Request], tuple[int, bytes]] = lambda _: (204, b"")
    tls: ssl.SSLContext | None = None
    got: list[Request] = field(default_factory=list)
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, self.headers, body)
                receiver.got.append(request)
                status, answer = receiver.respond(request)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET = do_PUT = do_OPTIONS = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/hook"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def alert_of(kind: Any, name: str = "", **changes: Any) -> Any:
    """Settings of a channel whose waits are easy to tell; patient, for machines that are busy."""
    return kind(name=name, **{"timeout_s": 30, "retry_base_s": 5, "retry_max_s": 60, **changes})
