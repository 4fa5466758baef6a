"""The pages over records made by the real store: what is shown, what is escaped, what acts."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Sequence

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from node.admin.doctor import examine
from node.admin.web import pages, words
from node.admin.web.plots import along_slices, by_hour, waterfall
from node.domain.canary import State
from node.domain.errors import TransientError
from node.domain.findings import Priority, Reason
from node.domain.lifecycle import DeliveryState, JobState
from node.settings import AuditRepository, Canary, Destination, Settings
from node.store.audit_queue import AUDITED, AuditQueue, Event
from node.store.records import Records, open_records
from tests import factories
from tests.queueing import Ring, ringing
from tests.site import SUBDURAL, Site, browser, findings

HOSTILE = '<script>alert("x")</script>'
ESCAPED = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;"
HTML = {"Accept": "text/html"}


def press(client: TestClient, path: str, **form: str) -> int:
    """The status of a form sent from the worklist."""
    page = client.get("/").text
    token = re.search(r'<meta name="csrf" content="(\w+)">', page)
    assert token
    return client.post(path, data={"csrf": token[1], **form}).status_code


def lose(records: Records) -> None:
    """From here on every look into the database fails."""
    with records.engine.begin() as connection:
        connection.execute(text("ALTER TABLE heartbeats RENAME TO away"))


def test_empty_node_says_what_to_send_where(client: TestClient) -> None:
    page = client.get("/").text
    assert "No study here" in page
    assert "storescu -aec ICHNODE +sd +r 127.0.0.1 11112" in page
    assert "Research use only – not for diagnosis" in page


def test_a_suspected_haemorrhage_stands_first_with_its_findings(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_id="PID-7", accession_number="ACC-7")
    site.composed("1.2", findings(), patient_id="PID-8")
    page = client.get("/").text
    assert page.index("PID-7") < page.index("PID-8")
    for expected in ("ACC-7", "STAT", "HAEMORRHAGE SUSPECTED", "Subdural <b>0.91</b>", "23.4 mL"):
        assert expected in page
    assert "Epidural" not in page
    assert "<title>(1) Worklist" in page


def test_an_alarm_stands_from_the_first_word_of_the_classifier(client: TestClient, site: Site) -> None:
    job = site.running("1.1", patient_id="PID-7")
    assert site.records.jobs.store_priority(job, "worker", Priority.STAT)
    assert "First word of the classifier" in client.get("/").text


def test_results_for_a_destination_that_is_gone_are_shown_as_such(settings: Settings, site: Site) -> None:
    """It was renamed: nobody sends them any more, and their study keeps its files."""
    site.composed("1.1", SUBDURAL)
    renamed = Settings(data_dir=settings.data_dir, destination=(Destination(name="new", ae_title="PACS"),))
    client = browser(renamed, site.records)
    assert "no [[destination]] has this name any more" in client.get("/queue").text
    assert 'deliveries_unsent{destination="pacs",state="PENDING"} 1' in client.get("/metrics").text
    assert client.get("/api/v1/status").json()["destinations"]["pacs"]["urgent"] == 1
    (told,) = [check.text for check in examine(renamed) if check.name == "destinations"]
    assert told == "1 to pacs wait, and no [[destination]] has that name"


def test_what_was_found_by_a_cancelled_job_is_no_result(client: TestClient, site: Site) -> None:
    """It goes nowhere, and must not look like a negative one."""
    job = site.analysed("1.1", findings(), patient_id="PID-7")
    site.records.jobs.cancel(job)
    for path in ("/", "/study/1.1"):
        page = client.get(path).text
        assert "Cancelled by an admin." in page and "h-not_detected" not in page, path
        assert 'class="probabilities"' not in page


def test_an_alarm_is_kept_while_a_newer_revision_is_analysed(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_id="PID-7")
    site.receive("1.1", "1.1.1", images=1)
    job = site.decide("1.1", "1.1.1")
    assert job is not None
    page = client.get("/").text
    assert "<title>(1) Worklist" in page
    assert "More images came; revision 2 is QUEUED." in page
    site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    site.records.jobs.store_analysis(job, "worker", findings(), "maps", time.time())
    page = client.get("/").text
    assert "<title>Worklist" in page
    assert "HAEMORRHAGE SUSPECTED" not in page


@pytest.mark.parametrize("fails_in", ["queue", "worker"])
def test_no_result_never_reads_as_a_negative_one(client: TestClient, site: Site, fails_in: str) -> None:
    reason = Reason("NO_VOLUME", "the slices do not form a volume")
    if fails_in == "worker":
        site.failed("1.1", reason)
    else:
        site.receive("1.1", "1.1.1")
        site.decide("1.1", None, reason)
    for page in (client.get("/").text, client.get("/study/1.1").text):
        assert "This is NOT a negative result." in page
        assert "NO HAEMORRHAGE DETECTED" not in page
    assert "the slices do not form a volume" in client.get("/study/1.1").text


def test_a_study_with_results_given_up_is_undelivered_not_delivering(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    assert site.records.worklist.study("1.1")["status"] == "DELIVERING"  # type: ignore[index]
    site.records.deliveries.give_up(site.delivery_of(job), "refused", "0xA700")
    assert site.records.worklist.study("1.1")["status"] == "UNDELIVERED"  # type: ignore[index]
    assert site.records.views.studies()[0]["status"] == "UNDELIVERED"
    site.records.deliveries.retry(site.delivery_of(job), time.time())
    site.records.deliveries.sent(site.delivery_of(job), "0x0000", time.time())
    assert site.records.worklist.study("1.1")["status"] == "DONE"  # type: ignore[index]


def test_search_finds_old_and_read_studies_by_the_beginning(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL, patient_id="PID-77_x", accession_number="Acc9", ago=1e7)
    site.records.reviews.acknowledge(job, "anna", time.time() + 1)
    assert "PID-77_x" not in client.get("/").text
    for words_ in ("pid-77", "acc", "1.1"):
        assert "PID-77_x" in client.get("/", params={"q": words_}).text
    assert "Nothing found" in client.get("/", params={"q": "PID_77"}).text


def test_acknowledging_says_who_and_when_until_there_is_a_new_word(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL, patient_id="PID-7")
    assert press(client, f"/acknowledge/{job}") == 303
    assert "PID-7" not in client.get("/").text
    assert "✓</span> local" in client.get("/study/1.1").text
    assert press(client, f"/disagree/{job}") == 303
    assert "disagrees" in client.get("/study/1.1").text
    assert press(client, f"/unread/{job}") == 303
    assert "PID-7" in client.get("/").text
    press(client, f"/agree/{job}")
    assert site.records.worklist.study("1.1")["review"]["opinion"] == "AGREE"  # type: ignore[index]
    assert press(client, f"/jobs/reanalyse/{job}") == 303
    site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    site.records.jobs.store_analysis(job, "worker", SUBDURAL, "maps", time.time() + 1)
    assert "PID-7" in client.get("/").text


@pytest.mark.parametrize("deed", ["acknowledge", "agree", "disagree"])
def test_a_page_shown_before_a_new_analysis_acknowledges_nothing(
    deed: str, client: TestClient, site: Site
) -> None:
    job = site.composed("1.1", findings(), patient_id="PID-7")
    read = rf'action="/{deed}/{job}".*?name="read" value="([\d.]+)"'
    shown = re.search(read, client.get("/study/1.1").text, re.DOTALL)
    assert shown
    site.records.jobs.reanalyse(job)
    site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    site.records.jobs.store_analysis(job, "worker", SUBDURAL, "maps", time.time() + 1)
    assert press(client, f"/{deed}/{job}", read=shown[1]) == 409
    assert "PID-7" in client.get("/").text
    assert press(client, f"/{deed}/{job}", read="x") == 400
    fresh = re.search(read, client.get("/study/1.1").text, re.DOTALL)
    assert fresh
    assert press(client, f"/{deed}/{job}", read=fresh[1]) == 303


def test_the_study_page_shows_slices_marks_objects_and_the_way(client: TestClient, site: Site) -> None:
    series = factories.ct_series(6, 64, name="seen")
    site.pictured(series, {"any": 0.93, "subdural": 0.8})
    study, first = str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID)
    page = client.get(f"/study/{study}").text
    for expected in ("decided", "Subdural", "queued", "analysed", "composed", "H31s", "<polyline"):
        assert expected in page
    assert 'data-count="6"' in page
    plain = client.get(f"/picture/3/{first}", params={"contour": False, "heat": False}).content
    contour = client.get(f"/picture/3/{first}", params={"heat": False}).content
    both = client.get(f"/picture/3/{first}").content
    assert plain.startswith(b"\x89PNG")
    assert len({plain, contour, both}) == 3
    assert client.get(f"/picture/6/{first}").status_code == 404
    assert client.get(f"/thumbnail/{first}").content.startswith(b"\x89PNG")
    uid = re.search(r'href="/object/([\d.]+)"', page)
    assert uid
    answer = client.get(f"/object/{uid[1]}")
    assert answer.content[128:132] == b"DICM"
    assert "attachment" in answer.headers["content-disposition"]


def test_no_mark_is_drawn_on_images_that_came_after_it(client: TestClient, site: Site) -> None:
    """The images were sent again with other content under the same UIDs, and nobody analysed them yet."""
    series = factories.ct_series(6, 64, name="again")
    site.pictured(series, {"any": 0.93, "subdural": 0.8})
    first = str(series[0].SeriesInstanceUID)
    site.store(factories.ct_series(6, 64, name="again", with_bleed=False))
    contour = client.get(f"/picture/3/{first}").content
    assert contour == client.get(f"/picture/3/{first}", params={"contour": False, "heat": False}).content
    page = client.get(f"/study/{series[0].StudyInstanceUID}").text
    assert 'data-count="6"' in page and "<polyline" not in page


def test_the_frames_of_a_multi_frame_object_are_slices(client: TestClient, site: Site) -> None:
    ds = factories.enhanced(factories.ct_series(5, 32, name="frames"))
    site.store([ds])
    page = client.get(f"/study/{ds.StudyInstanceUID}").text
    assert 'data-count="5"' in page
    pictures = [client.get(f"/picture/{i}/{ds.SeriesInstanceUID}").content for i in range(5)]
    assert len(set(pictures)) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_a_series_that_was_not_analysed_can_be_looked_at_in_order(client: TestClient, site: Site) -> None:
    series = factories.ct_series(4, 32, name="plain")
    site.store(list(reversed(series)))
    first = str(series[0].SeriesInstanceUID)
    page = client.get(f"/study/{series[0].StudyInstanceUID}").text
    assert 'data-count="4"' in page
    assert client.get(f"/picture/0/{first}").content != client.get(f"/picture/3/{first}").content


def test_an_image_that_is_gone_is_said_in_the_picture(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL)
    assert client.get("/picture/0/1.1.1").content.startswith(b"\x89PNG")
    assert client.get("/picture/0/9.9").status_code == 404
    assert client.get("/study/9.9").status_code == 404
    assert client.get("/object/1.1.9").status_code == 404


def test_each_skipped_series_tells_its_reason(client: TestClient, site: Site) -> None:
    site.receive("1.1", "1.1.1", series_description="Head 5.0")
    site.receive("1.1", "1.1.2", series_description="Topogram")
    site.decide("1.1", "1.1.1", Reason("LOCALIZER", "a localizer holds no volume"))
    assert "a localizer holds no volume" in client.get("/study/1.1").text


def given_up_of(site: Site) -> list[int]:
    return sorted(row["id"] for row in site.records.console.unsent(DeliveryState.FAILED))


def test_the_queue_shows_trouble_first_and_retries_it(client: TestClient, site: Site) -> None:
    failed = site.failed("1.1", Reason("NO_VOLUME", "no volume"), patient_id="PID-1")
    given_up = site.given_up("1.2", SUBDURAL, patient_id="PID-2")
    others = [site.given_up(f"1.{n}", findings()) for n in (3, 4)]
    page = client.get("/queue").text
    for expected in (
        "PID-1",
        "no volume",
        "PID-2",
        "PACS refused the association",
        "A positive result has waited",
    ):
        assert expected in page
    assert press(client, f"/jobs/retry/{failed}") == 303
    job = site.records.jobs.get(failed)
    assert job and job.state is JobState.QUEUED
    assert press(client, "/deliveries/retry", ids=str(others[0])) == 303
    assert given_up_of(site) == [given_up, others[1]]
    assert press(client, "/deliveries/retry") == 303
    assert given_up_of(site) == []
    assert press(client, f"/jobs/cancel/{failed}") == 303
    assert press(client, f"/jobs/cancel/{failed}") == 409


def test_a_paused_queue_gives_no_job_and_a_paused_destination_no_delivery(
    client: TestClient, site: Site
) -> None:
    records, now = site.records, time.time()
    job = site.queued("1.1")
    site.composed("1.2", SUBDURAL)
    records.queue.rung(Ring(job, False), now)
    assert press(client, "/pause/queue") == 303
    assert press(client, "/pause/destination:pacs") == 303
    assert press(client, "/pause/destination:elsewhere") == 404
    assert "The queue</b> is paused by local" in client.get("/").text
    again = open_records(site.settings)  # type: ignore[arg-type]  # as after a restart
    assert again.jobs.claim(job, "worker", now + 60, now) is None
    assert ringing(again, now + 1) == []
    assert again.deliveries.take_due("pacs", now + 1, now + 60) == []
    again.close()
    assert press(client, "/resume/queue") == 303
    assert press(client, "/resume/destination:pacs") == 303
    assert ringing(records, now - 30) == [job]
    assert records.jobs.claim(job, "worker", now + 60, now)
    assert len(records.deliveries.take_due("pacs", time.time(), now + 60)) == 1


def test_an_echo_is_sent_and_its_outcome_shown(client: TestClient, site: Site) -> None:
    assert press(client, "/echo/pacs") == 303  # nobody listens on that port
    assert "cannot be reached" in client.get("/queue").text
    assert press(client, "/echo/nobody") == 404


def test_a_role_that_is_gone_is_named_on_every_page(client: TestClient, site: Site) -> None:
    now = time.time()
    site.records.views.beat("listen@host:1", "listen", {}, now)
    site.records.views.beat("worker@host:2", "worker", {}, now - 600)
    for path in ("/", "/queue"):
        page = client.get(path).text
        assert "nothing is analysed" in page
        assert "nothing can be received" not in page


def test_text_from_outside_is_escaped_everywhere(client: TestClient, site: Site) -> None:
    header = dict.fromkeys(
        ("patient_id", "patient_name", "accession_number", "study_description", "series_description"), HOSTILE
    )
    study = f"1.1{HOSTILE}"
    site.failed(study, Reason(HOSTILE, HOSTILE), **header)
    delivery = site.delivery_of(site.composed("1.2", SUBDURAL, **header))
    site.records.deliveries.give_up(delivery, HOSTILE, HOSTILE[:16])
    site.records.views.beat(f"worker@{HOSTILE}:1", "worker", {"model": HOSTILE, "version": ""}, time.time())
    series = factories.ct_series(
        3, 32, name="xss", PatientID=HOSTILE, ProtocolName=HOSTILE, StudyDescription=HOSTILE
    )
    site.pictured(series, {"any": 0.9})
    link = re.search(r'data-href="(/study/1.1%3Cscript[^"]+)"', client.get("/").text)
    assert link
    pages = [
        "/",
        "/queue",
        link[1],
        "/study/1.2",
        f"/study/{series[0].StudyInstanceUID}",
        "/?q=" + HOSTILE,
        "/audit",
    ]
    for path in pages:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<script>" not in answer.text
        assert ESCAPED in answer.text


def test_patient_names_are_not_shown_without_a_login(client: TestClient, site: Site) -> None:
    series = factories.ct_series(3, 32, name="named", PatientName="Doe^Jane")
    site.pictured(series, {"any": 0.9})
    study = series[0].StudyInstanceUID
    pages = ("/", f"/study/{study}", "/queue", "/audit", "/worklist.csv")
    for path in (
        *pages,
        "/api/v1/studies",
        f"/api/v1/studies/{study}",
        "/api/v1/jobs",
        "/api/v1/deliveries",
        "/metrics",
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "Doe" not in answer.text


def test_the_csv_holds_what_the_list_shows_and_no_formula(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", SUBDURAL, patient_id="=cmd()", accession_number='A,"1"')
    site.records.reviews.acknowledge(job, "anna", time.time() + 1)
    answer = client.get("/worklist.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff")))
    assert row["patient_id"] == "'=cmd()"
    assert row["accession_number"] == 'A,"1"'
    assert (row["priority"], row["subdural"], row["acknowledged_by"]) == ("STAT", "0.9140", "anna")


def test_the_csv_holds_every_study_in_the_order_of_the_list(
    client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts it is read in; and one that cannot be read breaks it off."""
    monkeypatch.setattr(pages, "EXPORTED_AT_ONCE", 2)
    for number in range(3):
        site.composed(f"1.{number}", findings())
    site.composed("2.1", SUBDURAL)
    site.queued("2.2")

    def listed() -> list[str]:
        text = client.get("/worklist.csv").text.removeprefix("\ufeff")
        return [row["study_instance_uid"] for row in csv.DictReader(io.StringIO(text))]

    shown = [row["study_instance_uid"] for row in client.get("/api/v1/studies").json()]
    assert listed() == shown and len(shown) == 5 and shown[0] == "2.1"
    assert site.records.audit.entries(2)[1]["detail"] == "5 studies"
    rows, asked = site.records.worklist.rows, []

    def away(uids: Sequence[str]) -> list[dict[str, object]]:
        asked.append(uids)
        if len(asked) == 2:
            raise TransientError("database: away")
        return rows(uids)

    monkeypatch.setattr(site.records.worklist, "rows", away)
    with pytest.raises(RuntimeError, match="response already started"):  # so the server hangs up
        listed()


