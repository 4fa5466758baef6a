"""The start-up scan and retention, on real files and both databases: what is adopted, removed, kept."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy import insert, select, update

from node import scan
from node import spool as node_spool
from node.admin.cli import main
from node.domain.errors import IllegalTransition, TransientError
from node.domain.findings import Findings, ModelIdentity, Priority, Reason, Status
from node.domain.lifecycle import GapState, JobState, SeriesState
from node.domain.orders import OrderPriority, Said, Source, Subject
from node.domain.reconciliation import ArchivedStudy, Kind, Missing
from node.fingerprint import file_digest
from node.headers import read_instance
from node.housekeeping import SILENT_S, Housekeeper
from node.intake import Intake
from node.liveness import process_name
from node.outputs.encoding import encode
from node.retention import IN_FLIGHT_S, Retention
from node.scan import AT_REST_S, MISSING, Fate, Scan, summary
from node.settings import Destination, Scp, Settings
from node.settings import Spool as SpoolSettings
from node.spool import Spool
from node.store.commitments import Asked
from node.store.deliveries import NewDelivery
from node.store.engine import writing
from node.store.incidents import Code
from node.store.jobs import NewObject
from node.store.queue import Line
from node.store.records import Records, open_records
from node.store.tables import comparisons, deliveries, gaps, instances, ups_events
from node.wholeness import Announced
from tests.factories import ct_series
from tests.queueing import Ring, ringing

SUCCESS, DUPLICATE, NO_ROOM, CANNOT_UNDERSTAND = 0x0000, 0x0111, 0xA700, 0xC000
DAY_S = 24 * 3600.0
SR = "1.2.840.10008.5.1.4.1.1.88.34"


@dataclass
class Place:
    """A spool and its records, with studies in any state of their way."""

    records: Records
    spool: Spool
    now: float = field(default_factory=time.time)
    destination: Destination = field(default_factory=lambda: Destination(name="pacs", ae_title="PACS"))

    def __post_init__(self) -> None:
        self.limits = Scp()
        self.destinations: tuple[str, ...] = ("pacs",)
        self.records.arrivals.open_association("a1", process_name(), ("CT1", "10.0.0.1"), self.now)

    def receive(self, ds: Dataset, association: str = "a1") -> int:
        stream = io.BytesIO()
        dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
        announced = Announced(
            sop_class_uid=str(ds.SOPClassUID),
            sop_instance_uid=str(ds.SOPInstanceUID),
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            calling_ae="CT1",
            association_id=association,
        )
        return Intake(self.spool, self.records, lambda: self.now, self.limits).receive(
            announced, stream.getvalue()
        )

    def study(self, name: str, slices: int = 3, **attributes: Any) -> str:
        """A study received; returns its UID."""
        series = ct_series(slices, rows=16, name=name, **attributes)
        assert [self.receive(ds) for ds in series] == [SUCCESS] * slices
        return str(series[0].StudyInstanceUID)

    def decided(self, study: str, reason: Reason | None = None) -> int | None:
        """Settled and decided: a job, or a refusal."""
        (row,) = self.records.decisions.of_study(study)
        assert self.records.decisions.settle(row, self.now)
        (row,) = self.records.decisions.of_study(study)
        if reason:
            return self.records.decisions.decide(None, [(row, reason)], self.now)
        return self.records.decisions.decide(row, [], self.now)

    def composed(self, study: str, urgent: bool = False, image: Dataset | None = None) -> int:
        """Analysed, with one object that waits to be delivered; `image` is sent in place of a report."""
        job_id = self.decided(study)
        assert job_id is not None and self.records.jobs.claim(job_id, "w", self.now + 30, self.now)
        maps = self.spool.job_path(job_id, 1, "maps.npz")
        self.spool.write(maps, (b"maps",))
        priority = Priority.STAT if urgent else Priority.ROUTINE
        found = Findings(ModelIdentity("m", "1", "ab"), "1", 1, Status.ANALYSED, priority=priority)
        assert self.records.jobs.store_analysis(job_id, "w", found, maps, self.now)
        job = self.records.jobs.get(job_id)
        assert job
        uid, sop_class, content = f"2.25.{job_id}", SR, b"report" * 100
        if image is not None:
            uid, sop_class, content = str(image.SOPInstanceUID), str(image.SOPClassUID), encode(image)
        path = self.spool.object_path(job_id, uid)
        self.spool.write(path, (content,))
        made = NewObject(uid, sop_class, "2.25.900", "sr", path, len(content))
        deliveries = [NewDelivery(uid, name, 0, urgent) for name in self.destinations]
        assert self.records.jobs.store_objects(job, [made], deliveries, self.now)
        return job_id

    def delivered(self, study: str) -> int:
        job_id = self.composed(study)
        self.send(job_id)
        return job_id

    def send(self, job_id: int) -> None:
        (due,) = self.records.deliveries.take_due("pacs", self.now, self.now + 60)
        assert due.job_id == job_id and self.records.deliveries.sent(due.id, "0x0000", self.now)

    def scan(self) -> dict[str, int]:
        return Scan(self.records, self.spool).run()

    def at_work(self, then: float) -> None:
        """The node made its daily scan."""
        self.records.keeping.scanned("settle", then, then, {})

    def retention(self, **spool: Any) -> Retention:
        settings = Settings(spool=SpoolSettings(**spool), destination=(self.destination,))
        return Retention(settings, self.records, self.spool)

    def removed(
        self, later_s: float = DAY_S * 2, used: Callable[[], float] | None = None, **spool: Any
    ) -> set[str]:
        """The studies that one round of retention removes; by age when no use is given."""
        options = spool or {"keep_days": 1}
        found = self.retention(**options).round(self.now + later_s, used or (lambda: 0.0))
        return {removal.study_instance_uid for removal in found}

    def files(self) -> list[str]:
        found = [p for p in self.spool.root.rglob("*") if p.is_file()]
        return sorted(str(p.relative_to(self.spool.root)) for p in found)

    def recorded(self) -> list[str]:
        return [held.path for held in self.records.keeping.received_files()]

    def state_of(self, study: str) -> SeriesState:
        (row,) = self.records.decisions.of_study(study)
        return row.state


@pytest.fixture
def place(records: Records, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "spool").mkdir()
    yield Place(records, Spool(tmp_path / "spool"))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


class TestScan:
    def test_an_empty_spool_is_accounted_for(self, place: Place) -> None:
        assert place.scan() == {}
        assert summary({}) == "spool: 0 files are there: none; 0 records without a file"

    def test_what_is_recorded_is_left_as_it_is(self, place: Place) -> None:
        job_id = place.composed(place.study("a"))
        before = place.files()
        assert place.scan() == {Fate.RECORDED: 5}  # three slices, masks, a report
        assert place.files() == before and job_id
        assert place.records.incidents.latest() == []

    def test_a_file_without_a_record_is_adopted_and_its_series_decided_like_any_other(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after a kill between the rename of the file and the commit of its record."""
        first, second, third = ct_series(3, rows=16, name="crash")
        assert place.receive(first) == SUCCESS
        with monkeypatch.context() as patched:
            for name in ("record", "record_new"):
                patched.setattr(place.records.arrivals, name, _killed)
            with pytest.raises(Killed):
                place.receive(second)
        assert len(place.files()) == 2 and len(place.recorded()) == 1
        assert place.scan() == {Fate.RECORDED: 1, Fate.ADOPTED: 1}
        assert sorted(place.recorded()) == place.files()
        assert place.scan() == {Fate.RECORDED: 2}
        gathered = place.records.decisions.gather(str(first.SeriesInstanceUID))
        assert len(gathered.instances) == 2 and gathered.aborted
        assert place.receive(second) == SUCCESS and place.receive(third) == SUCCESS
        assert len(place.files()) == len(place.recorded()) == 3
        assert not place.records.decisions.gather(str(first.SeriesInstanceUID)).aborted

    def test_whatever_ends_a_scan_ends_the_association_of_what_it_recovered(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else its series would be waited for as if more of it came, for as long as the process runs."""
        one, two, three = ct_series(3, rows=16, name="recovered")
        incoming = f"incoming/{one.StudyInstanceUID}/{one.SeriesInstanceUID}"

        def still_open() -> int:
            return place.records.decisions.gather(str(one.SeriesInstanceUID)).associations_open

        def unrecorded(ds: Dataset) -> None:
            place.spool.write(f"{incoming}/{ds.SOPInstanceUID}~ab.dcm", (encode(ds),))

        unrecorded(one)
        assert Scan(place.records, place.spool).run(lambda: True) == {}
        assert len(place.recorded()) == 1 and still_open() == 0
        unrecorded(two)
        with monkeypatch.context() as patched:
            patched.setattr(Scan, "_of_jobs", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                place.scan()
        assert len(place.recorded()) == 2 and still_open() == 0
        unrecorded(three)
        keeper = Housekeeper(Settings(), place.records, place.spool)
        with monkeypatch.context() as patched:
            patched.setattr(place.records.arrivals, "close_association", _away)
            with pytest.raises(TransientError):
                keeper.round(place.now)
        assert len(place.recorded()) == 3 and still_open() == 1
        keeper.round(place.now)
        assert still_open() == 0

    def test_a_second_file_of_a_recorded_instance_is_removed(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="twice")
        assert place.receive(ds) == SUCCESS
        (path,) = place.files()
        twin = place.spool.absolute(path).with_name(f"{ds.SOPInstanceUID}~ffffffff.dcm")
        twin.write_bytes(place.spool.absolute(path).read_bytes())
        assert place.scan() == {Fate.RECORDED: 1, Fate.DUPLICATE: 1}
        assert place.files() == [path]

    def test_the_same_bytes_take_the_place_of_a_file_that_was_lost(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="moved")
        assert place.receive(ds) == SUCCESS
        (path,) = place.files()
        file = place.spool.absolute(path)
        twin = file.with_name(f"{ds.SOPInstanceUID}~ffffffff.dcm")
        file.rename(twin)
        assert place.scan() == {Fate.ADOPTED: 1}
        assert place.recorded() == place.files() == [str(twin.relative_to(place.spool.root))]

    def test_an_unfinished_file_of_a_dead_process_is_removed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.study("a", slices=1)
        folder = place.spool.absolute(place.files()[0]).parent
        (folder / f".{process_name(2**22 - 1)}!ab{node_spool.PART}").write_bytes(b"half")
        assert place.scan() == {Fate.RECORDED: 1, Fate.UNFINISHED: 1}

    def test_a_record_without_its_file_is_an_incident_and_the_scan_says_so(self, place: Place) -> None:
        study = place.study("lost")
        place.spool.absolute(place.files()[1]).unlink()
        assert place.scan() == {Fate.RECORDED: 2, MISSING: 1}
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["study_instance_uid"]) == (Code.FILE_MISSING, study)
        found = place.records.keeping.last_scan()
        assert found and found["counts"] == {Fate.RECORDED: 2, MISSING: 1}

    def test_a_lost_file_is_healed_by_sending_it_again(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="healed")
        place.receive(ds)
        place.spool.absolute(place.files()[0]).unlink()
        assert place.receive(ds) == SUCCESS
        assert place.scan() == {Fate.RECORDED: 1}

    def test_an_object_that_is_to_be_sent_and_is_gone_is_an_incident(self, place: Place) -> None:
        place.composed(place.study("a"))
        (report,) = [p for p in place.files() if p.startswith("outgoing")]
        place.spool.absolute(report).unlink()
        assert place.scan()[MISSING] == 1

    def test_a_file_of_our_own_object_is_not_taken_in(self, place: Place) -> None:
        (image,) = ct_series(1, rows=16, name="own")
        place.composed(place.study("a"), image=image)
        place.spool.write(f"incoming/1/2/{image.SOPInstanceUID}~ab.dcm", (encode(image),))
        assert place.scan() == {Fate.RECORDED: 5, Fate.DUPLICATE: 1}
        assert len(place.recorded()) == 3 and len(place.files()) == 5

    def test_what_cannot_be_read_is_reported_and_left(self, place: Place) -> None:
        place.spool.write("incoming/1.2/1.3/1.4~ab.dcm", (b"no DICOM at all",))
        assert place.scan() == {Fate.UNKNOWN: 1}
        assert place.files() == ["incoming/1.2/1.3/1.4~ab.dcm"]
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.FILE_UNKNOWN and "incoming/1.2/1.3/1.4~ab.dcm" in incident["text"]

    def test_a_file_that_the_disk_does_not_give_is_reported_and_stops_nobody(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ds = ct_series(1, rows=16, name="b")[0]
        place.spool.write("incoming/1.2/1.3/1.4~ab.dcm", (b"on a bad sector",))
        place.spool.write(place.spool.instance_path("9.2", "9.3", "9.4", tag="cd"), (encode(ds),))

        def read(file: Path) -> Any:
            if "1.4~ab" in file.name:
                raise OSError(errno.EIO, "Input/output error")
            return read_instance(file)

        monkeypatch.setattr(scan, "read_instance", read)
        assert place.scan() == {Fate.UNKNOWN: 1, Fate.ADOPTED: 1}
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.FILE_UNKNOWN and "Input/output error" in incident["text"]

    def test_files_of_abandoned_attempts_go_once_they_are_old(self, place: Place) -> None:
        job_id = place.composed(place.study("a"))
        place.spool.write(place.spool.job_path(job_id, 7, "maps.npz"), (b"late",))
        place.spool.write(place.spool.object_path(job_id, "2.25.404"), (b"never stored",))
        place.spool.write(place.spool.job_path(999, 1, "maps.npz"), (b"of no job",))
        assert place.scan()[Fate.AT_WORK] == 3
        for path in place.files():
            age(place.spool.absolute(path), AT_REST_S + 60)
        assert place.scan() == {Fate.RECORDED: 5, Fate.LEFTOVER: 3}
        assert place.scan() == {Fate.RECORDED: 5}

    def test_files_of_a_job_that_is_not_over_are_left_however_old(self, place: Place) -> None:
        job_id = place.decided(place.study("a"))
        assert job_id
        place.spool.write(place.spool.job_path(job_id, 1, "maps.npz"), (b"being made",))
        for path in place.files():
            age(place.spool.absolute(path), AT_REST_S + 60)
        assert place.scan() == {Fate.RECORDED: 3, Fate.AT_WORK: 1}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def _killed(*_: Any) -> None:
    raise Killed


def _away(*_: Any) -> None:
    raise TransientError("database: gone")


class TestConflicts:
    def test_the_same_bytes_again_make_no_second_file(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        assert [place.receive(ds) for _ in range(3)] == [SUCCESS] * 3
        assert len(place.files()) == 1 and place.records.incidents.latest() == []

    def test_two_contents_of_one_fingerprint_are_told_apart(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As somebody could make them on purpose; only where the file is lost must the fingerprint do."""
        monkeypatch.setattr("node.intake.recorded", lambda made: "xxh3:0")
        monkeypatch.setattr("node.scan.file_fingerprint", lambda file: "xxh3:0")
        (ds,) = ct_series(1, rows=16, name="a")
        assert [place.receive(ds) for _ in range(2)] == [SUCCESS] * 2
        assert len(place.files()) == 1 and place.records.incidents.latest() == []
        ds.SeriesDescription = "Other"
        assert place.receive(ds) == SUCCESS
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.CONTENT_REPLACED and len(place.files()) == 2
        assert place.scan() == {Fate.RECORDED: 1, Fate.KEPT: 1}

    def test_what_an_earlier_version_recorded_with_sha256_is_known_again(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        assert place.receive(ds) == SUCCESS
        (path,) = place.files()
        digest = file_digest(place.spool.absolute(path))
        with writing(place.records.engine) as connection:
            connection.execute(update(instances).values(sha256=digest))
        assert place.receive(ds) == SUCCESS
        twin = place.spool.absolute(path).with_name(f"{ds.SOPInstanceUID}~ffffffff.dcm")
        twin.write_bytes(place.spool.absolute(path).read_bytes())
        assert place.scan() == {Fate.RECORDED: 1, Fate.DUPLICATE: 1}
        assert place.files() == [path] and place.records.incidents.latest() == []
        ds.SeriesDescription = "Other"
        assert place.receive(ds) == SUCCESS
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.CONTENT_REPLACED

    def test_other_content_counts_from_then_on_and_takes_the_analysis_back(self, place: Place) -> None:
        study = place.study("a")
        job_id = place.decided(study)
        assert job_id and place.records.jobs.claim(job_id, "w", place.now + 30, place.now)
        first = ct_series(3, rows=16, name="a")[0]
        first.PatientID = "CORRECTED"
        assert place.receive(first) == SUCCESS
        job = place.records.jobs.get(job_id)
        assert job and job.state is JobState.SUPERSEDED
        found = Findings(ModelIdentity("m", "1", "ab"), "1", 1, Status.ANALYSED)
        assert not place.records.jobs.store_analysis(job_id, "w", found, "results/x", place.now)
        (row,) = place.records.decisions.of_study(study)
        assert (row.state, row.revision) == (SeriesState.RECEIVING, 2)
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["times"], incident["calling_ae"]) == (
            Code.CONTENT_REPLACED,
            1,
            "CT1",
        )
        (listed,) = place.records.views.studies()
        assert listed["patient_id"] == "CORRECTED"

    def test_the_older_content_stays_on_disk_until_the_study_is_removed(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        place.receive(ds)
        ds.SeriesDescription = "Other"
        assert place.receive(ds) == SUCCESS
        assert len(place.files()) == 2 and len(place.recorded()) == 1
        assert place.scan() == {Fate.RECORDED: 1, Fate.KEPT: 1}
        place.delivered(str(ds.StudyInstanceUID))
        for path in place.files():
            age(place.spool.absolute(path), IN_FLIGHT_S + 60)
        assert place.removed() == {str(ds.StudyInstanceUID)}
        assert place.files() == []

    def test_a_whole_series_again_is_one_incident_that_counts(self, place: Place) -> None:
        place.study("a", slices=5)
        place.study("a", slices=5, SeriesDescription="Other")
        (incident,) = place.records.incidents.latest()
        assert incident["times"] == 5

    def test_an_instance_under_another_series_is_refused_and_stays_where_it_is(self, place: Place) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        place.receive(ds)
        before = (place.files(), place.recorded())
        ds.SeriesInstanceUID = "1.2.3"
        assert place.receive(ds) == DUPLICATE
        assert (place.files(), place.recorded()) == before
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["series_instance_uid"]) == (Code.SOP_IN_OTHER_SERIES, "1.2.3")

    @pytest.mark.parametrize("study_is_known", [False, True])
    def test_a_series_of_another_study_is_refused_and_stays_where_it_is(
        self, place: Place, study_is_known: bool
    ) -> None:
        first, second = ct_series(2, rows=16, name="a")
        place.receive(first)
        other = place.study("b", slices=1) if study_is_known else "1.2.3"
        before = (place.files(), place.recorded())
        second.StudyInstanceUID = other
        assert place.receive(second) == CANNOT_UNDERSTAND
        assert (place.files(), place.recorded()) == before
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["study_instance_uid"]) == (Code.SERIES_IN_OTHER_STUDY, other)
        assert place.receive(ct_series(2, rows=16, name="a")[1]) == SUCCESS, "in its own study it is taken"

    def test_a_series_beyond_its_limit_is_refused_for_want_of_resources(self, place: Place) -> None:
        place.limits = Scp(max_series_instances=2)
        series = ct_series(3, rows=16, name="a")
        assert [place.receive(ds) for ds in series] == [SUCCESS, SUCCESS, NO_ROOM]
        assert place.receive(series[0]) == SUCCESS, "what is there already may come again"
        assert len(place.files()) == 2
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.SERIES_TOO_LARGE


