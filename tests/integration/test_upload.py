"""Machines with disks of their own and one bucket: what is received here is analysed and seen there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import workers.worker
from node.admin import doctor
from node.admin.backup import back_up, bring_back
from node.admin.roles import prepare
from node.admin.waiting import LATE_S, uploading
from node.admin.web.pictures import Pictures
from node.admin.web.site import Site
from node.compose import Composer
from node.depot import bucket
from node.depot.remote import RemoteDepot
from node.domain.eligibility import Rules
from node.domain.errors import OutOfReach, PermanentError, SettingsError, TransientError
from node.domain.findings import Reason
from node.domain.lifecycle import JobState
from node.headstart import HeadStart
from node.housekeeping import Housekeeper
from node.intake import SUCCESS
from node.scan import AT_REST_S, MISSING, Fate, Scan
from node.settings import Bucket, Settings
from node.settings import Spool as SpoolSettings
from node.spool import Spool, spool_of
from node.store.incidents import Code
from node.store.queue import Line
from node.store.records import Records, open_records
from node.upload import HomeScan, Uploader, run
from tests.delivering import Pacs, pacs_at
from tests.delivering import Place as Sending
from tests.factories import ct_series
from tests.integration.test_housekeeping import Place
from tests.integration.test_unusual_series import Bell
from tests.s3 import NAME, S3Server
from tests.scanned import Threshold, scan
from tests.site import browser
from workers.worker import Worker

pytestmark = pytest.mark.usefixtures("emptied")
MAKE_CLIENT = bucket._client


@pytest.fixture
def database() -> str:
    """One kind is enough here; tests/acceptance/buckets.py runs on PostgreSQL."""
    return "sqlite"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_client", _client)


@cache
def _client(settings: Bucket) -> Any:
    """Made once: that takes longer than most tests."""
    return MAKE_CLIENT(settings)


class Machine(Place):
    """One with a disk of its own; it shares records and bucket."""

    def __init__(self, records: Records, settings: Settings) -> None:
        prepare(settings)
        self.settings = settings
        super().__init__(records, spool_of(settings))

    @property
    def depot(self) -> RemoteDepot:
        assert isinstance(self.spool.depot, RemoteDepot)
        return self.spool.depot

    @property
    def disk(self) -> str:
        return self.depot.disk

    def uploader(self) -> Uploader:
        return Uploader(self.settings, self.records, self.spool, ThreadPoolExecutor(4))

    def upload(self) -> int:
        """What a process would do that starts, and ends when nothing waits."""
        uploader, count = self.uploader(), 0
        while done := uploader.round():
            count += done
        assert uploader._lock is not None
        os.close(uploader._lock)
        return count

    def received(self) -> list[str]:
        """Files that may be the only ones of their kind."""
        return sorted(str(p.relative_to(self.spool.root)) for p in self.spool.root.glob("incoming/*/*/*"))

    def copies(self) -> list[str]:
        root = self.spool.root / "copies"
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    def takes(self, rung: int = 0) -> int | None:
        """The job that a worker of this machine gets."""
        taken = self.records.queue.take(rung, "w", self.now + 30, self.now, Line(disk=self.disk))
        return taken.job.id if taken else None

    def worker(self) -> Worker:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(workers.worker, "open_records", lambda _: self.records)
            patched.setattr(workers.worker, "spool_of", lambda _: self.spool)
            return Worker(self.settings, Threshold())

    def retry(self) -> None:
        """Nobody waits before he asks the bucket again, nor remembers that it was away."""
        self.depot.bucket._alone_until, self.depot.bucket._trouble = 0.0, ""


class Pair:
    def __init__(self, records: Records, server: S3Server, folder: Path) -> None:
        self.server, self.records = server, records
        self.here = Machine(records, self.settings(folder / "here"))
        self.there = Machine(records, self.settings(folder / "there"))

    def settings(self, folder: Path) -> Settings:
        return Settings(data_dir=folder, spool=SpoolSettings(s3=self.server.settings(), reserve_mb=0))

    def stored(self) -> list[str]:
        return [key.removeprefix("ichnode/") for key in self.server.stored()]


@pytest.fixture
def pair(records: Records, server: S3Server, tmp_path: Path) -> Pair:
    return Pair(records, server, tmp_path)


@pytest.fixture
def away(server: S3Server) -> Iterator[S3Server]:
    yield server
    server.come_back()


class TestOnItsWay:
    def test_what_is_received_is_on_one_disk_until_it_is_in_the_bucket(self, pair: Pair) -> None:
        job = pair.here.decided(pair.here.study("a"))
        assert pair.stored() == [] and len(pair.here.received()) == 3
        (disk,) = pair.records.held.disks()
        assert (disk.name, disk.instances, disk.studies) == (pair.here.disk, 3, 1)
        assert pair.there.takes() is None, "its images are out of reach"
        assert pair.here.upload() == 3
        assert pair.stored() == pair.here.copies() == sorted(pair.here.recorded())
        assert pair.here.received() == [] and pair.records.held.disks() == []
        assert pair.there.takes() == job

    def test_a_worker_on_the_same_disk_need_not_wait(self, pair: Pair) -> None:
        job = pair.here.decided(pair.here.study("a"))
        assert pair.here.takes() == job

    def test_it_reads_on_while_its_files_go_into_the_bucket(self, pair: Pair) -> None:
        pair.here.study("a")
        files = pair.here.spool.fetch(pair.here.received())
        before = [file.read_bytes() for file in files]
        pair.here.upload()
        assert pair.here.received() == []
        assert [file.read_bytes() for file in files] == before
        assert len(pair.here.copies()) == 3

    def test_what_waits_holds_up_no_other_job(self, pair: Pair) -> None:
        pair.here.decided(pair.here.study("a"))
        other = pair.there.decided(pair.there.study("b"))
        assert pair.there.takes() == other

    def test_nobody_is_asked_to_begin_before_all_is_there(self, pair: Pair) -> None:
        asked: list[str] = []
        bell = Bell()
        bell.prepare = lambda uid, revision, worker="": asked.append(uid)  # type: ignore[method-assign]
        head_start = HeadStart(pair.records, bell, Rules(), by_bucket=True)  # type: ignore[arg-type]
        series = scan()
        for ds in series:
            assert pair.here.receive(ds) == SUCCESS
        pair.records.arrivals.close_association("a1", "released", pair.here.now)
        study, later = str(series[0].StudyInstanceUID), pair.here.now + 10
        head_start.look(study, later)
        assert asked == []
        pair.here.upload()
        head_start.look(study, later)
        assert asked == [str(series[0].SeriesInstanceUID)]

    def test_of_two_processes_of_a_machine_one_uploads(self, pair: Pair) -> None:
        first, second = pair.here.uploader(), pair.here.uploader()
        assert first.round() == 0
        pair.here.study("a")
        assert second.round() == 0 and pair.stored() == []
        assert first.round() == 3

    def test_an_upload_that_was_not_written_down_is_done_again(self, pair: Pair) -> None:
        pair.here.study("a")
        for path in pair.here.received():
            pair.here.depot.upload(path)
        assert pair.here.upload() == 3
        assert pair.stored() == pair.here.copies() and pair.here.received() == []

    def test_what_was_written_down_and_not_made_a_copy_is_made_one(self, pair: Pair) -> None:
        pair.here.study("a")
        for file in pair.records.held.of(pair.here.disk):
            pair.here.depot.upload(file.path)
            pair.records.held.let_go(pair.here.disk, [file])
        assert len(pair.here.received()) == 3
        assert pair.here.upload() == 0
        assert pair.here.received() == [] and pair.here.copies() == pair.stored()

    def test_a_file_that_is_lost_is_told_and_the_rest_goes_on(self, pair: Pair) -> None:
        job = pair.here.decided(pair.here.study("a"))
        lost, *_ = pair.here.received()
        (pair.here.spool.root / lost).unlink()
        assert pair.here.upload() == 3
        (incident,) = pair.records.incidents.latest()
        assert incident["code"] == Code.FILE_MISSING
        assert pair.there.takes() == job, "who reads it says what is missing"

    def test_a_file_that_cannot_be_read_slows_no_other(self, pair: Pair) -> None:
        for number in range(2):
            pair.here.study(f"s{number}")
        broken, *whole = [file.path for file in pair.records.held.of(pair.here.disk)]
        (pair.here.spool.root / broken).unlink()
        (pair.here.spool.root / broken).mkdir()
        uploader = pair.here.uploader()
        uploader._at_once = 2
        waits: list[float] = []

        def stopping(seconds: float) -> bool:
            waits.append(seconds)
            return len(pair.records.held.of(pair.here.disk)) == 1 or len(waits) > 40

        run(uploader, stopping)
        assert pair.stored() == sorted(whole)
        assert sum(waits) < 1
        with pytest.raises(TransientError, match="cannot be read"):
            uploader.round()

    def test_nothing_is_called_lost_while_another_disk_has_the_same_name(self, pair: Pair) -> None:
        """A data_dir was copied, and both machines run."""
        job = pair.here.decided(pair.here.study("a"))
        lost, *_ = pair.here.received()
        (pair.here.spool.root / lost).unlink()
        beat = {"disk": pair.here.disk, "room_bytes": 10**9}
        pair.records.views.beat("upload@other:1", "upload", beat, time.time())
        with pytest.raises(TransientError, match=r"upload@other:1 calls its disk .* was a data_dir copied"):
            pair.here.upload()
        assert pair.there.takes() is None and pair.records.incidents.latest() == []
        pair.records.views.part("upload@other:1")
        assert job and len(pair.records.held.of(pair.here.disk)) == 1

    def test_a_crash_before_the_record_is_made_good(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        assert pair.here.receive(ds) == SUCCESS
        file = pair.here.spool.absolute(pair.here.received()[0])
        kept = file.read_bytes()
        pair.records.keeping.begin_canary(str(ds.StudyInstanceUID), 0.0)  # as if it had never been recorded
        pair.records.keeping.finish(pair.records.keeping.unfinished()[0], 0.0)
        assert HomeScan(pair.records, pair.here.spool).run() == {Fate.ADOPTED: 1}
        assert pair.here.upload() == 1
        (copy,) = pair.there.spool.fetch(pair.stored())
        assert copy.read_bytes() == kept

    def test_a_file_that_breaks_the_scan_holds_up_no_upload(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a leftover that the disk cannot read: what was received is on this disk alone meanwhile."""
        pair.here.study("a")

        def unreadable(_: HomeScan) -> list[str]:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(HomeScan, "_made", unreadable)
        assert pair.here.uploader().round() == 3


