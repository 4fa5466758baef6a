"""Numbers a triage model is judged by, for weighted cases: one row of weights a bootstrap draw. No plots.

Every figure is NaN where it is not defined. Weighting whole patients by how often they were drawn
(`Draws`) gives what drawing their cases again and again would give, for all draws at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Interval = list[float | None]
"""Value and 95 % percentile interval: [value, low, high], None where one is not defined."""

BLOCK = 4_000_000
"""Weights (draws times cases) held at once when cases are ranked."""
FEW = 3
"""With fewer patients behind a figure it gets no interval: drawing so few again and again tells nothing."""
DEFINED = 0.5
"""An interval is given where at least this share of the draws has a value."""


@dataclass(frozen=True)
class Ranks:
    """Weight of positive and of negative cases at or above each distinct score, highest score first.

    `scores` (k,); `true` and `false` (draws, k).
    """

    scores: Array
    true: Array
    false: Array

    @classmethod
    def of(cls, truth: Array, score: Array, weights: Array | None = None) -> Self:
        """Ranks for every row of weights (draws, n); without weights one row of ones. Needs a case."""
        weights = np.ones((1, len(truth))) if weights is None else weights
        order = np.argsort(-score, kind="stable")
        last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
        positive, weights = truth[order] > 0, weights[:, order]
        true = np.cumsum(weights * positive, axis=1)[:, last]
        return cls(score[order][last], true, np.cumsum(weights * ~positive, axis=1)[:, last])

    def auc(self) -> Array:
        """Area under the ROC curve a row (Mann-Whitney, ties count half)."""
        before = np.concatenate((np.zeros((len(self.true), 1)), self.true[:, :-1]), axis=1)
        area = ((before + self.true) / 2 * _gained(self.false)).sum(axis=1)
        return ratio(area, self.true[:, -1] * self.false[:, -1])

    def average_precision(self) -> Array:
        """Precision averaged over the steps of recall a row, without interpolation."""
        precision = np.nan_to_num(ratio(self.true, self.true + self.false))
        return ratio((_gained(self.true) * precision).sum(axis=1), self.true[:, -1])

    def sensitivity(self, specificity: float) -> Array:
        """The most positives that lie above a threshold of at least that specificity, as a share a row."""
        negative = self.false[:, -1:]
        allowed = self.false <= (1 - specificity) * negative + 1e-9
        found = np.where(allowed, self.true, 0).max(axis=1)
        return np.where(negative[:, 0] > 0, ratio(found, self.true[:, -1]), np.nan)


def _gained(counts: Array) -> Array:
    return np.diff(counts, axis=1, prepend=0)


def ratio(above: Array, below: Array) -> Array:
    """Quotient, NaN where nothing is below the line."""
    defined = below > 0
    return np.where(defined, above / np.where(defined, below, 1), np.nan)


def correlation(sums: Array) -> Array:
    """Pearson r a row from (draws, 6) weighted sums of 1, x, y, x², y², xy; give centred, scaled x and y."""
    count, x, y, xx, yy, xy = sums.T
    x_spread, y_spread = count * xx - x * x, count * yy - y * y
    flat = (count < 3) | (x_spread <= 1e-9 * count**2) | (y_spread <= 1e-9 * count**2)
    below = np.sqrt(np.where(flat, 1, x_spread * y_spread))
    return np.where(flat, np.nan, np.clip((count * xy - x * y) / below, -1, 1))


def moments(x: Array, y: Array) -> Array:
    """What `correlation` sums: (n, 6) of 1, x, y, x², y², xy, x and y centred and scaled."""
    x, y = (_standard(x), _standard(y))
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=1)


def _standard(values: Array) -> Array:
    centred = values - values.mean() if len(values) else values
    return centred / (centred.std() if len(values) and centred.std() > 0 else 1)


@dataclass(frozen=True)
class Draws:
    """How often each patient is drawn: `weights` (1 + draws, patients); row 0 takes each once: the value."""

    patients: Index
    weights: Array

    @classmethod
    def of(cls, patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Self:
        """Draw as many patients as there are names, with replacement; `patients` names one a study."""
        names, member = np.unique(np.asarray(patients), return_inverse=True)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        return cls(member.astype(np.intp), np.concatenate((np.ones((1, len(names))), drawn)))

    def sums(self, owners: Index, values: Array) -> Array:
        """Weighted sums (1 + draws, k) of values (n, k); `owners` (n,) tells the study of each."""
        own = np.zeros((self.weights.shape[1], values.shape[1]))
        np.add.at(own, self.patients[owners], values)
        return self.weights @ own

    def mean(self, owners: Index, values: Array) -> Array:
        """Weighted mean a draw of the values (n,)."""
        total, count = self.sums(owners, np.stack((values, np.ones_like(values)), axis=1)).T
        return ratio(total, count)

    def ranked(self, owners: Index, truth: Array, score: Array, figures: Callable[[Ranks], Array]) -> Array:
        """Figures (1 + draws, k) that need the order of the cases, some draws at a time."""
        step = max(1, BLOCK // len(truth))
        rows = self.weights[:, self.patients]
        blocks = range(0, len(rows), step)
        return np.concatenate(
            [figures(Ranks.of(truth, score, rows[at : at + step][:, owners])) for at in blocks]
        )

    def medians(self, owners: Index, values: Array) -> Array:
        """Weighted lower median a draw of the values (n,), NaN where none was drawn."""
        order = np.argsort(values)
        reached = np.cumsum(self.weights[:, self.patients[owners[order]]], axis=1)
        place = (reached >= reached[:, -1:] / 2).argmax(axis=1)
        return np.where(reached[:, -1] > 0, values[order][place], np.nan)

    def count(self, owners: Index) -> int:
        """Patients behind these cases."""
        return len(np.unique(self.patients[owners]))

    def interval(self, values: Array, owners: Index, least: int = FEW) -> Interval:
        """`interval`, or the bare value where fewer than `least` patients stand behind it."""
        return interval(values if self.count(owners) >= least else values[:1])


def interval(values: Array) -> Interval:
    """Row 0 is the value, the others are draws; draws without a value are left out, down to half of them."""
    value, drawn = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return [None, None, None]
    if len(drawn) < 2 or len(drawn) < DEFINED * (len(values) - 1):
        return [_plain(value), None, None]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [_plain(value), _plain(low), _plain(high)]


def _plain(value: float) -> float:
    return float(f"{value:.6g}")


def auc(truth: Array, score: Array) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half)."""
    return float(Ranks.of(truth, score).auc()[0])


def average_precision(truth: Array, score: Array) -> float:
    """Precision averaged over the steps of recall, without interpolation."""
    return float(Ranks.of(truth, score).average_precision()[0])


def threshold_at_specificity(truth: Array, score: Array, specificity: float) -> float:
    """The lowest score at which at least this share of negatives lies strictly below."""
    negatives = np.sort(score[truth == 0])
    if len(negatives) == 0:
        return float("nan")
    allowed = int(np.floor((1 - specificity) * len(negatives) + 1e-9))
    return float(np.nextafter(negatives[len(negatives) - allowed - 1], np.inf))


def threshold_of_best_f1(truth: Array, score: Array) -> float:
    """The score at and above which calling positive has the best F1 (the highest of equals), or NaN."""
    if not (truth > 0).any():
        return float("nan")
    candidates = np.unique(score)[::-1]
    found = np.asarray([(truth[score >= at] > 0).sum() for at in candidates], float)
    called = np.asarray([(score >= at).sum() for at in candidates], float)
    return float(candidates[int(np.argmax(2 * found / (called + (truth > 0).sum())))])