def test_a_clock_set_back_keeps_no_fetch_no_commitment_and_no_word_to_readers_waiting(place: Place) -> None:
    ahead = place.now + 2 * DAY_S
    place.delivered(place.study("a"))
    row = {"archive": "a", "study_instance_uid": "1.2", "series_instance_uid": "", "kind": "study"}
    row |= dict.fromkeys(("patient_id", "accession_number", "study_date", "description", "note"), "")
    seen = {"first_seen_at": ahead, "last_seen_at": ahead, "next_try_at": ahead}
    said = {"receiving_ae": "R", "sop_instance_uid": "1.3", "event": 1, "content": {}}
    with writing(place.records.engine) as connection:
        connection.execute(insert(gaps).values(**row, **seen, here=0, state=GapState.WANTED))
        connection.execute(insert(ups_events).values(**said, created_at=ahead, next_try_at=ahead, attempts=1))
        connection.execute(update(deliveries).values(next_try_at=ahead))
    records, now = place.records, place.now
    ask = ("pacs", now, 3600.0, now + 60, 9)
    assert records.gaps.take_wanted(["a"], now, now) is None
    assert records.subscriptions.due("R", now, 9) == records.commitments.to_ask(*ask) == []
    assert records.keeping.undo_the_future(now, 600, 600) == 3
    assert records.gaps.take_wanted(["a"], now, now)
    assert records.subscriptions.due("R", now, 9) and records.commitments.to_ask(*ask)


