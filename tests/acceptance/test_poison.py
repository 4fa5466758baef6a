"""Series that take their worker down: a bounded number of attempts, then a report, and the queue goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmwrite

from tests.acceptance.conftest import NodeMaker, received
from tests.acceptance.crashes import stand_in
from tests.factories import ct_series
from workers.demo import Orthanc

pytestmark = pytest.mark.acceptance

HOOK = '''
"""Stands for a decoder that crashes, and for the kernel that kills what needs too much memory."""
import ctypes, importlib.util, os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "workers.load":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            read = module.read_dataset
            def read_dataset(path):
                ds = read(path)
                if ds.PatientID == "SEGFAULT":
                    ctypes.string_at(0)
                if ds.PatientID == "OOM":
                    os.kill(os.getpid(), signal.SIGKILL)
                return ds
            module.read_dataset = read_dataset
        spec.loader.exec_module = exec_module
        return spec

if "worker" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
'''


def write(folder: Path, patient: str) -> tuple[str, list[Path]]:
    """The study of a patient: its UID and its files."""
    series = ct_series(24, rows=32, spacing_mm=6.0, name=patient, PatientID=patient)
    (folder / patient).mkdir(parents=True)
    files = [folder / patient / f"{number}.dcm" for number in range(len(series))]
    for file, ds in zip(files, series, strict=True):
        dcmwrite(file, ds, enforce_file_format=True)
    return str(series[0].StudyInstanceUID), files


def test_a_decoder_that_crashes_or_runs_out_of_memory_costs_its_own_series_alone(
    make_node: NodeMaker, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    model = f'model = {{ pipeline = "{stand_in(tmp_path)}", max_attempts = 1 }}\n'
    node = make_node(model, pacs_port=orthanc.port, quiet_s=0.5)
    studies = {}
    for patient in ("SEGFAULT", "OOM", "KIND"):
        studies[patient], files = write(tmp_path, patient)
        assert node.storescu(*files).returncode == 0
    jobs = {patient: node.finished_job(study, seconds=120) for patient, study in studies.items()}
    assert {p: (j["state"], j["reason_code"]) for p, j in jobs.items()} == {
        "SEGFAULT": ("FAILED", "WORKER_LOST"),
        "OOM": ("FAILED", "WORKER_LOST"),
        "KIND": ("COMPOSED", None),
    }
    for patient, study in studies.items():
        (report,) = received(orthanc, study)["SR"]
        assert report.PatientID == patient
