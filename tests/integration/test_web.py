"""The pages over records made by the real store: what is shown, what is escaped, what stays live."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.testclient import TestClient
from sqlalchemy import text

from node.admin import web
from node.domain.findings import (
    CLASSES,
    ClassFinding,
    Consistency,
    Findings,
    ModelIdentity,
    Priority,
    Reason,
    SegmentationFinding,
    Status,
)
from node.domain.instance import Instance
from node.settings import Destination, Settings
from node.store.arrivals import StoredFile
from node.store.decisions import SeriesRow
from node.store.deliveries import NewDelivery
from node.store.jobs import NewObject
from node.store.records import Records, open_records
from tests.peers import requires

CT = "1.2.840.10008.5.1.4.1.1.2"
HOSTILE = '<script>alert("x")</script>'
ESCAPED = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, destination=(Destination(name="pacs", ae_title="PACS"),))


@pytest.fixture
def records(settings: Settings) -> Iterator[Records]:
    opened = open_records(settings)
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings, records: Records) -> TestClient:
    return TestClient(web.make_app(settings, records), base_url="http://127.0.0.1:8080")


class Site:
    """Fills the records as the roles would, by their own queries."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._received = 0

    def receive(self, study: str, series: str, *, ago: float = 0, images: int = 2, **header: str) -> None:
        now = time.time() - ago
        self.records.arrivals.open_association(f"{study}/{series}", "listen", ("CT1", "127.0.0.1"), now)
        for _ in range(images):
            self._received += 1
            uid = f"2.25.{self._received}"
            instance = Instance(uid, CT, series, study, "1.2.840.10008.1.2.1", "CT", **header)
            file = StoredFile(f"{uid}.dcm", 1000, f"{self._received:064d}")
            self.records.arrivals.record(instance, file, f"{study}/{series}", now)
        self.records.arrivals.close_association(f"{study}/{series}", "released", now)

    def decide(self, study: str, chosen: str | None, reason: Reason | None = None) -> int | None:
        """Settle all series of the study; each but the chosen one is refused for the reason."""
        now = time.time()
        for row in self.rows(study):
            self.records.decisions.settle(row, now)
        rows = self.rows(study)
        refused = [
            (row, reason or Reason("NOT_CHOSEN", "another series"))
            for row in rows
            if row.series_instance_uid != chosen
        ]
        accepted = next((r for r in rows if r.series_instance_uid == chosen), None)
        return self.records.decisions.decide(accepted, refused, now)

    def rows(self, study: str) -> list[SeriesRow]:
        return self.records.decisions.of_study(study)

    def queued(self, study: str, **header: str) -> int:
        self.receive(study, f"{study}.1", **header)
        job = self.decide(study, f"{study}.1")
        assert job is not None
        return job

    def running(self, study: str, **header: str) -> int:
        job = self.queued(study, **header)
        assert self.records.jobs.claim(job, "worker", time.time() + 60, time.time())
        return job

    def analysed(self, study: str, findings: Findings, **header: str) -> int:
        job = self.running(study, **header)
        assert self.records.jobs.store_analysis(job, "worker", findings, "maps", time.time())
        return job

    def composed(self, study: str, findings: Findings, **header: str) -> int:
        """With one object on its way to the PACS."""
        job = self.analysed(study, findings, **header)
        made = NewObject(f"{study}.9", CT, f"{study}.8", "sr", "sr.dcm", 1000)
        urgent = findings.priority is Priority.STAT
        delivery = NewDelivery(made.sop_instance_uid, "pacs", 0, urgent)
        stored = self.records.jobs.get(job)
        assert stored
        assert self.records.jobs.store_objects(stored, [made], [delivery], time.time())
        return job

    def delivery_of(self, job: int) -> int:
        found: int = self.records.views.deliveries_of(job)[0]["id"]
        return found


@pytest.fixture
def site(records: Records) -> Site:
    return Site(records)


def findings(
    present: dict[str, float] | None = None,
    volume_ml: float = 0.0,
    consistency: Consistency = Consistency.AGREE,
    priority: Priority | None = None,
) -> Findings:
    present = present or {}
    values = {name: present.get(name, 0.02) for name in CLASSES}
    return Findings(
        ModelIdentity("test", "1", "0" * 64),
        "series",
        1,
        Status.ANALYSED,
        classes={name: ClassFinding(value, name in present) for name, value in values.items()},
        segmentation=SegmentationFinding(volume_ml, ("2.25.1", "2.25.2") if volume_ml else ()),
        consistency=consistency,
        priority=priority or (Priority.STAT if present else Priority.ROUTINE),
    )


def lose(records: Records) -> None:
    """From here on every look into the database fails."""
    with records.engine.begin() as connection:
        connection.execute(text("ALTER TABLE heartbeats RENAME TO away"))


SUBDURAL = findings({"any": 0.94, "subdural": 0.914}, 23.4)


def test_empty_node_says_what_to_send_where(client: TestClient) -> None:
    page = client.get("/").text
    assert "No study yet" in page
    assert "storescu -aec ICHNODE +sd +r 127.0.0.1 11112" in page
    assert "Research use only – not for diagnosis" in page


