"""Judge predictions on patients the network had not seen. Fits calibration and thresholds, never weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from node.domain.findings import CLASSES
from workers.models.aggregate import Aggregation
from workers.models.multitask import MultiTaskPipeline
from workers.preprocess import SIZE, HeadFrame, NetworkInput
from workers.training import metrics
from workers.training.datasets import Series

SPECIFICITY = 0.90
"""Where sensitivity is reported, and where the thresholds of the subtypes lie."""
ALARM_SPECIFICITY = 0.80
"""Where the threshold of "any" lies: a false alarm moves a study up the list, a missed bleed lets it wait."""
FEW = 10
"""A class with fewer positive patients shares the scale of "any" and fits its bias only."""


MIXTURES = ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.0, 1.0))
"""Weights of class head and mask that `choose_mixture` chooses from."""


@dataclass(frozen=True)
class Prediction:
    """One patient as the network saw it: truth (n, 6), logits (n, 6), overlap of mask with known masks.

    `overlap` (n, 3): drawn pixels, true pixels and pixels in both, of the "any" channel on the
    network's grid; NaN where the slice's mask is not known.
    """

    patient: str
    labels: NDArray[np.uint8]
    class_logits: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    overlap: NDArray[np.float32]


def folds(series: Sequence[Series], count: int, seed: int) -> list[list[int]]:
    """Indices of the test series of each fold, every series of a patient in the same one.

    Patients with any bleed are spread evenly.
    """
    rng = np.random.default_rng(seed)
    of_patient: dict[str, list[int]] = {}
    for index, one in enumerate(series):
        of_patient.setdefault(one.patient, []).append(index)
    patients = list(of_patient.values())
    positive = np.asarray([any(series[i].labels[:, 0].any() for i in own) for own in patients])
    parts: list[list[int]] = [[] for _ in range(count)]
    for group in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        for place, patient in enumerate(rng.permutation(group)):
            parts[place % count] += patients[int(patient)]
    return [sorted(part) for part in parts]


def as_input(series: Series) -> NetworkInput:
    """Prepared pictures as the pipeline takes them."""
    count = len(series.pictures)
    pictures = series.pictures.astype(np.float32) / np.float32(255)
    frame = HeadFrame(0, 0, SIZE, SIZE)
    return NetworkInput(pictures, np.arange(count, dtype=np.float32), frame, (count, SIZE, SIZE))


def predict(pipeline: MultiTaskPipeline, series: Series) -> Prediction:
    """What the pipeline's networks say about one prepared patient."""
    reading = pipeline.read(as_input(series))
    drawn = reading.masks[:, 0] >= pipeline.operating.mask_threshold
    truth = (series.masks & 1) > 0
    overlap = np.stack((drawn.sum((1, 2)), truth.sum((1, 2)), (drawn & truth).sum((1, 2))), axis=1)
    known = np.where(series.known[:, :1], overlap, np.nan).astype(np.float32)
    return Prediction(series.patient, series.labels, reading.class_logits, reading.mask_logits, known)


def save(path: Path, predictions: Sequence[Prediction]) -> None:
    """Keep predictions in one .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("labels", "class_logits", "mask_logits", "overlap")
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in predictions]) for name in names
    }
    patients = np.asarray([one.patient for one in predictions for _ in one.labels])
    np.savez(path, patients=patients, **arrays)


def load(path: Path) -> list[Prediction]:
    """Read back what `save` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    patients = arrays.pop("patients")
    return [
        Prediction(str(name), **{key: value[patients == name] for key, value in arrays.items()})
        for name in dict.fromkeys(patients)
    ]


def choose_mixture(predictions: Sequence[Prediction]) -> Aggregation:
    """The mixture with the best sum of slice and patient AUC of "any"; those of MIXTURES, no more."""

    def merit(aggregation: Aggregation) -> float:
        evidence = [aggregation.evidence(one.class_logits, one.mask_logits)[:, 0] for one in predictions]
        labels = [one.labels[:, 0].astype(float) for one in predictions]
        strongest = np.stack([aggregation.strongest(one) for one in evidence])
        by_slice = metrics.auc(np.concatenate(labels), np.concatenate(evidence).astype(float))
        return by_slice + metrics.auc(np.stack([one.max() for one in labels]), strongest.astype(float))

    return max((Aggregation.plain(*weights) for weights in MIXTURES), key=merit)


