"""A head CT goes in by C-STORE; SR, SEG and overlays come back to a real PACS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.findings import CLASSES, Findings
from tests.acceptance.conftest import (
    NodeMaker,
    RunningNode,
    as_study,
    nodes_in,
    received,
    study_of,
    test_data,
)
from tests.orthanc import executable, plain_orthanc
from tests.ports import free_port
from workers.demo import Orthanc
from workers.phantom_series import SeriesLabels, write_series

pytestmark = pytest.mark.acceptance
SEED = 3
BLEEDS = ("intraparenchymal", "intraventricular")


def check_objects(objects: dict[str, list[Dataset]], findings: Findings, sources: list[Path]) -> None:
    """One SR; a SEG that overlays the source slice for slice; overlays that name their slices."""
    headers = [dcmread(path, stop_before_pixels=True) for path in sources]
    shape = (headers[0].Rows, headers[0].Columns)
    uids = {str(ds.SOPInstanceUID) for ds in headers}
    patient = {(str(ds.PatientID), str(ds.PatientName)) for group in objects.values() for ds in group}
    assert patient == {(str(headers[0].PatientID), str(headers[0].PatientName))}
    (report,) = objects["SR"]
    assert report.SeriesInstanceUID != headers[0].SeriesInstanceUID
    assert findings.segmentation is not None
    if findings.segmentation.slices:
        (seg,) = objects["SEG"]
        assert (seg.Rows, seg.Columns) == shape
        marked = set()
        for frame, item in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
            source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            assert source in uids
            if frame.any():
                marked.add(str(source))
        assert marked == set(findings.segmentation.slices)
        area = float(np.prod([float(v) for v in headers[0].PixelSpacing]))
        voxels = int(seg.pixel_array.astype(bool).sum())
        assert findings.segmentation.volume_ml == pytest.approx(voxels * area * 5 / 1000, rel=0.25)
    assert len(objects["SC"]) == len(sources) + 1
    assert all(ds.PhotometricInterpretation == "RGB" for ds in objects["SC"])


def whole_study(folder: Path) -> tuple[str, list[Path]]:
    """What a scanner sends: localizer, 5 mm soft, 1 mm soft, 1 mm bone and two dose pictures."""
    study = "2.25.770001"
    files: list[Path] = []
    for description, number, slices, step in (("Head 5.0 soft", 2, 24, 5.0), ("Head 1.0 soft", 3, 110, 1.0)):
        labels = SeriesLabels(
            series_description=description,
            series_number=number,
            study_instance_uid=study,
            accession_number="ACC77",
        )
        thin = write_series(
            folder / str(step), SEED, BLEEDS, slices=slices, size=128, step_mm=step, labels=labels
        )
        files += thin
    bone = {"SeriesDescription": "Head 1.0 bone", "SeriesNumber": 4, "ConvolutionKernel": "H60s"}
    files += as_study(thin, folder / "bone", study, **bone)
    files += _localizers(folder, files[0], study) + _dose_pictures(folder, files[0], study)
    return study, files


def _localizers(folder: Path, like: Path, study: str) -> list[Path]:
    paths = []
    for index, orientation in enumerate(([0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])):
        ds = dcmread(like)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.SeriesDescription, ds.SeriesNumber = "Topogram 0.6 T20s", 1
        ds.SeriesInstanceUID, ds.ImageOrientationPatient = study + ".1", orientation
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{index}"
        paths.append(folder / f"localizer{index}.dcm")
        ds.save_as(paths[-1])
    return paths


def _dose_pictures(folder: Path, like: Path, study: str) -> list[Path]:
    paths = []
    for index in range(2):
        ds = dcmread(like)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            del ds[keyword]
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        ds.ImageType, ds.ConversionType = ["DERIVED", "SECONDARY", "SCREEN SAVE"], "WSD"
        ds.SeriesDescription, ds.SeriesNumber, ds.Modality = "Patient Protocol", 999, "CT"
        ds.SeriesInstanceUID = study + ".9"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.9.{index}"
        paths.append(folder / f"dose{index}.dcm")
        ds.save_as(paths[-1])
    return paths


def _noise(node: RunningNode) -> None:
    import socket

    for payload in (
        os.urandom(4096),
        b"\x01\x00\xff\xff\xff\xff" + os.urandom(64),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", node.settings.scp.port), timeout=5) as peer:
            peer.sendall(payload)


def _text_of(report: Dataset) -> str:
    """Every text and code meaning in an SR."""
    words = []
    for element in report.iterall():
        if element.keyword in {"TextValue", "CodeMeaning"}:
            words.append(str(element.value))
    return " ".join(words)


Standing = tuple[RunningNode, Orthanc]


@pytest.fixture(scope="class")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A node with its PACS that several studies are sent to."""
    folder = tmp_path_factory.mktemp("standing")
    with closing(plain_orthanc(folder / "pacs")) as pacs, nodes_in(folder) as make:
        yield make(pacs_port=pacs.port), pacs