def test_a_suspected_haemorrhage_stands_out_with_its_findings(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_id="PID-7", accession_number="ACC-7", study_description="CT head")
    page = client.get("/").text
    alarms = page[page.index('id="alarms"') : page.index('id="studies"')]
    for words in ("PID-7", "ACC-7", "STAT", "HAEMORRHAGE SUSPECTED", "Subdural <b>0.91</b>", "23.4 mL"):
        assert words in alarms
    assert "Epidural" not in page
    assert "Classifier and segmentation agree." in page
    assert "<title>(1) ICHNODE" in page


def test_an_alarm_stands_from_the_first_word_of_the_classifier(client: TestClient, site: Site) -> None:
    job = site.running("1.1", patient_id="PID-7")
    assert site.records.jobs.store_priority(job, "worker", Priority.STAT)
    assert "First word of the classifier" in client.get("/").text


def test_an_alarm_is_kept_while_a_newer_revision_is_analysed(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_id="PID-7")
    site.receive("1.1", "1.1.1", images=1)
    assert "<title>(1) ICHNODE" in client.get("/").text
    job = site.decide("1.1", "1.1.1")
    assert job is not None
    assert "<title>(1) ICHNODE" in client.get("/").text
    site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    site.records.jobs.store_analysis(job, "worker", findings(), "maps", time.time())
    assert "<title>ICHNODE" in client.get("/").text


@pytest.mark.parametrize("fails_in", ["queue", "worker"])
def test_no_result_never_reads_as_a_negative_one(client: TestClient, site: Site, fails_in: str) -> None:
    if fails_in == "worker":
        job = site.running("1.1")
        site.records.jobs.fail(job, Reason("NO_VOLUME", "the slices do not form a volume"))
    else:
        site.receive("1.1", "1.1.1")
        site.decide("1.1", None, Reason("NO_HEAD", "the slices do not form a volume"))
    page = client.get("/").text
    assert "the slices do not form a volume" in page
    assert "This is NOT a negative result." in page
    assert "NO HAEMORRHAGE DETECTED" not in page


def test_each_skipped_series_tells_its_reason(client: TestClient, site: Site) -> None:
    site.receive("1.1", "1.1.1", series_description="Head 5.0")
    site.receive("1.1", "1.1.2", series_description="Topogram")
    site.decide("1.1", "1.1.1", Reason("LOCALIZER", "a localizer holds no volume"))
    page = client.get("/").text
    assert "2 series: 1 accepted, 1 skipped" in page
    assert "a localizer holds no volume" in page


def test_undelivered_positives_come_first_with_their_error(client: TestClient, site: Site) -> None:
    site.composed("1.1", findings(), patient_id="PID-1")
    job = site.composed("1.2", SUBDURAL, patient_id="PID-2")
    delivery = site.delivery_of(job)
    site.records.deliveries.failed(delivery, "PACS refused the association", "0xA700", time.time() + 120)
    page = client.get("/").text
    assert "1 result not delivered yet" in page[page.index('id="alarms"') : page.index('id="studies"')]
    waiting = page[page.index('id="deliveries"') :]
    assert waiting.index("PID-2") < waiting.index("PID-1")
    assert "PACS refused the association" in waiting
    assert client.get("/api/status").json()["oldest_undelivered_positive_at"] is not None
    site.records.deliveries.sent(delivery, "0x0000", time.time())
    assert client.get("/api/status").json()["oldest_undelivered_positive_at"] is None


def test_a_role_that_is_gone_is_named_with_what_stands_still(client: TestClient, site: Site) -> None:
    now = time.time()
    site.records.views.beat("listen@host:1", "listen", {}, now)
    site.records.views.beat("worker@host:2", "worker", {}, now - 600)
    standing = {role["role"]: role for role in client.get("/api/status").json()["roles"]}
    assert standing["listen"]["alive"] == 1
    assert standing["worker"]["alive"] == 0
    page = client.get("/").text
    assert "nothing is analysed" in page
    assert "nothing can be received" not in page


def test_a_process_that_was_replaced_is_not_missed() -> None:
    worker = {"role": "worker", "detail": {}}
    gone = {**worker, "process": "worker@a:1", "alive": False, "started_at": 0, "seen_at": 50}
    newer = {**worker, "process": "worker@a:2", "alive": True, "started_at": 60, "seen_at": 99}
    elsewhere = {**newer, "process": "worker@b:2"}

    def lost(*processes: dict[str, object]) -> list[str]:
        found: list[str] = next(r for r in web.roles(processes, 100) if r["role"] == "worker")["lost"]
        return found

    assert lost(gone, newer) == []
    assert lost(gone, elsewhere) == ["worker@a:1"]


