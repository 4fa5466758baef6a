"""Two head CTs of one patient through the database: found again, compared, referred to; nobody else's is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy import select, update

from node.compose import Composer
from node.domain.findings import CLASSES, Findings, SegmentationFinding
from node.domain.prior import OTHER_PERSON, Prior, latest
from node.headers import read_instance
from node.maps import Maps, pack
from node.outputs.uids import uid_for
from node.retention import Retention
from node.settings import Destination, Settings
from node.settings import Spool as SpoolSettings
from node.spool import Spool
from node.store.arrivals import StoredFile
from node.store.records import Records, open_records
from node.store.tables import deliveries, objects
from tests.factories import MODEL, analysed, bleed, ct_series
from workers.analyse import Analysis, with_prior
from workers.models.contract import MAP_SIZE, Classification
from workers.phantom_series import SeriesLabels, write_series
from workers.worker import Worker

SLICES, ROWS = 6, 32
OLD: dict[str, Any] = {"StudyDate": "20261119", "StudyTime": "0900"}
MASKS = bleed(SLICES, ROWS)
PARTS = {"subdural": MASKS}


@dataclass
class Place:
    """An installation with one destination for each class of report."""

    records: Records
    spool: Spool
    composer: Composer = field(init=False)

    def __post_init__(self) -> None:
        near = Destination(name="near", ae_title="NEAR", outputs=("sr", "seg"))
        far = Destination(name="far", ae_title="FAR", outputs=("sr",), sr_class="comprehensive")
        self.composer = Composer(Settings(destination=(near, far)), self.records, self.spool)

    def analyse(self, name: str, volume_ml: float, **attributes: Any) -> tuple[int, Prior]:
        """Receive, decide and analyse a series as the worker does; what it was compared with."""
        series = ct_series(SLICES, rows=ROWS, name=name, **attributes)
        job_id = self.receive(name, series)
        assert self.records.jobs.claim(job_id, "w:1", 1e12, 7.0)
        return job_id, self._store(job_id, series, volume_ml)

    def receive(self, name: str, series: list[Dataset]) -> int:
        """A series that arrived and was decided on: its job."""
        self.records.arrivals.open_association(name, "host:1", ("CT1", "x"), 1.0)
        for ds in series:
            stream = BytesIO()
            dcmwrite(stream, ds, enforce_file_format=True)
            instance = read_instance(BytesIO(stream.getvalue()))
            path = self.spool.instance_path(name, name, instance.sop_instance_uid)
            self.spool.write(path, (stream.getvalue(),))
            file = StoredFile(path, len(stream.getvalue()), instance.sop_instance_uid)
            self.records.arrivals.record(instance, file, name, 1.0)
        (row,) = self.records.decisions.of_study(str(series[0].StudyInstanceUID))
        assert self.records.decisions.settle(row, 5.0)
        job_id = self.records.decisions.decide(row, [], 6.0)
        assert job_id is not None
        return job_id

    def _store(self, job_id: int, series: list[Dataset], volume_ml: float) -> Prior:
        uid = str(series[0].SeriesInstanceUID)
        now, candidates = self.records.priors.candidates(uid)
        assert now
        prior = latest(now, candidates)
        mask = SegmentationFinding(
            volume_ml, (str(series[0].SOPInstanceUID),), subtypes_ml={"subdural": volume_ml}
        )
        plain = analysed(series, {"any": 0.9, "subdural": 0.9}, segmentation=mask)
        heat = np.zeros((SLICES, 8, 8), np.uint8)
        found = with_prior(Analysis(plain, MASKS, heat, "subdural", PARTS), prior)
        path = self.spool.job_path(job_id, 1, "maps.npz")
        self.spool.write(path, (pack(Maps(MASKS, heat, PARTS)),))
        self.records.jobs.store_analysis(job_id, "w:1", found.findings, path, 1_790_000_000.0)
        return prior

    def objects(self, job_id: int) -> dict[str, Dataset]:
        """What was composed for a job, by output."""
        with self.records.engine.connect() as connection:
            rows = connection.execute(select(objects).where(objects.c.job_id == job_id)).all()
        return {row.output: dcmread(self.spool.absolute(row.path)) for row in rows}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = Settings(data_dir=tmp_path)
    records = open_records(settings)
    yield Place(records, Spool(tmp_path / "spool", 0))
    records.close()


def evidence_elsewhere(report: Dataset) -> list[tuple[str, str, str]]:
    """(study, series, instance) of the Pertinent Other Evidence Sequence."""
    return [
        (str(study.StudyInstanceUID), str(series.SeriesInstanceUID), str(item.ReferencedSOPInstanceUID))
        for study in report.get("PertinentOtherEvidenceSequence") or ()
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


@pytest.mark.parametrize("composed_before", [True, False])
def test_growth_is_told_with_the_earlier_report_of_the_same_class(
    place: Place, composed_before: bool
) -> None:
    old, first = place.analyse("old", 8.0, **OLD)
    assert first == Prior(None)
    if composed_before:
        place.composer.round()
    new, _ = place.analyse("new", 12.0)
    job = place.records.jobs.get(new)
    assert job and job.findings and job.findings.comparison
    assert job.findings.comparison.change_ml == pytest.approx(4.0)
    assert job.findings.comparison.expansion and not job.findings.comparison.remarks
    place.composer.round()
    before, after = place.objects(old), place.objects(new)
    assert set(after) == {"sr", "csr", "seg"}
    for name in ("sr", "csr"):
        earlier = before[name]
        assert evidence_elsewhere(after[name]) == [
            (str(earlier.StudyInstanceUID), str(earlier.SeriesInstanceUID), str(earlier.SOPInstanceUID))
        ]
        assert after[name].SOPInstanceUID == uid_for(job.findings, name)
    assert evidence_elsewhere(before["sr"]) == []


def test_each_destination_gets_the_class_of_report_it_takes(place: Place) -> None:
    job_id, _ = place.analyse("only", 8.0)
    place.composer.round()
    uids = {name: str(ds.SOPInstanceUID) for name, ds in place.objects(job_id).items()}
    sent = {(d["destination"], d["sop_instance_uid"]) for d in place.records.views.deliveries()}
    assert sent == {("near", uids["sr"]), ("near", uids["seg"]), ("far", uids["csr"])}


def test_a_namesake_under_the_same_id_is_not_compared(place: Place) -> None:
    place.analyse("old", 8.0, PatientBirthDate="19700101", **OLD)
    new, prior = place.analyse("new", 20.0)
    assert prior == Prior(None, OTHER_PERSON)
    job = place.records.jobs.get(new)
    assert job and job.findings
    assert job.findings.comparison is None and OTHER_PERSON in job.findings.warnings


def test_the_latest_earlier_study_of_the_patient_speaks(place: Place) -> None:
    place.analyse("older", 5.0, StudyDate="20261101")
    place.analyse("old", 8.0, **OLD)
    place.analyse("elsewhere", 9.0, PatientID="SOMEBODY")
    place.analyse("later", 30.0, StudyDate="20261121")
    _, prior = place.analyse("new", 12.0)
    assert prior.found and prior.found.instance.study_date == "20261119"


def test_an_earlier_ct_that_was_not_analysed_is_no_prior(place: Place) -> None:
    old, _ = place.analyse("old", 8.0, **OLD)
    place.records.jobs.cancel(old)
    _, prior = place.analyse("new", 12.0)
    assert prior == Prior(None)


def test_an_earlier_ct_whose_files_were_removed_is_compared_all_the_same(place: Place) -> None:
    place.analyse("old", 8.0, PatientBirthDate="19500101", **OLD)
    place.composer.round()
    with place.records.engine.begin() as connection:
        connection.execute(update(deliveries).values(state="SENT"))
    settings = Settings(spool=SpoolSettings(keep_days=1))
    assert Retention(settings, place.records, place.spool).round(1e9, lambda: 0.0)
    _, prior = place.analyse("new", 12.0, PatientBirthDate="19500101")
    assert prior.found and prior.found.instance.study_time == OLD["StudyTime"]
    _, other = place.analyse("namesake", 12.0, PatientBirthDate="19700101", StudyDate="20261201")
    assert other.remark == OTHER_PERSON


class GrowingBall:
    """A pipeline that draws a ball of this radius in the middle of any head."""

    identity, thresholds = MODEL, dict.fromkeys(CLASSES, 0.5)
    knows, draws = frozenset(CLASSES), True
    radius_mm = 10.0

    def classify(self, hu: np.ndarray, spacing_mm: Any) -> Classification:
        slices = np.full((len(hu), len(CLASSES)), 0.9, np.float32)
        return Classification(slices, slices.max(0))

    def segment(self, hu: np.ndarray, spacing_mm: Any, classification: object) -> np.ndarray:
        places = np.indices(hu.shape).T - np.array(hu.shape) / 2
        away: np.ndarray = np.hypot.reduce((places * spacing_mm).T, axis=0)
        return away < self.radius_mm

    def segment_subtypes(self, *_: Any) -> dict[str, np.ndarray]:
        return {}

    def explain(self, hu: np.ndarray, *_: Any) -> np.ndarray:
        return np.zeros((len(hu), MAP_SIZE, MAP_SIZE), np.float32)


def test_the_worker_compares_what_it_analyses_with_what_it_did_before(tmp_path: Path) -> None:
    settings, pipeline = Settings(data_dir=tmp_path), GrowingBall()
    worker = Worker(settings, pipeline)
    place = Place(worker.records, worker.spool)
    found = []
    for number, radius_mm in enumerate((15.0, 20.0), start=1):
        labels = SeriesLabels(study_date=f"2026010{number}", accession_number=str(number))
        files = write_series(tmp_path / f"ct{number}", 3, (), size=96, labels=labels)
        pipeline.radius_mm = radius_mm
        worker.run(place.receive(f"ct{number}", [dcmread(path) for path in files]))
        place.composer.round()
    jobs = {job["study_date"]: job for job in place.records.views.studies()}
    for date in ("20260101", "20260102"):
        found.append(Findings.from_json(jobs[date]["job"]["findings"]))
    first, second = found
    assert first.comparison is None and second.comparison
    assert second.comparison.change_percent == pytest.approx(100 * ((20 / 15) ** 3 - 1), rel=0.1)
    assert second.comparison.expansion and second.comparison.remarks == ()
    assert second.comparison.series_uid == first.series_instance_uid
    assert second.segmentation and second.segmentation.diameter_mm == pytest.approx(40, abs=3.5)
    worker.records.close()
