"""From a plan to figures and a shipped pipeline: phantoms, cross-validation, final members. No console.

Reported figures are those of the recipe by cross-validation over patients; the shipped members are then
trained on all of them. Everything is kept in the run's folder and resumed from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from node.domain.errors import PermanentError
from workers.models.picture import Operating, PicturePipeline
from workers.preprocess import View
from workers.training import curves
from workers.training.datasets import Series
from workers.training.evaluate import folds
from workers.training.fit import (
    Corpus,
    Fitted,
    Progress,
    Run,
    read_checkpoint,
    require_own,
    same_corpus,
    write_checkpoint,
)
from workers.training.learners import learner
from workers.training.plan import Plan
from workers.training.predict import Prediction, load, predict_all, save
from workers.training.recipes import Recipe, Stage
from workers.training.scanners import OtherScanner
from workers.training.sequence_fit import fit_sequence
from workers.training.sequenced import sequenced

VALIDATION = 0.15
"""Share of all patients that stop the training of a fold: 65 % teach, 15 % stop, 20 % are predicted."""
FINAL = "final"

State = Mapping[str, Tensor]
Watch = Callable[[str], Progress]
"""Gives the progress callback of a named part of the work."""


@dataclass(frozen=True)
class Validated:
    """Cross-validation: predictions of every series that has one, seed by seed, and whose fold each is in.

    `lengths` are the steps after which each stage was best, fold by fold, for the final training. `soup` is
    what the mean of all seeds' weights predicts, where that is what answers.
    """

    predictions: dict[int, list[Prediction]]
    parts: list[list[int]]
    lengths: list[list[int]]
    soup: list[Prediction] | None = None

    def of(self, seed: int | None) -> list[Prediction]:
        """One prediction a series, of one seed alone, or of all for None."""
        return self.averaged() if seed is None else self.predictions[seed]

    def averaged(self) -> list[Prediction]:
        """One prediction a series: the mean logits, masks and maps of all seeds, or what their soup says."""
        if self.soup is not None:
            return self.soup
        return [average(same) for same in zip(*self.predictions.values(), strict=True)]


def average(same: Sequence[Prediction]) -> Prediction:
    """Predictions of one series by several models as one."""
    first = same[0]
    if len(same) == 1:
        return first
    blood = [one.blood for one in same if one.blood is not None]
    return replace(
        first,
        class_logits=np.mean([one.class_logits for one in same], axis=0, dtype=np.float32),
        mask_logits=np.mean([one.mask_logits for one in same], axis=0, dtype=np.float32),
        heat=np.mean([one.heat.astype(np.float32) for one in same], axis=0).astype(np.float16),
        blood=np.rint(np.mean(blood, axis=0)).astype(np.uint8) if blood else None,
    )


def cross_validate(plan: Plan, watch: Watch) -> Validated:
    """Out-of-fold predictions of the chosen folds; every recipe has the same folds of the same patients.

    Raises PermanentError TOO_FEW_PATIENTS where one of them has nobody to judge or to learn from.
    """
    real = plan.real(view_of(plan.recipe))
    divided = folds(real, plan.folds, plan.seed)
    empty = [number for number in plan.chosen_folds if not divided[number]]
    if empty:
        raise PermanentError(
            "TOO_FEW_PATIENTS", f"fold {empty[0]} has nobody to judge; give more data or fewer --folds"
        )
    order = [index for number in plan.chosen_folds for index in divided[number]]
    place = {index: rank for rank, index in enumerate(order)}
    parts = [[place[index] for index in divided[number]] for number in plan.chosen_folds]
    lengths: list[list[int]] = []
    predictions: dict[tuple[int, ...], list[Prediction]] = {}
    for seeds in (*((seed,) for seed in plan.all_seeds), *plan.soups):
        predictions[seeds] = []
        for number in plan.chosen_folds:
            test = [real[index] for index in divided[number]]
            told = [fold(plan, number, seed, watch) for seed in seeds]
            lengths += [best for _, best in told]
            answering = together(plan, [state for states, _ in told for state in states])
            predictions[seeds] += _predicted(plan, number, seeds, answering, test)
    alone = {seed: predictions[(seed,)] for seed in plan.all_seeds}
    return Validated(alone, parts, lengths, *(predictions[seeds] for seeds in plan.soups))


def _predicted(
    plan: Plan, number: int, seeds: Sequence[int], states: Sequence[State], test: Sequence[Series]
) -> list[Prediction]:
    """What these networks say of the patients of a fold, kept in the recipe's folder."""
    name = "+".join(map(str, seeds))
    path = plan.folder / f"fold-{number}-seed-{name}-{plan.digest()}.npz"
    found = load(path) if path.exists() else []
    if not _are_of(found, test):
        save(path, predict_all(pipeline(plan, states), test))
        found = load(path)
    return found


