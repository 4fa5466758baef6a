"""From an analysed or failed job to stored objects and their deliveries: once, whatever happens between."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy import select

from node import compose, gathering, spool
from node.compose import Composer
from node.domain.errors import TransientError
from node.domain.findings import (
    CLASSES,
    ClassFinding,
    Findings,
    ModelIdentity,
    Priority,
    Reason,
    SegmentationFinding,
)
from node.domain.lifecycle import JobState
from node.headers import read_instance
from node.maps import Maps, pack
from node.outputs.encoding import encode
from node.settings import Destination, Settings
from node.settings.web import Web
from node.spool import Spool, SpoolFull
from node.store.arrivals import StoredFile
from node.store.jobs import Job
from node.store.records import Records, open_records
from node.store.tables import deliveries, objects
from tests.factories import analysed, bleed, ct_series

SLICES = 6
OTHER_MODEL = ModelIdentity("other", "2", "b" * 64)
LESS: dict[str, Any] = {
    "priority": Priority.ROUTINE,
    "classes": {name: ClassFinding(0.02, False) for name in CLASSES},
    "segmentation": SegmentationFinding(0.0, ()),
}
PACS = Destination(name="pacs", ae_title="PACS")
VIEWER = Destination(name="viewer", ae_title="VIEWER", outputs=("sr", "sc"))


@dataclass
class Place:
    """A composer over an empty installation, and series that were received and decided."""

    settings: Settings
    records: Records
    spool: Spool
    composer: Composer = field(init=False)

    def __post_init__(self) -> None:
        self.composer = Composer(self.settings, self.records, self.spool)

    def queued(self, name: str = "series", revision: int = 1, **attributes: Any) -> tuple[int, list[Dataset]]:
        """A series received, settled and accepted."""
        series = ct_series(SLICES, rows=32, name=name, **attributes)
        arrivals, decisions = self.records.arrivals, self.records.decisions
        arrivals.open_association("a", "host:1", ("CT1", "x"), 1.0)
        for ds in series:
            stream = BytesIO()
            dcmwrite(stream, ds, enforce_file_format=True)
            instance = read_instance(BytesIO(stream.getvalue()))
            path = self.spool.instance_path(name, name, instance.sop_instance_uid)
            self.spool.write(path, (stream.getvalue(),))
            file = StoredFile(path, len(stream.getvalue()), f"{name}{revision}")
            arrivals.record(instance, file, "a", 1.0 + revision)
        rows = decisions.of_study(str(series[0].StudyInstanceUID))
        (row,) = [one for one in rows if one.series_instance_uid == series[0].SeriesInstanceUID]
        assert decisions.settle(row, 5.0)
        job_id = decisions.decide(row, [], 6.0)
        assert job_id is not None
        return job_id, series

    def analysed(
        self,
        name: str = "series",
        revision: int = 1,
        probability: float = 0.9,
        priority: Priority | None = None,
        **attributes: Any,
    ) -> tuple[Job, Findings]:
        """…and analysed, its maps in the spool; of that priority instead of the one that follows."""
        job_id, series = self.queued(name, revision, **attributes)
        masks = bleed(SLICES, 32) if probability >= 0.5 else np.zeros((SLICES, 32, 32), bool)
        scores = {"any": probability, "subdural": probability}
        found = analysed(series, scores, masks=masks, revision=revision)
        found = replace(found, priority=priority or found.priority)
        claimed = self.records.jobs.claim(job_id, "w:1", 1e12, 7.0)
        assert claimed
        path = self.spool.job_path(job_id, claimed.attempts, "maps.npz")
        self.spool.write(path, (pack(Maps(masks, np.full((SLICES, 8, 8), 200, np.uint8))),))
        assert self.records.jobs.store_analysis(job_id, "w:1", found, path, 1_790_000_000.0)
        return self.job(job_id), found

    def analysed_again(self, job: Job, found: Findings) -> None:
        """The job, put back into the queue, comes to these findings."""
        assert self.records.jobs.claim(job.id, "w:2", 1e12, 8.0)
        path = self.spool.job_path(job.id, 2, "maps.npz")
        maps = Maps(np.zeros((SLICES, 32, 32), bool), np.full((SLICES, 8, 8), 200, np.uint8))
        self.spool.write(path, (pack(maps),))
        assert self.records.jobs.store_analysis(job.id, "w:2", found, path, 1_790_000_900.0)

    def failed(
        self,
        name: str = "series",
        reason: Reason | None = None,
        priority: Priority | None = None,
        revision: int = 1,
    ) -> Job:
        job_id, _ = self.queued(name, revision)
        self.records.jobs.claim(job_id, "w:1", 1e12, 7.0)
        if priority:
            self.records.jobs.store_priority(job_id, "w:1", priority)
        assert self.records.jobs.fail(job_id, reason or Reason("NOT_A_HEAD", "no head was found"), "w:1")
        return self.job(job_id)

    def job(self, job_id: int) -> Job:
        found = self.records.jobs.get(job_id)
        assert found
        return found

    def objects(self, job_id: int) -> dict[str, list[Dataset]]:
        """What was stored for a job, read back from the spool, by kind."""
        with self.records.engine.connect() as connection:
            rows = connection.execute(select(objects).where(objects.c.job_id == job_id)).all()
        found: dict[str, list[Dataset]] = {}
        for row in rows:
            path = self.spool.absolute(row.path)
            assert path.stat().st_size == row.size_bytes
            ds = dcmread(path)
            assert (str(ds.SOPInstanceUID), str(ds.SOPClassUID)) == (row.sop_instance_uid, row.sop_class_uid)
            found.setdefault(row.output, []).append(ds)
        return found

    def deliveries(self) -> list[Any]:
        with self.records.engine.connect() as connection:
            query = select(deliveries, objects.c.output).join(
                objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid
            )
            return list(connection.execute(query.order_by(deliveries.c.id)).all())

    def send(self) -> None:
        """Whatever waits: every destination took it."""
        for row in self.deliveries():
            self.records.deliveries.sent(row.id, "0x0000", 9.0)

    def files(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.spool.root)): p.read_bytes() for p in self.spool.root.glob("outgoing/*/*")
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = Settings(data_dir=tmp_path, destination=(PACS, VIEWER))
    (tmp_path / "spool").mkdir()
    records = open_records(settings)
    yield Place(settings, records, Spool(tmp_path / "spool"))
    records.close()


def test_an_analysed_job_becomes_objects_and_deliveries(place: Place) -> None:
    job, found = place.analysed()
    assert place.composer.round() == 1
    assert place.job(job.id).state is JobState.COMPOSED
    made = place.objects(job.id)
    assert set(made) == {"sr", "seg", "sc"}
    assert (len(made["sr"]), len(made["seg"])) == (1, 1) and len(made["sc"]) >= 2
    (sr,) = made["sr"]
    assert (sr.Modality, sr.AccessionNumber, sr.PatientID) == ("SR", "ACC001", "PID123")
    assert found.priority is Priority.STAT
    assert place.composer.round() == 0


@pytest.mark.parametrize(
    ("attributes", "at", "offset"),
    [
        ({}, "151320", "+0100"),
        ({"StudyDate": "20260701"}, "161320", "+0200"),  # in summer
        ({"StudyDate": ""}, "161320", "+0200"),  # as when it was analysed
        ({"StudyDate": "00010101"}, "161320", "+0200"),
        ({"TimezoneOffsetFromUTC": "-0500"}, "091320", "-0500"),
    ],
)
def test_times_are_told_in_the_zone_in_which_the_study_s_are(
    place: Place, attributes: dict[str, Any], at: str, offset: str
) -> None:
    """One offset holds for all times of an object (PS3.3 C.12.1.1.8), for the copied Study Time, too."""
    settings = place.settings.model_copy(update={"web": Web(time_zone="Europe/Berlin")})
    job, _ = place.analysed(**attributes)
    Composer(settings, place.records, place.spool).round()
    for ds in itertools.chain.from_iterable(place.objects(job.id).values()):
        assert (ds.ContentTime, ds.TimezoneOffsetFromUTC, ds.StudyTime) == (at, offset, "101500")


def test_each_destination_gets_what_it_wants_the_report_first_and_urgently(place: Place) -> None:
    place.analysed()
    place.composer.round()
    rows = place.deliveries()
    assert {row.output for row in rows if row.destination == "pacs"} == {"sr", "seg", "sc"}
    assert {row.output for row in rows if row.destination == "viewer"} == {"sr", "sc"}
    for destination in ("pacs", "viewer"):
        mine = sorted((r for r in rows if r.destination == destination), key=lambda r: r.rank)
        assert mine[0].output == "sr"
        assert len({r.rank for r in mine}) == len(mine)
    assert all(row.urgent for row in rows)


def test_a_result_without_findings_is_not_urgent(place: Place) -> None:
    place.analysed(probability=0.02)
    place.composer.round()
    assert place.deliveries() and not any(row.urgent for row in place.deliveries())


def test_without_a_destination_everything_is_built_and_nothing_is_sent(place: Place) -> None:
    place.composer = Composer(Settings(data_dir=place.settings.data_dir), place.records, place.spool)
    job, _ = place.analysed()
    place.composer.round()
    assert set(place.objects(job.id)) == {"sr", "seg", "sc"}
    assert place.deliveries() == []


def test_an_output_nobody_wants_is_not_built(place: Place) -> None:
    only_sr = PACS.model_copy(update={"outputs": ("sr",)})
    settings = Settings(data_dir=place.settings.data_dir, destination=(only_sr,))
    place.composer = Composer(settings, place.records, place.spool)
    job, _ = place.analysed()
    place.composer.round()
    assert set(place.objects(job.id)) == {"sr"}


def test_composing_again_after_a_crash_before_the_record_gives_the_same_objects(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()

    def crash(*_: Any) -> bool:
        raise TransientError("database: gone")

    with monkeypatch.context() as patched:
        patched.setattr(place.records.jobs, "store_objects", crash)
        with pytest.raises(TransientError):
            place.composer.round()
    first = place.files()
    assert first and place.job(job.id).state is JobState.ANALYSED
    place.composer.round()
    assert place.files() == first
    assert place.job(job.id).state is JobState.COMPOSED
    assert len(place.deliveries()) == len({(r.sop_instance_uid, r.destination) for r in place.deliveries()})


def test_a_second_compose_of_the_same_job_adds_nothing(place: Place) -> None:
    job, _ = place.analysed()
    place.composer.round()
    files, rows = place.files(), place.deliveries()
    place.composer.compose(job)  # as a second composer that read the job before the first was done
    assert (place.files(), place.deliveries()) == (files, rows)


def test_a_failed_job_says_so_in_the_pacs_with_its_reason(place: Place) -> None:
    job = place.failed(reason=Reason("NOT_A_HEAD", "no head was found in the volume"))
    place.composer.round()
    assert place.job(job.id).state is JobState.FAILED
    made = place.objects(job.id)
    assert set(made) == {"sr", "sc"}
    texts = [str(element.value) for element in made["sr"][0].iterall() if element.VR == "UT"]
    assert any("no head was found in the volume" in text for text in texts)
    assert {row.output for row in place.deliveries()} == {"sr", "sc"}
    assert place.composer.round() == 0


def test_an_alarm_raised_before_the_job_failed_is_told_and_stays_urgent(place: Place) -> None:
    job = place.failed(reason=Reason("WORKER_LOST", "the worker died"), priority=Priority.STAT)
    place.composer.round()
    texts = [str(e.value) for e in place.objects(job.id)["sr"][0].iterall() if e.VR == "UT"]
    (told,) = [text for text in texts if "the worker died" in text]
    assert "STAT" in told.partition("the worker died")[0], "a long reason is cut off on the page in words"
    with place.records.engine.connect() as connection:
        assert set(connection.execute(select(deliveries.c.urgent)).scalars()) == {1}


def test_a_retried_job_reports_anew_beside_its_not_analysed_report(place: Place) -> None:
    job = place.failed()
    place.composer.round()
    before = {str(ds.SOPInstanceUID) for made in place.objects(job.id).values() for ds in made}
    place.records.jobs.retry(job.id)
    claimed = place.records.jobs.claim(job.id, "w:1", 1e12, 7.0)
    assert claimed
    series = ct_series(SLICES, rows=32)
    masks = bleed(SLICES, 32)
    found = analysed(series, {"any": 0.9}, masks=masks)
    path = place.spool.job_path(job.id, claimed.attempts, "maps.npz")
    place.spool.write(path, (pack(Maps(masks, np.zeros((SLICES, 8, 8), np.uint8))),))
    assert place.records.jobs.store_analysis(job.id, "w:1", found, path, 1_790_000_000.0)
    place.composer.round()
    assert place.job(job.id).state is JobState.COMPOSED
    after = {str(ds.SOPInstanceUID) for made in place.objects(job.id).values() for ds in made}
    assert before < after
    assert {row.sop_instance_uid for row in place.deliveries()} == after


def test_objects_that_cannot_be_built_end_in_a_not_analysed_report_and_the_queue_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, _ = place.analysed("broken")
    good, _ = place.analysed("good")
    real = compose.build_all

    def build(context: Any, names: Any) -> Any:
        if context.findings.series_instance_uid == broken.series_instance_uid and context.masks is not None:
            raise ZeroDivisionError("a geometry nobody thought of")
        return real(context, names)

    monkeypatch.setattr(compose, "build_all", build)
    assert place.composer.round() == 2
    assert place.job(good.id).state is JobState.COMPOSED
    job = place.job(broken.id)
    assert job.state is JobState.FAILED
    assert job.reason and job.reason.code == "COMPOSE_FAILED" and "geometry nobody" in job.reason.text
    assert place.composer.round() == 1
    assert set(place.objects(broken.id)) == {"sr", "sc"}
    assert place.composer.round() == 0


@pytest.mark.parametrize("broken", ["sc", "seg"])
def test_a_result_is_reported_though_one_of_its_objects_cannot_be_built(
    broken: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()
    real = compose.build_all

    def build(context: Any, names: Any) -> Any:
        if broken in names:
            raise ZeroDivisionError("a geometry nobody thought of")
        return real(context, names)

    monkeypatch.setattr(compose, "build_all", build)
    assert place.composer.round() == 1
    assert place.job(job.id).state is JobState.COMPOSED
    made = place.objects(job.id)
    assert set(made) == {"seg", "sc", "sr"} - {broken}
    texts = [str(e.value) for e in made["sr"][0].iterall() if e.VR == "UT"]
    assert any("SUSPECTED" in text for text in texts)
    assert any(f"are missing: {broken}" in text for text in texts)
    (incident,) = place.records.incidents.latest()
    assert incident["code"] == "OBJECTS_NOT_BUILT" and broken in incident["text"]


def test_a_report_that_cannot_be_built_either_is_not_tried_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any) -> Any:
        raise ZeroDivisionError

    job, _ = place.analysed()
    monkeypatch.setattr(compose, "build_all", build)
    assert [place.composer.round() for _ in range(3)] == [1, 1, 0]
    assert place.job(job.id).state is JobState.FAILED


@pytest.mark.parametrize("what", ["gone", "rotten"])
def test_a_job_that_failed_for_a_broken_file_says_so_in_the_pacs(what: str, place: Place) -> None:
    job = place.failed(reason=Reason("FILE_UNREADABLE", "1.dcm cannot be read as DICOM"))
    first = place.spool.absolute(place.records.arrivals.paths(job.series_instance_uid)[0])
    if what == "gone":
        first.unlink()
    else:
        first.write_bytes(b"not DICOM" * 30)
    place.composer.round()
    (report,) = place.objects(job.id)["sr"]
    texts = [str(element.value) for element in report.iterall() if element.VR == "UT"]
    assert any("cannot be read as DICOM" in text for text in texts)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence[0].ReferencedSOPSequence) == SLICES - 1


@pytest.mark.parametrize("what", ["maps", "source"])
def test_a_file_that_is_gone_ends_in_words(what: str, place: Place) -> None:
    job, _ = place.analysed()
    if what == "maps":
        assert job.maps_path
        place.spool.absolute(job.maps_path).write_bytes(b"rot")
    else:
        first = place.records.arrivals.paths(job.series_instance_uid)[0]
        place.spool.absolute(first).unlink()
    place.composer.round()
    assert place.job(job.id).state is JobState.FAILED
    reason = place.job(job.id).reason
    assert reason and reason.code == "COMPOSE_FAILED"


@contextmanager
def failing_writes(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, fails: Callable[[str, int], bool]
) -> Iterator[None]:
    """While the block runs, writes of which `fails(path, number)` is true raise `error`."""
    real, count = place.spool.write, itertools.count()

    def write(path: str, parts: Any) -> None:
        if fails(path, next(count)):
            raise error
        real(path, parts)

    with monkeypatch.context() as patched:
        patched.setattr(place.spool, "write", write)
        yield


@pytest.mark.parametrize("written", [0, 1, SLICES])
def test_a_full_disk_waits_and_loses_nothing(
    written: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()
    with (
        failing_writes(place, monkeypatch, SpoolFull("full"), lambda path, number: number >= written),
        pytest.raises(TransientError),
    ):
        place.composer.round()
    assert place.job(job.id).state is JobState.ANALYSED
    assert place.objects(job.id) == {} and place.deliveries() == []
    place.composer.round()
    assert_composed_once(place, job)


def assert_composed_once(place: Place, job: Job) -> None:
    """Every object is there, whole, refers to what is there, and goes to each destination once."""
    assert place.job(job.id).state is JobState.COMPOSED
    made = place.objects(job.id)
    assert [len(made[name]) for name in ("sr", "seg", "sc")] == [1, 1, SLICES + 1]
    uids = {str(ds.SOPInstanceUID) for datasets in made.values() for ds in datasets}
    assert {Path(name).stem for name in place.files()} == uids
    evidence = made["sr"][0].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {str(i.ReferencedSOPInstanceUID) for s in evidence for i in s.ReferencedSOPSequence}
    assert uids - named == {str(made["sr"][0].SOPInstanceUID)}
    sent = [(row.sop_instance_uid, row.destination) for row in place.deliveries()]
    assert len(sent) == len(set(sent)) == 2 * len(uids) - 1  # no SEG for the viewer


KILLED = """
import os, signal, sys
from pathlib import Path
from node.compose import Composer
from node.settings import Destination, Settings
from node.settings.web import Web
from node.spool import Spool
from node.store.records import open_records