def test_readyz_tells_of_the_canary_and_stays_ready(settings: Settings, site: Site) -> None:
    def canary_word(every_min: float) -> str:
        changed = settings.model_copy(update={"canary": Canary(every_min=every_min)})
        client = browser(changed, site.records)
        return str(client.get("/readyz").json()["canary"])

    now = time.time()
    assert canary_word(0) == "off"
    number = site.records.canaries.ask("2.25.9", "the node", now - 60)
    assert number
    site.records.canaries.finish(number, State.OK, "", now - 50, None, {})
    assert canary_word(15) == "ok"
    number = site.records.canaries.ask("2.25.10", "the node", now - 40)
    assert number
    site.records.canaries.finish(number, State.WRONG, "any is 0.2", now - 30, None, {})
    assert canary_word(15) == "failing"


def test_what_waits_for_the_audit_repository_is_shown_to_admins(settings: Settings, site: Site) -> None:
    changed = settings.model_copy(update={"audit": AuditRepository(host="audit.example.org")})
    client = browser(changed, site.records)
    assert "it was told everything" in client.get("/audit").text
    engine = site.records.engine.execution_options(**{AUDITED: True})
    queue = AuditQueue(engine)
    for number in range(25):
        queue.write(Event("study", time.time() - 3600, "<anna>", "10.0.0.1", f"1.{number}"))
    queue.failed([1, 2], "TLS: <refused>", time.time() + 60)
    page = client.get("/audit").text
    assert "25 messages, the oldest for 1 h 00 min. Last error: TLS: &lt;refused&gt;" in page
    assert "The oldest 20 are shown" in page and "&lt;anna&gt;" in page
    answer = client.get("/api/v1/audit/queue", params={"limit": 3}).json()
    assert (answer["waiting"], len(answer["messages"]), answer["messages"][0]["attempts"]) == (25, 3, 1)
    plain = browser(settings, site.records)
    assert "none in the settings any more" in plain.get("/audit").text


