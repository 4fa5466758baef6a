"""A worker that is of no use any more must end itself, and its jobs must not.

One that hangs in native code would renew its lease for ever; one whose GPU is lost would fail every job.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from node import spool
from node.domain.lifecycle import JobState
from node.settings import Model, Settings
from node.settle import Clock
from node.spool import Spool, SpoolFull
from node.store.records import open_records
from tests.integration.test_housekeeping import Place
from tests.integration.test_unusual_series import Node
from tests.scanned import Threshold, scan
from workers import load

HANG = """
import ctypes, sys
from pathlib import Path
from node.settings import Model, Settings
from workers.worker import Worker

worker = Worker(Settings(data_dir=Path(sys.argv[1]), model=Model(timeout_s=0.5)), None)
worker._analyse = lambda job: ctypes.CDLL(None).sleep(60)  # native code, deaf to exceptions
worker.run(int(sys.argv[2]))
"""


def test_a_worker_that_hangs_ends_itself_and_the_job_goes_on(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model=Model(max_attempts=1))
    (tmp_path / "spool").mkdir()
    place = Place(open_records(settings), Spool(tmp_path / "spool"))
    job_id = place.decided(place.study("a"))
    command = [sys.executable, "-c", HANG, str(tmp_path), str(job_id)]
    hung = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert hung.returncode == -signal.SIGKILL, hung.stderr
    assert "hangs" in hung.stderr
    Clock(settings, place.records, None).tick(time.time())  # type: ignore[arg-type]
    job = place.records.jobs.get(job_id or 0)
    assert job and job.state is JobState.FAILED and job.reason and job.reason.code == "WORKER_LOST"
    place.records.close()


class LostGpu(Threshold):
    """An error of CUDA's is raised again by every call until the process ends."""

    def classify(self, hu: Any, spacing_mm: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand so on")


@pytest.mark.parametrize("begun", ["by its job", "ahead of it"])
def test_a_worker_whose_gpu_is_lost_ends_itself(
    begun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, series, signals = Node(tmp_path), scan(), list[int]()
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    node.worker.model.pipeline = LostGpu()
    node.receive(*series)
    if begun == "by its job":
        (job,) = node.work(1)
        assert job.state is JobState.QUEUED and job.attempts == 1, "another worker may have better luck"
    else:
        node.worker.prepare(str(series[0].SeriesInstanceUID), 1)
    assert [number for number in signals if number] == [signal.SIGTERM]
    assert "this worker ends: its device is lost: CUDA error: an illegal memory access" in caplog.text
    node.records.close()


@pytest.mark.parametrize("trouble", ["reading", "writing", "no room"])
def test_a_volume_that_is_away_costs_no_job_its_attempts(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that starts anew takes minutes: longer than three attempts."""

    def away(*_: Any) -> Any:
        raise SpoolFull("no room") if trouble == "no room" else OSError(errno.ESTALE, "Stale file handle")

    node = Node(tmp_path)
    node.receive(*scan())
    with monkeypatch.context() as patched:
        if trouble == "reading":
            patched.setattr(load, "dcmread", away)
        else:
            patched.setattr(node.spool, "write", away)
        (job,) = node.work(6)
        assert job.state is JobState.QUEUED and job.attempts == 1 and job.reason
        assert job.reason.code == "OUT_OF_REACH"
        patched.setattr(spool, "VOLUME_S", 0.0)
        (job,) = node.work(1)
        assert job.attempts == 2, "what one file is to blame for is not tried for ever"
    (job,) = node.work(1)
    assert job.state is JobState.COMPOSED
    node.records.close()
