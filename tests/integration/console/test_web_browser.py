"""The console in a real browser: log in, read, page through slices, retry, pause; what it says when stale."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import uvicorn

from node.admin.passwords import hashed
from node.admin.roles import spool_of
from node.admin.web.app import make_app
from node.compose import Composer
from node.domain.findings import Reason
from node.domain.permissions import Role
from node.settings import Shadow
from node.store.records import Records
from tests import factories
from tests.integration.console.test_web import lose
from tests.peers import eventually, requires
from tests.shadowed import Shadowed
from tests.site import SUBDURAL, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECRET = "correct horse battery"
STORED = hashed(SECRET)
PATIENCE_MS = 60_000
"""For a machine with other things to do."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    requires("chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        program = shutil.which("chromium")
        quiet = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        opened = driver.chromium.launch(executable_path=program, args=quiet, timeout=PATIENCE_MS)
        yield opened
        opened.close()


@pytest.fixture
def site(site: Site) -> Site:
    """With an admin, anna, and a viewer, victor."""
    for name, role in (("anna", Role.ADMIN), ("victor", Role.VIEWER)):
        site.records.people.add(name, role, STORED, time.time())
    return site


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """Where the console is served."""
    assert site.settings
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = make_app(site.settings, site.records)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A fresh browser; nothing may go wrong in its console, nor break the content policy."""
    context = browser.new_context(base_url=address)
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert [said for said in complaints if "503" not in said] == []


def log_in(page: Page, name: str) -> None:
    page.goto("/")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", SECRET)
    page.press("input[name=password]", "Enter")
    page.wait_for_selector("#live")
    page.wait_for_load_state("load")  # keys mean nothing before the scripts have run


def seen(records: Records, study: str) -> dict[str, object] | None:
    row = records.worklist.study(study)
    assert row
    found: dict[str, object] | None = row["review"]
    return found


def test_a_reader_goes_through_the_list_by_keys(page: Page, site: Site) -> None:
    for number in (1, 2, 3):
        site.composed(f"1.{number}", SUBDURAL, patient_id=f"PID-{number}")
    log_in(page, "victor")
    page.wait_for_selector("tr.row")
    assert page.title().startswith("(3) Worklist")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "PID-2" in page.inner_text("tr.row.chosen")
    page.keyboard.press("a")
    eventually(lambda: seen(site.records, "1.2"), 60)
    eventually(lambda: page.title().startswith("(2) Worklist"), 60)
    assert "PID-2" not in page.inner_text("#live")
    assert "PID-1" in page.inner_text("tr.row.chosen")
    page.keyboard.press("n")
    review = eventually(lambda: seen(site.records, "1.1"), 60)
    assert (review["acknowledged_by"], review["opinion"]) == ("victor", "DISAGREE")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study/1.3")
    page.keyboard.press("u")
    page.wait_for_selector("table.studies")


def test_slices_follow_the_slider_and_the_marks_their_boxes(page: Page, site: Site) -> None:
    series = factories.ct_series(5, 64, name="browsed", PatientName="<b>Doe</b>^Jane")
    site.pictured(series, {"any": 0.93})
    log_in(page, "victor")
    page.goto(f"/study/{series[0].StudyInstanceUID}")
    picture, shown = page.locator("#slice"), page.locator("#number")
    first = int(shown.inner_text())
    assert first == 4
    page.keyboard.press("ArrowDown")
    eventually(lambda: "/picture/4/" in str(picture.get_attribute("src")), 60)
    assert shown.inner_text() == "5"
    page.keyboard.press("o")
    eventually(lambda: "contour=false" in str(picture.get_attribute("src")), 60)
    page.uncheck("#heat")
    eventually(lambda: "heat=false" in str(picture.get_attribute("src")), 60)
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 64
    page.locator("#plot").scroll_into_view_if_needed()
    box = page.locator("#plot").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.15, box["y"] + box["height"] / 2)
    eventually(lambda: "/picture/0/" in str(picture.get_attribute("src")), 60)
    assert "<b>Doe</b> Jane" in page.inner_text("h1")
    assert page.locator("h1 b").count() == 0


def test_slices_are_shown_with_the_marks_of_the_result_beside_them(page: Page, site: Site) -> None:
    """Of a study that was opened before it was analysed, and of one that is analysed again."""
    series = factories.ct_series(5, 64, name="awaited")
    job = site.sent(series)
    log_in(page, "victor")
    page.goto(f"/study/{series[0].StudyInstanceUID}")
    assert page.is_disabled("#contour") and page.locator("#plot").count() == 0
    site.look_at(job, series, {"any": 0.93})
    page.wait_for_selector(".headline.h-suspected", timeout=30_000)
    page.wait_for_selector("#contour:enabled")
    assert page.locator("#plot").count() == 1
    assert site.settings
    Composer(site.settings, site.records, spool_of(site.settings)).round()
    before = page.get_attribute("#viewer", "data-of")
    site.records.jobs.reanalyse(job)
    site.look_at(job, series, {"any": 0.02})
    page.wait_for_selector(".headline.h-not_detected")
    eventually(lambda: page.get_attribute("#viewer", "data-of") != before, 60)


def test_an_admin_retries_pauses_and_resumes(page: Page, site: Site) -> None:
    job = site.failed("1.1", Reason("NO_VOLUME", "no volume"))
    delivery = site.given_up("1.2", SUBDURAL)
    log_in(page, "anna")
    page.goto("/queue")
    page.click(f"#job-{job} button")
    eventually(lambda: site.records.console.failed_jobs() == [], 60)
    page.check(f"#delivery-{delivery} input")
    page.click("#bulk > button")
    eventually(lambda: site.records.console.count_given_up() == 0, 60)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=Pause the queue")
    eventually(lambda: "queue" in site.records.pauses.all(), 60)
    page.wait_for_selector(".notices .paused >> text=is paused by anna")
    page.click("text=Resume the queue")
    eventually(lambda: not site.records.pauses.all(), 60)


def test_an_admin_makes_the_shadow_model_the_active_one(page: Page, site: Site) -> None:
    assert site.settings
    settings = site.settings.model_copy(update={"shadow": Shadow(pipeline="/models/other.json")})
    node = Shadowed(site.records, settings)
    node.both("1.1", 0.9, 0.2)
    log_in(page, "victor")
    page.goto("/shadow")
    assert page.locator("form[action='/shadow/promote']").count() == 0, "a viewer only looks"
    page.context.clear_cookies()
    log_in(page, "anna")
    page.goto("/shadow")
    assert page.locator("#scatter circle").count() == 1
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    page.click("text=Make it the active model")
    assert site.records.promotions.last() is None, "the reason is missing"
    page.fill("form[action='/shadow/promote'] input[name=reason]", "finds more")
    page.click("text=Make it the active model")
    last = eventually(site.records.promotions.last, 60)
    assert (last.who, last.reason, last.model.name) == ("anna", "finds more", "other")
    assert "Make other 2.0 the active model?" in asked[0]
    page.wait_for_selector("#history >> text=finds more")
    page.click("#differing a")
    page.wait_for_url("**/study/1.1")


def test_a_script_in_a_header_is_text(page: Page, site: Site) -> None:
    hostile = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
    site.composed("1.1", SUBDURAL, patient_id=hostile, patient_name=hostile, study_description=hostile)
    log_in(page, "victor")
    page.wait_for_selector("tr.row")
    assert "onerror" in page.inner_text("tr.row")
    page.goto("/study/1.1")
    page.wait_for_timeout(300)
    assert "onerror" in page.inner_text("h1")
    assert "hacked" not in page.title().split(" – ")[-1]
    assert page.locator("#live script").count() == 0


def test_the_open_page_follows_the_records_and_says_when_it_cannot(page: Page, site: Site) -> None:
    site.queued("1.1", patient_id="FIRST")
    log_in(page, "victor")
    page.wait_for_selector("text=FIRST")
    site.composed("1.2", SUBDURAL, patient_id="SECOND")
    page.wait_for_selector("text=SECOND")
    listed = page.inner_text("table.studies")
    assert listed.index("SECOND") < listed.index("FIRST")
    assert page.locator("#stale").is_hidden()
    lose(site.records)
    page.wait_for_selector("#stale:not([hidden])")
    assert "Not live: the database does not answer. Shown is " in page.inner_text("#stale")
    assert "SECOND" in page.inner_text("table.studies")


BROKEN_WORDS = """() => [...document.querySelectorAll("td.word, td.whole, td span.whole")].filter(cell => {
  const text = cell.innerText.trim(), range = document.createRange();
  if (!text || /\\s/.test(text)) return false;
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1;
}).map(cell => cell.innerText)"""


def test_no_page_is_wider_than_its_window_and_no_word_is_broken(page: Page, site: Site) -> None:
    for number in range(3):
        site.given_up(f"1.{number}", SUBDURAL, patient_id="PID-1234567890-1234567890", ago=90_000)
    long = "1.2.826.0.1.3680043.8.498." + "1" * 34
    site.composed(long, SUBDURAL, patient_id="PID-9", accession_number="ACC2026-000001")
    log_in(page, "anna")
    for path in (
        "/?within=all",
        "/queue",
        f"/study/{long}",
        f"/series/{long}.1",
        "/quality",
        "/routing",
        "/audit",
    ):
        page.goto(path)
        for width in (1400, 1000, 800, 600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            assert page.evaluate(BROKEN_WORDS) == [], (path, width)


OUTSIDE = """() => {
  const main = document.querySelector('main'), room = getComputedStyle(main);
  const edge = main.getBoundingClientRect().right - parseFloat(room.paddingRight) + 1;
  return [...main.querySelectorAll(':not(.announce, thead *)')]
    .filter(one => one.getBoundingClientRect().right > edge)
    .map(one => one.outerHTML.slice(0, 80));
}"""
IN_TWO_LINES = """() => [...document.querySelectorAll('.probabilities tr, .waterfall tr')].filter(row => {
  const boxes = [...row.children].filter(cell => cell.innerText || cell.querySelector('svg'))
    .map(cell => cell.getBoundingClientRect());
  return Math.max(...boxes.map(box => box.top)) >= Math.min(...boxes.map(box => box.bottom));
}).map(row => row.innerText)"""


def test_on_a_phone_every_row_of_classes_is_one_line_and_nothing_hangs_over(page: Page, site: Site) -> None:
    """The word *present* stood on a line of its own, as if it were of the class below."""
    site.composed("1.1", SUBDURAL, patient_id="PID-1")
    site.given_up("1.2", SUBDURAL, patient_id="PID-1234567890-1234567890", ago=90_000)  # with its day
    log_in(page, "anna")
    for path in (
        "/?within=all",
        "/study/1.1",
        "/study/1.2",
        "/queue",
        "/quality",
        "/shadow",
        "/routing",
        "/audit",
    ):
        page.goto(path)
        for width in (430, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(OUTSIDE) == [], (path, width)
            assert page.evaluate(IN_TWO_LINES) == [], (path, width)