class Dying(Spool):
    left = int(sys.argv[2])

    def write(self, path, parts):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().write(path, parts)

here = Path(sys.argv[1])
settings = Settings(data_dir=here, destination=(Destination(name="pacs", ae_title="PACS"),))
Composer(settings, open_records(settings), Dying(here / "spool")).round()
"""


def test_a_process_killed_amid_the_pictures_leaves_nothing_lost_and_nothing_twice(place: Place) -> None:
    job, _ = place.analysed()
    command = [sys.executable, "-c", KILLED, str(place.settings.data_dir), "4"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert place.files() and place.job(job.id).state is JobState.ANALYSED and place.deliveries() == []
    place.composer.round()
    place.spool.remove_unfinished()
    assert_composed_once(place, job)


def test_an_object_that_cannot_be_encoded_ends_in_a_report_that_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()
    real = compose.encode

    def encode_all_but_segmentations(ds: Dataset) -> bytes:
        if ds.Modality == "SEG":
            raise ValueError("a value nobody thought of")
        return real(ds)

    monkeypatch.setattr(compose, "encode", encode_all_but_segmentations)
    assert [place.composer.round() for _ in range(3)] == [1, 1, 0]
    reason = place.job(job.id).reason
    assert reason and reason.code == "COMPOSE_FAILED" and "nobody thought of" in reason.text
    assert set(place.objects(job.id)) == {"sr", "sc"}


def test_who_sends_is_told_once_objects_are_stored_and_not_before(place: Place) -> None:
    told: list[int] = []
    place.composer = Composer(
        place.settings, place.records, place.spool, stored=lambda: told.append(len(place.deliveries()))
    )
    place.analysed()
    place.composer.round()
    place.composer.round()
    assert told == [len(place.deliveries())] and told[0] > 0


class TestRehearsal:
    def test_it_leaves_nothing_behind(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        place.composer.rehearse()
        assert not list(place.spool.root.rglob("*")) and not caplog.records
        assert place.composer.round() == 0

    @pytest.mark.parametrize("waits", [True, False])
    def test_it_comes_once_and_only_where_no_result_was_first(
        self, waits: bool, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rehearsed: list[Any] = []
        monkeypatch.setattr(compose, "rehearse", rehearsed.append)
        monkeypatch.setattr(compose, "REHEARSED_AFTER_S", 0.0)
        if waits:
            place.analysed()
        rounds = itertools.count()
        compose.run(place.composer, lambda seconds: next(rounds) == 3)
        assert rehearsed == ([] if waits else [("seg", "sc", "sr")])

    def test_not_while_the_node_starts(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        rehearsed: list[Any] = []
        monkeypatch.setattr(compose, "rehearse", rehearsed.append)
        monkeypatch.setattr(compose, "REHEARSED_AFTER_S", 3600.0)
        rounds = itertools.count()
        compose.run(place.composer, lambda seconds: next(rounds) == 3, leads=lambda: False)
        assert not rehearsed

    def test_one_that_fails_is_told_and_stops_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("no font")

        monkeypatch.setattr(compose, "rehearse", broken)
        monkeypatch.setattr(compose, "REHEARSED_AFTER_S", 0.0)
        rounds = itertools.count()

        def stopping(seconds: float) -> bool:
            if (number := next(rounds)) == 1:
                place.analysed()
            return number == 3

        compose.run(place.composer, stopping)
        assert "no font" in caplog.text
        assert {row.output for row in place.deliveries()} == {"sr", "seg", "sc"}


@pytest.mark.parametrize("trouble", [errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_volume_that_takes_nothing_is_waited_for_and_holds_up_no_other_job(
    trouble: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()
    other, _ = place.analysed("other")
    error = OSError(trouble, os.strerror(trouble))
    with failing_writes(place, monkeypatch, error, lambda path, _: path.startswith(f"outgoing/{job.id}/")):
        for _ in range(2):
            with pytest.raises(TransientError, match=f"job {job.id} wait for the volume"):
                place.composer.round()
        assert (place.job(job.id).state, place.job(other.id).state) == (JobState.ANALYSED, JobState.COMPOSED)
    place.composer.round()
    assert place.job(job.id).state is JobState.COMPOSED


def test_jobs_that_wait_for_the_volume_stand_behind_those_that_do_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they first in every round, nobody's result would go out for as long as they wait."""
    monkeypatch.setattr(compose, "AT_ONCE", 2)
    stuck = [place.analysed(name)[0].id for name in ("one", "two")]
    other, _ = place.analysed("other")
    error = OSError(errno.EIO, os.strerror(errno.EIO))

    def is_theirs(path: str, _: object) -> bool:
        return any(path.startswith(f"outgoing/{job_id}/") for job_id in stuck)

    with failing_writes(place, monkeypatch, error, is_theirs):
        for _ in range(2):
            with pytest.raises(TransientError, match="wait for the volume"):
                place.composer.round()
        assert place.job(other.id).state is JobState.COMPOSED