def test_the_api_does_what_the_pages_do(client: TestClient, site: Site) -> None:
    token = {"Authorization": f"Bearer {api_token(site.records)}"}
    job = site.composed("1.1", SUBDURAL, patient_id="PID-7", patient_name="Doe^Jane")
    study = client.get("/api/v1/studies", headers=token).json()[0]
    assert (study["status"], study["patient_name"]) == ("DELIVERING", "Doe^Jane")
    assert study["job"]["findings"]["classes"]["subdural"]["present"] is True
    assert client.get("/api/v1/studies/1.1", headers=token).json()["objects"][0]["output"] == "sr"
    assert client.get("/api/v1/studies/9", headers=token).status_code == 404
    assert client.get("/api/v1/jobs", headers=token).json()[0]["id"] == job
    assert (
        client.get("/api/v1/deliveries", headers=token, params={"state": "PENDING"}).json()[0]["job_id"]
        == job
    )
    assert client.get("/api/v1/status", headers=token).json()["counts"]["jobs"] == {"COMPOSED": 1}
    said = client.post(f"/api/v1/jobs/{job}/opinion", headers=token, json={"opinion": "DISAGREE"})
    assert said.json() == {"done": True}
    assert client.post(f"/api/v1/jobs/{job}/opinion", headers=token, json={"opinion": "?"}).status_code == 422
    assert client.post(f"/api/v1/jobs/{job}/retry", headers=token).status_code == 409
    assert client.put("/api/v1/pauses/queue", headers=token).status_code == 200
    assert "queue" in client.get("/api/v1/status", headers=token).json()["paused"]
    assert client.delete("/api/v1/pauses/queue", headers=token).status_code == 200
    assert client.post("/api/v1/deliveries/retry", headers=token, json={}).json() == {"changed": 0}
    assert client.get("/api/v1/jobs", headers=token, params={"limit": 0}).status_code == 422
    described = client.get("/api/v1/openapi.json", headers=token).json()
    assert "/api/v1/jobs/{number}/retry" in described["paths"]
    assert client.get("/api/v1/audit", headers=token).json()[0]["who"] == "robot"


