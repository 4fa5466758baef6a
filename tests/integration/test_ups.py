"""Readers that ask for workitems, take them and finish them, over UPS Pull with a pynetdicom SCU."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepPull,
    UnifiedProcedureStepPush,
    Verification,
)
from sqlalchemy import update

from node.domain.errors import SettingsError, TransientError
from node.domain.findings import Consistency, Priority
from node.scu import leave_responses
from node.settings import Destination, Settings, Ups
from node.store.records import Records, open_records
from node.store.tables import jobs
from node.store.worklist import Reading, Wanted
from node.ups.scp import UpsScp
from node.ups.service import Service, workitem_uid
from tests.ports import free_port
from tests.site import SUBDURAL, Site, findings


class Reader:
    """A reading worklist with an association of its own."""

    def __init__(self, port: int, title: str = "READER1") -> None:
        ae = AE(title)
        ae.add_requested_context(UnifiedProcedureStepPull)
        ae.add_requested_context(Verification)
        self.assoc = ae.associate("127.0.0.1", port, ae_title="ICHNODE")
        leave_responses(self.assoc)
        self.transaction_uid = generate_uid()

    def find(self, **keys: Any) -> list[Dataset]:
        asked = Dataset()
        for keyword, value in {"ProcedureStepState": "", "StudyInstanceUID": None, **keys}.items():
            setattr(asked, keyword, value)
        found = []
        for status, item in self.assoc.send_c_find(asked, UnifiedProcedureStepPull):
            assert status.Status in (0xFF00, 0x0000), hex(status.Status)
            if item is not None:
                found.append(item)
        return found

    def get(self, uid: str, *tags: int) -> tuple[int, Dataset]:
        status, ds = self.assoc.send_n_get(
            list(tags), UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull
        )
        return status.Status, ds

    def act(self, uid: str, state: str, transaction_uid: str | None = None, action: int = 1) -> int:
        asked = Dataset()
        asked.ProcedureStepState = state
        asked.TransactionUID = self.transaction_uid if transaction_uid is None else transaction_uid
        status, _ = self.assoc.send_n_action(
            asked, action, UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull
        )
        return int(status.Status)

    def set(self, uid: str, transaction_uid: str | None = None, **attributes: Any) -> int:
        given = Dataset()
        given.TransactionUID = self.transaction_uid if transaction_uid is None else transaction_uid
        for keyword, value in attributes.items():
            setattr(given, keyword, value)
        status, _ = self.assoc.send_n_set(
            given, UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull
        )
        return int(status.Status)


def performed() -> Dataset:
    """What COMPLETED requires."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "110005", "DCM", "Interpretation"
    done = Dataset()
    done.PerformedProcedureStepStartDateTime = "20261121100000"
    done.PerformedProcedureStepEndDateTime = "20261121100500"
    done.PerformedStationNameCodeSequence = [code]
    done.PerformedWorkitemCodeSequence = [code]
    done.OutputInformationSequence = []
    return done


@dataclass
class Place:
    records: Records
    site: Site
    service: Service
    port: int

    def word(self, study: str) -> dict[str, Any]:
        row = self.records.worklist.study(study)
        assert row
        return row


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    port = free_port()
    settings = Settings(
        data_dir=tmp_path, ups=Ups(port=port), destination=(Destination(name="pacs", ae_title="PACS"),)
    )
    records = open_records(settings)
    service = Service(settings, records)
    scp = UpsScp(settings, service)
    scp.start()
    yield Place(records, Site(records), service, port)
    scp.stop()
    records.close()


@pytest.fixture
def reader(place: Place) -> Iterator[Reader]:
    made = Reader(place.port)
    assert made.assoc.is_established
    yield made
    made.assoc.release()