def test_a_source_that_cannot_be_read_now_is_waited_for_but_not_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()

    def broken(*_: Any, **__: Any) -> Dataset:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(gathering, "dcmread", broken)
    with pytest.raises(TransientError, match="volume"):
        place.composer.round()
    assert place.job(job.id).state is JobState.ANALYSED
    monkeypatch.setattr(spool, "VOLUME_S", 0.0)
    place.composer.round()
    assert place.job(job.id).state is JobState.FAILED


def test_a_job_cancelled_while_its_objects_were_built_sends_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = place.analysed()
    real = compose.build_all

    def build(context: Any, names: Any) -> Any:
        place.records.jobs.cancel(job.id)
        return real(context, names)

    monkeypatch.setattr(compose, "build_all", build)
    place.composer.round()
    assert place.job(job.id).state is JobState.CANCELLED
    assert place.deliveries() == []


def test_a_later_revision_names_the_report_it_replaces(place: Place) -> None:
    first, _ = place.analysed()
    place.composer.round()
    (old,) = place.objects(first.id)["sr"]
    place.send()
    second, _ = place.analysed(revision=2)
    assert (second.id != first.id, second.revision) == (True, 2)
    place.composer.round()
    (new,) = place.objects(second.id)["sr"]
    assert new.SOPInstanceUID != old.SOPInstanceUID
    named = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == old.SOPInstanceUID