def api_token(records: Records) -> str:
    from node.admin.passwords import digest, new_token
    from node.domain.permissions import Role

    token, now = new_token(), time.time()
    records.people.add("robot", Role.ADMIN, "no password", now)
    records.people.add_token(digest(token), "robot", Role.ADMIN, "test", (now, now + 60))
    return token


def test_metrics_are_prometheus_text_without_any_patient(client: TestClient, site: Site) -> None:
    site.given_up("1.1", SUBDURAL, patient_id="PID-7")
    site.records.views.beat("worker@host:2", "worker", {"network_busy": 0.75, "slices_early": 9}, time.time())
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "PID-7" not in answer.text and "1.1" not in answer.text.replace("0.1.1", "")
    sample = re.compile(r'[a-z_]+(\{([a-z]+="[^"]*",?)+\})? -?[\d.e+]+')
    lines = answer.text.splitlines()
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    for line in (
        'ichnode_deliveries_unsent{destination="pacs",state="FAILED"} 1',
        'ichnode_jobs{state="COMPOSED"} 1',
        'ichnode_processes_alive{role="worker"} 1',
        'ichnode_network_busy{worker="worker@host:2"} 0.75',
        'ichnode_early_slices{worker="worker@host:2"} 9',
        "ichnode_unread_alarms 1",
    ):
        assert line in lines


