"""Through the whole node but its network: multi-frame series, and headers that the image contradicts."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from node.compose import Composer
from node.domain.lifecycle import JobState
from node.intake import SUCCESS, Intake
from node.settings import Settings
from node.settle import Clock
from node.store.jobs import Job
from node.wholeness import Announced
from tests import nonheads
from tests.factories import bleed, ct_series, enhanced
from tests.integration.test_validators import UNKNOWN_TO_DCIODVFY, errors, run, save
from tests.peers import requires
from tests.scanned import LESION_ML, Scan, Threshold, scan
from tests.unit.test_frames import MADE, SLICES, plain, results
from workers.worker import Worker


class Bell:
    """Notes which jobs were rung for."""

    def __init__(self) -> None:
        self.rung: list[int] = []

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        """A head start is asked for, and nobody has time."""

    def along(self, series_uid: str) -> None:
        """Nobody has time for that either."""

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        self.rung.append(job_id)


class Node:
    """All roles in one process, called by hand; time is told."""

    def __init__(self, folder: Path) -> None:
        (folder / "spool").mkdir()
        self.settings = Settings(data_dir=folder)
        self.worker = Worker(self.settings, Threshold())
        self.records, self.spool = self.worker.records, self.worker.spool
        self.bell = Bell()
        self.clock = Clock(self.settings, self.records, self.bell)  # type: ignore[arg-type]
        self.composer = Composer(self.settings, self.records, self.spool)
        self.now = time.time()
        self.records.arrivals.open_association("a1", self.worker.name, ("CT1", "10.0.0.1"), self.now)

    def receive(self, *datasets: Dataset) -> None:
        intake = Intake(self.spool, self.records, lambda: self.now)
        for ds in datasets:
            stream = io.BytesIO()
            dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
            request = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), "1.2.840.10008.1.2.1", "CT1", "a1")
            assert intake.receive(Announced(*request), stream.getvalue()) == SUCCESS

    def work(self, rounds: int = 3) -> list[Job]:
        """The jobs that came of it, all of them done and composed."""
        self.records.arrivals.close_association("a1", "released", self.now)
        for _ in range(rounds):
            self.now += 60
            self.clock.tick(self.now)
            while self.bell.rung:
                self.worker.run(self.bell.rung.pop(0))
            self.composer.round()
        jobs = [self.records.jobs.get(number) for number in range(1, 10)]
        return [job for job in jobs if job]

    def built(self, job: Job) -> dict[str, list[Dataset]]:
        made: dict[str, list[Dataset]] = {}
        for item in self.records.jobs.known_objects(job.id).values():
            made.setdefault(item.output, []).append(dcmread(self.spool.absolute(item.path)))
        return made


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def words_of(report: Dataset) -> str:
    return " ".join(
        str(item.get("TextValue", "")) + words_of(item) for item in report.get("ContentSequence") or ()
    )


def test_an_enhanced_object_is_received_read_and_answered_by_frames(node: Node) -> None:
    source = enhanced(scan()[::-1])
    node.receive(source)
    (job,) = node.work()
    assert job.state is JobState.COMPOSED and job.findings is not None, job.reason
    assert job.findings.segmentation is not None
    assert job.findings.segmentation.volume_ml == pytest.approx(LESION_ML, rel=0.05)
    assert len(job.findings.segmentation.frame_numbers) > 3
    built = node.built(job)
    assert len(built["sc"]) == len(scan()) + 1
    (seg,) = built["seg"]
    referred = {
        (str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber))
        for group in seg.PerFrameFunctionalGroupsSequence
        for item in group.DerivationImageSequence[0].SourceImageSequence
    }
    assert referred == {(str(source.SOPInstanceUID), n) for n in range(1, len(scan()) + 1)}
    assert all(ds.StudyInstanceUID == source.StudyInstanceUID for objects in built.values() for ds in objects)


def chest_called_head(study: Dataset, name: str = "chest") -> list[Dataset]:
    series = ct_series(
        nonheads.SLICES, nonheads.SIZE, spacing_mm=nonheads.PIXEL_MM, step_mm=nonheads.STEP_MM, name=name,
        SeriesDescription="Head 5.0", StudyInstanceUID=study.StudyInstanceUID, SeriesNumber=1,
    )  # fmt: skip
    for ds, hu in zip(series, nonheads.chest(), strict=True):
        ds.PixelData = (hu + 1024).astype("<i2").tobytes()
    return series


def test_a_chest_called_head_is_answered_as_not_analysed(node: Node) -> None:
    node.receive(*chest_called_head(ct_series(1)[0]))
    (job,) = node.work()
    assert job.reason is not None and job.reason.code == "NOT_A_HEAD"
    built = node.built(job)
    assert "NOT_A_HEAD" in words_of(built["sr"][0])
    assert "NOT ANALYSED" in built["sr"][0].SeriesDescription
    assert "seg" not in built


def test_the_head_behind_it_is_read_all_the_same(node: Node) -> None:
    """The mislabelled series was the better one by its header."""
    head = scan(Scan(labels={"SliceThickness": 6.0, "SeriesNumber": 9}))
    node.receive(*head, *chest_called_head(head[0]))
    jobs = node.work(rounds=5)
    assert [job.reason.code if job.reason else job.state for job in jobs] == ["NOT_A_HEAD", JobState.COMPOSED]
    findings = jobs[1].findings
    assert findings is not None and findings.segmentation is not None
    assert findings.segmentation.volume_ml == pytest.approx(LESION_ML, rel=0.05)
    assert findings.series_instance_uid == str(head[0].SeriesInstanceUID)


def test_a_head_without_any_words_is_read_because_it_shows_one(node: Node) -> None:
    node.receive(
        *scan(Scan(labels={"SeriesDescription": "2", "BodyPartExamined": "", "StudyDescription": ""}))
    )
    (job,) = node.work()
    assert job.findings is not None and job.findings.segmentation is not None, job.reason
    assert any("no header field names the body part" in warning for warning in job.findings.warnings)


def test_an_undecodable_slice_is_answered_with_the_next_step(node: Node) -> None:
    series = scan()
    series[7].PixelData = series[7].PixelData[:-2000]
    node.receive(*series)
    (job,) = node.work()
    assert job.reason is not None and job.reason.code == "PIXELS_UNDECODABLE"
    assert str(series[7].SOPInstanceUID) in job.reason.text
    assert "send the series again" in words_of(node.built(job)["sr"][0])


def test_slices_of_two_heads_in_one_object_are_not_mixed(node: Node) -> None:
    """Two stacks at the same places, only one with the lesion: the first is read, and it is said."""
    series, native = scan(), scan(Scan(name="native"))
    for ds in native:
        hu = np.frombuffer(ds.PixelData, "<i2").copy()
        hu[hu == 70 + 1024] = 32 + 1024
        ds.PixelData = hu.tobytes()
    frames = [slice_ for pair in zip(series, native, strict=True) for slice_ in pair]
    node.receive(enhanced(frames, stacks=["1", "2"] * len(series)))
    (job,) = node.work()
    assert job.findings is not None and job.findings.segmentation is not None, job.reason
    assert job.findings.segmentation.volume_ml == pytest.approx(LESION_ML, rel=0.05)
    assert all(number % 2 for number in job.findings.segmentation.frame_numbers)
    assert any("several volumes" in warning for warning in job.findings.warnings)


@pytest.mark.parametrize("kind", ["one object", "two objects", "legacy converted"])
def test_results_of_frames_stand_before_the_validators(kind: str, tmp_path: Path) -> None:
    requires("dciodvfy", "dcentvfy", "dsrdump")
    source = MADE[kind](plain())
    _, built = results(source, bleed(SLICES, 32))
    ours = {f"{name}-{index}": ds for name, objects in built.items() for index, ds in enumerate(objects)}
    paths = save(tmp_path, ours)
    for path in paths:
        if not path.name.startswith(UNKNOWN_TO_DCIODVFY):
            assert errors(run("dciodvfy", path)) == [], path.name
    sources = save(tmp_path, {f"source-{index}": ds for index, ds in enumerate(source)})
    assert errors(run("dcentvfy", *sources, *paths)) == []
    told = run("dsrdump", tmp_path / "sr-0.dcm")
    assert not any(line.startswith(("E:", "W:")) for line in told.splitlines())
