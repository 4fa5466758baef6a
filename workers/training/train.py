"""From a recipe to a shipped pipeline: phantoms, cross-validation, final members, calibration. No console.

Reported figures are those of the recipe by cross-validation over patients; the shipped members
are then trained on all of them. Everything is kept in the run's folder and resumed from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.domain.findings import CLASSES, ModelIdentity
from workers.models.aggregate import Aggregation
from workers.models.multitask import MultiTaskPipeline, Operating
from workers.models.network import MultiTaskNet
from workers.models.runtime import save_pipeline
from workers.training import evaluate
from workers.training.datasets import Series, ct_ich, load_series, phantoms, save_series
from workers.training.evaluate import Prediction
from workers.training.fit import Corpus, Progress, Run
from workers.training.recipes import Recipe, Stage

PHANTOM_SEEDS = 100_000
"""First seed of the training phantoms; held-out ones start at HELD_OUT_SEEDS."""
HELD_OUT_SEEDS = 900_000
CT_ICH_SOURCE = {
    "name": "CT-ICH v1.0.0",
    "citation": "Hssayeni et al., Data 5(1):14 (2020), doi:10.13026/w8q8-ky94",
    "licence": "CC BY 4.0",
}

Watch = Callable[[str], Progress]
"""Gives the progress callback of a named part of the work."""


@dataclass(frozen=True)
class Plan:
    """What to do with a recipe: `data` is the CT-ICH folder, or None for phantoms only."""

    recipe: Recipe
    out: Path
    version: str
    data: Path | None = None
    phantoms: int = 800
    folds: int = 5
    members: int = 1
    """Repetitions of fine-tuning on all patients with other seeds, each giving its snapshots."""
    seed: int = 1
    workers: int = 1


def run(plan: Plan, watch: Watch) -> ModelIdentity:
    """Do the whole plan; weights and sidecar end up as `<recipe>.safetensors` and `.json` in `plan.out`."""
    drawn = phantom_corpus(plan.out, PHANTOM_SEEDS, plan.phantoms, plan.workers)
    start = _fit(plan, plan.recipe.pretrain, Corpus((), drawn), None, "pretrain", plan.seed, watch)
    held_out = phantom_corpus(plan.out, HELD_OUT_SEEDS, max(4, plan.phantoms // 20), plan.workers)
    if plan.data is None:
        members = [start]
        predictions = _predict(plan.recipe, members, held_out)
        patients: list[str] = []
    else:
        real = real_corpus(plan.out, plan.data)
        predictions = cross_validate(plan, start, real, drawn, watch)
        evaluate.save(plan.out / "out-of-fold.npz", predictions)
        members = list(_members(plan, start, real, drawn, watch))
        patients = [one.patient for one in real]
    return ship(plan, members, predictions, held_out, patients)


def phantom_corpus(folder: Path, first: int, count: int, workers: int) -> list[Series]:
    """Phantom series of `count` seeds from `first`, drawn once and kept in the run's folder."""
    path = folder / "cache" / f"phantoms-{first}-{count}.npz"
    if not path.exists():
        save_series(path, list(phantoms(range(first, first + count), workers)))
    return load_series(path)


def real_corpus(folder: Path, data: Path) -> list[Series]:
    """The CT-ICH patients in `data`, prepared once."""
    path = folder / "cache" / "ct-ich.npz"
    if not path.exists():
        save_series(path, list(ct_ich(data)))
    return load_series(path)


def cross_validate(
    plan: Plan, start: dict[str, Tensor], real: Sequence[Series], drawn: Sequence[Series], watch: Watch
) -> list[Prediction]:
    """Out-of-fold predictions of every patient; each fold starts from the same phantom pretraining."""
    predictions: dict[int, Prediction] = {}
    for number, test in enumerate(evaluate.folds(real, plan.folds, plan.seed)):
        kept = [one for index, one in enumerate(real) if index not in test]
        name = f"fold-{number}"
        weights = _finetune(plan, Corpus(kept, drawn), start, name, plan.seed + number, watch)
        found = _predict(plan.recipe, weights, [real[index] for index in test])
        predictions.update(zip(test, found, strict=True))
    return [predictions[index] for index in range(len(real))]


