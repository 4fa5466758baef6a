"""Kills workers while series arrive and are decoded, and looks whether every series has its result anyway.

`python -m tests.acceptance.arrivals --rounds 30 [--folder DIR]` runs it by hand; its exit code is 1 unless
every series was analysed, with the findings of a worker that decodes nothing early. In each round two studies
come interleaved, in any order, some slices twice, in JPEG 2000, and the worker is killed at a random moment.
Worker processes are forked and hear their doorbells from Redis as Celery's do, without acknowledging late.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from node import settle
from node.domain.lifecycle import JobState
from node.intake import SUCCESS, Intake
from node.settings import Ahead, Completeness, Settings
from node.spool import spool_of
from node.store.records import Records, open_records
from node.wholeness import Announced
from tests.acceptance.conftest import as_study
from tests.bench.decoding import recoded
from tests.scanned import Threshold
from workers.phantom_series import write_series
from workers.worker import Worker

SLICES, SIZE = 28, 256
EVERY_S = 0.04
"""Between one slice and the next, of whichever study."""
LATEST_S = 4.0
"""After the last slice a worker is killed at the latest."""
LONGEST_S = 600.0
"""Until a result: generous, since a busy machine loses nothing by being slow."""
QUIET_S = 2.0
LISTS = ("jobs", "ahead")
OVER = (JobState.ANALYSED, JobState.FAILED)


@dataclass
class Balance:
    """`different` have other findings than without early work; `early` slices were of use, `ahead` jobs."""

    kills: int = 0
    studies: int = 0
    lost: int = 0
    different: int = 0
    early: int = 0
    ahead: int = 0


class Bell:
    """The doorbell on lists of a real Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        self._push("jobs", "run", job_id)

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        self._push("ahead", "prepare", series_uid, revision)

    def along(self, series_uid: str) -> None:
        self._push("ahead", "read_along", series_uid)

    def _push(self, where: str, *what: Any) -> None:
        self._client.lpush(where, json.dumps(what))


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A Redis that keeps nothing; the path of its socket."""
    socket = str(folder / "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=socket)
    try:
        for _ in range(200):
            with contextlib.suppress(redis.RedisError):
                client.ping()
                break
            time.sleep(0.1)
        yield socket
    finally:
        process.terminate()
        process.wait(timeout=10)


class Place:
    """A listener and a clock in this process, and one worker that may be killed at any time."""

    def __init__(self, folder: Path, socket: str, **ahead: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "spool").mkdir()
        wait = Completeness(quiet_s=QUIET_S, max_wait_s=10)
        self.settings = Settings(data_dir=folder, completeness=wait, ahead=Ahead(sure_quiet_s=0, **ahead))
        self.records: Records = open_records(self.settings)
        self.client = redis.Redis(unix_socket_path=socket)
        self.client.flushall()
        self.clock = settle.Clock(self.settings, self.records, Bell(self.client))  # type: ignore[arg-type]
        self.intake = Intake(spool_of(self.settings), self.records, time.time)
        self._socket = socket
        self.pid = self._fork()

    def kill(self) -> None:
        """And start another one."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = self._fork()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.records.close()

    def come(self, path: Path, association: str) -> None:
        ds, bare = dcmread(path), Dataset()
        bare.update(ds)
        stream = io.BytesIO()
        dcmwrite(stream, bare, implicit_vr=False, little_endian=True)
        syntax = str(ds.file_meta.TransferSyntaxUID)
        request = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), syntax, "CT1", association)
        assert self.intake.receive(Announced(*request), stream.getvalue()) == SUCCESS

    def pass_time(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self.clock.tick(time.time())
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))

    def outcome(self, study: str) -> dict[str, Any] | None:
        """What the job of a study says but its times; None while there is none."""
        for job in self.records.jobs.latest_of_study(study):
            if job.state in OVER:
                said = job.findings.to_json() if job.findings else {}
                return {**said, "state": job.state, "reason": job.reason, "timings_s": None}
        return None

    def _fork(self) -> int:
        if pid := os.fork():
            return pid
        try:
            self._work()
        finally:
            os._exit(1)

    def _work(self) -> None:
        """In a process of its own, for ever."""
        worker = Worker(self.settings, Threshold())
        worker.start()
        client = redis.Redis(unix_socket_path=self._socket)
        while True:
            heard = client.brpop(LISTS, timeout=0)
            what, *arguments = json.loads(heard[1])
            getattr(worker, what)(*arguments)
            done = {"ahead": worker.jobs_ahead, "early": worker.along.standing()["slices_early_used"]}
            client.hset("done", str(os.getpid()), json.dumps(done))