def test_a_result_in_whose_place_a_newer_one_goes_is_shown_as_such(client: TestClient, site: Site) -> None:
    older = site.overtaken("1.1", SUBDURAL)
    page = client.get("/study/1.1").text
    assert "SUPERSEDED" in page and "a newer result goes in its place" in page
    assert f'action="/deliveries/retry/{older}"' not in page
    assert press(client, f"/deliveries/retry/{older}") == 409
    told = client.get("/metrics").text
    assert 'ichnode_deliveries_superseded{destination="pacs"} 1' in told
    assert 'ichnode_deliveries_unsent{destination="pacs",state="PENDING"} 1' in told
    (row,) = client.get("/api/v1/deliveries?state=SUPERSEDED").json()
    assert row["id"] == older


def test_ready_means_that_every_role_is_alive(client: TestClient, site: Site) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["missing"] == ["listen", "settle", "worker", "deliver"]
    for role in ("listen", "settle", "worker", "deliver"):
        site.records.views.beat(f"{role}@host:1", role, {}, time.time())
    answer = client.get("/readyz")
    assert answer.json()["missing"] in ([], ["disk"])  # of a machine whose disk is nearly full


def test_a_database_that_does_not_answer_is_said(client: TestClient, records: Records) -> None:
    lose(records)
    assert client.get("/healthz").status_code == 503
    page = client.get("/")
    assert page.status_code == 503
    assert "The database does not answer" in page.text