def words(report: Dataset) -> str:
    """All text of a report."""
    return "\n".join(str(item.value) for item in report.iterall() if item.keyword == "TextValue")


@pytest.mark.parametrize("now", ["negative", "failed"])
def test_an_alarm_is_never_lowered_in_silence(now: str, place: Place) -> None:
    first, _ = place.analysed()
    place.composer.round()
    sent = place.files()
    if now == "negative":
        second, _ = place.analysed(revision=2, probability=0.02)
    else:
        second = place.failed(revision=2)
    place.composer.round()
    (report,) = place.objects(second.id)["sr"]
    assert "revision 1 of this series was reported as STAT" in words(report)
    assert all(row.urgent for row in place.deliveries())
    assert sent.items() <= place.files().items(), "what was sent stays as it is"
    assert not {r.sop_instance_uid for r in place.deliveries() if r.job_id == first.id} & {
        r.sop_instance_uid for r in place.deliveries() if r.job_id == second.id
    }


def test_an_alarm_of_a_job_to_be_analysed_again_is_not_lowered_in_silence_either(place: Place) -> None:
    first, _ = place.analysed()
    place.composer.round()
    place.records.jobs.reanalyse(first.id)
    second, _ = place.analysed(revision=2, probability=0.02)
    assert place.job(first.id).state is JobState.SUPERSEDED
    place.composer.round()
    (report,) = place.objects(second.id)["sr"]
    assert "revision 1 of this series was reported as STAT" in words(report)


