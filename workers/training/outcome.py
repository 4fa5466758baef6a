"""From a run's predictions to its report: figures of patients that no network had seen. Ships no weights."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.models import families
from workers.models.ensemble import EnsemblePipeline
from workers.models.picture import PicturePipeline, ReadingPipeline
from workers.preprocess import View
from workers.training import evaluate, report, train
from workers.training.datasets import Series
from workers.training.evaluate import Fitted, Judged
from workers.training.plan import Plan
from workers.training.predict import Prediction, as_input, joined
from workers.training.recipes import RECIPES
from workers.training.train import Validated, Watch

REPEATS = 5
REPORT = "report"


AT_A_THRESHOLD = (
    "Figures at a threshold use one threshold chosen on all out-of-fold predictions, which flatters; the "
    "cross-fitted operating point among the facts does not. Slices are judged at the threshold of series."
)
OF_ONE_FOLD = (
    "One fold only was judged: its calibration and thresholds were chosen on its own patients, which "
    "flatters every figure at a threshold and every probability. Slices are judged at the threshold of "
    "series."
)
OF_A_RECIPE = "The folds judge a recipe, not one set of weights."


@dataclass(frozen=True)
class Part:
    """One trained network family of a recipe: its predictions, how it would operate."""

    plan: Plan
    validated: Validated
    fitted: Fitted
    pipeline: PicturePipeline


@dataclass(frozen=True)
class Outcome:
    """Figures of a cross-validation. A recipe has one part; a gated one or an ensemble has several.

    `fitted` is how the whole would operate.
    """

    parts: tuple[Part, ...]
    fitted: Fitted
    summary: dict[str, Any]
    facts: dict[str, Any]


def validate(plan: Plan, watch: Watch) -> Outcome:
    """Cross-validate, judge, and write the report into the recipe's folder."""
    family = plan.recipe.family
    plans = plan.parts() if family in (families.GATED, families.ENSEMBLE) else (plan,)
    parts = tuple(_part(one, watch) for one in plans)
    judged = _judged(plan, parts)
    fitted = parts[0].fitted
    if family == families.ENSEMBLE:
        fitted = evaluate.fit_operating(_together(plan, parts), plan.recipe.rules)
    facts = _facts(plan, parts, judged)
    if family == families.GATED:
        facts["agreement of classifier and mask, patients"] = evaluate.agreement(
            *(_judged(part.plan, (part,)) for part in parts)
        )
    cases = [one.case for one in judged]
    knows = [name for name in CLASSES if name in parts[0].pipeline.knows]
    summary = report.summarise(cases, dict(fitted.thresholds), classes=knows)
    summary["seeds"] = _seed_by_seed(plan, parts)
    title = f"{plan.recipe.name}: cross-validation"
    limits = (OF_ONE_FOLD if len(plan.chosen_folds) == 1 else AT_A_THRESHOLD, OF_A_RECIPE)
    report.write(plan.folder / REPORT, title, facts, summary, cases, about=about(plan, facts), limits=limits)
    return Outcome(parts, fitted, summary, facts)


def _judged(plan: Plan, parts: Sequence[Part], seed: int | None = None) -> list[Judged]:
    """The verdicts of one seed alone, or of the mean of all. The parts saw the same folds."""
    if plan.recipe.family == families.GATED:
        return evaluate.gated(*(_judged(part.plan, (part,), seed) for part in parts))
    return evaluate.cross_fitted(_together(plan, parts, seed), parts[0].validated.parts, plan.recipe.rules)


def _together(plan: Plan, parts: Sequence[Part], seed: int | None = None) -> list[Prediction]:
    """One prediction a series, from a single part or from those of an ensemble."""
    said = [part.validated.of(seed) for part in parts]
    if len(said) == 1:
        return said[0]
    return [joined(of_one, plan.recipe.weights) for of_one in zip(*said, strict=True)]


