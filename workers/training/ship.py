"""Train a recipe on all patients, write weights and sidecar. Its figures are the cross-validation's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from node.domain.findings import ModelIdentity
from workers.models import families
from workers.models.ensemble import EnsemblePipeline
from workers.models.picture import PicturePipeline, ReadingPipeline
from workers.models.runtime import load_pipeline, save_pipeline
from workers.training import evaluate, report, train
from workers.training.cache import patients
from workers.training.datasets import Series
from workers.training.evaluate import Fitted
from workers.training.learners import sha256_of, without_picture_head
from workers.training.outcome import Outcome, Part, protocol, validate
from workers.training.plan import HELD_OUT_SEEDS, PHANTOM_SEEDS, Plan
from workers.training.predict import as_input, predict_all, predict_through
from workers.training.train import State, Watch

COMPARED = 4
"""Held-out phantoms that shipped and trained weights are compared on."""


def run(plan: Plan, watch: Watch) -> tuple[Outcome | None, ModelIdentity | None]:
    """The whole plan: cross-validation and report where there are patients, then weights where wanted."""
    outcome = validate(plan, watch) if plan.data else None
    return outcome, ship(plan, outcome, watch) if plan.ship else None


def ship(plan: Plan, outcome: Outcome | None, watch: Watch) -> ModelIdentity:
    """Weights as `<recipe>.safetensors` and `.json` in the recipe's folder."""
    parts: Sequence[Part | None] = outcome.parts if outcome else (None,)
    trained = [_trained(part.plan if part else plan, part, watch) for part in parts]
    facts = _common(plan, outcome)
    if plan.recipe.family == families.GATED:
        facts |= {"family": families.GATED, "classifier": trained[0][1], "segmenter": trained[1][1]}
    elif plan.recipe.family == families.ENSEMBLE:
        assert outcome is not None
        facts |= _ensemble_facts(plan, outcome.fitted, [own for _, own in trained])
    else:
        facts |= trained[0][1]
    states = [without_picture_head(state) for own, _ in trained for state in own]
    sidecar = plan.folder / f"{plan.recipe.name}.json"
    save_pipeline(sidecar, states, facts)
    shipped = load_pipeline(sidecar, str(plan.device))
    if isinstance(shipped, ReadingPipeline):
        plans = [part.plan for part in outcome.parts] if outcome else [plan]
        facts["metrics"] |= _on_phantoms(plans, [own for own, _ in trained], facts, shipped)
    return save_pipeline(sidecar, states, facts)


def _trained(plan: Plan, part: Part | None, watch: Watch) -> tuple[list[State], dict[str, Any]]:
    """Networks trained on all patients, and how they operate: calibrated on predictions of unseen ones."""
    lengths = part.validated.lengths if part else []
    states: list[State] = []
    if plan.data:
        for seed in plan.all_seeds[:1] if plan.recipe.parts else plan.all_seeds:
            states += train.final(plan, seed, lengths, watch)[0]
        states = train.together(plan, states)
    else:
        start = train.pretrained(plan, watch)
        states += [start] if start is not None else []
    fitted = part.fitted if part else _fitted_on_phantoms(plan, states)
    return states, _operating_facts(plan, fitted, len(states))


def _fitted_on_phantoms(plan: Plan, states: Sequence[State]) -> Fitted:
    return evaluate.fit_operating(
        predict_all(train.pipeline(plan, states), held_out(plan)), plan.recipe.rules
    )


def held_out(plan: Plan) -> list[Series]:
    """Phantoms that no network was trained on."""
    return plan.drawn(train.view_of(plan.recipe), HELD_OUT_SEEDS, plan.held_out)


def _operating_facts(plan: Plan, fitted: Fitted, members: int) -> dict[str, Any]:
    """The part of a sidecar that says how these networks are to be used."""
    view = train.view_of(plan.recipe)
    return {
        "family": plan.recipe.family,
        "members": members,
        "preprocessing": families.preprocessing(plan.recipe.family, view),
        "recipe": asdict(plan.recipe),
        **_statements(fitted),
    }