@pytest.mark.parametrize("now", ["negative", "failed"])
def test_an_alarm_is_not_lowered_in_silence_by_another_model_either(now: str, place: Place) -> None:
    job, found = place.analysed()
    place.composer.round()
    place.records.jobs.reanalyse(job.id)
    place.analysed_again(job, replace(found, **LESS, model=OTHER_MODEL))
    if now == "failed":
        place.records.jobs.fail(job.id, Reason("COMPOSE_FAILED", "the volume is gone"))
    place.composer.round()
    report = max(place.objects(job.id)["sr"], key=lambda ds: str(ds.ContentDate + ds.ContentTime))
    assert "this revision of the series was reported as STAT before" in words(report)
    assert all(row.urgent for row in place.deliveries())


@pytest.mark.parametrize(("first", "then"), [(0.02, 0.9), (0.9, 0.02)])
def test_another_result_of_the_same_model_goes_out_as_well(first: float, then: float, place: Place) -> None:
    """A newer version of the node may read the same images differently, with the same weights."""
    job, found = place.analysed(probability=first)
    place.composer.round()
    before = {row.sop_instance_uid for row in place.deliveries()}
    place.records.jobs.reanalyse(job.id)
    classes = {name: ClassFinding(then, then > 0.5) for name in found.classes}
    priority = Priority.STAT if then > 0.5 else Priority.ROUTINE
    place.analysed_again(job, replace(found, classes=classes, priority=priority))
    place.composer.round()
    new = [row for row in place.deliveries() if row.sop_instance_uid not in before]
    assert {row.output for row in new if row.destination == "pacs"} >= {"sr", "sc"}
    report = max(place.objects(job.id)["sr"], key=lambda ds: str(ds.ContentDate + ds.ContentTime))
    assert ("SUSPECTED" in report.SeriesDescription) == (then > 0.5)