def test_strict_headers_and_nothing_from_elsewhere(client: TestClient, site: Site) -> None:
    site.composed("1.1", SUBDURAL)
    for path in ("/", "/static/style.css", "/api/v1/studies", "/nowhere", "/study/1.1"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert client.get("/docs").status_code == 404
    for path in ("/", "/queue", "/study/1.1", "/audit"):
        page = client.get(path).text
        assert "http://" not in page and "https://" not in page
        assert not re.search(r"<[^>]+ (style|on\w+)=", page)  # the policy would stop it


def test_a_loopback_node_refuses_foreign_names(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/healthz", headers={"Host": "localhost:8080"}).status_code == 200


def test_a_process_that_was_replaced_is_not_missed() -> None:
    worker = {"role": "worker", "detail": {}}
    gone = {**worker, "process": "worker@a:1", "alive": False, "started_at": 0, "seen_at": 50}
    newer = {**worker, "process": "worker@a:2", "alive": True, "started_at": 60, "seen_at": 99}
    elsewhere = {**newer, "process": "worker@b:2"}
    older = {**elsewhere, "started_at": 40}
    twin = {**gone, "process": "worker@c:1"}

    def lost(*processes: dict[str, object]) -> list[str]:
        found: list[str] = next(r for r in words.roles(processes, 100) if r["role"] == "worker")["lost"]
        return found

    assert lost(gone, newer) == []
    assert lost(gone, elsewhere) == [], "a container in another's place has another host name"
    assert lost(gone, older) == ["worker@a:1"], "it was there before"
    assert lost(gone, twin, newer) == ["worker@c:1"], "one stands for one, and first for its own host's"
    again = {**gone, "process": "worker@a:3", "started_at": 51, "seen_at": 55}
    assert lost(gone, again, newer) == []
    assert lost({**gone, "started_at": 50}) == ["worker@a:1"], "it beat once, and replaced nobody"


def test_a_listener_that_never_came_up_is_missed_beside_the_others() -> None:
    """It broke before its first heartbeat, again and again."""

    def lost(*names: str, of: int = 2, now: float = 100, **dead: float) -> list[str]:
        rows = [
            {
                "role": "listen", "process": f"listen@{name}", "detail": {"of": of}, "started_at": 50,
                "seen_at": dead.get(name[0], now), "alive": name[0] not in dead,
            }
            for name in names
        ]  # fmt: skip
        found: list[str] = next(r for r in words.roles(rows, now) if r["role"] == "listen")["lost"]
        return found

    assert lost("a:0:1:1", "a:0:1:2") == []
    assert lost("a:0:1:1") == ["1 of 2 on a, which did not come up"]
    assert lost("a:0:1:1", of=4) == ["3 of 4 on a, which did not come up"]
    assert lost("a:0:1:1", "b:0:1:1", "b:0:1:2") == ["1 of 2 on a, which did not come up"]
    assert lost("a:0:1:1", "a:7:1:1", of=1) == [], "containers may share a host name"
    assert lost("a:0:1:1", now=60) == [], "the other one starts, too"
    gone = lost("a:0:1:1", "d:0:1:1", d=70)
    assert gone == ["listen@d:0:1:1", "1 of 2 on a, which did not come up"]


def test_a_process_that_is_gone_is_missed_in_the_metrics_and_by_the_doctor(
    client: TestClient, settings: Settings, site: Site
) -> None:
    def doctor() -> tuple[bool, str]:
        return next((check.ok, check.text) for check in examine(settings) if check.name == "processes")

    now = time.time()
    assert doctor() == (True, "none is running; `ichnode up` starts them")
    for role in ("listen", "settle", "worker", "deliver"):
        for seen_at in (now - 200, now):
            site.records.views.beat(f"{role}@h:0:1:1", role, {}, seen_at)
    assert doctor()[0]
    site.records.views.beat("listen@h:0:1:2", "listen", {}, now - 100)
    assert doctor() == (False, "listen: gone: listen@h:0:1:2; its messages in the log say why")
    assert 'ichnode_processes_gone{role="listen"} 1' in client.get("/metrics").text
    site.records.views.part("listen@h:0:1:2")
    site.records.views.beat("deliver@h:0:1:1", "deliver", {}, now - 100)
    told = "deliver: no result is sent (gone: deliver@h:0:1:1); its messages in the log say why"
    assert doctor() == (False, told)


def test_who_leads_and_who_stands_by_is_shown(client: TestClient, site: Site) -> None:
    now = time.time()
    site.records.views.beat("settle@host-a:0:1:17", "settle", {"leads": ["clock", "housekeeping"]}, now)
    page = client.get("/queue").text
    assert "leads" not in page, "where there is one process it goes without saying"
    site.records.views.beat("settle@host-b:0:1:18", "settle", {"leads": []}, now)
    page = " ".join(client.get("/queue").text.split())
    assert "host-a, process 17, leads clock, housekeeping; 1 stands by" in page
    site.records.views.part("settle@host-a:0:1:17")
    assert "waits for another process to leave the lead" in client.get("/queue").text
    figures = client.get("/metrics").text
    assert 'ichnode_led{part="clock"} 0.0' in figures and 'ichnode_led{part="deliver:pacs"} 0.0' in figures


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-1, "0 s"), (59.9, "59 s"), (61, "1 min"), (7500, "2 h 05 min"), (4e5, "4 d")]
)
def test_durations_in_words(seconds: float, expected: str) -> None:
    assert words.span(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.001, "<0.01"), (0.5, "0.50"), (0.996, ">0.99"), (1.0, ">0.99")]
)
def test_probabilities_never_round_to_certainty(value: float, expected: str) -> None:
    assert words.probability(value) == expected


