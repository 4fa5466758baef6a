"""The figures, on cases that can be checked by hand, and the splitting of patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.domain.findings import CLASSES
from workers.models.aggregate import Aggregation
from workers.training import evaluate, metrics
from workers.training.datasets import Series, load_series, pack_masks, save_series
from workers.training.evaluate import Prediction

TRUTH = np.array([0, 0, 1, 0, 1.0])
SCORE = np.array([0.1, 0.4, 0.35, 0.2, 0.8])


def test_auc_and_average_precision_of_five_cases() -> None:
    assert metrics.auc(TRUTH, SCORE) == pytest.approx(5 / 6)
    assert metrics.average_precision(TRUTH, SCORE) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.auc(TRUTH, np.zeros(5)) == 0.5
    assert metrics.average_precision(TRUTH, np.zeros(5)) == pytest.approx(0.4)
    assert np.isnan(metrics.auc(np.zeros(5), SCORE))


def test_the_threshold_of_a_specificity_lets_no_more_negatives_through() -> None:
    truth = np.array([0] * 10 + [1] * 4)
    score = np.concatenate((np.arange(10) / 10, (0.05, 0.85, 0.95, 0.99)))
    threshold = metrics.threshold_at_specificity(truth, score, 0.9)
    assert (score[:10] >= threshold).sum() == 1
    assert metrics.sensitivity_at(0.9)(truth, score) == 0.75


def test_dice_of_masks() -> None:
    left, right = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert metrics.dice(left, right) == 0.5
    assert metrics.dice(np.zeros(4, bool), np.zeros(4, bool)) == 1.0


def test_the_bootstrap_draws_patients_and_brackets_the_value() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 40), 5).astype(float)
    score = truth + rng.normal(0, 1, 200)
    owners = np.repeat([f"p{index}" for index in range(40)], 5)
    value, low, high = metrics.bootstrap(metrics.auc, truth, score, owners, draws=200)
    assert low < value < high
    assert metrics.bootstrap(metrics.auc, truth, score, owners, draws=200) == (value, low, high)


def _series(patient: str, positive: bool) -> Series:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, (0, 2)] = positive
    pictures = np.zeros((4, 128, 128), np.uint8)
    return Series(patient, pictures, labels, np.zeros_like(pictures), np.ones((4, 6), bool))


def test_folds_hold_every_patient_once_and_spread_the_positive_ones() -> None:
    series = [_series(str(index), index % 3 == 0) for index in range(30)]
    parts = evaluate.folds(series, 5, seed=1)
    assert sorted(index for part in parts for index in part) == list(range(30))
    assert [sum(series[index].labels.any() for index in part) for part in parts] == [2] * 5
    assert parts == evaluate.folds(series, 5, seed=1)


def test_series_of_one_patient_never_part_into_two_folds() -> None:
    series = [_series(str(index // 3), index % 4 == 0) for index in range(30)]
    parts = evaluate.folds(series, 5, seed=1)
    assert sorted(index for part in parts for index in part) == list(range(30))
    owners = [{series[index].patient for index in part} for part in parts]
    assert sum(len(own) for own in owners) == len(set().union(*owners)) == 10


def _predictions(count: int = 40) -> list[Prediction]:
    rng = np.random.default_rng(2)
    found = []
    for index in range(count):
        labels = _series(str(index), index % 2 == 0).labels
        logits = (labels * 6.0 - 3 + rng.normal(0, 1.5, labels.shape)).astype(np.float32)
        overlap = np.full((4, 3), np.nan, np.float32)
        overlap[1] = (4, 4, 2)
        found.append(Prediction(str(index), labels, logits, logits, overlap))
    return found


def test_calibration_makes_probabilities_that_are_right_on_average() -> None:
    predictions = _predictions()
    aggregation = evaluate.calibrate(predictions, Aggregation.plain())
    said, truth = [], []
    for one in predictions:
        evidence = aggregation.evidence(one.class_logits, one.mask_logits)
        said.append(aggregation.slice_probabilities(evidence)[:, 0])
        truth.append(one.labels[:, 0])
    assert np.mean(said) == pytest.approx(np.mean(truth), abs=0.03)
    at = evaluate.thresholds(predictions, aggregation)
    point = evaluate.operating_point(predictions, aggregation, at)
    assert point["specificity"] >= evaluate.ALARM_SPECIFICITY and point["sensitivity"] > 0.8


def test_the_mixture_that_separates_is_chosen() -> None:
    noise = np.random.default_rng(5)
    predictions = [
        replace(one, class_logits=noise.normal(size=one.class_logits.shape).astype(np.float32))
        for one in _predictions()
    ]
    assert evaluate.choose_mixture(predictions).mask_weight == 1.0


def test_the_report_has_every_class_and_says_none_where_nothing_can_be_said() -> None:
    predictions = _predictions(12)
    report = evaluate.report(predictions, Aggregation.plain(), draws=20)
    assert set(report["slice"]) == set(report["patient"]) == set(CLASSES)
    assert report["slice"]["subdural"]["auc"][0] is None
    assert report["patient"]["any"]["positive"] == 6
    assert report["mask"] == {"slices": 12, "dice_pooled": 0.5, "dice_mean": 0.5}


def test_predictions_and_series_come_back_as_saved(tmp_path: Path) -> None:
    predictions = _predictions(3)
    evaluate.save(tmp_path / "p.npz", predictions)
    for one, again in zip(predictions, evaluate.load(tmp_path / "p.npz"), strict=True):
        assert one.patient == again.patient
        assert np.array_equal(one.class_logits, again.class_logits)
    series = [_series("a", True), _series("b", False)]
    save_series(tmp_path / "s.npz", series)
    assert [one.patient for one in load_series(tmp_path / "s.npz")] == ["a", "b"]


def test_packed_masks_keep_every_channel_apart() -> None:
    masks = np.zeros((5, 2, 2), bool)
    masks[1, 0, 0] = masks[4, 0, 0] = masks[4, 1, 1] = True
    packed = pack_masks(masks)
    assert packed[0, 0] == 1 | 1 << 2 | 1 << 5
    assert packed[1, 1] == 1 | 1 << 5
    assert packed[0, 1] == 0
