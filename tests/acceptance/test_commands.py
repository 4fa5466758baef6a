"""The command line as a person uses it: analyse, demo, studies, jobs, deliveries, doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.findings import CLASSES, Findings
from tests.acceptance.conftest import NodeMaker
from tests.orthanc import plain_orthanc
from workers import demo
from workers.phantom_series import write_series

pytestmark = pytest.mark.acceptance


def ichnode(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_series(folder, 3, ("intraparenchymal", "intraventricular"), size=256)
    return folder


def test_analyse_writes_findings_and_objects(phantom: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (phantom / "notes.txt").write_text("not DICOM, and no reason to stop")
    done = ichnode("analyse", phantom, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((out / "findings.json").read_text())
    wanted = {"schema", "model", "series_instance_uid", "revision", "status", "reason", "classes", "slices"}
    assert wanted | {"segmentation", "consistency", "priority", "timings_s"} <= set(printed)
    findings = Findings.from_json(printed)
    assert set(findings.classes) == set(CLASSES)
    assert findings.classes["any"].present
    assert len(findings.slices) == 32
    assert all(set(s.probabilities) == set(CLASSES) for s in findings.slices)
    source = dcmread(phantom / "001.dcm", stop_before_pixels=True)
    objects = [out / "sr.dcm", out / "seg.dcm", *sorted((out / "sc").glob("*.dcm"))]
    assert len(objects) == 2 + 33
    assert {dcmread(p, stop_before_pixels=True).StudyInstanceUID for p in objects} == {
        source.StudyInstanceUID
    }


def test_analyse_says_why_it_cannot_read_a_study(phantom: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(phantom.glob("*.dcm"))[:5]:
        (few / path.name).write_bytes(path.read_bytes())
    done = ichnode("analyse", few, "--out", tmp_path / "out")
    assert done.returncode == 3
    assert "NOT ANALYSED" in done.stdout
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["reason"]["code"] == "TOO_FEW_SLICES"
    assert dcmread(tmp_path / "out" / "sr.dcm").Modality == "SR"


def test_analyse_of_a_folder_without_dicom_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("no")
    done = ichnode("analyse", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "holds no DICOM file" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_once_ends_with_findings_and_files(tmp_path: Path) -> None:
    done = ichnode("demo", "--once", "--dir", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "STAT" in done.stdout
    for kind in ("SR", "SEG", "SC"):
        path = tmp_path / "demo" / "received" / f"{kind}-001.dcm"
        assert str(path) in done.stdout
        assert dcmread(path, stop_before_pixels=True).PatientID == "PHANTOM-0001"


def test_demo_works_without_orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "orthanc_executable", lambda: None)
    monkeypatch.setattr(demo, "write_series", partial(write_series, size=256))  # quickly drawn
    with demo.running(tmp_path, lambda text: None) as running:
        assert isinstance(running.pacs, demo.FolderPacs)
        demo.send_sample(running, lambda text: None)
        job = demo.await_result(running, lambda text: None)
        files = running.pacs.fetch(tmp_path / "received")
    assert job["state"] == "COMPOSED"
    assert {kind: len(paths) for kind, paths in files.items()} == {"SR": 1, "SEG": 1, "SC": 33}


def test_lists_and_doctor_of_a_running_node(make_node: NodeMaker, phantom: Path, tmp_path: Path) -> None:
    pacs = plain_orthanc(tmp_path / "pacs")
    node = make_node(pacs_port=pacs.port, quiet_s=1)
    assert node.storescu(*sorted(phantom.glob("*.dcm"))).returncode == 0
    study_uid = str(dcmread(phantom / "001.dcm", stop_before_pixels=True).StudyInstanceUID)
    job = node.finished_job(study_uid)
    options = ("--config", node.config)
    (study,) = json.loads(ichnode("studies", "--json", *options).stdout)
    assert (study["study_instance_uid"], study["status"]) == (study_uid, "DONE")
    (listed,) = json.loads(ichnode("jobs", "--json", *options).stdout)
    assert (listed["id"], listed["state"]) == (job["id"], "COMPOSED")
    sent = json.loads(ichnode("deliveries", "--json", *options).stdout)
    assert len(sent) == 35
    assert {d["state"] for d in sent} == {"SENT"}
    for table in ("studies", "jobs", "deliveries"):
        assert "PHANTOM" in ichnode(table, *options).stdout or table == "deliveries"
    refused = ichnode("jobs", *options, "retry", str(job["id"]))
    assert refused.returncode == 1
    assert "COMPOSED" in refused.stderr
    healthy = ichnode("doctor", "--json", *options)
    assert healthy.returncode == 0, healthy.stdout
    checks = {check["name"]: check for check in json.loads(healthy.stdout)}
    assert {"settings", "database", "broker", "model", "disk", "destination pacs"} <= set(checks)
    pacs.close()
    ill = ichnode("doctor", "--json", *options)
    assert ill.returncode == 1
    wrong = [check["name"] for check in json.loads(ill.stdout) if not check["ok"]]
    assert wrong == ["destination pacs"]


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    config = tmp_path / "ichnode.toml"
    config.write_text("[scp]\nprot = 104\n")
    done = ichnode("studies", "--config", config)
    assert done.returncode == 1
    assert "scp.prot" in done.stderr


def test_a_worker_without_its_model_says_why_and_ends_with_1(tmp_path: Path) -> None:
    config = tmp_path / "ichnode.toml"
    config.write_text('[model]\npipeline = "absent.json"\n')
    env = {"ICHNODE_BROKER__URL": "redis://127.0.0.1:1/0"}
    done = ichnode("worker", "--data-dir", tmp_path, "--config", config, env=env)
    assert done.returncode == 1, done.stderr
    assert "the worker cannot start: no model at" in done.stderr


def test_the_listener_never_loads_the_model_or_the_queue() -> None:
    code = (
        "import sys, node.scp, node.admin.roles, node.admin.cli\n"
        "heavy = {'torch', 'monai', 'celery', 'highdicom', 'fastapi', 'scipy', 'workers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