def test_a_positive_study_is_offered_the_most_urgent_first(place: Place, reader: Reader) -> None:
    place.site.composed("1.1", findings({}, 0.6, Consistency.MASK_ONLY, Priority.HIGH), patient_id="P1")
    place.site.composed("1.2", SUBDURAL, patient_id="P2", patient_name="Doe^Jane", accession_number="A2")
    place.site.composed("1.3", findings(), patient_id="P3")
    found = reader.find(PatientID="", ScheduledProcedureStepPriority="", ProcedureStepLabel="")
    assert [(f.StudyInstanceUID, f.ScheduledProcedureStepPriority) for f in found] == [
        ("1.2", "HIGH"), ("1.1", "MEDIUM")
    ]  # fmt: skip
    assert found[0].ProcedureStepLabel == "HAEMORRHAGE SUSPECTED"
    assert [f.StudyInstanceUID for f in reader.find(PatientName="DOE*")] == ["1.2"]
    request = Dataset()
    request.AccessionNumber = "A2"
    assert len(reader.find(ReferencedRequestSequence=[request])) == 1
    assert reader.find(ProcedureStepState="IN PROGRESS") == []
    assert reader.assoc.send_c_echo().Status == 0x0000


def test_a_workitem_names_the_images_and_the_report(place: Place, reader: Reader) -> None:
    place.site.composed("1.2", SUBDURAL, patient_id="P2")
    (found,) = reader.find()
    assert found.SOPInstanceUID == workitem_uid("1.2.1", 1)
    status, ds = reader.get(found.SOPInstanceUID)
    assert status == 0x0000 and "TransactionUID" not in ds
    source, report = ds.InputInformationSequence
    assert (source.SeriesInstanceUID, len(source.ReferencedSOPSequence)) == ("1.2.1", 2)
    assert report.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.9"
    assert source.DICOMRetrievalSequence[0].RetrieveAETitle == "PACS"
    status, part = reader.get(found.SOPInstanceUID, 0x00100020, 0x00741204)
    assert status == 0x0000 and part.PatientID == "P2" and "InputInformationSequence" not in part
    assert reader.get(found.SOPInstanceUID, 0x00100020, 0x00081195)[0] == 0x0001, "never the Transaction UID"
    assert reader.get("1.2.3.4")[0] == 0xC307


def test_a_reader_takes_finishes_and_so_acknowledges(place: Place, reader: Reader) -> None:
    place.site.composed("1.2", SUBDURAL)
    (found,) = reader.find()
    uid = found.SOPInstanceUID
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    assert reader.find()[0].ProcedureStepState == "IN PROGRESS"
    assert place.word("1.2")["review"] is None, "a claim alone hides no alarm"
    taken = place.records.workitems.of_studies(["1.2"])["1.2"]
    assert (taken["claimed_by"], taken["state"]) == ("READER1", "IN PROGRESS")
    assert reader.act(uid, "COMPLETED") == 0xC304
    assert reader.set(uid, UnifiedProcedureStepPerformedProcedureSequence=[performed()]) == 0x0000
    assert reader.act(uid, "COMPLETED") == 0x0000
    assert place.word("1.2")["review"]["acknowledged_by"] == "AE READER1"
    assert reader.act(uid, "COMPLETED") == 0xB306
    assert reader.set(uid, UnifiedProcedureStepPerformedProcedureSequence=[]) == 0xC300
    rows, _ = place.records.worklist.page(Wanted(reading=Reading.UNREAD), 10)
    assert rows == []
    trail = [(e["who"], e["action"], e["study_instance_uid"]) for e in place.records.audit.entries()]
    assert trail == [("READER1", "workitem", "1.2")] * 2


def test_two_readers_cannot_take_the_same(place: Place, reader: Reader) -> None:
    place.site.composed("1.2", SUBDURAL)
    other = Reader(place.port, "READER2")
    uid = reader.find()[0].SOPInstanceUID
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    assert other.act(uid, "IN PROGRESS") == 0xC301
    assert other.act(uid, "COMPLETED") == 0xC301
    assert other.set(uid, ProcedureStepProgressInformationSequence=[]) == 0xC301
    assert reader.act(uid, "IN PROGRESS") == 0xC302
    assert reader.act(uid, "CANCELED") == 0x0000
    progress = reader.get(uid)[1].ProcedureStepProgressInformationSequence[0]
    assert progress.ProcedureStepCancellationDateTime
    assert place.word("1.2")["review"] is None
    other.assoc.release()


