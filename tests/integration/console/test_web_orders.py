"""What the console says of orders and of readers who take studies."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from node.admin.supervise import roles_of
from node.domain.orders import OrderPriority, Said, Source, Subject
from node.domain.workitems import StepState
from node.settings import Hl7Orders, Orders, Settings, Ups, WorklistPeer
from node.store.audit import Actor
from node.store.records import Records
from node.ups.service import Service
from tests.site import SUBDURAL, Site, findings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    orders = Orders(age_min=30, worklist=WorklistPeer(ae_title="RIS"))
    return Settings(data_dir=tmp_path, orders=orders, ups=Ups(port=11114))


def ordered(records: Records, study: str, priority: OrderPriority) -> None:
    records.orders.say(Said(Source.HL7, priority, Subject(study), time.time(), "M77"))


def test_the_order_is_told_apart_from_the_result(client: TestClient, records: Records) -> None:
    Site(records).composed("1.1", findings(), patient_id="PID-1")
    ordered(records, "1.1", OrderPriority.STAT)
    assert "ordered STAT" in client.get("/").text
    page = client.get("/study/1.1").text
    assert "ordered STAT" in page and "STAT (HL7 order M77" in page
    found = client.get("/api/v1/studies/1.1").json()
    assert (found["order_priority"], found["order_source"]) == ("STAT", "HL7")
    assert [(said["priority"], said["reference"]) for said in found["orders"]] == [("STAT", "M77")]
    (row,) = csv.DictReader(io.StringIO(client.get("/worklist.csv").text))
    assert row["order_priority"] == "STAT"


def test_a_routine_order_is_no_news(client: TestClient, records: Records) -> None:
    Site(records).composed("1.1", findings())
    ordered(records, "1.1", OrderPriority.ROUTINE)
    assert "ordered ROUTINE" not in client.get("/").text


def test_the_queue_shows_who_goes_first(client: TestClient, records: Records) -> None:
    site = Site(records)
    for study in ("1.1", "1.2"):
        site.queued(study, patient_id=f"PID-{study}")
    ordered(records, "1.2", OrderPriority.STAT)
    page = client.get("/queue").text
    assert page.index("PID-1.2") < page.index("PID-1.1") and "ordered STAT" in page
    jobs = {job["study_instance_uid"]: job["order_priority"] for job in client.get("/api/v1/jobs").json()}
    assert jobs == {"1.1": None, "1.2": "STAT"}


def test_a_worklist_that_did_not_answer_is_told(client: TestClient, records: Records) -> None:
    Site(records).composed("1.1", findings())
    records.orders.asked("1.1", False, "worklist RIS cannot be reached", time.time())
    assert "worklist RIS cannot be reached" in client.get("/study/1.1").text
    assert "worklist RIS cannot be reached" in client.get("/queue").text


def test_a_claim_is_shown_and_hides_nothing(client: TestClient, records: Records, settings: Settings) -> None:
    Site(records).composed("1.1", SUBDURAL, patient_id="PID-1")
    service = Service(settings, records)
    service.make(time.time())
    (item,) = records.workitems.listed(0)
    reader = Actor("READER1", "reader", "10.0.0.5")
    assert records.workitems.change(item.uid, StepState.IN_PROGRESS, "1.2.3.99", reader, time.time()) == 0
    assert "Being read by AE READER1" in client.get("/").text
    assert "Being read by AE READER1" in client.get("/study/1.1").text
    (row,) = client.get("/api/v1/studies?read=unread").json()
    assert (row["taken"]["claimed_by"], row["taken"]["state"]) == ("READER1", "IN PROGRESS")
    assert "1.2.3.99" not in client.get("/api/v1/studies/1.1").text, "the Transaction UID is the reader's"
    assert records.workitems.change(item.uid, StepState.CANCELED, "1.2.3.99", reader, time.time()) == 0
    assert "AE READER1 gave it up" in client.get("/").text


def test_the_order_desk_is_missed_only_where_it_has_something_to_do(
    client: TestClient, tmp_path: Path
) -> None:
    assert "no order is asked for or heard" in client.get("/queue").text
    assert "orders" in client.get("/readyz").json()["missing"]
    idle = Settings(data_dir=tmp_path)
    assert "orders" not in roles_of(idle) and "announce" not in roles_of(idle)
    assert "orders" in roles_of(Settings(orders=Orders(hl7=Hl7Orders(port=2575))))
    assert "orders" in roles_of(Settings(ups=Ups(port=11114)))