def test_a_result_that_was_taken_back_meanwhile_goes_out_again(place: Place) -> None:
    """As after a promoted model was rolled back: the latest report in the archive says the latest word."""
    job, found = place.analysed()
    place.composer.round()
    reports = []
    for now in (replace(found, **LESS, model=OTHER_MODEL), found, found):
        place.send()
        (*_, before) = place.deliveries()
        place.records.jobs.reanalyse(job.id)
        place.analysed_again(job, now)
        place.composer.round()
        reports.append([r for r in place.deliveries() if r.output == "sr" and r.id > before.id])
    assert [len(new) for new in reports] == [2, 2, 0], "the last two say the same"
    by_uid = {str(ds.SOPInstanceUID): ds for ds in place.objects(job.id)["sr"]}
    taken_back, again = (by_uid[new[0].sop_instance_uid] for new in reports[:2])
    assert "SUSPECTED" in again.SeriesDescription
    (named,) = again.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == taken_back.SOPInstanceUID


def test_a_failure_after_the_first_word_is_told_though_one_before_it_was(place: Place) -> None:
    """For the same reason; only this one is an alarm."""
    reason = Reason("WORKER_LOST", "the worker died or hung in each of 3 attempts")
    job = place.failed(reason=reason)
    place.composer.round()
    place.records.jobs.retry(job.id)
    assert place.records.jobs.claim(job.id, "w:2", 1e12, 8.0)
    assert place.records.jobs.store_priority(job.id, "w:2", Priority.STAT)
    assert place.records.jobs.fail(job.id, reason, "w:2")
    place.composer.round()
    assert any("had proposed priority STAT" in words(report) for report in place.objects(job.id)["sr"])
    assert {row.urgent for row in place.deliveries() if row.output == "sr"} == {0, 1}


