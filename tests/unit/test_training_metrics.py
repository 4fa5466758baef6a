"""The figures, against scikit-learn, cases that can be checked by hand, and known limits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from workers.training import metrics
from workers.training.metrics import Draws, Ranks, interval

TRUTH = np.array([0, 0, 1, 0, 1.0])
SCORE = np.array([0.1, 0.4, 0.35, 0.2, 0.8])


def test_auc_and_average_precision_of_five_cases() -> None:
    assert metrics.auc(TRUTH, SCORE) == pytest.approx(5 / 6)
    assert metrics.average_precision(TRUTH, SCORE) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.auc(TRUTH, np.zeros(5)) == 0.5
    assert metrics.average_precision(TRUTH, np.zeros(5)) == pytest.approx(0.4)


def test_a_perfect_order_is_1_a_reversed_one_0_and_one_class_alone_undefined() -> None:
    assert metrics.auc(TRUTH, TRUTH) == 1 and metrics.auc(TRUTH, -TRUTH) == 0
    assert metrics.average_precision(TRUTH, TRUTH) == 1
    assert np.isnan(metrics.auc(np.zeros(5), SCORE)) and np.isnan(metrics.auc(np.ones(5), SCORE))
    assert np.isnan(metrics.average_precision(np.zeros(5), SCORE))
    assert metrics.average_precision(np.ones(5), SCORE) == 1


@pytest.mark.parametrize("seed", range(5))
def test_weighted_ranks_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 300).astype(float)
    score = np.round(truth * 0.3 + rng.random(300), 2)  # rounded: many ties
    weights = rng.integers(0, 4, (3, 300)).astype(float)
    ranks = Ranks.of(truth, score, weights)
    for row, weight in enumerate(weights):
        assert ranks.auc()[row] == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))
        expected = average_precision_score(truth, score, sample_weight=weight)
        assert ranks.average_precision()[row] == pytest.approx(expected)
        false, true, _ = roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
        assert ranks.sensitivity(0.9)[row] == pytest.approx(true[false <= 0.1 + 1e-12].max())


def test_the_threshold_of_a_specificity_lets_no_more_negatives_through() -> None:
    truth = np.array([0] * 10 + [1] * 4)
    score = np.concatenate((np.arange(10) / 10, (0.05, 0.85, 0.95, 0.99)))
    threshold = metrics.threshold_at_specificity(truth, score, 0.9)
    assert (score[:10] >= threshold).sum() == 1
    assert (score[10:] >= threshold).mean() == 0.75


def test_weighting_patients_gives_what_drawing_their_cases_again_gives() -> None:
    rng = np.random.default_rng(1)
    patients = ["b", "a", "b", "c"]
    owners = rng.integers(0, 4, 60)
    truth, score = rng.integers(0, 2, 60).astype(float), rng.random(60)
    draws = Draws.of(patients, 30, seed=2)
    auc = draws.ranked(owners, truth, score, lambda ranks: ranks.auc()[:, None])[:, 0]
    mean, median = draws.mean(owners, score), draws.medians(owners, score)
    for row, counts in enumerate(draws.weights.astype(int)):
        again = np.repeat(np.arange(60), counts[draws.patients[owners]])
        assert auc[row] == pytest.approx(metrics.auc(truth[again], score[again]), nan_ok=True)
        assert mean[row] == pytest.approx(score[again].mean())
        assert median[row] == np.sort(score[again])[(len(again) - 1) // 2]
    assert (draws.weights[0] == 1).all() and (draws.weights.sum(axis=1) == 3).all()
    assert draws.count(np.array([0, 2])) == 1


def test_ranking_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    truth, score, owners = rng.integers(0, 2, 40).astype(float), rng.random(40), np.arange(40)
    draws = Draws.of([str(one) for one in owners], 25)
    whole = draws.ranked(owners, truth, score, lambda ranks: ranks.auc()[:, None])
    monkeypatch.setattr(metrics, "BLOCK", 100)
    assert np.array_equal(whole, draws.ranked(owners, truth, score, lambda ranks: ranks.auc()[:, None]))


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        patients = rng.normal(
            0, 1, 40
        )  # cases of a patient resemble one another: cases alone would be too sure
        values = np.repeat(patients, 5) + rng.normal(0, 0.3, 200)
        draws = Draws.of([str(one) for one in range(40)], 200, seed)
        _, low, high = interval(draws.mean(np.repeat(np.arange(40), 5), values))
        assert low is not None and high is not None
        covered += low <= 0 <= high
    assert 0.87 <= covered / 200 <= 0.99


def test_an_interval_is_given_only_where_most_draws_and_enough_patients_stand_behind_it() -> None:
    nan = float("nan")
    assert interval(np.array([nan, 1, 1])) == [None, None, None]
    assert interval(np.array([0.5, nan, nan, nan, 1])) == [0.5, None, None]
    assert interval(np.array([0.5, 0.5, 0.5, nan])) == [0.5, 0.5, 0.5]
    draws = Draws.of(["a", "b", "c", "c"], 2)
    values = np.array([0.5, 0.4, 0.6])
    assert draws.interval(values, np.array([0, 1, 2]))[1] is not None
    assert draws.interval(values, np.array([0, 2, 3])) == [0.5, None, None]


def test_correlation_is_pearsons_and_undefined_on_flat_values() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(1000, 5, 50)
    y = x + rng.normal(0, 3, 50)
    assert metrics.correlation(metrics.moments(x, y).sum(axis=0)[None]) == pytest.approx(
        np.corrcoef(x, y)[0, 1]
    )
    assert np.isnan(metrics.correlation(metrics.moments(x, np.full(50, 7.0)).sum(axis=0)[None]))
    assert np.isnan(metrics.correlation(metrics.moments(x[:2], y[:2]).sum(axis=0)[None]))