def models(folder: Path) -> list[list[Path]]:
    """A head with a bleed and one without."""
    made = []
    for seed, bleeds in ((3, ("intraparenchymal",)), (4, ())):
        files = write_series(folder / str(seed), seed, bleeds, slices=SLICES, size=SIZE)
        for path in files:
            recoded(dcmread(path), JPEG2000Lossless).save_as(path, enforce_file_format=True)
        made.append(files)
    return made


def play(place: Place, files: Sequence[Path], name: str, kill_after_s: float | None) -> None:
    """Slices come over one association; the worker is killed so long after the first."""
    began = time.monotonic()
    is_due = kill_after_s is not None
    place.records.arrivals.open_association(name, "listener", ("CT1", "10.0.0.1"), time.time())
    for number, path in enumerate(files):
        place.come(path, name)
        place.pass_time(max(began + number * EVERY_S - time.monotonic(), 0))
        if is_due and kill_after_s is not None and time.monotonic() - began >= kill_after_s:
            place.kill()
            is_due = False
    place.records.arrivals.close_association(name, "released", time.time())
    if is_due and kill_after_s is not None:
        place.pass_time(max(kill_after_s - (time.monotonic() - began), 0))
        place.kill()


def wait(place: Place, studies: Sequence[str]) -> list[dict[str, Any] | None]:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline and not all(place.outcome(study) for study in studies):
        place.pass_time(0.2)
    return [place.outcome(study) for study in studies]


def balance(folder: Path, rounds: int, seed: int) -> Balance:
    settle.RING_AGAIN_S = 3  # what a killed worker had heard is rung again
    chance, found, heads = random.Random(seed), Balance(), models(folder / "models")
    with server(folder) as socket:
        for number in range(rounds):
            studies = [f"2.25.{seed + 1}{number:04}{which}" for which in (0, 1)]
            files = [
                path
                for study, model in zip(studies, heads, strict=True)
                for path in as_study(model, folder / study, study, PatientID=study[-9:])
            ]
            files += chance.sample(files, 5)
            chance.shuffle(files)
            plain = Place(folder / f"plain{number}", socket, head_start=False)
            play(plain, files, "a", None)
            expected = wait(plain, studies)
            plain.close()
            place = Place(folder / f"early{number}", socket)
            play(place, files, "a", chance.uniform(0.0, len(files) * EVERY_S + LATEST_S))
            outcomes = wait(place, studies)
            done = [json.loads(one) for one in place.client.hgetall("done").values()]
            place.close()
            found.kills += 1
            found.studies += len(studies)
            found.lost += sum(one is None for one in outcomes)
            both = [(a, b) for a, b in zip(outcomes, expected, strict=True) if a and b]
            found.different += sum(a != b for a, b in both)
            found.early += sum(one["early"] for one in done)
            found.ahead += sum(one["ahead"] for one in done)
            print(f"round {number + 1}: {asdict(found)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ichnode-arrivals-", dir=options.folder) as place:
        found = balance(Path(place), options.rounds, options.seed)
    print(found)
    sys.exit(found.lost + found.different > 0)


if __name__ == "__main__":
    main()