def _common(plan: Plan, outcome: Outcome | None) -> dict[str, Any]:
    return {
        "name": plan.recipe.name,
        "version": plan.version,
        "seeds": list(plan.all_seeds),
        "soup": plan.soup,
        "training_data": _sources(plan, outcome),
        "init": {"file": plan.init.name, "sha256": sha256_of(plan.init)} if plan.init else None,
        "metrics": {
            "protocol": protocol(plan),
            "held_out": brief(outcome.summary) if outcome else None,
            "facts": outcome.facts if outcome else {},
        },
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _sources(plan: Plan, outcome: Outcome | None) -> list[dict[str, Any]]:
    drawn = [one.synthetic for one in plan.whole() if train.wants_phantoms(one.recipe) or not plan.data]
    found: list[dict[str, Any]] = []
    if drawn:
        seeds = [PHANTOM_SEEDS, PHANTOM_SEEDS + max(drawn) - 1]
        found.append({"name": "synthetic phantoms", "seeds": seeds})
    if outcome is None:
        return found
    first = outcome.parts[0]
    for source, folder in plan.data:
        facts = {"name": source.name, "citation": source.citation, "licence": source.licence}
        names = patients(first.plan.of_set(source, folder, first.pipeline.view))
        found.append({**facts, "patients": names})
    return found


def _ensemble_facts(plan: Plan, fitted: Fitted, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    weights = plan.recipe.weights
    return {
        "family": families.ENSEMBLE,
        "recipe": asdict(plan.recipe),
        "parts": [{**own, "weight": weight} for own, weight in zip(parts, weights, strict=True)],
        **_statements(fitted),
    }


def _statements(fitted: Fitted) -> dict[str, Any]:
    return {
        "thresholds": dict(fitted.thresholds),
        "mask_threshold": fitted.mask_threshold,
        "aggregation": fitted.aggregation.to_json(),
    }


def _on_phantoms(
    plans: Sequence[Plan],
    trained: Sequence[Sequence[State]],
    facts: dict[str, Any],
    shipped: ReadingPipeline,
) -> dict[str, Any]:
    """Figures on held-out phantoms, and how far the shipped float16 weights are off the trained ones."""
    fitted = evaluate.operating_of(shipped)
    seen = {train.view_of(plan.recipe): held_out(plan) for plan in plans}
    judged = [evaluate.judge(one, fitted) for one in predict_through(shipped, seen.__getitem__)]
    summary = report.summarise([one.case for one in judged], dict(fitted.thresholds))
    parts = shipped.parts if isinstance(shipped, EnsemblePipeline) else (shipped,)
    apart = [
        _apart(train.pipeline(plan, states), part, one)
        for plan, states, part in zip(plans, trained, parts, strict=True)
        for one in held_out(plan)[:COMPARED]
    ]
    return {
        "phantoms": brief(summary),
        "phantom_operating_point": evaluate.operating_point(judged),
        "largest_logit_difference_of_shipped_weights": round(max(apart), 5),
    }


def _apart(trained: PicturePipeline, shipped: ReadingPipeline, series: Series) -> float:
    assert isinstance(shipped, PicturePipeline)
    source, spacing_mm = as_input(series), (series.step_mm, 1.0, 1.0)
    one, other = (pipeline.read(source, spacing_mm).class_logits for pipeline in (trained, shipped))
    return float(np.abs(one - other).max())


def brief(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a summary what a sidecar tells; the rest is in the report."""
    told = ("n", "positive", "auc", "ap", "sensitivity_at_specificity_0.90")
    levels = {
        level: {name: {key: one[key] for key in told if key in one} for name, one in summary[level].items()}
        for level in ("slice", "study")
    }
    return {"cases": summary["cases"], **levels}


def sidecar_of(out: Path, name: str) -> Path:
    """Where a run in `out` keeps the sidecar of a recipe."""
    return out / name / f"{name}.json"