def test_times_are_told_in_the_zone_of_the_settings() -> None:
    assert words.Clock("Europe/Berlin").clock(1_751_371_200) == "2025-07-01 14:00:00 CEST"
    assert words.Clock("America/New_York").iso(1_751_371_200) == "2025-07-01T08:00:00-04:00"


def test_a_waterfall_is_to_scale_and_leaves_out_what_has_not_happened() -> None:
    bars = waterfall([("a", 10.0, 20.0), ("b", 20.0, 50.0), ("c", 50.0, None)])
    assert [(bar.name, bar.x, bar.width) for bar in bars] == [("a", 0.0, 250.0), ("b", 250.0, 750.0)]


def test_lines_leave_out_classes_that_nobody_told() -> None:
    lines = along_slices([{"any": 0.0}, {"any": 1.0}], {"any": "Any", "subdural": "Subdural"})
    assert [line.name for line in lines] == ["any"]
    first, last = (float(point.split(",")[1]) for point in lines[0].points.split())
    assert first > last


def test_hours_count_what_ended_in_them() -> None:
    now = 24 * 3600.0 * 20000 + 1800
    rows = [{"analysed_at": now - 60, "received_at": now - 90, "first_sent_at": now - 50}] * 3
    rows.append({"analysed_at": now - 3600, "received_at": now - 3700, "first_sent_at": None})
    hours = by_hour(rows, now)
    assert [hour.count for hour in hours[-3:]] == [0, 1, 3]
    assert hours[-1].median_s == 40