def calibrate(predictions: Sequence[Prediction], aggregation: Aggregation) -> Aggregation:
    """Platt scales and biases for slices and series, a class at a time."""
    evidence = [aggregation.evidence(one.class_logits, one.mask_logits) for one in predictions]
    slices = np.concatenate(evidence), np.concatenate([one.labels for one in predictions])
    series = (
        np.stack([aggregation.strongest(one) for one in evidence]),
        np.stack([one.labels.max(axis=0) for one in predictions]),
    )
    slice_scale, slice_bias = _platt(*slices)
    series_scale, series_bias = _platt(*series)
    return replace(
        aggregation,
        slice_scale=slice_scale,
        slice_bias=slice_bias,
        series_scale=series_scale,
        series_bias=series_bias,
    )


def _platt(
    evidence: NDArray[np.float32], labels: NDArray[np.uint8]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scales: list[float] = []
    biases: list[float] = []
    for place in range(len(CLASSES)):
        few = labels[:, place].sum() < FEW
        scale, bias = _fit_platt(evidence[:, place], labels[:, place], scales[0] if few and scales else None)
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


def thresholds(predictions: Sequence[Prediction], aggregation: Aggregation) -> dict[str, float]:
    """Series thresholds below which the wanted share of the patients without the class stay."""
    truth, score = _series(predictions, aggregation)
    chosen = {}
    for place, name in enumerate(CLASSES):
        wanted = ALARM_SPECIFICITY if name == "any" else SPECIFICITY
        threshold = metrics.threshold_at_specificity(truth[:, place], score[:, place], wanted)
        chosen[name] = round(threshold + 5e-5, 4)
    return chosen


def operating_point(
    predictions: Sequence[Prediction], aggregation: Aggregation, at: Mapping[str, float]
) -> dict[str, Any]:
    """Share of patients with and without any bleed that are called right at the threshold of "any"."""
    truth, score = _series(predictions, aggregation)
    called = score[:, 0] >= at["any"]
    positive = truth[:, 0] > 0
    return {
        "positive": int(positive.sum()),
        "negative": int((~positive).sum()),
        "sensitivity": round(float(called[positive].mean()), 3) if positive.any() else None,
        "specificity": round(float((~called[~positive]).mean()), 3) if (~positive).any() else None,
    }


def report(predictions: Sequence[Prediction], aggregation: Aggregation, draws: int = 1000) -> dict[str, Any]:
    """Slice and patient figures a class, each [value, low, high], and mask overlap; plain JSON types."""
    slices = np.concatenate(
        [
            aggregation.slice_probabilities(aggregation.evidence(p.class_logits, p.mask_logits))
            for p in predictions
        ]
    ).astype(float)
    labels = np.concatenate([one.labels for one in predictions]).astype(float)
    owners = np.asarray([one.patient for one in predictions for _ in one.labels])
    truth, score = _series(predictions, aggregation)
    patients = np.asarray([one.patient for one in predictions])
    return {
        "patients": len(predictions),
        "slices": len(labels),
        "slice": {
            name: _figures(labels[:, place], slices[:, place], owners, draws)
            for place, name in enumerate(CLASSES)
        },
        "patient": {
            name: _figures(truth[:, place], score[:, place], patients, draws)
            for place, name in enumerate(CLASSES)
        },
        "mask": mask_figures(predictions),
    }


def _series(
    predictions: Sequence[Prediction], aggregation: Aggregation
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Truth and probability (patients, 6)."""
    score = [
        aggregation.series_probabilities(aggregation.evidence(one.class_logits, one.mask_logits))
        for one in predictions
    ]
    return np.stack([one.labels.max(axis=0) for one in predictions]).astype(float), np.stack(score).astype(
        float
    )


def _figures(
    truth: metrics.Array, score: metrics.Array, owners: NDArray[np.str_], draws: int
) -> dict[str, Any]:
    wanted: dict[str, metrics.Metric] = {
        "auc": metrics.auc,
        "ap": metrics.average_precision,
        f"sensitivity_at_specificity_{SPECIFICITY:.2f}": metrics.sensitivity_at(SPECIFICITY),
    }
    figures: dict[str, Any] = {"positive": int(truth.sum()), "cases": len(truth)}
    for name, metric in wanted.items():
        values = metrics.bootstrap(metric, truth, score, owners, draws)
        figures[name] = [round(value, 3) if np.isfinite(value) else None for value in values]
    return figures


def mask_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Pooled Dice of the "any" mask over slices with a known mask that holds blood."""
    overlap = np.concatenate([one.overlap for one in predictions])
    bloody = overlap[np.isfinite(overlap[:, 0]) & (overlap[:, 1] > 0)]
    if len(bloody) == 0:
        return {"slices": 0, "dice_pooled": None, "dice_mean": None}
    drawn, truth, both = bloody.T
    return {
        "slices": len(bloody),
        "dice_pooled": round(float(2 * both.sum() / (drawn.sum() + truth.sum())), 3),
        "dice_mean": round(float((2 * both / (drawn + truth)).mean()), 3),
    }
