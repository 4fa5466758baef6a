"""How long a head CT takes from the volume to findings, masks and maps: each runtime beside plain torch.

`python -m tests.bench.model [--model default] [--runtimes cpu openvino] [--rounds 7] [--threads 2]
[--panels FILE]` reads a
phantom head of 32 slices of 512 x 512 in turns with every runtime and prints medians, ratios within a round
(torch's time through the runtime's), and what the bare networks take on pictures prepared beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.bench.report import Panel, spread, write
from workers.models.contract import Pipeline
from workers.models.device import OPENVINO
from workers.models.ensemble import EnsemblePipeline
from workers.models.picture import PicturePipeline
from workers.models.runtime import load_pipeline
from workers.phantom import PhantomVolume, volume
from workers.preprocess import network_input

SLICES, SIZE = 32, 512
PLAIN, TORCH = "cpu", "plain torch"
"""The runtime the others are compared with: torch in float32 on the CPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--runtimes", nargs="+", default=[PLAIN, OPENVINO])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--panels", type=Path, help="where all times are kept as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = volume(1, ("epidural", "intraparenchymal"), slices=SLICES, size=SIZE, lowest_mm=-60)
    pipelines = {name: load_pipeline(options.model, name) for name in options.runtimes}
    print(f"{SLICES} slices of {SIZE} x {SIZE}, {options.threads} threads, {options.rounds} rounds\n")
    print("| runtime | classify, s | all findings, s | bare networks, s | plain torch / this, all findings |")
    print("|---|---|---|---|---|")
    found = measure(pipelines, head, options.rounds)
    for name, (first, whole, bare, ratios) in found.items():
        told = spread(ratios) if ratios else "–"
        print(f"| {name} | {spread(first)} | {spread(whole)} | {spread(bare)} | {told} |", flush=True)
    if options.panels:
        groups = {
            what: {TORCH if name == PLAIN else name: times[place] for name, times in found.items()}
            for place, what in enumerate(("classify", "all findings", "bare networks"))
        }
        write(options.panels, [Panel("From a volume to findings", "s", options.runtimes[-1], False, groups)])


Times = tuple[list[float], list[float], list[float], list[float]]


def measure(pipelines: dict[str, Pipeline], head: PhantomVolume, rounds: int) -> dict[str, Times]:
    """Seconds of the classification, of everything, and of the bare networks; ratios to PLAIN, if there.

    A first round, which warms everything up, is not counted.
    """
    taken: dict[str, Times] = {name: ([], [], [], []) for name in pipelines}
    for number in range(rounds + 1):
        for name, pipeline in pipelines.items():
            first, whole = _read(pipeline, head)
            bare = _timed(_bare(pipeline, head))
            if number:
                for kept, value in zip(taken[name], (first, whole, bare), strict=False):
                    kept.append(value)
    for name, (_, whole, _, ratios) in taken.items():
        if PLAIN in taken and name != PLAIN:
            ratios += [one / own for one, own in zip(taken[PLAIN][1], whole, strict=True)]
    return taken


def _read(pipeline: Pipeline, head: PhantomVolume) -> tuple[float, float]:
    began = time.perf_counter()
    answer = pipeline.classify(head.hu, head.spacing_mm)
    classified = time.perf_counter() - began
    pipeline.segment(head.hu, head.spacing_mm, answer)
    pipeline.segment_subtypes(head.hu, head.spacing_mm, answer)
    pipeline.explain(head.hu, head.spacing_mm, answer, "any")
    return classified, time.perf_counter() - began


def _bare(pipeline: Pipeline, head: PhantomVolume) -> Callable[[], object]:
    parts: Sequence[object] = pipeline.parts if isinstance(pipeline, EnsemblePipeline) else (pipeline,)
    sources = [
        (part, network_input(head.hu, head.spacing_mm, part.view))
        for part in parts
        if isinstance(part, PicturePipeline)
    ]
    return lambda: [part.read(source, head.spacing_mm) for part, source in sources]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
