"""How much a recipe minds what other scanners would do to the same heads. Trains and calibrates nothing new.

Every patient is read by the networks of the cross-validation that had not seen them, undisturbed and
disturbed, and judged by the calibration and thresholds that undisturbed heads gave: as it would be in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from node.domain.errors import PermanentError
from workers.models import families
from workers.models.picture import PicturePipeline
from workers.training import evaluate, train
from workers.training.datasets import Series
from workers.training.disturb import DISTURBANCES, Disturbance, DisturbedView
from workers.training.evaluate import Fitted
from workers.training.metrics import Array, Draws, Interval, interval
from workers.training.plan import Plan
from workers.training.predict import Prediction, joined, predict
from workers.training.report.blocks import Table, table
from workers.training.report.numbers import plain, shown
from workers.training.report.picture import DPI, WITH, WITHOUT
from workers.training.report.summary import level
from workers.training.train import Validated, Watch

NAME = "robustness"
UNDISTURBED = "undisturbed"
HEAD = (
    "disturbance",
    "what",
    "slice AUC, any",
    "change",
    "study AUC, any",
    "change",
    "sensitivity",
    "specificity",
)


@dataclass(frozen=True)
class Row:
    """Figures of "any" under one disturbance, [value, low, high], intervals over patients.

    The changes are against the same patients undisturbed, draw by draw. Studies have none where every slice
    was a series by itself, and neither does what is called at the threshold of a series.
    """

    name: str
    what: str
    slice_auc: Interval
    slice_change: Interval | None = None
    study_auc: Interval | None = None
    study_change: Interval | None = None
    sensitivity: float | None = None
    specificity: float | None = None


def measure(plan: Plan, watch: Watch, disturbances: Sequence[Disturbance] = DISTURBANCES) -> list[Row]:
    """One row undisturbed, then one for each disturbance; networks that are not there yet are trained.

    A gated recipe is judged by its classifier, which decides.
    """
    if plan.recipe.family == families.GATED:
        plan = plan.parts()[0]
    plans = plan.parts() if plan.recipe.family == families.ENSEMBLE else (plan,)
    readers = [_Readers.of(one, watch) for one in plans]
    weights = plan.recipe.weights or (1.0,) * len(plans)
    before = [joined(same, weights) for same in zip(*(one.undisturbed for one in readers), strict=True)]
    fitted = readers[0].fitted(before)
    first = _Scores.of([[one] for one in before], fitted)
    rows = [first.row(UNDISTURBED, "as they are")]
    for step, one in enumerate(disturbances):
        told = zip(*(part.ask(one) for part in readers), strict=True)
        after = [[joined(same, weights) for same in zip(*pieces, strict=True)] for pieces in told]
        rows.append(_Scores.of(after, fitted).row(one.name, one.what, first, series=not one.alone))
        watch(NAME)(step + 1, len(disturbances), 0.0)
    return rows


@dataclass(frozen=True)
class _Readers:
    """One family's networks: for the series at a place, seed by seed, those that have not seen its patient.

    `undisturbed` is what they said of the heads as they are, in the `order` of folds.
    """

    plan: Plan
    validated: Validated
    order: list[int]
    networks: dict[int, list[PicturePipeline]]

    @classmethod
    def of(cls, plan: Plan, watch: Watch) -> _Readers:
        validated = train.cross_validate(plan, watch)
        divided = evaluate.folds(plan.real(train.view_of(plan.recipe)), plan.folds, plan.seed)
        networks: dict[int, list[PicturePipeline]] = {}
        for number in plan.chosen_folds:
            groups = [
                [state for seed in seeds for state in train.fold(plan, number, seed, watch)[0]]
                for seeds in plan.answering
            ]
            built = [train.pipeline(plan, train.together(plan, states)) for states in groups]
            networks |= dict.fromkeys(divided[number], built)
        return cls(plan, validated, list(networks), networks)

    @property
    def undisturbed(self) -> list[Prediction]:
        return self.validated.averaged()

    def fitted(self, predictions: Sequence[Prediction]) -> list[Fitted]:
        """How each of these, in the `order`, is judged."""
        parts = self.validated.parts
        by_fold = evaluate.operating_of_folds(predictions, parts, self.plan.recipe.rules)
        place = {index: one for one, part in zip(by_fold, parts, strict=True) for index in part}
        return [place[index] for index in range(len(predictions))]

    def ask(self, disturbance: Disturbance) -> list[list[Prediction]]:
        """What is said of each series, in the `order`; slice by slice where each is alone.

        Raises PermanentError SERIES_DIFFER where a series can be read in one of its forms only: those behind
        it would meet networks that have seen them.
        """
        view = DisturbedView.of(train.view_of(self.plan.recipe), disturbance)
        plain = self.plan.real(train.view_of(self.plan.recipe))
        found = {
            index: [self._said(index, piece) for piece in (singly(one) if disturbance.alone else [one])]
            for index, (one, same) in enumerate(zip_longest(self.plan.read(view), plain))
            if _require_same(one, same, disturbance) and index in self.networks
        }
        return [found[index] for index in self.order]

    def _said(self, index: int, series: Series) -> Prediction:
        return train.average([predict(one, series, explain=False) for one in self.networks[index]])


def _require_same(one: Series | None, plain: Series | None, disturbance: Disturbance) -> bool:
    """True for a series and itself undisturbed."""
    if one is None or plain is None or (one.patient, one.name) != (plain.patient, plain.name):
        name = next(f"{known.patient} {known.name}".strip() for known in (plain, one) if known is not None)
        text = f"{disturbance.name}: not the series that were prepared, from {name} on; leave this one out"
        raise PermanentError("SERIES_DIFFER", text)
    return True


def singly(series: Series) -> list[Series]:
    """Every slice as a series of its own."""
    names = ("pictures", "labels", "masks", "known", "told", "by_hand")
    return [
        replace(series, study=None, **{name: getattr(series, name)[at : at + 1] for name in names})
        for at in range(len(series.pictures))
    ]


@dataclass(frozen=True)
class _Scores:
    """AUC (1 + draws,) of "any" for slices and studies, and the share of studies called right."""

    slices: Array
    studies: Array
    called: Mapping[str, float | None]

    @classmethod
    def of(cls, pieces: Sequence[Sequence[Prediction]], fitted: Sequence[Fitted]) -> _Scores:
        judged = [
            evaluate.judge(piece, how) for one, how in zip(pieces, fitted, strict=True) for piece in one
        ]
        cases = [one.case for one in judged]
        draws = Draws.of([case.patient for case in cases])

        def auc(which: str) -> Array:
            scores = level(cases, which).scores("any")
            return draws.ranked(
                scores.owners, scores.truth, scores.score, lambda ranks: ranks.auc()[:, None]
            )[:, 0]

        return cls(auc("slice"), auc("study"), evaluate.operating_point(judged))

    def row(self, name: str, what: str, before: _Scores | None = None, series: bool = True) -> Row:
        """`series` False: there is no series to speak of."""
        return Row(
            name,
            what,
            interval(self.slices),
            interval(self.slices - before.slices) if before else None,
            interval(self.studies) if series else None,
            interval(self.studies - before.studies) if before and series else None,
            self.called["sensitivity"] if series else None,
            self.called["specificity"] if series else None,
        )


def lines(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return table(
        Table(
            HEAD,
            [
                [
                    row.name,
                    row.what,
                    shown(row.slice_auc),
                    shown(row.slice_change),
                    shown(row.study_auc),
                    shown(row.study_change),
                    plain(row.sensitivity),
                    plain(row.specificity),
                ]
                for row in rows
            ],
        )
    )


def draw(rows: Sequence[Row], title: str) -> Figure:
    """Changes of both AUCs with their intervals, one line a disturbance."""
    told = [row for row in rows if row.slice_change]
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(told)), layout="constrained")
    axes = figure.add_subplot()
    for shift, colour, label, changes in (
        (-0.13, WITHOUT, "slices", [row.slice_change for row in told]),
        (0.13, WITH, "studies", [row.study_change for row in told]),
    ):
        at = [(place + shift, one) for place, one in enumerate(changes) if one and one[0] is not None]
        places, (values, low, high) = [place for place, _ in at], np.asarray([one for _, one in at], float).T
        axes.errorbar(values, places, xerr=(values - low, high - values), fmt="o", color=colour, label=label)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(told)), [f"{row.name}: {row.what}" for row in told])
    axes.invert_yaxis()
    axes.set(xlabel="change of the AUC of any haemorrhage, with 95 % interval over patients", title=title)
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def write(folder: Path, title: str, rows: Sequence[Row]) -> Path:
    """robustness.json, .md and .png in the folder; gives the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False)
    (folder / f"{NAME}.json").write_text(told + "\n", encoding="utf-8")
    draw(rows, title).savefig(folder / f"{NAME}.png", dpi=DPI)
    path = folder / f"{NAME}.md"
    path.write_text(f"# {title}\n\n{lines(rows)}\n\n![changes]({NAME}.png)\n", encoding="utf-8")
    return path