def test_text_from_outside_is_escaped_everywhere(client: TestClient, site: Site) -> None:
    header = dict.fromkeys(
        ("patient_id", "patient_name", "accession_number", "study_description", "series_description"), HOSTILE
    )
    job = site.running(f"1.1{HOSTILE}", **header)
    site.records.jobs.fail(job, Reason(HOSTILE, HOSTILE))
    job = site.composed("1.2", SUBDURAL, **header)
    site.records.deliveries.failed(site.delivery_of(job), HOSTILE, HOSTILE, time.time())
    site.records.views.beat(f"worker@{HOSTILE}:1", "worker", {"model": HOSTILE, "version": ""}, time.time())
    for path in ("/", "/live"):
        page = client.get(path).text
        assert "<script>" not in page
        assert page.count(ESCAPED) > 8


def test_patient_names_are_not_shown_without_a_login(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_name="Doe^Jane")
    for path in ("/", "/live", "/api/studies", "/api/jobs", "/api/deliveries", "/api/status"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "Doe" not in answer.text


def test_the_api_lists_the_same(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL, patient_id="PID-7")
    study = client.get("/api/studies").json()[0]
    assert study["status"] == "DELIVERING"
    assert study["job"]["findings"]["classes"]["subdural"]["present"] is True
    assert client.get("/api/jobs").json()[0]["id"] == job
    assert client.get("/api/deliveries").json()[0]["state"] == "PENDING"
    assert client.get("/api/status").json()["counts"]["jobs"] == {"COMPOSED": 1}
    assert client.get("/api/jobs", params={"limit": 0}).status_code == 422
    assert "/api/studies" in client.get("/openapi.json").json()["paths"]


def test_a_database_that_does_not_answer_is_said(client: TestClient, records: Records) -> None:
    assert client.get("/healthz").status_code == 200
    lose(records)
    answer = client.get("/healthz")
    assert answer.status_code == 503
    page = client.get("/")
    assert page.status_code == 503
    assert "The database does not answer" in page.text
    assert client.get("/live").status_code == 503


def test_only_safe_methods_and_strict_headers(client: TestClient) -> None:
    for path in ("/", "/static/style.css", "/api/studies", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert client.post("/").status_code == 405
    assert client.get("/docs").status_code == 404
    page = client.get("/").text
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "https://" not in page


def test_a_loopback_node_refuses_foreign_names(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/healthz", headers={"Host": "localhost:8080"}).status_code == 200
    assert web.allowed_hosts("0.0.0.0") == ["*"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (59.9, "59 s"), (61, "1 min"), (7500, "2 h 05 min"), (4e5, "4 d")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert web.span(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.001, "<0.01"), (0.5, "0.50"), (0.996, ">0.99"), (1.0, ">0.99")]
)
def test_probabilities_never_round_to_certainty(value: float, words: str) -> None:
    assert web.probability(value) == words


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def browse(address: str, profile: Path) -> str:
    """The DOM after some seconds of the page's own time, in a browser that knows nothing else."""
    quiet = (
        "gpu",
        "quic",
        "background-networking",
        "component-update",
        "sync",
        "dev-shm-usage",
        "extensions",
    )
    command = ["chromium", "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}"]
    command += [f"--disable-{part}" for part in quiet]
    command += ["--virtual-time-budget=15000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def on_first_poll(app: FastAPI, act: Callable[[], object]) -> None:
    """Do something once, after the whole page was answered and before the first poll is."""
    left = [act]

    @app.middleware("http")
    async def watch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/live" and left:
            await run_in_threadpool(left.pop())
        return await call_next(request)


def open_details(app: FastAPI) -> None:
    """Have the browser open every `details` once, as a reader would."""
    script = (web.HERE / "static" / "live.js").read_text(encoding="utf-8")
    script += "\nfor (const one of document.querySelectorAll('details')) one.open = true;\n"

    @app.middleware("http")
    async def replace(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/static/live.js":
            return Response(script, media_type="text/javascript")
        return await call_next(request)


def test_the_open_page_follows_the_records_and_leaves_open_what_was_opened(
    settings: Settings, records: Records, site: Site, tmp_path: Path
) -> None:
    requires("chromium")
    site.queued("1.1", patient_id="FIRST")
    app = web.make_app(settings, records)
    on_first_poll(app, lambda: site.composed("1.2", SUBDURAL, patient_id="SECOND"))
    open_details(app)
    with serving(app) as address:
        dom = browse(address, tmp_path / "profile")
    assert "<title>(1) ICHNODE" in dom
    studies = dom[dom.index('id="studies"') : dom.index('id="jobs"')]
    assert studies.index("SECOND") < studies.index("FIRST")
    assert f'<details id="d-{web.anchor("1.1")}" open="">' in studies
    assert f'<details id="d-{web.anchor("1.2")}">' in studies
    assert 'id="stale" role="alert" hidden=""' in dom


def test_the_open_page_says_when_it_is_no_longer_live(
    settings: Settings, records: Records, site: Site, tmp_path: Path
) -> None:
    requires("chromium")
    site.composed("1.1", SUBDURAL, patient_id="FIRST")
    app = web.make_app(settings, records)
    on_first_poll(app, lambda: lose(records))
    with serving(app) as address:
        dom = browse(address, tmp_path / "profile")
    assert "Not live: the database does not answer. Shown is " in dom
    assert "FIRST" in dom[dom.index('id="alarms"') :]
