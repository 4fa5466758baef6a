"""Judge shipped weights, at their own thresholds, on a set. Trains nothing and calibrates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.models.catalogue import entry
from workers.models.contract import Pipeline
from workers.models.gated import GatedPipeline
from workers.models.picture import ReadingPipeline
from workers.models.runtime import load_pipeline, read_sidecar
from workers.preprocess import View
from workers.training import report
from workers.training.datasets import Series, phantoms
from workers.training.evaluate import Judged, gated, judge, operating_of, operating_point
from workers.training.outcome import parameters, throughput
from workers.training.plan import HELD_OUT_SEEDS
from workers.training.predict import predict_through
from workers.training.report import Case
from workers.training.ship import sidecar_of
from workers.training.sources import Source

Sets = Sequence[tuple[Source, Path]]
SYNTHETIC = "synthetic heads, held out of training"


@dataclass(frozen=True)
class Verdict:
    """Figures of shipped weights; `seen` are patients of the set they were trained on."""

    title: str
    facts: dict[str, Any]
    summary: dict[str, Any]
    cases: list[Case]
    seen: frozenset[str]

    @property
    def about(self) -> str:
        """Who was looked at, in a sentence."""
        return f"{self.facts['data']}, read by the shipped weights at their shipped thresholds."

    @property
    def limits(self) -> list[str]:
        """What the reader must know before any figure."""
        if not self.seen:
            return []
        return [f"{len(self.seen)} of these patients were trained on: every figure here flatters."]


def sidecar(model: str, runs: Path) -> Path:
    """Of a recipe that was trained in `runs`, of a sidecar's path, or of a pipeline of the catalogue.

    Raises KeyError with the names there are.
    """
    trained = sidecar_of(runs, model)
    return trained if trained.exists() else entry(model).sidecar


def appraise(path: Path, sets: Sets, count: int, device: str) -> Verdict:
    """The pipeline of that sidecar on the sets, or on `count` held-out phantoms where there is none."""
    pipeline, facts = load_pipeline(path, device), read_sidecar(path)
    judged, speed, size = _judged(pipeline, sets, count)
    cases = [one.case for one in judged]
    knows = [name for name in CLASSES if name in pipeline.knows]
    seen = _trained_on(facts) & {one.patient for one in cases}
    told = {
        "pipeline": f"{facts['name']} {facts['version']}, sha256 {facts['sha256'][:16]}…",
        "parameters": size,
        "images_per_s": round(speed, 1),
        "device": device,
        "data": ", ".join(source.name for source, _ in sets)
        or f"{count} synthetic heads, held out of training",
        "patients seen in training": len(seen),
        "operating point": operating_point(judged),
        "protocol": "shipped weights at their shipped thresholds",
    }
    thresholds = {name: pipeline.thresholds[name] for name in knows}
    summary = report.summarise(cases, thresholds, classes=knows)
    return Verdict(f"{facts['name']} {facts['version']}", told, summary, cases, frozenset(seen))


def _judged(pipeline: Pipeline, sets: Sets, count: int) -> tuple[list[Judged], float, int]:
    """Every series judged, pictures a second, learnt numbers. A gated pipeline's parts see for themselves."""
    if isinstance(pipeline, GatedPipeline):
        parts = [_judged(part, sets, count) for part in (pipeline.classifier, pipeline.segmenter)]
        both = gated(*(judged for judged, _, _ in parts))
        return both, 1 / sum(1 / speed for _, speed, _ in parts), sum(size for _, _, size in parts)
    if not isinstance(pipeline, ReadingPipeline):
        raise PermanentError("MODEL_INVALID", f"{type(pipeline).__name__} cannot be evaluated on pictures")
    fitted = operating_of(pipeline)
    seen = cache(lambda view: _series(view, sets, count))
    judged = [judge(one, fitted) for one in predict_through(pipeline, seen)]
    return judged, throughput(pipeline, seen), parameters(pipeline)


def _series(view: View, sets: Sets, count: int) -> list[Series]:
    if not sets:
        return list(phantoms(range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + count), view=view))
    found = [one for source, folder in sets for one in source.read(folder, view)]
    if not found:
        names = ", ".join(source.name for source, _ in sets)
        raise PermanentError("SET_EMPTY", f"no series in {names} can be judged; see the log, and the folder")
    return found


def _trained_on(facts: dict[str, Any]) -> set[str]:
    return {patient for source in facts.get("training_data", []) for patient in source.get("patients", [])}