def _seed_by_seed(plan: Plan, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Figures of each seed alone, of the parts first where there are several: how much of them is chance."""
    wholes = [*((part.plan, (part,)) for part in parts if len(parts) > 1), (plan, tuple(parts))]
    return [
        {"recipe": one.recipe.name, "seed": seed, **_in_short(_judged(one, own, seed))}
        for one, own in wholes
        for seed in plan.all_seeds
    ]


def _in_short(judged: Sequence[Judged]) -> dict[str, float | None]:
    """The AUC of "any" of slices and studies, and the pooled Dice, without intervals."""
    found = report.summarise([one.case for one in judged], {}, classes=["any"], draws=1)
    dice = (found["masks"] or {}).get("all", {}).get("dice_pooled")
    point = evaluate.operating_point(judged)
    return {
        **{f"{which}_auc": _value(found[which]["any"].get("auc")) for which in ("slice", "study")},
        "sensitivity": point["sensitivity"],
        "specificity": point["specificity"],
        "dice_pooled": _value(dice),
    }


def _value(figure: Sequence[float | None] | None) -> float | None:
    return figure[0] if figure else None


def _part(plan: Plan, watch: Watch) -> Part:
    validated = train.cross_validate(plan, watch)
    predictions = validated.averaged()
    states, _ = train.fold(plan, plan.chosen_folds[0], plan.seed, watch)
    return Part(
        plan,
        validated,
        evaluate.fit_operating(predictions, plan.recipe.rules),
        train.pipeline(plan, train.together(plan, states)),
    )


def _facts(plan: Plan, parts: Sequence[Part], judged: Sequence[Judged]) -> dict[str, Any]:
    """What stands beside the figures. Images a second are those of all networks of one member."""
    seconds = sum(1 / throughput(part.pipeline, part.plan.real) for part in parts)
    return {
        "recipe": plan.recipe.name,
        "summary": plan.recipe.summary,
        "parameters": sum(parameters(part.pipeline) for part in parts),
        "pixels": " and ".join(dict.fromkeys(str(part.pipeline.view.size) for part in parts)),
        "images_per_s": round(1 / seconds, 1),
        "device": f"{plan.device.type}, {torch.get_num_threads()} threads",
        "folds": f"{len(plan.chosen_folds)} of {plan.folds}",
        "seeds": plan.seeds,
        "patients": len({one.case.patient for one in judged}),
        "operating point, cross-fitted": evaluate.operating_point(judged),
        "data": ", ".join(source.name for source, _ in plan.data),
        "protocol": protocol(plan),
    }


def about(plan: Plan, facts: Mapping[str, Any]) -> str:
    """Who was looked at, and by whom, in a sentence or two."""
    return (
        f"{facts['patients']} patients of {facts['data']}, each predicted by networks of the recipe "
        f"{plan.recipe.name!r} that had not seen them. Weights that are shipped learn from all of them."
    )


def protocol(plan: Plan) -> str:
    """How the figures came about, in words."""
    if not plan.data:
        return "held-out phantoms; no patient was used"
    which = "" if not plan.only else f" (folds {', '.join(map(str, plan.only))} only)"
    stops = any(stage.patience for stage in plan.recipe.stages)
    early = f"; {train.VALIDATION:.0%} of the patients stopped the training early" if stops else ""
    others = "of each fold from the predictions of the other folds"
    fitted = "from the predictions of this very fold" if len(plan.chosen_folds) == 1 else others
    return (
        f"{plan.folds}-fold cross-validation over patients{which}, {plan.seeds} seed(s){early}; calibration, "
        f"mixture of heads and thresholds {fitted}"
    )


def throughput(pipeline: ReadingPipeline, seen: Callable[[View], Sequence[Series]]) -> float:
    """Pictures a second through all networks of a pipeline, prepared beforehand; the median of REPEATS.

    `seen` prepares series for a view.
    """
    if isinstance(pipeline, EnsemblePipeline):
        return 1 / sum(1 / throughput(part, seen) for part in pipeline.parts)
    assert isinstance(pipeline, PicturePipeline)
    one = seen(pipeline.view)[0]
    source, spacing_mm = as_input(one), (one.step_mm, 1.0, 1.0)
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        pipeline.read(source, spacing_mm)
        if pipeline.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return len(source.pictures) / statistics.median(taken[1:])


def parameters(pipeline: ReadingPipeline) -> int:
    """Learnt numbers of all networks of a pipeline."""
    if isinstance(pipeline, EnsemblePipeline):
        return sum(parameters(part) for part in pipeline.parts)
    networks = {one for value in vars(pipeline).values() for one in _modules(value)}
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _modules(value: object) -> list[nn.Module]:
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, nn.Module)]


def table(out: Path) -> str:
    """The recipes with a report in `out` side by side, in the order of RECIPES, as Markdown.

    Raises PermanentError NOTHING_TRAINED when there is none.
    """
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for one in RECIPES:
        path = out / one.name / REPORT / "report.json"
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            rows.append((one.name, told, told["facts"]))
    if not rows:
        raise PermanentError("NOTHING_TRAINED", f"no report in {out}; train a recipe with --data first")
    return report.compare(rows)