def together(plan: Plan, states: Sequence[State]) -> list[State]:
    """The networks that answer: all of them, or where a soup is wanted the mean of them."""
    if not plan.souped:
        return list(states)
    return [{name: _mean([one[name] for one in states]) for name in states[0]}]


def _mean(same: Sequence[Tensor]) -> Tensor:
    """In the type of the first; numbers of batches that normalisation has seen are rounded."""
    mean = torch.stack([one.double() for one in same]).mean(0)
    return (mean if same[0].is_floating_point() else mean.round()).to(same[0].dtype)


def _are_of(predictions: Sequence[Prediction], series: Sequence[Series]) -> bool:
    """Whether these are predictions of these series; the files of a set may have changed since."""
    return len(predictions) == len(series) and all(
        (one.patient, one.name) == (other.patient, other.name)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.told, other.told)
        for one, other in zip(predictions, series, strict=True)
    )


def fold(plan: Plan, number: int, seed: int, watch: Watch) -> tuple[list[State], list[int]]:
    """Networks that have not seen the patients of one fold, and how long their stages were."""
    real = plan.real(view_of(plan.recipe))
    test = set(folds(real, plan.folds, plan.seed)[number])
    rest = [index for index in range(len(real)) if index not in test]
    stops: set[int] = set()
    if _stops_early(plan.recipe):
        stops = {rest[one] for one in _stopping([real[one] for one in rest], len(real), (plan.seed, number))}
    corpus = Corpus(
        taught(plan, [index for index in rest if index not in stops]),
        plan.drawn(view_of(plan.recipe)) if wants_phantoms(plan.recipe) else (),
        [real[index] for index in sorted(stops)],
    )
    if not corpus.real:
        raise PermanentError(
            "TOO_FEW_PATIENTS", f"fold {number} leaves nobody to learn from; give more data or fewer --folds"
        )
    return networks(plan, corpus, f"fold-{number}-seed-{seed}", number, seed, watch)


def taught(plan: Plan, indices: Sequence[int]) -> list[Series]:
    """These series as they are, then as other scanners may show them."""
    view = view_of(plan.recipe)
    views = (view, *(OtherScanner.of(view, number + 1) for number in range(plan.recipe.scanners)))
    return [series[index] for series in map(plan.real, views) for index in indices]


def _stopping(rest: Sequence[Series], total: int, seed: tuple[int, ...]) -> list[int]:
    """Indices of the series, of whole patients, that make the validation part."""
    count = max(2, round(1 / VALIDATION * len(rest) / total))
    return folds(rest, count, int(np.random.default_rng(seed).integers(2**31)))[0]


def networks(
    plan: Plan, corpus: Corpus, name: str, number: int | None, seed: int, watch: Watch
) -> tuple[list[State], list[int]]:
    """Train all networks of a recipe; for one of parts, the parts' own runs come first."""
    if plan.recipe.parts:
        told = ((part, part_states(part, number, seed, watch)) for part in plan.parts())
        states = [state for part, own in told for state in together(part, own)]
        return [*states, _sequence(plan, states, corpus, name, seed, watch)], []
    start = pretrained(plan, watch)
    snapshots: list[State] = []
    lengths: list[int] = []
    for place, stage in enumerate(plan.recipe.stages):
        fitted = _fit(plan, stage, corpus, snapshots[-1] if snapshots else start, f"{name}-{stage.name}",
                      seed + 1000 * place, watch)  # fmt: skip
        snapshots.append(fitted.weights)
        history = fitted.history
        stopped = history.validation[history.best][0] if stage.patience and history.validation else 0
        lengths.append(stopped or len(history.training))
    return snapshots[-plan.recipe.members :], lengths


def part_states(part: Plan, number: int | None, seed: int, watch: Watch) -> list[State]:
    """The networks of a recipe that is a part, from its own run on the same fold, or on all patients."""
    return (fold(part, number, seed, watch) if number is not None else final(part, seed, (), watch))[0]