BROKEN = {
    "truncated": b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0",
    "a length of three bytes": b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\3\0abc",
    "no DICOM": b"x" * 300,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_image_that_is_broken_keeps_no_result_from_being_read(
    client: TestClient, site: Site, broken: bytes
) -> None:
    assert site.settings
    series = factories.ct_series(3, 32, name="broken")
    site.pictured(series, {"any": 0.93, "subdural": 0.88})
    study_uid, uid = str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID)
    for file in (site.settings.data_dir / "spool/incoming").rglob("*.dcm"):
        file.write_bytes(broken)
    page = client.get(f"/study/{study_uid}")
    assert page.status_code == 200 and "h-suspected" in page.text
    for picture in (f"/picture/1/{uid}", f"/thumbnail/{uid}"):
        assert client.get(picture).content.startswith(b"\x89PNG")
    assert client.get(f"/header/{series[1].SOPInstanceUID}").status_code in (200, 404)


def test_an_image_that_comes_back_is_shown_again(client: TestClient, site: Site) -> None:
    assert site.settings
    series = factories.ct_series(3, 32, name="lost")
    site.pictured(series, {"any": 0.93})
    address = f"/picture/1/{series[0].SeriesInstanceUID}"
    (file,) = (site.settings.data_dir / "spool").rglob(f"*{series[1].SOPInstanceUID}*")
    content = file.read_bytes()
    file.unlink()
    instead = client.get(address).content
    file.write_bytes(content)
    shown = client.get(address).content
    assert shown != instead and shown == browser(site.settings, site.records).get(address).content


@pytest.mark.parametrize("ids", ["9" * 30, "9" * 5000, "2147483648", "1,x"])
def test_numbers_that_no_row_has_retry_nothing(client: TestClient, site: Site, ids: str) -> None:
    """Above all not everything, which is what no number asks for."""
    delivery = site.given_up("1.1", SUBDURAL)
    for path in ("/deliveries/retry", "/gaps/fetch", "/gaps/dismiss"):
        assert press(client, path, ids=ids) == 400, path
    (row,) = site.records.console.unsent(DeliveryState.FAILED)
    assert row["id"] == delivery


def test_a_role_that_the_settings_need_no_longer_is_missed_by_nobody(client: TestClient, site: Site) -> None:
    """As after `[orders]` or every `[[alert]]` was taken out of the settings."""
    for role in ("orders", "announce", "settle"):
        site.records.views.beat(f"{role}@h:1", role, {}, time.time() - 900)
    told = client.get("/metrics").text
    assert 'ichnode_processes_alive{role="settle"} 0' in told
    assert 'role="orders"' not in told and 'role="announce"' not in told
    site.records.views.beat("orders@h:1", "orders", {}, time.time())
    assert 'ichnode_processes_alive{role="orders"} 1' in client.get("/metrics").text


@pytest.mark.parametrize("query", ["page=x", "page=-1", "show=nothing", "read=maybe"])
def test_an_address_that_asks_for_what_there_is_not_is_answered_by_a_page(
    client: TestClient, query: str
) -> None:
    page = client.get(f"/?{query}", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (422, "text/html; charset=utf-8")
    assert f"{query.partition('=')[0]}: " in page.text
    told = client.get(f"/?{query}", headers={"Accept": "application/json"})
    assert told.status_code == 422 and told.json()["detail"]


def test_a_later_page_that_is_empty_by_now_leads_back(client: TestClient) -> None:
    page = client.get("/?show=suspected&page=3").text
    assert "There is no page 3" in page
    assert 'href="/?show=suspected&amp;read=unread&amp;within=24h"' in page


def test_a_volume_that_is_away_is_said_where_people_and_machines_look(
    client: TestClient, settings: Settings
) -> None:
    """Its other figures are asked for then more than ever."""
    (settings.data_dir / "spool").rename(settings.data_dir / "unmounted")
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "disk" in ready.json()["missing"]
    figures = client.get("/metrics")
    assert figures.status_code == 200 and "ichnode_disk_free_bytes 0" in figures.text
    assert client.get("/api/v1/status").json()["disk"]["full"] is True
    page = client.get("/queue")
    assert page.status_code == 200 and "spool: No such file or directory: nothing is accepted" in page.text


def test_a_check_that_breaks_keeps_no_other_from_being_made(
    settings: Settings, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.admin.doctor._broker", lambda _: [][0])
    checks = {check.name: check for check in examine(settings)}
    assert not checks["broker"].ok and checks["disk"].ok
    assert checks["broker"].text == "the check broke: IndexError: list index out of range"
