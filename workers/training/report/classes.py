"""How well one class is told on slices or studies. Knows nothing of masks; chooses no threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.training.metrics import FEW, Array, Draws, Index, Interval, Ranks, interval, ratio

SPECIFICITIES = (0.90, 0.95)
"""Where sensitivity is reported."""
BINS = 10
"""Calibration bins of equal width."""
CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1 in the log loss, as the RSNA 2019 challenge did."""
RSNA_WEIGHTS = np.asarray((2, 1, 1, 1, 1, 1)) / 7
"""Weights of the classes in the log loss of the RSNA 2019 challenge, in the order of CLASSES."""
PREVALENCES = (0.03, 0.06, 0.15)
"""Shares of studies with a bleed at which predictive values are told."""
GRID = np.linspace(0, 1, 41)
"""Specificities at which the ROC curve has its band."""


@dataclass(frozen=True)
class Scores:
    """Truth (n,) and probability (n,) of one class; `owners` (n,) tells the study of each."""

    owners: Index
    truth: Array
    score: Array


def describe(draws: Draws, scores: Scores, threshold: float | None, band: bool = False) -> dict[str, Any]:
    """Every figure of one class, with its interval where it can have one; none that lacks its threshold."""
    count, everyone = len(scores.truth), draws.count(scores.owners)
    with_it, without = _patients(draws, scores)
    facts = {
        "n": count,
        "positive": int((scores.truth > 0).sum()),
        "patients": everyone,
        "patients_positive": with_it,
        "threshold": threshold,
    }
    if count == 0:
        return facts
    enough_with, enough = with_it >= FEW, min(with_it, without) >= FEW
    figures: dict[str, tuple[Array, bool]] = {
        name: (values, enough) for name, values in _ranked(draws, scores).items()
    }
    if threshold is not None:
        decided = decisions(confusion(draws, scores, threshold))
        needs = {"accuracy": everyone >= FEW, "specificity": without >= FEW}
        figures |= {name: (values, needs.get(name, enough_with)) for name, values in decided.items()}
    bins = _bins(draws, scores)
    losses = draws.mean(scores.owners, log_loss(scores.truth, scores.score))
    figures |= {"log_loss": (losses, everyone >= FEW), "ece": (_ece(bins), everyone >= FEW)}
    told = {name: with_interval(values, spread) for name, (values, spread) in figures.items()}
    extra = {"roc_band": _roc_band(draws, scores)} if band and enough else {}
    return {**facts, **told, "calibration": _calibration(draws, scores, bins), **extra}


def _patients(draws: Draws, scores: Scores) -> tuple[int, int]:
    """How many have the class, and how many lack it; with several studies one may do both."""
    positive = scores.truth > 0
    return draws.count(scores.owners[positive]), draws.count(scores.owners[~positive])


def with_interval(values: Array, spread: bool) -> Interval:
    """`interval`, or the bare value where too few patients stand behind it."""
    return interval(values) if spread else interval(values[:1])


def _ranked(draws: Draws, scores: Scores) -> dict[str, Array]:
    def figures(ranks: Ranks) -> Array:
        sensitivity = [ranks.sensitivity(wanted) for wanted in SPECIFICITIES]
        return np.stack([ranks.auc(), ranks.average_precision(), *sensitivity], axis=1)

    names = ("auc", "ap", *(f"sensitivity_at_specificity_{wanted:.2f}" for wanted in SPECIFICITIES))
    found = draws.ranked(scores.owners, scores.truth, scores.score, figures)
    return dict(zip(names, found.T, strict=True))


def _roc_band(draws: Draws, scores: Scores) -> dict[str, list[float] | list[Interval]]:
    found = draws.ranked(
        scores.owners,
        scores.truth,
        scores.score,
        lambda ranks: np.stack([ranks.sensitivity(float(wanted)) for wanted in GRID], axis=1),
    )
    return {"specificity": GRID.round(4).tolist(), "sensitivity": [interval(values) for values in found.T]}


def confusion(draws: Draws, scores: Scores, threshold: float) -> Array:
    """Weighted (draws, 4): true and false positives, false and true negatives at or above the threshold."""
    called, positive = scores.score >= threshold, scores.truth > 0
    cells = (called & positive, called & ~positive, ~called & positive, ~called & ~positive)
    return draws.sums(scores.owners, np.stack(cells, axis=1).astype(float))


def decisions(table: Array) -> dict[str, Array]:
    """What follows from true and false positives, false and true negatives (draws, 4)."""
    tp, fp, fn, tn = table.T
    return {
        "accuracy": ratio(tp + tn, table.sum(axis=1)),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
    }


def predictive_values(draws: Draws, scores: Scores, threshold: float) -> dict[str, dict[str, Interval]]:
    """PPV and NPV at each of PREVALENCES, from sensitivity and specificity at the threshold."""
    decided = decisions(confusion(draws, scores, threshold))
    sensitivity, specificity = decided["recall"], decided["specificity"]
    enough = min(_patients(draws, scores)) >= FEW
    found = {}
    for share in PREVALENCES:
        right, wrong = sensitivity * share, (1 - specificity) * (1 - share)
        clear, missed = specificity * (1 - share), (1 - sensitivity) * share
        found[f"{share:.2f}"] = {
            "ppv": with_interval(ratio(right, right + wrong), enough),
            "npv": with_interval(ratio(clear, clear + missed), enough),
        }
    return found


def log_loss(truth: Array, score: Array) -> Array:
    """Log loss of each case, natural logarithm, probabilities clipped by CLIP; any shape."""
    kept = np.clip(score, CLIP, 1 - CLIP)
    return -np.where(truth > 0, np.log(kept), np.log1p(-kept))


def rsna_log_loss(draws: Draws, owners: Index, truth: Array, score: Array) -> Interval:
    """Mean log loss (n, 6) under RSNA_WEIGHTS."""
    return draws.interval(draws.mean(owners, log_loss(truth, score) @ RSNA_WEIGHTS), owners)


def _places(score: Array) -> Index:
    return np.minimum((score * BINS).astype(np.intp), BINS - 1)


def _bins(draws: Draws, scores: Scores) -> Array:
    """Weighted (draws, BINS, 3): cases, sum of probabilities and positives of each bin."""
    count = len(scores.score)
    values = np.zeros((count, BINS, 3))
    cells = np.stack((np.ones(count), scores.score, scores.truth > 0), axis=1)
    values[np.arange(count), _places(scores.score)] = cells
    return draws.sums(scores.owners, values.reshape(count, -1)).reshape(-1, BINS, 3)


def _ece(bins: Array) -> Array:
    """Expected calibration error: mean distance of probability and frequency, weighted by cases."""
    return ratio(np.abs(bins[..., 1] - bins[..., 2]).sum(axis=1), bins[..., 0].sum(axis=1))


def _calibration(draws: Draws, scores: Scores, bins: Array) -> list[dict[str, Any]]:
    """The bins that hold cases: limits, cases, mean probability, share of positives."""
    return [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "n": len(owners),
            "predicted": interval(ratio(bins[:1, place, 1], bins[:1, place, 0]))[0],
            "observed": draws.interval(ratio(bins[:, place, 2], bins[:, place, 0]), owners),
        }
        for place in range(BINS)
        if len(owners := scores.owners[_places(scores.score) == place])
    ]
