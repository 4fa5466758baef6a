"""Judge predictions on patients the network had not seen. Fits calibration and thresholds, never weights.

Calibration and thresholds are cross-fitted: those a patient is judged by come from the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from node.domain.findings import CLASSES
from workers.models.aggregate import Aggregation
from workers.models.picture import ReadingPipeline
from workers.training import metrics
from workers.training.datasets import Series
from workers.training.predict import Prediction, drawn
from workers.training.recipes import Rules
from workers.training.report.case import Case, study

SPECIFICITY = 0.90
"""Where the thresholds of the subtypes lie."""
ALARM_SPECIFICITY = 0.80
"""Where the threshold of "any" lies: a false alarm moves a study up the list, a missed bleed lets it wait."""
FEW = 10
"""A class with fewer positive patients shares the scale of "any" and fits its bias only."""


RULES = Rules()
MIXTURES = ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.0, 1.0))
"""Weights of class head and mask that `choose_mixture` chooses from."""


AREA_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Mask thresholds that `area_threshold` chooses from."""


@dataclass(frozen=True)
class Fitted:
    """How logits become probabilities, from which series probability on a class is called present, and
    from which pixel probability on it is drawn."""

    aggregation: Aggregation
    thresholds: Mapping[str, float]
    mask_threshold: float = 0.5


def fit_operating(predictions: Sequence[Prediction], rules: Rules = RULES) -> Fitted:
    """Mixture, calibration and thresholds from these predictions."""
    aggregation = calibrate(predictions, choose_mixture(predictions))
    by_area = area_threshold(predictions) if rules.mask == "area" else None
    return Fitted(aggregation, thresholds(predictions, aggregation, rules), by_area or rules.mask_threshold)


def operating_of(pipeline: ReadingPipeline) -> Fitted:
    """How a shipped pipeline operates."""
    how = pipeline.operating
    return Fitted(how.aggregation, how.thresholds, how.mask_threshold)


@dataclass(frozen=True)
class Judged:
    """A series as it would be reported, and whether each class (6,) would be called present."""

    case: Case
    called: NDArray[np.bool_]


def cross_fitted(
    predictions: Sequence[Prediction], parts: Sequence[Sequence[int]], rules: Rules = RULES
) -> list[Judged]:
    """In the order of `predictions`; `parts` are the indices of each fold's own."""
    found: dict[int, Judged] = {}
    for part, fitted in zip(parts, operating_of_folds(predictions, parts, rules), strict=True):
        found.update((index, judge(predictions[index], fitted)) for index in part)
    return [found[index] for index in sorted(found)]


def operating_of_folds(
    predictions: Sequence[Prediction], parts: Sequence[Sequence[int]], rules: Rules = RULES
) -> list[Fitted]:
    """How each fold is calibrated and thresholded: by what the others say.

    Where there is one fold only, it is by itself, which flatters.
    """
    return [
        fit_operating([predictions[index] for index in others or part], rules)
        for part in parts
        for others in [[index for other in parts if other is not part for index in other]]
    ]


def judge(prediction: Prediction, fitted: Fitted) -> Judged:
    """One series as it would be reported."""
    aggregation = fitted.aggregation
    evidence = aggregation.evidence(prediction.class_logits, prediction.mask_logits)
    known = np.asarray([name in prediction.knows for name in CLASSES])
    series = aggregation.series_probabilities(evidence)
    at = np.asarray([fitted.thresholds[name] for name in CLASSES])
    told = bool(prediction.told.any())
    one = Case(
        patient=prediction.patient,
        labels=prediction.labels,
        slices=np.where(known, aggregation.slice_probabilities(evidence), 0).astype(np.float32),
        series=np.where(known, series, 0).astype(np.float32),
        study_labels=None if told else prediction.truth,
        told=prediction.told if told else None,
        drawn=drawn(prediction, fitted.mask_threshold),
        truth=prediction.mask,
        mask_known=prediction.mask_known,
        by_hand=prediction.by_hand,
        cell_mm=prediction.cell_mm,
        explanation=prediction.heat,
    )
    return Judged(one, (series >= at) & known)


