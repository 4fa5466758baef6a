"""A worker that hangs in native code renews its lease for ever: it must end itself, and its job must not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from node.domain.lifecycle import JobState
from node.settings import Model, Settings
from node.settle import Clock
from node.spool import Spool
from node.store.records import open_records
from tests.integration.test_housekeeping import Place

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
