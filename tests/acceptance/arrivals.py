"""Kills workers while series arrive and are decoded, and looks whether every series has its result anyway.

`python -m tests.acceptance.arrivals --rounds 30 [--folder DIR]` runs it by hand; its exit code is 1 unless
every series was analysed, with the findings of an analysis without any node. In each round two studies come
interleaved, in any order, some slices twice, in JPEG 2000; the worker is killed at a random moment.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from node.domain.findings import Findings
from node.domain.lifecycle import JobState
from tests.acceptance.conftest import RunningNode, as_study, nodes_in
from tests.bench.decoding import recoded
from tests.raw_peer import RawPeer, store_pdus, stored
from workers.analyse import analyse
from workers.load import load_head
from workers.models.runtime import load_pipeline
from workers.phantom_series import write_series

SLICES, SIZE = 28, 192
RATE = 15.0
"""Images a second, those of both studies counted."""
LATEST_S = 4.0
"""After the last slice, a worker is killed at the latest."""
LONGEST_S = 180.0
OVER = (JobState.ANALYSED, JobState.COMPOSED, JobState.FAILED)


@dataclass
class Balance:
    """`different` have other findings than an analysis without any node; `early` slices were of use."""

    kills: int = 0
    studies: int = 0
    lost: int = 0
    different: int = 0
    early: int = 0


def numbers(findings: Findings) -> dict[str, Any]:
    """What does not depend on the UIDs of the series."""
    said = findings.to_json()
    return {
        "classes": {name: (one["probability"], one["present"]) for name, one in said["classes"].items()},
        "slices": [one["probabilities"] for one in said["slices"]],
        "volume_ml": said["segmentation"]["volume_ml"],
        "consistency": said["consistency"],
        "priority": said["priority"],
    }


def models(folder: Path) -> list[tuple[list[Path], dict[str, Any]]]:
    """A head with bleeds and one without, and what the default model says of each."""
    pipeline, made = load_pipeline("default", "cpu"), []
    for seed, bleeds in ((3, ("intraparenchymal",)), (4, ())):
        files = write_series(folder / str(seed), seed, bleeds, slices=SLICES, size=SIZE)
        for path in files:
            recoded(dcmread(path), JPEG2000Lossless).save_as(path, enforce_file_format=True)
        volume = load_head(files)
        found = analyse(volume, pipeline, series_instance_uid="1.2", revision=1).findings
        made.append((files, numbers(found)))
    return made


def send(node: RunningNode, files: Sequence[Path]) -> None:
    images = [stored(path) for path in files]
    peer = RawPeer(node.settings.scp.port, [(images[0].sop_class_uid, [images[0].transfer_syntax_uid])])
    began = time.monotonic()
    for number, one in enumerate(images):
        time.sleep(max(began + number / RATE - time.monotonic(), 0))
        peer.socket.sendall(store_pdus(one, number % 60000 + 1, min(peer.longest, 131072)))
        assert peer.status() == 0
    peer.release()


def kill_worker(node: RunningNode, after_s: float) -> None:
    time.sleep(after_s)
    with suppress(AssertionError, psutil.NoSuchProcess):
        node.child("worker").kill()


def balance(folder: Path, rounds: int, seed: int) -> Balance:
    chance, found = random.Random(seed), Balance()
    heads = models(folder / "models")
    with nodes_in(folder) as make:
        node = make("[orders]\nage_min = 1\n")
        for number in range(rounds):
            studies = {f"2.25.{seed + 1}{number:04}{which}": heads[which] for which in (0, 1)}
            files = [
                path
                for study, (model, _) in studies.items()
                for path in as_study(model, folder / study, study, PatientID=study[-9:])
            ]
            files += chance.sample(files, 5)
            chance.shuffle(files)
            latest_s = len(files) / RATE + LATEST_S
            killer = threading.Thread(target=kill_worker, args=(node, chance.uniform(0.0, latest_s)))
            killer.start()
            send(node, files)
            killer.join()
            found.kills += 1
            found.studies += len(studies)
            for study, (_, expected) in studies.items():
                _judge(node, study, expected, found)
            processes = node.records.views.processes(time.time())
            told = [p["detail"].get("slices_early_used", 0) for p in processes if p["role"] == "worker"]
            found.early += sum(told[-1:])
            print(f"round {number + 1}: {asdict(found)}", flush=True)
    return found


def _judge(node: RunningNode, study: str, expected: dict[str, Any], found: Balance) -> None:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        jobs = [job for job in node.records.jobs.latest_of_study(study) if job.state in OVER]
        if jobs:
            said = numbers(jobs[0].findings) if jobs[0].findings and jobs[0].findings.classes else None
            if said != expected:
                found.different += 1
                print(f"study {study}: {jobs[0].state}, {jobs[0].reason}", flush=True)
            return
        time.sleep(0.2)
    found.lost += 1


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
