"""Readers beyond the console as an admin sees them: who took what, who subscribed, and what is wrong."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydicom.dataset import Dataset

from node.admin.doctor import examine
from node.settings import Settings, Ups, Watcher
from node.store.audit import Actor
from node.store.records import Records
from node.ups.service import Service
from tests.site import SUBDURAL, Site


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    return Settings(data_dir=tmp_path, ups=Ups(port=11114, watcher=(Watcher(ae_title="BOARD"),)))


@pytest.fixture
def service(settings: Settings, records: Records) -> Service:
    return Service(settings, records)


def taken(service: Service, site: Site, records: Records) -> str:
    """A workitem that READER1 has."""
    site.composed("1.1", SUBDURAL, patient_id="PID-1")
    service.make(time.time())
    (item,) = records.workitems.listed(0)
    asked = Dataset()
    asked.ProcedureStepState, asked.TransactionUID = "IN PROGRESS", "1.2.3"
    assert service.act(item.uid, 1, asked, Actor("READER1", "reader", "")) == 0
    return item.uid


def press(client: TestClient, path: str) -> int:
    token = re.search(r'<meta name="csrf" content="(\w+)">', client.get("/").text)
    assert token
    return client.post(path, data={"csrf": token[1]}).status_code


def test_an_admin_takes_a_workitem_back(
    client: TestClient, service: Service, site: Site, records: Records
) -> None:
    uid = taken(service, site, records)
    action = f"/workitems/{uid}/take-back"
    assert "AE READER1" in client.get("/queue").text and action in client.get("/queue").text
    assert action in client.get("/study/1.1").text and "Being read by AE READER1" in client.get("/").text
    (row,) = client.get("/api/v1/workitems").json()
    assert (row["uid"], row["claimed_by"], row["patient_id"]) == (uid, "READER1", "PID-1")
    assert press(client, action) == 303
    assert "Taken back from AE READER1" in client.get("/study/1.1").text
    assert action not in client.get("/queue").text and client.get("/api/v1/workitems").json() == []
    entry = next(e for e in records.audit.entries(9) if e["action"] == "take-back")
    assert entry["study_instance_uid"] == "1.1" and "AE READER1" in entry["detail"]
    assert press(client, action) == 409 and press(client, "/workitems/1.2.3.4/take-back") == 404
    service.make(time.time())
    assert [item.offer for item in records.workitems.listed(0) if item.state == "SCHEDULED"] == [2]


def test_subscribers_are_seen_with_what_is_wrong(
    client: TestClient, service: Service, site: Site, records: Records, settings: Settings
) -> None:
    def doctor() -> tuple[bool, str]:
        return next((c.ok, c.text) for c in examine(settings) if c.name == "subscribers")

    assert "not subscribed" in client.get("/queue").text
    assert doctor() == (True, "BOARD subscribed to nothing yet; 0 events wait")
    asked = Dataset()
    asked.ReceivingAE, asked.DeletionLock, asked.ScheduledProcedureStepPriority = "BOARD", "TRUE", "HIGH"
    assert service.act("1.2.840.10008.5.1.4.34.5.1", 3, asked, Actor("BOARD", "reader", "")) == 0
    taken(service, site, records)
    text = "workitems that match ScheduledProcedureStepPriority HIGH; 1 so far"
    assert text in client.get("/queue").text
    records.subscriptions.went_wrong("BOARD", "subscriber BOARD cannot be reached", time.time() - 100)
    ok, words = doctor()
    assert not ok and "BOARD takes no event since" in words and "2 wait" in words
    assert "subscriber BOARD cannot be reached" in client.get("/queue").text
    (row,) = client.get("/api/v1/subscribers").json()
    assert (row["ae_title"], row["locks"], row["waiting"]) == ("BOARD", 1, 2)
    metrics = client.get("/metrics").text
    assert 'ichnode_ups_subscriber_failing{ae="BOARD"} 1' in metrics
    assert 'ichnode_ups_events_waiting{ae="BOARD"} 2' in metrics
    assert 'ichnode_workitems{state="in_progress"} 1' in metrics
