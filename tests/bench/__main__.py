"""All headline benchmarks, one after the other, the peers beside them: a report with tables and a picture.

`python -m tests.bench [--out bench-report] [--only ingest …] [--quick] [--folder DIR]` (or `make bench`)
takes some twenty minutes on two cores that do nothing else; other work shows in the ranges and in the load.
Written are `report.md`, `benchmarks.png`, `simulation.png`, and `panels.json` with every measurement.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tests import postgres
from tests.bench import report
from workers.demo import orthanc_executable

TMPFS = Path("/dev/shm")
PEERS: dict[str, Callable[[], object]] = {
    "storescp": lambda: shutil.which("storescp"),
    "Orthanc": orthanc_executable,
    "PostgreSQL": postgres.installed,
}
"""What a benchmark may need, and whether it is here."""


@dataclass(frozen=True)
class Bench:
    """One benchmark: its module, what to run it with, and what in place of that when it must be quick.

    It gives panels, which are drawn together, or makes a `plot` of its own.
    """

    name: str
    title: str
    module: str
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    on_tmpfs: bool = False
    peers: tuple[str, ...] = ("storescp", "Orthanc")
    plot: str = ""


BENCHES = (
    Bench("ingest", "Images taken, data and name synced; files on a tmpfs", "ingest",
          ("--rounds", "5", "--images", "100", "--idle", "8"),
          ("--rounds", "1", "--images", "10", "--idle", "0", "--associations", "1"), on_tmpfs=True),
    Bench("ingest-disk", "Images taken, data and name synced; files on the disk", "ingest",
          ("--rounds", "3", "--images", "60", "--idle", "0"),
          ("--rounds", "1", "--images", "10", "--idle", "0", "--associations", "1")),
    Bench("ingest-postgresql", "Images taken, recorded in PostgreSQL; files on a tmpfs", "ingest",
          ("--rounds", "3", "--images", "60", "--idle", "0", "--database", "postgresql"),
          ("--rounds", "1", "--images", "10", "--idle", "0", "--associations", "1", "--database",
           "postgresql"), on_tmpfs=True, peers=("storescp", "Orthanc", "PostgreSQL")),
    Bench("egress", "Results sent", "egress", ("--rounds", "5"),
          ("--rounds", "1", "--objects", "10", "--to", "storescp", "--only", "streaming"), on_tmpfs=True),
    Bench("arrival", "From the last slice to the SR in the PACS", "arrival", ("--repeats", "3"),
          ("--repeats", "1", "--rates", "0", "--only", "plain", "ahead"), on_tmpfs=True),
    Bench("model", "From a volume to findings: 32 slices of 512 × 512", "model", (), ("--rounds", "1"),
          peers=()),
    Bench("backlog", "A worker under backlog", "backlog", ("--rounds", "3", "--series", "6"),
          ("--rounds", "1", "--series", "2"), peers=()),
    Bench("queue", "Taking and finishing a job, however many wait", "queue_depth",
          ("--depths", "100", "100000"), ("--depths", "100", "--jobs", "5"), peers=("PostgreSQL",)),
    Bench("simulation", "Ten hospitals, 2,000 head CTs a day: a simulation", "simulation",
          ("--studies", "6"), ("--studies", "1"), peers=(), plot="simulation.png"),
)  # fmt: skip


class Failed(Exception):
    """A benchmark did not come to its end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [bench.name for bench in BENCHES]
    parser.add_argument("--out", type=Path, default=Path("bench-report"))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="one short round of each: does it run at all?")
    memory = TMPFS if TMPFS.is_dir() else None
    where = f"where files lie that a disk must not slow; default: {TMPFS}, if there is one"
    parser.add_argument("--folder", type=Path, default=memory, help=where)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    panels: list[report.Panel] = []
    chapters: list[str] = []
    failed: list[str] = []
    for bench in BENCHES:
        if bench.name in options.only:
            try:
                text, found = run(bench, options)
            except Failed as error:
                text, found = f"Failed: {error}", []
                failed.append(bench.name)
            chapters.append(f"## {bench.title}\n\n{text}")
            panels += found
    report.write(options.out / "panels.json", panels)
    if panels:
        report.draw(options.out / "benchmarks.png", panels)
    written = options.out / "report.md"
    written.write_text(page(panels, chapters))
    print(f"\n{report.summary(panels)}\n\n{written}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(bench: Bench, options: argparse.Namespace) -> tuple[str, list[report.Panel]]:
    """What one benchmark printed, in a process of its own, and its panels. A missing peer is told."""
    absent = [peer for peer in bench.peers if not PEERS[peer]()]
    if absent:
        return f"Not run: {', '.join(absent)} not installed.", []
    given = [*(bench.quick if options.quick else bench.options)]
    if bench.on_tmpfs and options.folder:
        given += ["--folder", str(options.folder)]
    with tempfile.TemporaryDirectory() as kept:
        panels = Path(kept) / "panels.json"
        drawn = ["--plot", str(options.out / bench.plot)] if bench.plot else ["--panels", str(panels)]
        printed = told(bench.module, [*given, *drawn])
        found = [replace(one, title=bench.title) for one in report.read(panels)]
    command = " ".join(["python", "-m", f"tests.bench.{bench.module}", *given])
    picture = f"\n\n![{bench.title}]({bench.plot})" if bench.plot else ""
    return f"`{command}`\n\n{printed.strip()}{picture}", found


def told(module: str, options: Sequence[str]) -> str:
    """What a benchmark prints, shown while it comes. Raises Failed with its name when it ends otherwise."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *options]
    print(f"\n$ {' '.join(command)}", flush=True)
    lines = []
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise Failed(f"tests.bench.{module} ended with exit code {process.returncode}")
    return "".join(lines)


def page(panels: Sequence[report.Panel], chapters: Sequence[str]) -> str:
    """The report, Markdown."""
    picture = "![Medians and ranges](benchmarks.png)" if panels else ""
    parts = ["# Benchmarks", machine(), report.summary(panels), picture, *chapters]
    return "\n\n".join(filter(None, parts)) + "\n"


def machine() -> str:
    """What ran it: for whoever compares."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = [
        time.strftime("%Y-%m-%d %H:%M"),
        f"{len(os.sched_getaffinity(0))} cores ({_processor()})",
        f"load at the end {load}",
        f"Python {platform.python_version()}",
        f"torch {version('torch')}",
        f"ichnode {version('ichnode')}",
        *(f"{peer} {found}" for peer in ("storescp", "Orthanc") if (found := _version(PEERS[peer]()))),
    ]
    return " · ".join(facts)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


def _version(executable: object) -> str | None:
    if not executable:
        return None
    printed = subprocess.run(
        [str(executable), "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"\d+\.\d+\.\d+", printed)
    return found.group() if found else None


if __name__ == "__main__":
    main()
