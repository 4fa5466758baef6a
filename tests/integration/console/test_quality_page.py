"""The page Quality, its JSON and its CSV, over records made by the real store."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from fastapi.testclient import TestClient

from node.admin.web.quality import _month_starts
from node.admin.web.words import Clock
from node.domain.acquisition import Acquisition
from node.domain.opinion import Opinion, Word
from tests.site import SUBDURAL, Site, findings

HTML = {"Accept": "text/html"}


def press(client: TestClient, path: str, **form: str | list[str]) -> int:
    token = client.get("/quality").text.split('name="csrf" content="')[1].split('"')[0]
    return client.post(path, data={"csrf": token, **form}).status_code


def judged(site: Site, study: str, agree: bool, positive: bool = True, scanner: str = "ACME") -> int:
    job = site.running(study, patient_id=f"PID-{study}")
    found = SUBDURAL if positive else findings()
    site.records.jobs.store_analysis(job, "worker", found, "m", time.time(), acquired=Acquisition(scanner))
    opinion = Opinion.AGREE if agree else Opinion.DISAGREE
    site.records.reviews.judge(job, Word(opinion, "anna", time.time() + 1))
    return job


def test_an_empty_node_shows_dashes_and_no_rate(client: TestClient) -> None:
    page = client.get("/quality?by=month&within=all").text
    assert "0 of 0" in page and " %" not in page.split('id="groups"')[1].split("</tbody>")[0]


def test_rates_are_shown_with_intervals_and_with_their_bias(client: TestClient, site: Site) -> None:
    for number in range(9):
        judged(site, f"1.{number}", agree=number != 0)
    judged(site, "2.1", agree=True, positive=False, scanner="<script>")
    for by in ("scanner", "model", "month"):
        page = client.get(f"/quality?by={by}").text
        assert "89 % (57–98 %)<small>8 of 9</small>" in page.replace("\u00a0", " ").replace("\u2060", "")
        assert "Readers judged 9 of 9 suspected" in page and "mislead" in page
        assert "<script>" not in page.split('id="groups"')[1]
    answer = client.get("/api/v1/quality?by=scanner").json()
    assert answer["all"]["any"]["ppv"]["count"] == 8
    assert [group["name"] for group in answer["groups"]] == ["ACME", "<script>"]
    assert answer["all"]["corrected"] is None


def test_a_disagreement_says_what_is_wrong(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL, patient_id="PID-7")
    page = client.get("/study/1.1").text
    assert 'value="NO_HAEMORRHAGE"' in page
    assert press(client, f"/disagree/{job}", why="SUBTYPE", actual=["epidural", "subarachnoid"]) == 303
    assert "the kind of haemorrhage is wrong" in client.get("/study/1.1").text
    page = client.get("/quality").text
    assert "PID-7" in page and "the kind of haemorrhage is wrong" in page
    epidural = client.get("/api/v1/quality").json()["all"]["classes"]["epidural"]
    assert (epidural["false_negative"], epidural["true_positive"]) == (1, 0)
    assert press(client, f"/disagree/{job}", why="nonsense") == 303
    assert site.records.quality.disagreements(0, 1e12)[0]["why"] == "UNSPECIFIED"


def test_a_draw_is_listed_until_it_is_judged_and_then_corrects(client: TestClient, site: Site) -> None:
    judged(site, "1.1", agree=True)
    jobs = [site.composed(f"2.{number}", findings(), patient_id=f"NEG-{number}") for number in range(3)]
    assert press(client, "/quality/sample", count="5", within="30d") == 303
    page = client.get("/quality").text
    assert all(f"NEG-{number}" in page for number in range(3))
    for job in jobs:
        press(client, f"/agree/{job}")
    assert "NEG-0" not in client.get("/quality").text
    answer = client.get("/api/v1/quality").json()["all"]
    assert answer["sample_of_negatives"]["total"] == 3
    assert answer["corrected"]["sensitivity"][0] == 1
    assert answer["corrected"]["sensitivity"][1] < 0.5  # three of three say little


def test_the_csv_holds_what_readers_saw_and_no_patient(client: TestClient, site: Site) -> None:
    judged(site, "1.1", agree=False, scanner="=cmd")
    lines = list(csv.DictReader(io.StringIO(client.get("/quality.csv").text.lstrip("\ufeff"))))
    assert (
        lines[0]["reader_any"] == "0" and lines[0]["present_any"] == "1" and lines[0]["reader_subdural"] == ""
    )
    assert lines[0]["scanner"] == "'=cmd"
    assert "PID" not in client.get("/quality.csv").text


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own zone."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", ["", "Europe/Berlin"])
def test_a_month_begins_at_midnight_on_either_side_of_a_change_of_clocks(zone: str, in_berlin: None) -> None:
    summer = datetime(2026, 8, 20, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    starts = {name: begin for begin, name in _month_starts(Clock(zone), summer)}
    for name in ("2026-08", "2026-03", "2026-01", "2025-10", "2025-09"):
        year, month = map(int, name.split("-"))
        assert starts[name] == datetime(year, month, 1, tzinfo=ZoneInfo("Europe/Berlin")).timestamp(), name
