"""Numbers a triage model is judged by, with patient-cluster bootstrap intervals. Pure numpy, no plots."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Metric = Callable[[Array, Array], float]
"""Takes truth (0 or 1) and score, one value a case; NaN where it is not defined."""


def auc(truth: Array, score: Array) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half)."""
    positive = truth > 0
    count, other = int(positive.sum()), int((~positive).sum())
    if count == 0 or other == 0:
        return float("nan")
    return float((rankdata(score)[positive].sum() - count * (count + 1) / 2) / (count * other))


def average_precision(truth: Array, score: Array) -> float:
    """Precision averaged over the steps of recall, without interpolation."""
    if not (truth > 0).any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits, sorted_score = truth[order] > 0, score[order]
    last = np.append(np.flatnonzero(np.diff(sorted_score)), len(hits) - 1)
    found = np.cumsum(hits)[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / found[-1])


def threshold_at_specificity(truth: Array, score: Array, specificity: float) -> float:
    """The lowest score at which at least this share of negatives lies strictly below."""
    negatives = np.sort(score[truth == 0])
    if len(negatives) == 0:
        return float("nan")
    allowed = int(np.floor((1 - specificity) * len(negatives) + 1e-9))
    return float(np.nextafter(negatives[len(negatives) - allowed - 1], np.inf))


def sensitivity_at(specificity: float) -> Metric:
    """Metric: share of positives at or above the threshold of that specificity."""

    def metric(truth: Array, score: Array) -> float:
        if not (truth > 0).any() or not (truth == 0).any():
            return float("nan")
        return float((score[truth > 0] >= threshold_at_specificity(truth, score, specificity)).mean())

    return metric


def dice(drawn: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Overlap of two masks; two empty masks agree fully (1)."""
    total = int(drawn.sum()) + int(truth.sum())
    return 1.0 if total == 0 else float(2 * (drawn & truth).sum() / total)


def bootstrap(
    metric: Metric, truth: Array, score: Array, clusters: NDArray[np.str_], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Value and 95 % percentile interval, drawing whole patients (`clusters`) with replacement."""
    rng = np.random.default_rng(seed)
    names, member = np.unique(clusters, return_inverse=True)
    rows = [np.flatnonzero(member == index) for index in range(len(names))]
    values = []
    for _ in range(draws):
        drawn = np.concatenate([rows[index] for index in rng.integers(0, len(names), len(names))])
        values.append(metric(truth[drawn], score[drawn]))
    kept = np.asarray(values)[np.isfinite(values)]
    if len(kept) == 0:
        return metric(truth, score), float("nan"), float("nan")
    low, high = np.percentile(kept, (2.5, 97.5))
    return metric(truth, score), float(low), float(high)
