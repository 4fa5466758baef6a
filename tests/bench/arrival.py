"""How long a result takes: from the last C-STORE response to the SR in the PACS, step by step.

`python -m tests.bench.arrival [--repeats 5] [--slices 32] [--syntax j2k] [--rates 0 10] [--quiet-s 10]
[--panels FILE]`.
Whole nodes stand side by side, each with an Orthanc of its own: one that does everything after a series is
complete ("plain", `[ahead]` switched off), one that begins once it looks whole ("head start", `decode`
switched off), and one that decodes while it arrives, too ("ahead", the defaults). They get the same series in
turn, so that what else the machine does hits all; judged are the ratios within a turn. A rate of 0 sends as
fast as it goes; 10 is a scanner or PACS that sends 10 images a second. Some that are not counted go first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.admin.roles import ending_with_this
from node.settings import load
from node.store.records import Records, open_records
from tests.acceptance.conftest import as_study
from tests.bench.decoding import recoded
from tests.bench.report import Panel, spread, write
from tests.ports import free_port
from tests.raw_peer import RawPeer, store_pdus, stored
from workers.demo import Orthanc, orthanc_executable, wait_ready
from workers.phantom_series import write_series

STEPS = ("complete", "taken", "analysed", "composed", "SR in the PACS", "all in the PACS")
"""Moments of a study, each after the one before; the first counts from the last C-STORE response."""
WORK = ("load", "classify", "segment", "explain", "measure")
"""Of the analysis itself, as the findings tell."""
WARM_UP = 4
"""Short series by which a node learns of a sender; then one that is not counted, for caches and imports."""
LONGEST_S = 240.0
SWITCHES = {
    "plain": "[ahead]\nhead_start = false\nsure_quiet_s = 0\n",
    "head start": "[ahead]\ndecode = false\n",
    "ahead": "",
}
SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "j2k": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
    "rle": RLELossless,
}
HEAD_MM = 160.0
"""Height of a head, however thin its slices are; none is thicker than 5 mm."""


@dataclass(frozen=True)
class Timed:
    """Seconds after the last C-STORE response, by step; and of the work, by its parts."""

    steps: dict[str, float]
    work: dict[str, float]


@dataclass(frozen=True)
class Node:
    """A node that runs, and its records."""

    port: int
    records: Records


@contextlib.contextmanager
def running(folder: Path, quiet_s: float, switches: str, outputs: str) -> Iterator[Node]:
    folder.mkdir()
    port, web = free_port(), free_port()
    pacs = Orthanc(str(orthanc_executable()), folder / "pacs")
    config = folder / "ichnode.toml"
    config.write_text(
        f'data_dir = "{folder / "data"}"\n'
        f"scp = {{ port = {port}, processes = 1 }}\nweb = {{ port = {web} }}\nspool = {{ reserve_mb = 64 }}\n"
        f"completeness = {{ quiet_s = {quiet_s} }}\n{switches}\n"
        f'[[destination]]\nname = "pacs"\nae_title = "ORTHANC"\nport = {pacs.port}\noutputs = {outputs}\n'
    )
    with (folder / "node.log").open("wb") as log:
        command = [sys.executable, "-m", "node", "up", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ending_with_this())
    try:
        wait_ready(process, web, folder / "node.log")
        records = open_records(load(config))
        yield Node(port, records)
        records.close()
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        pacs.close()


def send(node: Node, files: Sequence[Path], rate: float) -> float:
    """One association, `rate` images a second; the moment of the last response, in UNIX seconds."""
    images = [stored(path) for path in files]
    peer = RawPeer(node.port, [(images[0].sop_class_uid, [images[0].transfer_syntax_uid])])
    began = time.monotonic()
    for number, one in enumerate(images):
        if rate:
            time.sleep(max(began + number / rate - time.monotonic(), 0))
        peer.socket.sendall(store_pdus(one, number + 1, min(peer.longest, 131072)))
        if peer.status() != 0:
            raise SystemExit(f"image {number} was refused")
    last = time.time()
    peer.release()
    return last


def time_one(node: Node, files: Sequence[Path], rate: float, study_uid: str) -> Timed:
    """Send a study and wait until all its objects are in the PACS."""
    last = send(node, files, rate)
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        time.sleep(0.1)
        found = _finished(node.records, study_uid, last)
        if found:
            return found
    raise SystemExit(f"no result of {study_uid} within {LONGEST_S} s")


def _finished(records: Records, study_uid: str, last: float) -> Timed | None:
    jobs = records.jobs.latest_of_study(study_uid)
    if not jobs or jobs[0].findings is None or records.deliveries.waiting(jobs[0].id):
        return None
    row = next(row for row in records.views.jobs(50) if row["id"] == jobs[0].id)
    sent = {d["output"]: d["sent_at"] for d in records.views.deliveries_of(jobs[0].id)}
    if not sent or None in sent.values():  # composed between the two looks
        return None
    moments = (
        row["created_at"], row["started_at"], row["analysed_at"], row["reported_at"], sent["sr"],
        max(sent.values()),
    )  # fmt: skip
    return Timed(
        dict(zip(STEPS, (moment - last for moment in moments), strict=True)), dict(jobs[0].findings.timings_s)
    )


@dataclass(frozen=True)
class Heads:
    """Phantom heads of so many slices in one transfer syntax; made once with and once without a bleed."""

    folder: Path
    slices: int
    syntax: UID

    def another(self, number: int) -> tuple[list[Path], str]:
        """One in a study of its own, every other one with a bleed; files and Study Instance UID."""
        uid = f"2.25.{os.getpid()}{int(time.time())}{number}"
        labels = {"PatientID": f"BENCH{number}", "AccessionNumber": f"A{number}"}
        return as_study(self._model(number % 2), self.folder / f"{number}-{self.slices}", uid, **labels), uid

    def _model(self, bleeds: int) -> list[Path]:
        folder = self.folder / f"model-{self.slices}-{bleeds}"
        if not folder.exists():
            found = ("intraparenchymal",) if bleeds else ()
            step_mm = min(5.0, HEAD_MM / self.slices)
            files = write_series(folder, 7 + bleeds, found, slices=self.slices, step_mm=step_mm)
            for path in files:
                recoded(dcmread(path), self.syntax).save_as(path, enforce_file_format=True)
        return sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--syntax", choices=list(SYNTAXES), default="uncompressed")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 10.0])
    parser.add_argument("--quiet-s", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=list(SWITCHES), default=list(SWITCHES))
    parser.add_argument("--outputs", default='["sr", "seg", "sc"]')
    parser.add_argument("--plain", default=SWITCHES["plain"], help="settings of the plain node, as TOML")
    parser.add_argument("--folder", type=Path, help="on which volume; that of temporary files if not given")
    parser.add_argument("--panels", type=Path, help="where the times to the SR are kept as JSON")
    options = parser.parse_args()
    SWITCHES["plain"] = options.plain
    with (
        tempfile.TemporaryDirectory(prefix="ichnode-arrival-", dir=options.folder) as place,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(place)
        nodes = {
            name: stack.enter_context(
                running(folder / name, options.quiet_s, SWITCHES[name], options.outputs)
            )
            for name in options.only
        }
        number = WARM_UP
        for few in range(WARM_UP):
            short, _ = Heads(folder / "short", 4, ExplicitVRLittleEndian).another(few)
            for node in nodes.values():
                send(node, short, 0.0)
        heads = Heads(folder, options.slices, SYNTAXES[options.syntax])
        files, uid = heads.another(number)
        for node in nodes.values():
            time_one(node, files, 0.0, uid)
        waits: dict[str, dict[str, list[float]]] = {}
        for rate in options.rates:
            found: dict[str, list[Timed]] = {name: [] for name in nodes}
            for turn in range(options.repeats):
                number += 1
                files, uid = heads.another(number)
                for name in sorted(nodes, reverse=bool(turn % 2)):
                    found[name].append(time_one(nodes[name], files, rate, uid))
            print_table(rate, f"{options.slices} slices, {options.syntax}", found)
            waits[_speed(rate)] = {
                name: [run.steps["SR in the PACS"] for run in runs] for name, runs in found.items()
            }
    if options.panels:
        ours = options.only[-1]
        write(options.panels, [Panel("From the last slice to the SR in the PACS", "s", ours, False, waits)])


def _speed(rate: float) -> str:
    return f"{rate:g} images/s" if rate else "as fast as it goes"


def print_table(rate: float, what: str, found: dict[str, list[Timed]]) -> None:
    """Medians (ranges); the last column is how many times sooner than the plain node, pair by pair."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{what}, {_speed(rate)}, {len(next(iter(found.values())))} pairs, load {load}")
    print("| node | " + " | ".join(STEPS) + " | sooner (SR) |")
    print("|---|" + "---|" * (len(STEPS) + 1))
    for name, runs in found.items():
        cells = []
        for step in STEPS:
            cells.append(spread([run.steps[step] for run in runs]))
        pairs = zip(found.get("plain", runs), runs, strict=True)
        ratios = [plain.steps["SR in the PACS"] / run.steps["SR in the PACS"] for plain, run in pairs]
        print(f"| {name} | " + " | ".join(cells) + f" | {spread(ratios)} |", flush=True)
    for name, runs in found.items():
        parts = {part: statistics.median(run.work.get(part, 0.0) for run in runs) for part in WORK}
        print(
            f"{name}, of the analysis: " + ", ".join(f"{part} {value:.2f} s" for part, value in parts.items())
        )


if __name__ == "__main__":
    main()