def test_what_makes_no_sense_gets_the_status_for_it(place: Place, reader: Reader) -> None:
    place.site.composed("1.2", SUBDURAL)
    uid = reader.find()[0].SOPInstanceUID
    assert reader.act("1.2.3.4", "IN PROGRESS") == 0xC307
    assert reader.act(uid, "SCHEDULED") == 0xC303
    assert reader.act(uid, "IN PROGRESS", "") == 0xC301
    assert reader.act(uid, "COMPLETED") == 0xC310
    assert reader.act(uid, "ASLEEP") == 0x0115
    assert reader.act(uid, "IN PROGRESS", action=9) == 0x0123
    assert reader.set("1.2.3.4") == 0xC307
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    assert reader.set(uid, PatientName="Other^Name") == 0x0001, "a performer changes nobody's name"
    large = Dataset()
    large.ProcedureStepProgressDescription = "x" * 1000
    assert reader.set(uid, ProcedureStepProgressInformationSequence=[large] * 400) == 0x0213


def test_a_newer_revision_takes_back_what_nobody_took(place: Place, reader: Reader) -> None:
    place.site.composed("1.2", SUBDURAL)
    (old,) = reader.find()
    place.site.receive("1.2", "1.2.1", images=1)
    place.site.decide("1.2", "1.2.1")
    (job,) = [j for j in place.records.views.jobs() if j["state"] == "QUEUED"]
    assert place.records.jobs.claim(job["id"], "worker", time.time() + 60, time.time())
    assert place.records.jobs.store_analysis(job["id"], "worker", SUBDURAL, "maps", time.time())
    states = {f.SOPInstanceUID: f.ProcedureStepState for f in reader.find()}
    assert states[workitem_uid("1.2.1", 2)] == "SCHEDULED"
    assert states[old.SOPInstanceUID] == "CANCELED"


def test_every_result_is_offered_where_that_is_wanted(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, ups=Ups(items="all"))
    records = open_records(settings)
    Site(records).composed("1.3", findings())
    service = Service(settings, records)
    asked = Dataset()
    asked.ScheduledProcedureStepPriority = ""
    ((status, found),) = service.find(asked)
    assert (status, found.ScheduledProcedureStepPriority) == (0xFF00, "LOW")
    records.close()


def test_the_node_s_own_phantom_is_offered_to_nobody(place: Place, reader: Reader) -> None:
    job = place.site.composed("1.2", SUBDURAL)
    with place.records.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(canary=1))
    assert reader.find() == []


def test_a_database_that_is_away_is_told_as_such(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise TransientError("database: locked")

    reader = Reader(place.port)
    monkeypatch.setattr(place.records.workitems, "make", away)
    monkeypatch.setattr(place.records.workitems, "change", away)
    asked = Dataset()
    asked.PatientID = ""
    (last,) = reader.assoc.send_c_find(asked, UnifiedProcedureStepPull)
    assert last[0].Status == 0xA700
    assert reader.act("1.2", "IN PROGRESS") == 0x0110
    reader.assoc.release()


def test_strangers_are_kept_out(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(
        data_dir=tmp_path, ups=Ups(port=port, calling_ae_titles=("READER1",), addresses=("127.0.0.1",))
    )
    records = open_records(settings)
    scp = UpsScp(settings, Service(settings, records))
    scp.start()
    assert Reader(port, "SOMEBODY").assoc.is_rejected
    known = Reader(port)
    assert known.assoc.is_established
    known.assoc.release()
    scp.stop()
    records.close()
    with pytest.raises(ValidationError, match=r"ups\.calling_ae_titles"):
        Ups(host="0.0.0.0", port=11114)


def test_an_address_beyond_the_list_hears_nothing(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(data_dir=tmp_path, ups=Ups(port=port, addresses=("10.0.0.0/8",)))
    records = open_records(settings)
    scp = UpsScp(settings, Service(settings, records))
    scp.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(20)
        assert stranger.recv(10) == b""
    with pytest.raises(SettingsError, match=r"ups\.host"):
        UpsScp(settings, Service(settings, records)).start()
    scp.stop()
    records.close()