def gated(classified: Sequence[Judged], segmented: Sequence[Judged]) -> list[Judged]:
    """The classifier's verdicts with the segmenter's masks, where the classifier called "any" present."""
    found = []
    for one, other in zip(classified, segmented, strict=True):
        mask = other.case.drawn
        if mask is not None and not one.called[0]:
            mask = np.zeros_like(mask)
        known = other.case
        whole = replace(
            one.case,
            drawn=mask,
            truth=known.truth,
            mask_known=known.mask_known,
            by_hand=known.by_hand,
            cell_mm=known.cell_mm,
        )
        found.append(Judged(whole, one.called))
    return found


def agreement(classified: Sequence[Judged], segmented: Sequence[Judged]) -> dict[str, int]:
    """How often both, one or none of two models call a series bloody (any mask counts for the segmenter)."""
    told = {"both": 0, "classifier_only": 0, "mask_only": 0, "neither": 0}
    for one, other in zip(classified, segmented, strict=True):
        spoken, mask = bool(one.called[0]), other.case.drawn is not None and bool(other.case.drawn.any())
        name = ("both" if mask else "classifier_only") if spoken else ("mask_only" if mask else "neither")
        told[name] += 1
    return told


def operating_point(judged: Sequence[Judged]) -> dict[str, Any]:
    """Share of series with and without any bleed that are called right, thresholds cross-fitted."""
    judged = [one for one in judged if one.case.study_told[0]]
    called = np.asarray([one.called[0] for one in judged], bool)
    positive = np.asarray([bool(study(one.case)[0]) for one in judged])
    return {
        "positive": int(positive.sum()),
        "negative": int((~positive).sum()),
        "sensitivity": round(float(called[positive].mean()), 3) if positive.any() else None,
        "specificity": round(float((~called[~positive]).mean()), 3) if (~positive).any() else None,
    }


def folds(series: Sequence[Series], count: int, seed: int) -> list[list[int]]:
    """Indices of the test series of each fold, every series of a patient in the same one.

    Patients with any bleed are spread evenly.
    """
    rng = np.random.default_rng(seed)
    of_patient: dict[str, list[int]] = {}
    for index, one in enumerate(series):
        of_patient.setdefault(one.patient, []).append(index)
    patients = list(of_patient.values())
    positive = np.asarray([any(series[i].truth[0] for i in own) for own in patients])
    parts: list[list[int]] = [[] for _ in range(count)]
    for group in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        for place, patient in enumerate(rng.permutation(group)):
            parts[place % count] += patients[int(patient)]
    return [sorted(part) for part in parts]


def choose_mixture(predictions: Sequence[Prediction]) -> Aggregation:
    """The mixture with the best sum of slice and patient AUC of "any"; those of MIXTURES, no more."""

    def merit(aggregation: Aggregation) -> float:
        evidence = [aggregation.evidence(one.class_logits, one.mask_logits)[:, 0] for one in predictions]
        told = np.concatenate([one.told[:, 0] for one in predictions])
        labels = np.concatenate([one.labels[:, 0] for one in predictions]).astype(float)
        strongest = np.stack([aggregation.strongest(one) for one in evidence]).astype(float)
        by_slice = metrics.auc(labels[told], np.concatenate(evidence).astype(float)[told])
        known = np.asarray([one.study_told[0] for one in predictions])
        truth = np.asarray([one.truth[0] for one in predictions], float)
        by_series = metrics.auc(truth[known], strongest[known])
        return float(np.nansum([by_slice, by_series]))

    return max((Aggregation.plain(*weights) for weights in MIXTURES), key=merit)


def calibrate(predictions: Sequence[Prediction], aggregation: Aggregation) -> Aggregation:
    """Platt scales and biases for slices and series, a class at a time."""
    evidence = [aggregation.evidence(one.class_logits, one.mask_logits) for one in predictions]
    slices = np.concatenate(evidence), np.concatenate([one.labels for one in predictions])
    series = (
        np.stack([aggregation.strongest(one) for one in evidence]),
        np.stack([one.truth for one in predictions]),
    )
    told = np.concatenate([one.told for one in predictions])
    slice_scale, slice_bias = _platt(*slices, told)
    series_scale, series_bias = _platt(*series, np.stack([one.study_told for one in predictions]))
    return replace(
        aggregation,
        slice_scale=slice_scale,
        slice_bias=slice_bias,
        series_scale=series_scale,
        series_bias=series_bias,
    )


