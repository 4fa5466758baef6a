"""Headers and files of every instance; and what a keyboard or a screen reader needs of every page."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread
from sqlalchemy import select, update

from node.admin.passwords import hashed
from node.admin.web.app import HERE
from node.admin.web.instances import elements
from node.domain.errors import PermanentError
from node.domain.findings import Reason
from node.domain.permissions import Role
from node.domain.reconciliation import ArchivedStudy, Kind, Missing
from node.frames import MOST_FRAMES
from node.settings import Archive, Settings
from node.store import tables
from node.store.records import Records
from tests import factories
from tests.site import SUBDURAL, Site

SERIES = factories.ct_series(4, 32, name="headers")
STUDY_UID, SERIES_UID = str(SERIES[0].StudyInstanceUID), str(SERIES[0].SeriesInstanceUID)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"archive": (Archive(name="old", ae_title="OLD"),)})


@pytest.fixture
def records(records: Records, settings: Settings) -> Records:
    """With a study that has images, two in trouble, and one that came in part."""
    site = Site(records, settings)
    site.pictured(SERIES, {"any": 0.93})
    site.failed("1.5", Reason("NO_VOLUME", "no volume"))
    site.given_up("1.6", SUBDURAL)
    gap = Missing(Kind.SLICES, ArchivedStudy("1.7", "P"), "1.7.1", "Head", 30, 28)
    records.gaps.note("old", [], [gap], time.time())
    return records


def test_each_instance_has_its_header_and_its_file(client: TestClient, records: Records) -> None:
    listed = client.get(f"/series/{SERIES_UID}").text
    for number, ds in enumerate(SERIES):
        uid = str(ds.SOPInstanceUID)
        assert f"/header/{uid}" in listed and f"/instance/{uid}" in listed
        assert uid in client.get(f"/slice-header/{number}/{SERIES_UID}").text
    page = client.get(f"/header/{SERIES[2].SOPInstanceUID}").text
    for told in ("(0020,0032)", "Image Position (Patient)", "(0002,0010)", "Scanner &amp; Söhne", "H31s"):
        assert told in page
    got = client.get(f"/instance/{SERIES[2].SOPInstanceUID}")
    assert got.headers["content-type"] == "application/dicom"
    assert dcmread(BytesIO(got.content)).SOPInstanceUID == SERIES[2].SOPInstanceUID
    actions = [entry["action"] for entry in records.audit.entries(10, study_uid=STUDY_UID)]
    assert actions[0] == "download" and "header" in actions and "series" in actions


def test_results_have_their_headers_too(client: TestClient) -> None:
    page = client.get(f"/study/{STUDY_UID}").text
    uids = re.findall(r'href="/header/([\d.]+)"', page)
    assert len(uids) > 2 and f"/series/{SERIES_UID}" in page and "/slice-header/" in page
    report = client.get(f"/header/{uids[0]}").text
    assert "Content Sequence" in report and "&gt; &gt; (" in report
    assert f"/object/{uids[0]}" in report


def test_names_are_shown_to_people_who_logged_in_alone(client: TestClient, records: Records) -> None:
    uid = SERIES[0].SOPInstanceUID
    page = client.get(f"/header/{uid}").text
    assert "Müller" not in page and "19600101" not in page and "Refer^Ring" not in page
    assert page.count("not shown") == 3 and "PID123" in page
    records.people.add("anna", Role.VIEWER, hashed("correct horse battery"), time.time())
    token = re.search(r'name="csrf" (?:content|value)="(\w+)"', client.get("/login").text)
    assert token
    form = {"csrf": token[1], "name": "anna", "password": "correct horse battery"}
    assert client.post("/login", data=form).status_code == 303
    assert "Müller^Jörg" in client.get(f"/header/{uid}").text


def test_what_is_not_there_is_said(client: TestClient, records: Records, tmp_path: Path) -> None:
    for path in ("/header/9.9", "/instance/9.9", "/series/9.9", f"/slice-header/99/{SERIES_UID}"):
        assert client.get(path).status_code == 404
    found = records.worklist.instance(str(SERIES[0].SOPInstanceUID))
    assert found
    (tmp_path / "spool" / found["path"]).write_bytes(b"junk")
    assert "cannot be read" in client.get(f"/header/{SERIES[0].SOPInstanceUID}").text
    (tmp_path / "spool" / found["path"]).unlink()
    assert client.get(f"/instance/{SERIES[0].SOPInstanceUID}").status_code == 404


def test_a_file_that_is_damaged_is_said(
    client: TestClient, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the bucket gives other bytes than were put there: in words, not as a fault of the node."""

    def damaged(*_: object) -> None:
        raise PermanentError("FILE_DAMAGED", "bucket b: its bytes are not what was put there")

    monkeypatch.setattr("node.spool.Spool.fetch", damaged)
    uid = SERIES[0].SOPInstanceUID
    for path in (f"/header/{uid}", f"/instance/{uid}"):
        answer = client.get(path)
        assert answer.status_code == 404 and "not what was put there" in answer.text
        page = client.get(path, headers={"Accept": "text/html"})
        assert page.status_code == 404 and "<h1" in page.text and "not what was put there" in page.text