class TestAway:
    def test_success_goes_on_and_the_rest_waits(self, pair: Pair, away: S3Server) -> None:
        away.go_away()
        job = pair.here.decided(pair.here.study("a"))
        uploader = pair.here.uploader()
        with pytest.raises(OutOfReach, match="cannot be reached"):
            uploader.round()
        assert pair.there.takes() is None
        assert len(pair.here.received()) == 3
        away.come_back()
        pair.here.retry()
        assert uploader.round() == 3
        assert pair.there.takes() == job

    def test_it_is_said_how_much_waits_where_since_when_and_why(self, pair: Pair) -> None:
        pair.here.study("a")
        now = pair.here.now + 5
        assert not uploading(pair.records, now).is_late
        trouble = "bucket b (https://x) cannot be reached (EndpointConnectionError)"
        pair.records.views.beat("upload@h:1", "upload", {"trouble": trouble}, now)
        waiting = uploading(pair.records, now)
        words = waiting.words(now)
        assert waiting.is_late and trouble in words
        assert f"3 images of 1 study are on the disk {pair.here.disk} alone, the oldest for 5 s" in words
        late = uploading(pair.records, pair.here.now + LATE_S + 1)
        assert late.is_late and late.instances == 3

    def test_a_job_is_given_back_and_it_was_no_attempt(self, pair: Pair, away: S3Server) -> None:
        worker = pair.there.worker()
        job = pair.here.decided(pair.here.study("a")) or 0
        pair.here.upload()
        away.go_away()
        for _ in range(5):  # more than model.max_attempts
            worker.run(job)
            found = pair.records.jobs.get(job)
            assert found and (found.state, found.attempts) == (JobState.QUEUED, 0)
            pair.there.retry()
        assert found.reason and found.reason.code == "OUT_OF_REACH"

    def test_with_the_bucket_away_no_job_is_taken(self, pair: Pair, away: S3Server) -> None:
        worker = pair.there.worker()
        job = pair.here.decided(pair.here.study("a")) or 0
        pair.here.upload()
        away.go_away()
        worker.run(job)  # finds out
        pair.records.jobs.cancel(job)  # would be told apart from one that was put back
        pair.records.jobs.retry(job)
        with pytest.raises(OutOfReach):
            worker.run(job)
        found = pair.records.jobs.get(job)
        assert found and found.reason is None

    def test_work_that_cannot_be_stored_waits_for_its_job(
        self, pair: Pair, away: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = pair.there.worker()
        for ds in scan():
            pair.here.receive(ds)
        job = pair.here.decided(str(scan()[0].StudyInstanceUID)) or 0
        pair.here.upload()
        whole, read = worker._work, []

        def work(*args: Any) -> Any:
            read.append(1)
            done = whole(*args)
            away.go_away()
            return done

        monkeypatch.setattr(worker, "_work", work)
        worker.run(job)
        found = pair.records.jobs.get(job)
        assert found and found.state is JobState.QUEUED and found.priority, "the alarm is out all the same"
        away.come_back()
        pair.there.retry()
        worker.run(job)
        found = pair.records.jobs.get(job)
        assert found and found.state is JobState.ANALYSED and found.maps_path in pair.stored()
        assert read == [1], "it was not read again"
        settings = pair.there.settings
        assert Composer(settings, pair.records, pair.here.spool).round() == 1
        made = {item.path for item in pair.records.jobs.known_objects(job).values()}
        assert made and made <= set(pair.stored())

    def test_composing_waits_and_fails_no_job(self, pair: Pair, away: S3Server) -> None:
        job = pair.here.decided(pair.here.study("a")) or 0
        assert pair.records.jobs.claim(job, "w", pair.here.now + 30, pair.here.now)
        assert pair.records.jobs.fail(job, Reason("NOT_A_HEAD", "no head"), "w")
        composer = Composer(pair.there.settings, pair.records, pair.there.spool)
        assert composer.round() == 0, "its images are on another disk"
        pair.here.upload()
        away.go_away()
        with pytest.raises(OutOfReach):
            composer.round()
        away.come_back()
        pair.there.retry()
        assert composer.round() == 1
        found = pair.records.jobs.get(job)
        assert found and found.reason and found.reason.code == "NOT_A_HEAD"

    def test_a_delivery_waits_and_it_was_no_attempt(self, pair: Pair, away: S3Server) -> None:
        with Pacs() as pacs:
            sending = Sending(pair.records, pair.here.spool)
            sending.compose("pacs")
            courier = Sending(pair.records, pair.there.spool).courier(pacs_at(pacs.port))
            away.go_away()
            assert courier.round(), "the destination is not to blame"
            assert {(row.state, row.attempts) for row in sending.rows()} == {("PENDING", 0)}
            assert "cannot be reached" in sending.rows()[0].last_error and pacs.asked == 0
            away.come_back()
            pair.there.retry()
            assert courier.round(lambda: time.time() + 3600)
            assert sending.states() == ["SENT"] * 3 and len(pacs.kept) == 3


class TestAgain:
    def test_a_series_sent_again_to_another_machine_waits_for_the_first_no_longer(self, pair: Pair) -> None:
        """Its disk is away, and may never come back."""
        study = pair.here.study("a")
        job = pair.here.decided(study)
        assert pair.there.study("a") == study
        assert {disk.name for disk in pair.records.held.disks()} == {pair.there.disk}
        assert pair.there.upload() == 3
        assert pair.records.jobs.get(job or 0), "nothing changed, so no new revision"
        assert [row.revision for row in pair.records.decisions.of_study(study)] == [1]
        assert pair.here.takes() == job
        assert pair.here.upload() == 0
        assert pair.here.received() == [], "the first machine came back: its files are copies"

    def test_what_the_bucket_lost_is_healed_by_sending_again(self, pair: Pair) -> None:
        pair.here.study("a")
        pair.here.upload()
        pair.server.empty()
        for path in pair.here.copies():
            (pair.here.spool.root / "copies" / path).unlink()
        pair.here.study("a")
        assert pair.here.upload() == 3
        assert sorted(pair.here.recorded()) == pair.stored()

    def test_what_the_bucket_lost_and_a_disk_still_has_is_put_there(self, pair: Pair) -> None:
        pair.here.study("a")
        for file in pair.records.held.of(pair.here.disk):
            pair.records.held.let_go(pair.here.disk, [file])
        assert pair.here.upload() == 3
        assert sorted(pair.here.recorded()) == pair.stored()

    def test_content_that_came_while_the_older_one_went_up_is_still_on_its_way(self, pair: Pair) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        pair.here.receive(ds)
        older = pair.records.held.of(pair.here.disk)
        ds.SeriesDescription = "Other"
        assert pair.here.receive(ds) == SUCCESS
        pair.records.held.let_go(pair.here.disk, older)
        (newer,) = pair.records.held.of(pair.here.disk)
        assert newer.path != older[0].path

    def test_older_content_is_kept_beside_until_the_study_goes(self, pair: Pair) -> None:
        (ds,) = ct_series(1, rows=16, name="a")
        pair.here.receive(ds)
        ds.SeriesDescription = "Other"
        assert pair.here.receive(ds) == SUCCESS
        assert pair.here.upload() == 1
        assert len(pair.stored()) == 2 and pair.here.received() == []


class TestKeepingHouse:
    def test_every_object_is_accounted_for(self, pair: Pair) -> None:
        job = pair.here.composed(pair.here.study("a"))
        pair.here.upload()
        assert Scan(pair.records, pair.there.spool).run() == {Fate.RECORDED: 5}
        client = pair.server.client
        left = f"ichnode/results/{job}/7/maps.npz"
        client.put_object(Bucket=NAME, Key=left, Body=b"of an attempt that was given up")
        later = time.time() + AT_REST_S + 60
        counts = Scan(pair.records, pair.there.spool, lambda: later).run()
        assert counts == {Fate.RECORDED: 5, Fate.LEFTOVER: 1}
        client.delete_object(Bucket=NAME, Key=f"ichnode/{pair.here.recorded()[0]}")
        for machine in (pair.here, pair.there):
            machine.depot._copies.drop(machine.recorded()[0])
        assert Scan(pair.records, pair.there.spool).run() == {Fate.RECORDED: 4, MISSING: 1}

    def test_what_is_only_on_a_disk_is_not_missed(self, pair: Pair) -> None:
        pair.here.study("a")
        assert Scan(pair.records, pair.there.spool).run() == {}

    def test_objects_without_a_record_are_adopted(self, pair: Pair) -> None:
        """As after a restore of the database alone."""
        study = pair.here.study("a")
        pair.here.upload()
        pair.records.keeping.begin_canary(study, 0.0)
        pair.records.keeping.finish(pair.records.keeping.unfinished()[0], 0.0)
        assert Scan(pair.records, pair.there.spool).run() == {Fate.ADOPTED: 3}
        assert sorted(pair.here.recorded()) == pair.stored() and pair.records.held.disks() == []

    def test_retention_deletes_in_the_bucket_and_here(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = pair.here.study("a")
        pair.here.delivered(study)
        assert pair.there.removed() == set(), "its images are not in the bucket yet"
        pair.here.upload()
        assert pair.there.removed() == {study}
        assert pair.stored() == [] and pair.there.copies() == []

    def test_what_came_before_a_removal_is_not_taken_for_new(self, pair: Pair) -> None:
        """A machine was off while its study was sent again elsewhere, analysed, delivered and removed."""
        study = pair.here.study("a")
        pair.there.study("a")
        pair.there.upload()
        pair.there.delivered(study)
        assert pair.there.removed() == {study}
        assert HomeScan(pair.records, pair.here.spool).run() == {Fate.LEFTOVER: 3}
        assert pair.here.received() == [] and pair.here.recorded() == []

    def test_a_removal_that_the_bucket_cut_off_is_finished_before_a_scan(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = pair.here.study("a")
        pair.here.delivered(study)
        pair.here.upload()
        with monkeypatch.context() as patched:
            patched.setattr(pair.there.depot.bucket, "delete", _is_away)
            with pytest.raises(OutOfReach):
                pair.there.removed()
        assert len(pair.stored()) == 5 and pair.here.recorded() == []
        Housekeeper(pair.there.settings, pair.records, pair.there.spool).round(time.time())
        assert pair.stored() == [] and pair.here.recorded() == []

    def test_a_volume_becomes_a_bucket_by_naming_one(self, pair: Pair, tmp_path: Path) -> None:
        """What lies in data_dir goes there; nothing is read twice, and no revision changes."""
        before = Place(pair.records, Spool(pair.here.spool.root))
        study = before.study("a")
        job = before.composed(study)
        assert pair.records.held.disks() == [] and pair.stored() == []
        assert pair.here.upload() == 3
        assert len(pair.stored()) == 5 and set(pair.stored()) == pair.records.keeping.all_paths()
        assert pair.here.received() == []
        found = pair.records.jobs.get(job)
        assert found and found.state is JobState.COMPOSED


class TestSeen:
    def test_the_console_shows_what_another_machine_received(self, pair: Pair) -> None:
        study = pair.here.study("a")
        (row,) = pair.records.decisions.of_study(study)
        site = Site(pair.there.settings, pair.records, None, pair.there.spool)  # type: ignore[arg-type]
        pictures = Pictures(site)
        stack = pictures.stack(row.series_instance_uid)
        assert stack
        with pytest.raises(OutOfReach, match=f"on the disk {pair.here.disk} alone"):
            site.file(stack.slices[0].path)
        not_yet = pictures.slice(stack, 0, False, False)
        pair.here.upload()
        assert pictures.slice(stack, 0, False, False) != not_yet, "that it was out of reach is not kept"
        assert pair.there.copies() == [stack.slices[0].path]

    def test_every_page_says_what_waits_and_why_and_so_do_the_metrics(self, pair: Pair) -> None:
        client = browser(pair.there.settings, pair.records)
        pair.here.study("a")
        trouble = "bucket b (https://x) cannot be reached (EndpointConnectionError); is it running?"
        assert "Waits for the bucket" not in client.get("/").text, "for a moment that is as it should be"
        beat = {"disk": pair.here.disk, "room_bytes": 5 * 10**9, "trouble": trouble}
        pair.records.views.beat("upload@h:1", "upload", beat, time.time())
        for page in ("/", "/queue"):
            text = client.get(page).text
            assert "Waits for the bucket" in text and "nothing is lost" in text and trouble in text
            assert f"3 images of 1 study are on the disk {pair.here.disk} alone" in text
        assert f"{pair.here.disk} takes" in client.get("/queue").text
        metrics = client.get("/metrics").text
        assert "ichnode_held_images 3" in metrics and "ichnode_upload_ok 0.0" in metrics
        assert f'ichnode_listener_disk_room_bytes{{disk="{pair.here.disk}"}} 5000000000' in metrics
        pair.here.upload()
        pair.records.views.beat("upload@h:1", "upload", {**beat, "trouble": ""}, time.time())
        assert "Waits for the bucket" not in client.get("/").text
        pair.records.views.beat(
            "upload@h:1", "upload", {**beat, "trouble": "", "room_bytes": -1}, time.time()
        )
        assert f"the disk {pair.here.disk} is full: nothing is accepted there" in client.get("/").text

    def test_the_doctor_tries_the_bucket_and_tells_what_waits(self, pair: Pair, away: S3Server) -> None:
        settings = pair.here.settings.model_copy()
        assert "takes, gives and deletes" in doctor._bucket(settings)
        assert pair.stored() == []
        settings = Settings.model_validate(
            {
                **settings.model_dump(),
                "database": {"url": pair.records.engine.url.render_as_string(hide_password=False)},
            }
        )
        assert doctor._upload(settings) == "everything received is in the bucket"
        pair.here.now -= LATE_S + 5
        pair.here.study("a")
        with pytest.raises(PermanentError, match="3 images of 1 study are on the disk"):
            doctor._upload(settings)
        away.go_away()
        check = doctor._check("bucket", lambda: doctor._bucket(settings))
        assert not check.ok and "cannot be reached" in check.text

    def test_a_clock_that_is_wrong_is_told_before_the_bucket_refuses(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("node.depot.bucket.S3.skew_s", lambda self: 120.0)
        with pytest.raises(SettingsError, match=r"\+120 s from that of this machine: set the clock"):
            doctor._bucket(pair.here.settings)


class TestBackup:
    def test_it_holds_what_the_bucket_and_this_disk_hold_and_brings_it_back(
        self, pair: Pair, server: S3Server, tmp_path: Path
    ) -> None:
        pair.here.composed(pair.here.study("a"))
        pair.here.upload()
        pair.here.study("b")
        url = pair.records.engine.url.render_as_string(hide_password=False)
        old = pair.here.settings.model_copy(update={"database": _database(url)})
        done = back_up(old, tmp_path / "backup")
        assert (done.files, done.missing) == (8, ())
        with pytest.raises(PermanentError, match="holds files"):
            bring_back(pair.settings(tmp_path / "new"), tmp_path / "backup")
        before = {key: _content(server, key) for key in server.stored()}
        server.empty()
        new = pair.settings(tmp_path / "new")
        bring_back(new, tmp_path / "backup")
        records = open_records(new)
        assert records.held.disks() == []
        assert {key: _content(server, key) for key in before} == before
        assert Scan(records, spool_of(new)).run() == {Fate.RECORDED: 8}
        records.close()


def _is_away(path: str) -> None:
    raise OutOfReach("away")


def _database(url: str) -> Any:
    return Settings(database={"url": url}).database  # type: ignore[arg-type]


def _content(server: S3Server, key: str) -> bytes:
    content: bytes = server.client.get_object(Bucket=NAME, Key=key)["Body"].read()
    return content