def test_the_same_result_of_the_same_model_goes_out_once(place: Place) -> None:
    """What differs in digits that no object holds is the same."""
    job, found = place.analysed()
    place.composer.round()
    before = {row.sop_instance_uid for row in place.deliveries()}
    place.records.jobs.reanalyse(job.id)
    classes = {n: replace(one, probability=one.probability - 1e-7) for n, one in found.classes.items()}
    place.analysed_again(job, replace(found, classes=classes, timings_s={"load": 1.0}))
    place.composer.round()
    assert {row.sop_instance_uid for row in place.deliveries()} == before


def test_an_alarm_of_a_failed_job_is_not_lowered_in_silence_when_it_is_tried_again(place: Place) -> None:
    job = place.failed(priority=Priority.STAT)
    place.composer.round()
    place.records.jobs.retry(job.id)
    series = ct_series(SLICES, rows=32, name="series")
    place.analysed_again(job, analysed(series, masks=np.zeros((SLICES, 32, 32), bool)))
    place.composer.round()
    report = max(place.objects(job.id)["sr"], key=lambda ds: str(ds.ContentDate + ds.ContentTime))
    assert "this revision of the series was reported as STAT before" in words(report)


def test_a_newer_revision_tells_of_an_alarm_that_another_model_had_lowered(place: Place) -> None:
    job, found = place.analysed()
    place.composer.round()
    place.records.jobs.reanalyse(job.id)
    place.analysed_again(job, replace(found, **LESS, model=OTHER_MODEL))
    place.composer.round()
    second, _ = place.analysed(revision=2, probability=0.02)
    place.composer.round()
    (report,) = place.objects(second.id)["sr"]
    assert "revision 1 of this series was reported as STAT" in words(report)