def test_a_header_that_counts_more_frames_than_there_can_be_does_not_fill_the_memory(
    client: TestClient, records: Records
) -> None:
    uid = str(SERIES[0].SOPInstanceUID)
    found = records.worklist.instance(uid)
    assert found
    with records.engine.begin() as connection:
        mine = tables.instances.c.sop_instance_uid == uid
        header = connection.execute(select(tables.instances.c.header).where(mine)).scalar_one()
        connection.execute(update(tables.instances).where(mine).values(header={**header, "frames": 10**6}))
        connection.execute(update(tables.jobs).values(findings=None))
    page = client.get(f"/slice-header/{2 * MOST_FRAMES}/{SERIES_UID}")
    assert page.status_code == 404


def test_a_hostile_header_is_shown_as_text_and_cut() -> None:
    ds = factories.ct_series(1, 8, SeriesDescription="<script>", ImageComments="x" * 5000)[0]
    lines = {line.name: line.value for line in elements(ds, True)}
    assert lines["Series Description"] == "<script>"
    assert lines["Image Comments"].endswith("… (5000 characters)")
    assert lines["Pixel Data"] == "128 bytes"


class Page(HTMLParser):
    """What somebody who cannot see, or uses no mouse, would stumble over."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.labelled: set[str] = set()
        self.waiting: list[tuple[str, str]] = []
        self.labels = self.buttons = 0
        self.words = ""
        self.ids: list[str] = []
        self.feed(text)
        self.faults += [what for what, name in self.waiting if name not in self.labelled]
        self.faults += [f"id {name} twice" for name in set(self.ids) if self.ids.count(name) > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "label":
            self.labels += 1
            self.labelled.add(given.get("for", ""))
        hidden = given.get("type") == "hidden"
        bare = not (hidden or self.labels or given.get("aria-label"))
        if tag in ("input", "select", "textarea") and bare:
            self.waiting.append((f"{tag} {given.get('name')} without a label", given.get("id", "-")))
        if tag == "img" and "alt" not in given:
            self.faults.append("img without alt")
        self.words += given.get("alt", "")
        if tag == "svg" and not ({"aria-hidden", "aria-label"} & given.keys()):
            self.faults.append("svg without words")
        if int(given.get("tabindex", "0")) > 0:
            self.faults.append(f"tabindex {given['tabindex']}")
        if "onclick" in given or "style" in given:
            self.faults.append(f"{tag}: what the content policy forbids")
        if tag in ("button", "a", "th"):
            self.words = given.get("aria-label", "")

    def handle_data(self, data: str) -> None:
        self.words += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self.labels -= tag == "label"
        if tag in ("button", "a", "th") and not self.words:
            self.faults.append(f"{tag} without words")


def test_every_page_can_be_used_without_eyes_or_a_mouse(client: TestClient) -> None:
    header = f"/header/{SERIES[0].SOPInstanceUID}"
    pages = (
        "/",
        "/?q=nobody",
        f"/study/{STUDY_UID}",
        "/study/1.5",
        "/queue",
        "/missing",
        "/routing",
        "/audit",
    )
    for path in (*pages, f"/series/{SERIES_UID}", header):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert Page(answer.text).faults == [], path
        assert '<html lang="en">' in answer.text and 'class="skip"' in answer.text


def test_the_page_checker_finds_faults() -> None:
    text = '<input name="a"><label for="b">B</label><input id="b"><img src="x"><a href="/"></a><p id="b">'
    assert set(Page(text).faults) == {
        "input a without a label",
        "img without alt",
        "a without words",
        "id b twice",
    }


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_stands_out_from_every_ground_by_7_to_1() -> None:
    css = (HERE / "static" / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))
    grounds = ("#0d1014", colours["panel"], "#1c1214", "#1b2733")
    for name in ("text", "muted", "red", "amber", "green", "blue"):
        for ground in grounds:
            assert contrast(colours[name], ground) >= 7, (name, ground)
    assert contrast(colours["red"], colours["red-ground"]) >= 7
    assert contrast("#ffffff", colours["red-solid"]) >= 7
    assert contrast("#ffe1a1", "#30280f") >= 7


def test_a_uid_has_its_name(client: TestClient) -> None:
    page = client.get(f"/header/{SERIES[0].SOPInstanceUID}").text
    assert "1.2.840.10008.5.1.4.1.1.2 (CT Image Storage)" in page
    assert "1.2.840.10008.1.2.1 (Explicit VR Little Endian)" in page
    assert f"<td>{SERIES_UID}</td>" in page


def test_a_page_that_is_not_there_is_named(client: TestClient) -> None:
    page = client.get("/nothing/at-all")
    assert page.status_code == 404 and "There is no page /nothing/at-all" in page.text
    assert "/login" not in page.text