def test_a_clock_that_was_set_back_keeps_no_comparison_and_no_canary_waiting(place: Place) -> None:
    """Their turns of the hours to come were taken already, while the clock was ahead."""
    days, hour = ("20261101", "20261102"), int(place.now // 3600) + 5
    canaries = place.records.canaries
    ahead = place.now + 5 * 3600
    assert place.records.gaps.ask("pacs", days, "(clock)", ahead, f"pacs {hour}")
    assert canaries.ask("1.1", "ichnode", ahead, slot=hour) is not None
    assert place.records.keeping.undo_the_future(place.now, 60.0, 60.0)
    assert place.records.keeping.undo_the_future(place.now, 60.0, 60.0) == 0, "once for all"
    assert place.records.gaps.ask("pacs", days, "(clock)", ahead, f"pacs {hour}")
    assert canaries.ask("1.2", "ichnode", ahead, slot=hour) is not None


def test_after_a_clock_was_set_back_the_pacs_may_say_that_it_lost_an_object(place: Place) -> None:
    place.delivered(place.study("a"))
    records, now = place.records, place.now
    with writing(records.engine) as connection:
        connection.execute(update(deliveries).values(sent_at=now + 2 * DAY_S))
        uid = connection.execute(select(deliveries.c.sop_instance_uid)).scalars().first()
    records.keeping.undo_the_future(now, 600, 600)
    assert uid and records.commitments.concerned(Asked("1.2.3", "pacs", now + 1), [uid])


class TestRetention:
    def test_a_delivered_study_goes_when_it_is_old_and_not_before(self, place: Place) -> None:
        study = place.study("a")
        place.delivered(study)
        assert place.removed(later_s=0.9 * DAY_S) == set()
        assert place.removed(later_s=1.1 * DAY_S) == {study}
        assert place.files() == [] and place.recorded() == []
        assert list(place.spool.absolute("incoming").iterdir()) == []
        (listed,) = place.records.views.studies()
        assert listed["files_removed_at"] and listed["job"]["findings"]
        (removal,) = place.records.keeping.removed()
        assert (removal["files"], removal["cause"]) == (5, "age") and removal["finished_at"]
        assert place.scan() == {}

    @pytest.mark.parametrize(
        "stage", ["receiving", "queued", "undelivered", "urgent", "given up", "unanswered"]
    )
    def test_what_is_not_delivered_stays_however_old_and_however_full(self, stage: str, place: Place) -> None:
        study = place.study("a")
        if stage == "queued":
            place.decided(study)
        elif stage == "unanswered":
            place.decided(study, Reason("NOT_HEAD", "a foot"))
        elif stage in ("undelivered", "urgent", "given up"):
            place.composed(study, urgent=stage == "urgent")
        if stage == "given up":
            (due,) = place.records.deliveries.take_due("pacs", place.now, place.now + 60)
            assert place.records.deliveries.give_up(due.id, "gone", "")
        before = place.files()
        assert place.removed(later_s=1000 * DAY_S) == set()
        full = {"high_watermark": 0.5, "low_watermark": 0.1}
        assert place.removed(later_s=1000 * DAY_S, used=lambda: 1.0, **full) == set()
        assert place.files() == before

    def test_results_that_were_sent_nowhere_keep_their_study(self, place: Place) -> None:
        study = place.study("a")
        job_id = place.decided(study)
        assert job_id and place.records.jobs.claim(job_id, "w", place.now + 30, place.now)
        found = Findings(ModelIdentity("m", "1", "ab"), "1", 1, Status.ANALYSED)
        place.records.jobs.store_analysis(job_id, "w", found, "results/1/1/maps.npz", place.now)
        job = place.records.jobs.get(job_id)
        assert job and place.records.jobs.store_objects(job, [], [], place.now)
        assert place.removed(later_s=1000 * DAY_S) == set()

    def test_a_study_that_is_no_ct_goes_once_it_is_decided(self, place: Place) -> None:
        study = place.study("a", Modality="MR")
        assert place.removed() == set()
        place.decided(study, Reason("NOT_CT", "Modality MR"))
        assert place.removed() == {study}

    def test_where_commitment_is_asked_for_sent_is_not_enough(self, place: Place) -> None:
        place.delivered(place.study("a"))
        place.destination = place.destination.model_copy(update={"commitment": True})
        assert place.removed() == set()

    def test_the_watermark_takes_the_oldest_and_no_more_than_it_must(self, place: Place) -> None:
        studies = []
        for name in "abcd":
            studies.append(place.study(name))
            place.delivered(studies[-1])
            place.now += 60
        kept = len(place.files())

        def used() -> float:
            return len(place.files()) / kept

        full = {"high_watermark": 0.9, "low_watermark": 0.6}
        assert place.removed(used=lambda: 0.8, **full) == set(), "between the marks nothing goes"
        assert place.removed(used=used, **full) == set(studies[:2])
        assert place.removed(used=used, **full) == set(), "below the high mark nothing more goes"

    def test_a_study_that_gets_a_slice_meanwhile_stays_whole(self, place: Place) -> None:
        study = place.study("a")
        place.delivered(study)
        (looked_at,) = place.records.keeping.removable(place.now, ())
        place.now += 1
        assert place.receive(ct_series(4, rows=16, name="a")[3]) == SUCCESS
        assert place.records.keeping.begin(looked_at, (), "age", (), place.now) is None
        assert place.scan() == {Fate.RECORDED: 6}

    def test_a_kill_half_way_is_finished_at_the_next_round(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = place.study("a")
        place.delivered(study)
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "remove", _killed)
            with pytest.raises(Killed):
                place.removed()
        assert place.recorded() == [] and len(place.files()) == 5
        assert place.removed() == set()
        assert place.files() == []
        assert [r["study_instance_uid"] for r in place.records.keeping.removed()] == [study]

    def test_what_is_left_of_a_removal_is_not_taken_for_new(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.delivered(place.study("a"))
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "remove", _killed)
            with pytest.raises(Killed):
                place.removed()
        place.scan()
        assert place.recorded() == []
        (listed,) = place.records.views.studies()
        assert listed["files_removed_at"]

    def test_a_file_that_cannot_be_deleted_keeps_nothing_else(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file server that refuses one file must not let the disk fill up."""
        studies = [place.study("a"), place.study("b")]
        for study in studies:
            place.delivered(study)
        (stuck, *_) = [path for path in place.recorded() if studies[0] in path]
        file = place.spool.absolute(stuck)
        file.unlink()
        (file / "x").mkdir(parents=True)  # which no unlink takes
        retention = place.retention(keep_days=1)
        later = place.now + 2 * DAY_S
        assert {r.study_instance_uid for r in retention.round(later, lambda: 0.0)} == set(studies)
        assert place.files() == []
        retention.round(later, lambda: 0.0)
        assert caplog.text.count("cannot be deleted") == 1 and stuck in caplog.text
        (file / "x").rmdir()
        file.rmdir()
        retention.round(later, lambda: 0.0)
        assert place.records.keeping.unfinished() == []

    def test_a_file_that_the_disk_does_not_show_keeps_nothing_else(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        studies = [place.study("a"), place.study("b")]
        for study in studies:
            place.delivered(study)
        (bad, *_) = [path for path in place.recorded() if studies[0] in path]
        really = Path.stat

        def stat(file: Path, **options: Any) -> os.stat_result:
            if str(file).endswith(bad):
                raise OSError(errno.EIO, "Input/output error")
            return really(file, **options)

        monkeypatch.setattr(Path, "stat", stat)
        assert place.scan() == {Fate.RECORDED: 10}
        assert place.removed(keep_days=1) == set(studies)
        monkeypatch.undo()
        assert place.files() == [bad], "which is tried again"
        place.removed(keep_days=1)
        assert place.files() == [] and place.records.keeping.unfinished() == []

    def test_a_volume_that_became_read_only_costs_a_few_studies_and_not_every_one(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It gets no emptier, however many are given up; once it can be written to, those would all go."""

        def refuses(*_: Any) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

        for name in "abcd":
            place.delivered(place.study(name))
        monkeypatch.setattr("node.retention.MOST_STUCK", 2)
        full = {"high_watermark": 0.9, "low_watermark": 0.6}
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "remove", refuses)
            for _ in range(3):
                place.removed(used=lambda: 0.95, **full)
        assert len(place.records.keeping.unfinished()) == 2 and len(place.recorded()) == 6
        assert len(place.removed(used=lambda: 0.95, **full)) == 2, "and goes on once it can"

    def test_what_comes_again_while_its_old_files_go_is_kept(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new file has a name of its own, so that the old removal cannot take it."""
        study = place.study("a")
        place.delivered(study)
        really = Spool.remove
        sent = []

        def remove(self: Spool, *paths: str) -> int:
            if not sent:
                sent.append(place.receive(ct_series(3, rows=16, name="a")[0]))
            return really(self, *paths)

        monkeypatch.setattr(Spool, "remove", remove)
        assert place.removed() == {study}
        assert sent == [SUCCESS]
        assert place.recorded() == place.files() and len(place.files()) == 1
        assert place.state_of(study) is SeriesState.RECEIVING
        (listed,) = place.records.views.studies()
        assert listed["files_removed_at"] is None

    def test_a_study_whose_files_are_gone_is_not_analysed_again(self, place: Place) -> None:
        job_id = place.delivered(place.study("a"))
        place.removed()
        with pytest.raises(IllegalTransition, match="send the study again"):
            place.records.jobs.reanalyse(job_id)

    def test_records_go_later_than_files_and_only_when_asked(self, place: Place) -> None:
        study = place.study("a")
        place.delivered(study)
        place.removed()
        keep = {"keep_days": 1, "keep_records_days": 30}
        place.removed(later_s=29 * DAY_S, **keep)
        assert [s["study_instance_uid"] for s in place.records.views.studies()] == [study]
        place.removed(later_s=31 * DAY_S, **keep)
        assert place.records.views.studies() == [] and place.records.views.jobs() == []

    def test_what_is_unsent_is_never_forgotten(self, place: Place) -> None:
        place.composed(place.study("a"), urgent=True)
        place.removed(later_s=1000 * DAY_S, keep_days=1, keep_records_days=1)
        assert len(place.records.views.studies()) == 1


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 8 MiB; skips where this process may not mount one."""
    folder = tmp_path / "volume"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=2000", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system lets nobody mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class TestSmallVolume:
    def fill(self, place: Place) -> list[str]:
        """Studies of 512 KiB, until one is refused; the slices of that one are there in part."""
        studies: list[str] = []
        while True:
            series = ct_series(4, rows=256, name=f"fill{len(studies)}")
            place.now += 1
            statuses = {place.receive(ds) for ds in series}
            studies.append(str(series[0].StudyInstanceUID))
            if statuses != {SUCCESS}:
                assert NO_ROOM in statuses and statuses <= {SUCCESS, NO_ROOM}
                return studies

    def test_a_full_volume_refuses_in_time_and_delivered_studies_make_room(
        self, small_volume: Path, records: Records
    ) -> None:
        place = Place(records, Spool(small_volume, reserve_bytes=2 * 2**20))
        *whole, cut_off = self.fill(place)
        assert place.spool.free_bytes() > 2**20, "refused before the disk is full: the reserve is for results"
        assert len(whole) >= 5 and sorted(place.recorded()) == place.files()
        for study in whole[:3]:
            place.delivered(study)
        place.composed(whole[3], urgent=True)
        place.now += DAY_S
        marks = {"high_watermark": 0.7, "low_watermark": 0.4}
        assert place.retention(**marks).round(place.now - DAY_S) == [], "nothing that came just now"
        removed = {r.study_instance_uid for r in place.retention(**marks).round(place.now)}
        assert removed == set(whole[:3])
        assert place.scan().get(MISSING, 0) == 0
        assert place.spool.used_part() < 0.7
        assert {place.receive(ds) for ds in ct_series(4, rows=256, name=f"fill{len(whole)}")} == {SUCCESS}
        kept = {s["study_instance_uid"] for s in records.views.studies() if not s["files_removed_at"]}
        assert kept == {*whole[3:], cut_off}

    def test_a_volume_without_inodes_refuses_too(self, small_volume: Path, records: Records) -> None:
        place = Place(records, Spool(small_volume))
        for number in range(2000 - node_spool.RESERVE_INODES):
            (small_volume / f"other{number}").touch()
        assert place.receive(ct_series(1, rows=16, name="a")[0]) == NO_ROOM


def lacking(study: str, series: str = "") -> Missing:
    return Missing(Kind.SERIES if series else Kind.STUDY, ArchivedStudy(study, "P1"), series, "", 4, 0)


class TestHousekeeper:
    def test_times_in_the_future_are_taken_back(self, place: Place) -> None:
        """The clock was an hour ahead and has been set right."""
        settings = Settings(destination=(place.destination,))
        keeper = Housekeeper(settings, place.records, place.spool)
        place.now += 3600
        receiving, queued = place.study("a"), place.study("b")
        job_id = place.decided(queued)
        assert job_id
        place.records.queue.rung(Ring(job_id, False), place.now)
        place.composed(place.study("c"))
        (due,) = place.records.deliveries.take_due("pacs", place.now, place.now + 60)
        place.records.deliveries.failed(due.id, "down", "", place.now + 300)
        place.now -= 3600
        keeper.round(place.now)
        decisions = place.records.decisions
        assert [r.study_instance_uid for r in decisions.receiving(place.now)] == [receiving]
        assert ringing(place.records, place.now - 30) == [job_id]
        ahead = place.now + place.destination.retry_max_s
        assert place.records.deliveries.take_due("pacs", ahead, ahead + 60)

    def test_a_job_of_the_future_waits_no_longer_than_those_that_come_after_it(self, place: Place) -> None:
        """Or it would be the last one for as long as the clock was ahead, and would never count as aged."""
        place.now += 3600
        early = place.decided(place.study("a"))
        place.now -= 3600
        Housekeeper(Settings(), place.records, place.spool).round(place.now)
        place.now += 1
        late = place.decided(place.study("b"))
        taken = place.records.queue.take(late or 0, "w", place.now + 30, place.now, Line())
        assert taken and taken.job.id == early

    def test_a_process_of_the_future_is_dead_as_soon_as_any(self, place: Place) -> None:
        """Or a worker that died before the clock was set right would stand there as alive for as long."""
        place.records.views.beat("worker@gone", "worker", {}, place.now + 3600)
        Housekeeper(Settings(), place.records, place.spool).round(place.now)
        (worker,) = place.records.views.processes(place.now + 20)
        assert not worker["alive"]

    @pytest.mark.parametrize("restarts", [0, 2])
    def test_a_clock_that_leaps_years_ahead_removes_nothing_for_its_age_unless_it_stays(
        self, restarts: int, place: Place
    ) -> None:
        """All that was delivered was gone at once: the clock may be set right the same day."""
        study, elapsed = place.study("a"), [0.0]
        place.delivered(study)
        place.records.orders.say(Said(Source.HEADER, OrderPriority.STAT, Subject("1.2.3"), place.now))
        spool = SpoolSettings(keep_days=1, keep_records_days=30)
        settings = Settings(destination=(place.destination,), spool=spool)

        def begun() -> Housekeeper:
            return Housekeeper(settings, place.records, place.spool, lambda: elapsed[0])

        place.at_work(place.now)
        keeper, leapt = begun(), place.now + 4000 * DAY_S
        keeper.round(place.now)
        for _ in range(restarts):
            keeper = begun()
            keeper.round(leapt)
            place.at_work(leapt)
        for hours in (0, 1, 23):
            elapsed[0] = hours * 3600.0
            keeper.round(leapt + elapsed[0])
            assert not place.records.keeping.was_removed(study, 0.0)
            assert place.records.orders.of_study("1.2.3")
        elapsed[0] = 25 * 3600.0
        keeper.round(leapt + elapsed[0])
        assert place.records.keeping.was_removed(study, 0.0)

    @pytest.mark.parametrize("broken", ["node.scan.Scan.run", "node.watch.look"])
    def test_what_breaks_beside_it_keeps_no_room_from_being_made(
        self, broken: str, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(broken, breaks)
        study = place.study("old")
        place.delivered(study)
        settings = Settings(destination=(place.destination,), spool=SpoolSettings(keep_days=1))
        keeper = Housekeeper(settings, place.records, place.spool)
        with suppress(ZeroDivisionError):
            keeper.round(place.now + 2 * DAY_S)
        assert place.records.keeping.was_removed(study, 0.0)

    def test_orders_and_answers_that_nobody_needs_are_forgotten(self, place: Place) -> None:
        told = Said(Source.HEADER, OrderPriority.STAT, Subject("1.2.3"), place.now)
        place.records.orders.say(told)
        for uid, asked_at in (("1.1", place.now), ("1.2", place.now - 100 * DAY_S)):
            place.records.commitments.asked(Asked(uid, "pacs", asked_at))
        Housekeeper(Settings(), place.records, place.spool).round(place.now)
        assert place.records.orders.of_study("1.2.3")
        assert place.records.commitments.find("1.1") and not place.records.commitments.find("1.2")
        place.records.commitments.answered("1.1", place.now)
        for days in range(2, 40, 2):
            place.at_work(place.now + days * DAY_S)
        Housekeeper(Settings(), place.records, place.spool).round(place.now + 40 * DAY_S)
        assert not place.records.orders.of_study("1.2.3")
        assert not place.records.commitments.find("1.1")

    def test_old_comparisons_are_forgotten_but_the_newest(self, place: Place) -> None:
        """One each five minutes is a hundred thousand rows a year."""
        kept, days, long_ago = place.records.gaps, ("20261101", "20261102"), place.now - 50 * DAY_S
        for archive, slot in (("pacs", "1"), ("pacs", "2"), ("pacs", None), ("pacs", None), ("old", None)):
            kept.ask(archive, days, "anna", long_ago, slot)
            asked = kept.take("w:1", long_ago, [archive])
            assert asked
            kept.finish(asked, long_ago, 1, 0)
        kept.begin("slow", days, "anna", "w:1", long_ago)
        Housekeeper(Settings(), place.records, place.spool).round(place.now)
        with place.records.engine.connect() as connection:
            left = connection.execute(select(comparisons.c.archive, comparisons.c.slot)).all()
        newest_by_clock = ("pacs", "2")  # which is not to be made again
        assert set(map(tuple, left)) == {newest_by_clock, ("pacs", None), ("old", None), ("slow", None)}
        assert len(left) == 4

    def test_what_is_missing_no_longer_is_forgotten(self, place: Place) -> None:
        kept, now = place.records.gaps, place.now
        for name, seen_days_ago in (("open", 40), ("long", 40), ("late", 40), ("new", 1)):
            (number,) = kept.note("pacs", [name], [lacking(name)], now - seen_days_ago * DAY_S)
            if name == "late":  # somebody had it fetched yesterday
                kept.want([number], "anna", now)
                gap = kept.take_wanted(["pacs"], now, now + 9)
                assert gap
                kept.retrieved(gap, now - DAY_S)
            if name != "open":
                kept.note("pacs", [name], [], now)
        Housekeeper(Settings(), place.records, place.spool).round(now)
        assert {r["study_instance_uid"] for r in kept.rows(tuple(GapState))} == {"open", "late", "new"}

    def test_what_is_missing_of_a_forgotten_study_is_forgotten_unless_it_is_fetched(
        self, place: Place
    ) -> None:
        study = place.study("a")
        place.delivered(study)
        two = [lacking(study, "1.1"), lacking(study, "1.2")]
        _, wanted = place.records.gaps.note("pacs", [study], two, place.now)
        place.records.gaps.want([wanted], "anna", place.now)
        place.removed()
        place.removed(later_s=31 * DAY_S, keep_days=1, keep_records_days=30)
        assert place.records.views.studies() == []
        assert [row["state"] for row in place.records.gaps.rows(tuple(GapState))] == ["WANTED"]

    def test_a_listener_that_fell_silent_elsewhere_is_closed_after_a_while(self, place: Place) -> None:
        elapsed = [0.0]
        keeper = Housekeeper(Settings(), place.records, place.spool, lambda: elapsed[0])
        other = "container:0123abcd:7"
        place.records.arrivals.open_association("b", other, ("CT2", "10.0.0.2"), place.now)
        place.records.views.beat(f"listen@{other}", "listen", {}, place.now)
        for elapsed[0] in (0.0, SILENT_S - 1):
            keeper.round(place.now)
            assert other in place.records.arrivals.open_listeners()
        elapsed[0] = SILENT_S + 1
        keeper.round(place.now + 1e6)  # the wall clock alone means nothing
        assert other not in place.records.arrivals.open_listeners()
        assert process_name() in place.records.arrivals.open_listeners()

    @pytest.mark.parametrize("role", ["listen", "deliver"])
    def test_a_listener_that_beats_stays_open(self, role: str, place: Place) -> None:
        """So does what the deliverer of another machine fetches by C-GET, however long that takes."""
        elapsed = [0.0]
        keeper = Housekeeper(Settings(), place.records, place.spool, lambda: elapsed[0])
        other = "container:0123abcd:7"
        place.records.arrivals.open_association("b", other, ("CT2", "10.0.0.2"), place.now)
        for step in range(5):
            elapsed[0] = step * 0.9 * SILENT_S
            place.records.views.beat(f"{role}@{other}", role, {}, place.now + step)
            keeper.round(place.now)
        assert other in place.records.arrivals.open_listeners()


class TestShown:
    """What housekeeping did is seen by the person who asks."""

    def ask(self, tmp_path: Path, *words: str) -> tuple[int, Any]:
        done = CliRunner().invoke(main, [*words, "--json", "--data-dir", str(tmp_path)])
        assert done.stdout, done
        return done.exit_code, json.loads(done.stdout)

    @pytest.fixture
    def shown(self, tmp_path: Path) -> Iterator[Place]:
        (tmp_path / "spool").mkdir()
        records = open_records(Settings(data_dir=tmp_path))
        yield Place(records, Spool(tmp_path / "spool"))
        records.close()

    def test_conflicts_and_removals_are_listed(self, shown: Place, tmp_path: Path) -> None:
        study = shown.study("a")
        shown.study("a", SeriesDescription="Other")
        shown.delivered(study)
        shown.removed()
        code, (incident,) = self.ask(tmp_path, "incidents")
        assert (code, incident["code"], incident["times"]) == (0, "CONTENT_REPLACED", 3)
        code, (removal,) = self.ask(tmp_path, "removals")
        assert (code, removal["study_instance_uid"], removal["cause"]) == (0, study, "age")
        said = {"incidents": "CONTENT_REPLACED", "removals": study, "studies": "files removed"}
        for command, words in said.items():
            text = CliRunner().invoke(main, [command, "--data-dir", str(tmp_path)]).stdout
            assert words in " ".join(text.split())

    def test_the_doctor_tells_what_the_scan_found_and_objects_to_a_loss(
        self, shown: Place, tmp_path: Path
    ) -> None:
        def spool() -> dict[str, Any]:
            _, checks = self.ask(tmp_path, "doctor")
            return {check["name"]: check for check in checks}["spool"]

        assert "not scanned yet" in spool()["text"]
        shown.study("a")
        shown.scan()
        assert spool()["ok"] and "3 recorded" in spool()["text"]
        shown.spool.absolute(shown.files()[0]).unlink()
        shown.scan()
        assert not spool()["ok"] and "1 records without a file" in spool()["text"]