def _platt(
    evidence: NDArray[np.float32], labels: NDArray[np.uint8], told: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scales: list[float] = []
    biases: list[float] = []
    for place in range(len(CLASSES)):
        seen = told[:, place]
        few = labels[seen, place].sum() < FEW
        given = scales[0] if few and scales else None
        scale, bias = given or 1.0, 0.0
        if seen.any():
            scale, bias = _fit_platt(evidence[seen, place], labels[seen, place], given)
        scales.append(round(scale, 4))
        biases.append(round(bias, 4))
    return tuple(scales), tuple(biases)


def _fit_platt(
    score: NDArray[np.float32], truth: NDArray[np.uint8], scale: float | None
) -> tuple[float, float]:
    """Logistic fit with Platt's smoothed targets; the scale is given or at least 0.1."""
    positive, negative = float((truth > 0).sum()), float((truth == 0).sum())
    target = np.where(truth > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    score = score.astype(np.float64)

    def cost(parameters: NDArray[np.float64]) -> float:
        logits = score * (scale if scale is not None else parameters[1]) + parameters[0]
        return float((np.logaddexp(0, logits) - target * logits).mean())

    bounds = [(-30.0, 30.0)] if scale is not None else [(-30.0, 30.0), (0.1, 10.0)]
    start = [0.0] if scale is not None else [0.0, 1.0]
    fitted = minimize(cost, start, bounds=bounds, method="L-BFGS-B").x
    return (scale if scale is not None else float(fitted[1])), float(fitted[0])


def thresholds(
    predictions: Sequence[Prediction], aggregation: Aggregation, rules: Rules = RULES
) -> dict[str, float]:
    """Series thresholds: below them stays the wanted share of the patients without the class, or best F1."""
    truth, score = _series(predictions, aggregation)
    told = np.stack([one.study_told for one in predictions])
    chosen = {}
    for place, name in enumerate(CLASSES):
        wanted = ALARM_SPECIFICITY if name == "any" else SPECIFICITY
        seen = truth[told[:, place], place], score[told[:, place], place]
        if rules.series == "f1":
            best = metrics.threshold_of_best_f1(*seen)
            threshold = float(np.floor(best * 1e4) / 1e4)  # never above the score that it is
        else:
            threshold = metrics.threshold_at_specificity(*seen, wanted) + 5e-5
        chosen[name] = round(threshold, 4) if np.isfinite(threshold) else 0.5
    return chosen


def area_threshold(predictions: Sequence[Prediction]) -> float | None:
    """The mask threshold whose areas on known slices follow the true ones best (Pearson); None: untold."""
    known = [
        (one.blood[one.mask_known], one.mask[one.mask_known]) for one in predictions if one.blood is not None
    ]
    if not sum(len(mask) for _, mask in known):
        return None
    truth = np.concatenate([mask.sum(axis=(1, 2)) for _, mask in known]).astype(float)
    best: tuple[float, float | None] = (-np.inf, None)
    for threshold in AREA_THRESHOLDS:
        area = np.concatenate([(blood >= threshold * 255).sum(axis=(1, 2)) for blood, _ in known]).astype(
            float
        )
        if truth.std() > 0 and area.std() > 0:
            best = max(best, (float(np.corrcoef(truth, area)[0, 1]), threshold), key=lambda one: one[0])
    return best[1]


def _series(
    predictions: Sequence[Prediction], aggregation: Aggregation
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Truth and probability (patients, 6)."""
    score = [
        aggregation.series_probabilities(aggregation.evidence(one.class_logits, one.mask_logits))
        for one in predictions
    ]
    return np.stack([one.truth for one in predictions]).astype(float), np.stack(score).astype(float)