def _members(
    plan: Plan, start: dict[str, Tensor], real: Sequence[Series], drawn: Sequence[Series], watch: Watch
) -> Iterator[dict[str, Tensor]]:
    for number in range(plan.members):
        corpus, name = Corpus(real, drawn), f"member-{number}"
        yield from _finetune(plan, corpus, start, name, plan.seed + 100 + number, watch)


def _finetune(
    plan: Plan, corpus: Corpus, start: dict[str, Tensor], name: str, seed: int, watch: Watch
) -> list[dict[str, Tensor]]:
    """The averaged weights at the end of each fine-tuning stage."""
    snapshots: list[dict[str, Tensor]] = []
    for number, stage in enumerate(plan.recipe.finetune):
        begin = snapshots[-1] if snapshots else start
        part = f"{name}-{stage.name}"
        snapshots.append(_fit(plan, stage, corpus, begin, part, seed + 1000 * number, watch))
    return snapshots


def _fit(
    plan: Plan,
    stage: Stage,
    corpus: Corpus,
    start: dict[str, Tensor] | None,
    name: str,
    seed: int,
    watch: Watch,
) -> dict[str, Tensor]:
    fitting = Run(plan.recipe, stage, seed)
    if start is not None:
        fitting.start_from(start)
    return fitting.fit(corpus, plan.out / f"{name}.ckpt", watch(name))


def pipeline_of(
    recipe: Recipe, members: Sequence[dict[str, Tensor]], operating: Operating | None = None
) -> MultiTaskPipeline:
    """A pipeline around fresh weights, uncalibrated unless told how to operate."""
    networks = []
    for weights in members:
        network = MultiTaskNet(recipe.widths, recipe.dropout)
        network.load_state_dict(weights)
        networks.append(network)
    plain = Operating(dict.fromkeys(CLASSES, 0.5), 0.5, Aggregation.plain())
    return MultiTaskPipeline(ModelIdentity(recipe.name, "0", ""), networks, operating or plain)


def _predict(
    recipe: Recipe, members: Sequence[dict[str, Tensor]], series: Sequence[Series]
) -> list[Prediction]:
    pipeline = pipeline_of(recipe, members)
    return [evaluate.predict(pipeline, one) for one in series]


def ship(
    plan: Plan,
    members: list[dict[str, Tensor]],
    predictions: Sequence[Prediction],
    held_out: Sequence[Series],
    patients: Sequence[str],
) -> ModelIdentity:
    """Calibrate on the predictions of unseen patients and write weights and sidecar."""
    aggregation = evaluate.calibrate(predictions, evaluate.choose_mixture(predictions))
    thresholds = evaluate.thresholds(predictions, aggregation)
    operating = Operating(thresholds, 0.5, aggregation)
    final = pipeline_of(plan.recipe, members, operating)
    on_phantoms = [evaluate.predict(final, one) for one in held_out]
    facts: dict[str, Any] = {
        "name": plan.recipe.name,
        "version": plan.version,
        "recipe": asdict(plan.recipe),
        "seed": plan.seed,
        "thresholds": thresholds,
        "mask_threshold": operating.mask_threshold,
        "aggregation": aggregation.to_json(),
        "training_data": _sources(plan, patients),
        "metrics": {
            "protocol": _protocol(plan),
            "held_out": evaluate.report(predictions, aggregation),
            "phantoms": evaluate.report(on_phantoms, aggregation),
            "phantom_operating_point": evaluate.operating_point(on_phantoms, aggregation, thresholds),
        },
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return save_pipeline(plan.out / f"{plan.recipe.name}.json", members, facts)


def _sources(plan: Plan, patients: Sequence[str]) -> list[dict[str, Any]]:
    drawn = {"name": "synthetic phantoms", "seeds": [PHANTOM_SEEDS, PHANTOM_SEEDS + plan.phantoms - 1]}
    return [drawn, {**CT_ICH_SOURCE, "patients": list(patients)}] if patients else [drawn]


def _protocol(plan: Plan) -> str:
    if plan.data is None:
        return "held-out phantoms; no patient was used"
    return (
        f"{plan.folds}-fold cross-validation over patients; mixture of heads (of four), calibration and "
        "thresholds from the pooled out-of-fold predictions; shipped weights trained on all patients with "
        "the same recipe"
    )