@pytest.mark.parametrize("before", ["failed", "composed"])
def test_the_next_best_series_tells_of_the_alarm_of_the_one_before(before: str, place: Place) -> None:
    """That one failed after its first word, or its images are something unreadable by now."""
    first = place.failed(priority=Priority.STAT) if before == "failed" else place.analysed()[0]
    place.composer.round()
    study = str(ct_series(1, rows=32, name="series")[0].StudyInstanceUID)
    second, _ = place.analysed("next", probability=0.02, StudyInstanceUID=study)
    assert second.study_instance_uid == place.job(first.id).study_instance_uid
    place.composer.round()
    (report,) = place.objects(second.id)["sr"]
    assert "another series of this study was reported as STAT; this one is ROUTINE" in words(report)
    assert all(row.urgent for row in place.deliveries() if row.job_id == second.id)


def test_of_several_alarms_the_gravest_is_told(place: Place) -> None:
    place.analysed()
    place.composer.round()
    second, _ = place.analysed(revision=2, priority=Priority.HIGH)
    place.composer.round()
    assert place.job(second.id).priority is Priority.HIGH
    third, _ = place.analysed(revision=3, probability=0.02)
    place.composer.round()
    (report,) = place.objects(third.id)["sr"]
    assert "revision 1 of this series was reported as STAT" in words(report)


@pytest.mark.parametrize(("before", "now"), [(0.02, 0.02), (0.02, 0.9), (0.9, 0.9)])
def test_nothing_is_said_of_an_alarm_that_is_not_lowered(before: float, now: float, place: Place) -> None:
    place.analysed(probability=before)
    place.composer.round()
    second, _ = place.analysed(revision=2, probability=now)
    place.composer.round()
    (report,) = place.objects(second.id)["sr"]
    assert "was reported as" not in words(report)


def test_stored_objects_are_whole_dicom_files(place: Place) -> None:
    place.analysed()
    place.composer.round()
    for content in place.files().values():
        assert content[128:132] == b"DICM"
        assert encode(dcmread(BytesIO(content))) == content


@pytest.mark.parametrize("error", [TransientError("database: gone"), ZeroDivisionError("nobody thought of")])
def test_the_composer_goes_on_after_a_round_that_broke(
    error: Exception, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    def broken_round(*_: object) -> int:
        rounds.append(1)
        raise error

    monkeypatch.setattr(place.composer, "round", broken_round)
    compose.run(place.composer, lambda seconds: len(rounds) >= 3)
    assert len(rounds) == 3