class TestStudies:
    """One after the other to one node, as in a hospital: nothing of the studies before disturbs the next."""

    def test_phantom_with_blood_comes_back_as_stat_with_all_objects(
        self, standing: Standing, phantom: list[Path], tmp_path: Path
    ) -> None:
        node, orthanc = standing
        assert node.storescu(*phantom).returncode == 0
        job = node.finished_job(study_of(phantom))
        findings = Findings.from_json(job["findings"])
        assert set(findings.classes) == set(CLASSES)
        assert findings.classes["any"].present
        assert job["priority"] == "STAT"
        assert len(findings.slices) == len(phantom)
        assert {"classify", "segment", "explain", "total"} <= set(findings.timings_s)
        check_objects(received(orthanc, study_of(phantom)), findings, phantom)
        times = node.records.views.job_times(job["id"])
        assert times["first_sent_at"] and times["received_at"]
        assert times["first_sent_at"] - times["received_at"] <= 30

    def test_real_tilted_head_is_analysed_slice_for_slice(self, standing: Standing, tmp_path: Path) -> None:
        files = sorted((test_data() / "dicom" / "ge-head-tilt").glob("*.dcm"))
        node, orthanc = standing
        assert node.storescu(*files).returncode == 0
        job = node.finished_job(study_of(files))
        assert job["state"] == "COMPOSED", job["reason_text"]
        findings = Findings.from_json(job["findings"])
        objects = received(orthanc, study_of(files))
        assert len(findings.slices) == len(files)
        assert len(objects["SR"]) == 1

    @pytest.mark.parametrize("patient", [78, 79, 52])
    def test_real_patients_come_back_in_time(self, standing: Standing, tmp_path: Path, patient: int) -> None:
        data = test_data()
        tool = data.parent / "tools" / "ctich_to_dicom.py"
        if not tool.exists():
            pytest.skip(f"{tool.name} is not beside the test data")
        made = tmp_path / "source"
        subprocess.run([sys.executable, tool, data / "ct-ich", str(patient), made], check=True)
        files = sorted(made.glob("*.dcm"))
        node, orthanc = standing
        assert node.storescu(*files).returncode == 0
        job = node.finished_job(study_of(files))
        assert job["state"] == "COMPOSED", job["reason_text"]
        findings = Findings.from_json(job["findings"])
        check_objects(received(orthanc, study_of(files)), findings, files)
        times = node.records.views.job_times(job["id"])
        assert times["first_sent_at"] and times["received_at"]
        assert times["first_sent_at"] - times["received_at"] <= 30

    def test_whole_study_in_one_association_is_one_analysis_of_the_right_series(
        self, standing: Standing, tmp_path: Path
    ) -> None:
        study, files = whole_study(tmp_path / "study")
        node, _ = standing
        sent = node.storescu(*files, options=("-R",))
        assert sent.returncode == 0, sent.stderr
        job = node.finished_job(study, seconds=90)
        series = node.series_of(study)
        assert series["Head 5.0 soft"]["state"] == "ACCEPTED"
        assert job["series_instance_uid"] == series["Head 5.0 soft"]["series_instance_uid"]
        reasons = {name: s["reason_code"] for name, s in series.items() if s["state"] == "SKIPPED"}
        assert reasons["Topogram 0.6 T20s"] == "LOCALIZER"
        assert reasons["Head 1.0 bone"] == "BONE_KERNEL"
        assert reasons["Head 1.0 soft"] == "OTHER_SERIES_CHOSEN"
        assert reasons["Patient Protocol"] in {"NOT_CT", "DOSE_REPORT"}
        assert [j["study_instance_uid"] for j in node.records.views.jobs()].count(study) == 1

    def test_rubbish_is_refused_and_disturbs_nobody(
        self, standing: Standing, phantom: list[Path], tmp_path: Path
    ) -> None:
        node, orthanc = standing
        known = len(node.records.views.studies())
        data = phantom[0].read_bytes()
        truncated = tmp_path / "truncated.dcm"
        truncated.write_bytes(data[: len(data) // 2])
        text = tmp_path / "text.dcm"
        text.write_text("this is not DICOM\n" * 1000)
        assert node.storescu(text).returncode != 0
        assert node.storescu(truncated).returncode != 0
        _noise(node)
        assert len(node.records.views.studies()) == known
        unscaled = as_study(phantom, tmp_path / "unscaled", "2.25.88", "RescaleSlope", "RescaleIntercept")
        whole = as_study(phantom, tmp_path / "whole", "2.25.89")
        assert node.storescu(*unscaled).returncode == 0
        assert node.storescu(*whole).returncode == 0
        job = node.finished_job(study_of(whole))
        assert job["state"] == "COMPOSED"
        refused = node.finished_job(study_of(unscaled))
        assert (refused["state"], refused["reason_code"]) == ("FAILED", "NO_RESCALE")
        objects = received(orthanc, study_of(unscaled))
        assert len(objects["SR"]) == 1
        assert "not analysed" in _text_of(objects["SR"][0]).lower()


def test_a_killed_worker_loses_no_job_and_duplicates_no_object(
    make_node: NodeMaker, orthanc: Orthanc, phantom: list[Path], tmp_path: Path
) -> None:
    # without a head start the job runs long enough to be met
    node = make_node("[ahead]\nhead_start = false\n", pacs_port=orthanc.port, quiet_s=1)
    assert node.storescu(*phantom).returncode == 0
    node.wait_for(lambda: node.records.views.counts()["jobs"].get("RUNNING"))
    node.child("worker").kill()
    job = node.finished_job(study_of(phantom), seconds=90)
    assert (job["state"], job["attempts"]) == ("COMPOSED", 2)
    objects = received(orthanc, study_of(phantom))
    assert {name: len(group) for name, group in objects.items()} == {
        "SR": 1,
        "SEG": 1,
        "SC": len(phantom) + 1,
    }


def test_results_reach_a_pacs_that_comes_up_later(
    make_node: NodeMaker, phantom: list[Path], tmp_path: Path
) -> None:
    executable()  # before it is needed
    port = free_port()
    node = make_node(pacs_port=port, quiet_s=1)
    assert node.storescu(*phantom).returncode == 0
    node.wait_for(lambda: [d for d in node.records.views.deliveries() if d["attempts"] > 0])
    late = plain_orthanc(tmp_path / "late", port)
    try:
        job = node.finished_job(study_of(phantom), seconds=60)
        assert job["state"] == "COMPOSED"
        assert len(received(late, study_of(phantom))["SR"]) == 1
    finally:
        late.close()


def test_sigterm_ends_everything_in_ten_seconds(make_node: NodeMaker, phantom: list[Path]) -> None:
    node = make_node(quiet_s=0)
    assert node.storescu(*phantom).returncode == 0
    family = node.family()
    assert {p.name() for p in family} and len(family) >= 8
    assert node.stop() <= 10
    _, alive = psutil.wait_procs(family, timeout=1)
    assert alive == []


def test_kill_of_the_supervisor_leaves_no_process_behind(make_node: NodeMaker) -> None:
    node = make_node()
    family = node.family()
    node.process.kill()
    node.process.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []


def test_a_second_node_is_told_at_once_what_is_taken(make_node: NodeMaker, tmp_path: Path) -> None:
    node = make_node()

    def another(*options: str) -> str:
        command = [sys.executable, "-m", "node", "up", "--config", str(node.config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert str(node.settings.data_dir) in another().replace("\n", "")
    assert str(node.settings.scp.port) in another("--data-dir", str(tmp_path / "elsewhere"))
