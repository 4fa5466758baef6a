"""How long the result objects of a series take to build and encode, and how much memory.

`python -m tests.bench.outputs [--repeats 5] [--outputs seg,sc,sr]`. Each case runs in a process of its own,
on files as they lie in the spool, and ends at the encoded bytes. Wall and CPU time are printed, since on a
machine with other work only the latter tells something; the first run, which also loads highdicom's tables,
stands apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from node.gathering import read_source
from node.outputs.catalogue import NAMES, build_all
from node.outputs.context import Context
from node.outputs.encoding import encode
from node.outputs.source import Source
from node.pixels import hounsfield
from tests.factories import MADE_AT, analysed, bleed, ct_series

ROWS = 512
CASES = {"32 slices": (32, 5.0), "300 thin slices": (300, 0.5)}
"""Slices, and their step in mm."""
GOALS_S = {"32 slices": 0.8, "300 thin slices": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--outputs", default=",".join(NAMES))
    parser.add_argument("--case", choices=CASES)  # in a process of its own
    options = parser.parse_args()
    outputs = options.outputs.split(",")
    if options.case:
        print(json.dumps(measure(options.case, outputs, options.repeats)))
        return
    for case in CASES:
        arguments = ["--case", case, "--outputs", options.outputs, "--repeats", str(options.repeats)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.outputs", *arguments], stdout=subprocess.PIPE, check=True
        )
        show(case, json.loads(done.stdout))


def measure(case: str, outputs: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Wall and CPU seconds of each run, the first one apart; peak memory in MB, before and after."""
    slices, step_mm = CASES[case]
    masks = bleed(slices, ROWS)
    heat = activation(slices)
    with tempfile.TemporaryDirectory(prefix="ichnode-bench-") as folder:
        maker = multiprocessing.get_context("fork").Process(
            target=write_series, args=(Path(folder), slices, step_mm)
        )
        maker.start()  # so that its memory does not count
        maker.join()
        paths = sorted(Path(folder).iterdir())
        found: dict[str, list[float]] = {"wall": [], "cpu": [], "bytes": [], "before_mb": [peak_mb()]}
        for _ in range(repeats + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            sources = read_source(paths)
            findings = analysed(sources, {"any": 0.97, "subdural": 0.9}, masks=masks)
            source = Source.ordered(sources, findings, hounsfield)
            context = Context(findings, source, MADE_AT, "bench", masks, heat)
            size = sum(len(encode(ds)) for made in build_all(context, outputs).values() for ds in made)
            found["wall"].append(time.perf_counter() - wall)
            found["cpu"].append(time.process_time() - cpu)
            found["bytes"].append(size)
    return {**found, "peak_mb": [peak_mb()]}


def activation(slices: int) -> np.ndarray:
    """uint8 (z, 16, 16): a smooth hill over the bleed, as Grad-CAM++ draws it."""
    z, y, x = np.ogrid[0:slices, 0:16, 0:16]
    distance = ((z / slices - 0.6) / 0.2) ** 2 + ((y / 16 - 0.4) / 0.2) ** 2 + ((x / 16 - 0.65) / 0.2) ** 2
    return np.rint(255 * np.exp(-distance / 2)).astype(np.uint8)


def write_series(folder: Path, slices: int, step_mm: float) -> None:
    for index, ds in enumerate(ct_series(slices, ROWS, spacing_mm=0.45, step_mm=step_mm)):
        ds.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(case: str, found: dict[str, list[float]]) -> None:
    goal = GOALS_S[case]
    print(f"{case}: {found['bytes'][0] / 2**20:.1f} MB of objects; goal {goal} s")
    for clock in ("wall", "cpu"):
        first, *others = found[clock]
        spread = f"{min(others):.2f}–{max(others):.2f}"
        print(f"  {clock:<4} {statistics.median(others):.2f} s ({spread}), first run {first:.2f} s")
    before, peak = found["before_mb"][0], found["peak_mb"][0]
    print(f"  peak memory {peak:.0f} MB, of which {before:.0f} MB before the first run")


if __name__ == "__main__":
    main()