def final(
    plan: Plan, seed: int, lengths: Sequence[Sequence[int]], watch: Watch
) -> tuple[list[State], list[int]]:
    """Networks trained on all patients, as long as was best in the folds.

    Under a name of their own where that is told by some of the folds: by all of them it is another length.
    """
    view = view_of(plan.recipe)
    stages = list(plan.recipe.stages)
    name = f"{FINAL}-seed-{seed}"
    for place, stage in enumerate(stages):
        told = [fold_lengths[place] for fold_lengths in lengths if len(fold_lengths) > place]
        if stage.patience and told:
            stages[place] = replace(stage, steps=round(float(np.mean(told))), epochs=0.0, patience=0)
            if plan.only:
                name = f"{FINAL}-of-{'-'.join(map(str, plan.only))}-seed-{seed}"
        else:
            stages[place] = replace(stage, patience=0)
    phantoms = plan.drawn(view) if wants_phantoms(plan.recipe) else []
    corpus = Corpus(taught(plan, range(len(plan.real(view)))), phantoms)
    lasting = plan.of(replace(plan.recipe, stages=tuple(stages)))
    return networks(lasting, corpus, name, None, seed + 100, watch)


def pretrained(plan: Plan, watch: Watch) -> State | None:
    """Weights after phantoms alone, the same for every fold; None for a recipe that does not want them."""
    stage = plan.recipe.pretrain
    if stage is None:
        return None
    drawn = plan.drawn(view_of(plan.recipe))
    return _fit(plan, stage, Corpus((), drawn), None, f"pretrain-seed-{plan.seed}", plan.seed, watch).weights


def _fit(
    plan: Plan, stage: Stage, corpus: Corpus, start: State | None, name: str, seed: int, watch: Watch
) -> Fitted:
    run = Run(plan.recipe, stage, learner(plan.recipe, plan.init), seed, plan.device)
    if start is not None:
        run.start_from(start)
    fitted = run.fit(corpus, plan.folder / f"{name}.ckpt", watch(f"{plan.recipe.name} {name}"))
    curves.draw(fitted.history, f"{plan.recipe.name}: {name}", plan.folder / "curves" / f"{name}.png")
    return fitted


def _sequence(plan: Plan, cnns: Sequence[State], corpus: Corpus, name: str, seed: int, watch: Watch) -> State:
    path = plan.folder / f"{name}-sequence-{plan.digest()}.pt"
    if path.exists():
        return _known_sequence(path, plan, cnns, corpus)
    together, stage = sequenced(plan.recipe), plan.recipe.stages[0]
    untaught = together.model(len(cnns)).state_dict()
    reader = together.pipeline([*cnns, untaught], Operating.plain(), plan.device)
    fitted = fit_sequence(reader, corpus.real, plan.recipe, stage, seed, watch(f"sequence {name}"))
    curves.draw(fitted.history, f"sequence: {name}", plan.folder / "curves" / f"{name}.png")
    made_of = {"patients": corpus.digest(), "labels": corpus.labels_digest(), "networks": _digest(cnns)}
    write_checkpoint(path, {"weights": fitted.weights, **made_of})
    return fitted.weights


def _known_sequence(path: Path, plan: Plan, cnns: Sequence[State], corpus: Corpus) -> State:
    """That of an earlier run. Raises PermanentError CHECKPOINT_FOREIGN where that was of something else."""
    state = read_checkpoint(path, plan.device)
    if "weights" not in state:  # of a version that did not note what it was made of
        return state
    same = {**same_corpus(state, corpus), "on what other networks say": state["networks"] == _digest(cnns)}
    require_own(path, same)
    weights: State = state["weights"]
    return weights


def _digest(states: Sequence[State]) -> str:
    found = hashlib.sha256()
    for state in states:
        for name in sorted(state):
            found.update(name.encode() + state[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def pipeline(plan: Plan, states: Sequence[State], operating: Operating | None = None) -> PicturePipeline:
    """A pipeline around weights that were not shipped yet, uncalibrated unless told how to operate."""
    how = operating or Operating.plain()
    if not plan.recipe.parts:
        return learner(plan.recipe).pipeline(states, how, plan.device)
    return sequenced(plan.recipe).pipeline(states, how, plan.device)


def view_of(one: Recipe) -> View:
    """How the networks of a recipe see the head."""
    if not one.parts:
        return learner(one).view
    return sequenced(one).view


def wants_phantoms(one: Recipe) -> bool:
    return one.pretrain is not None or any(stage.phantom_share for stage in one.stages)


def _stops_early(one: Recipe) -> bool:
    return any(stage.patience for stage in one.stages)
