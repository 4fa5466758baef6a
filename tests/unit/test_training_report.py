"""Every figure of the evaluation report, against scikit-learn and on cases that can be checked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as reference

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from tests.unit.reports import case, patients
from workers.training import report
from workers.training.report import Case
from workers.training.report.classes import RSNA_WEIGHTS

AT = dict.fromkeys(CLASSES, 0.4)


def test_figures_of_slices_are_those_of_scikit_learn() -> None:
    cases = patients()
    told = report.summarise(cases, AT, draws=50)["slice"]["any"]
    truth = np.concatenate([one.labels[:, 0] for one in cases])
    score = np.concatenate([one.slices[:, 0] for one in cases]).astype(float)
    called = score >= 0.4
    expected = {
        "auc": reference.roc_auc_score(truth, score),
        "ap": reference.average_precision_score(truth, score),
        "accuracy": reference.accuracy_score(truth, called),
        "f1": reference.f1_score(truth, called),
        "precision": reference.precision_score(truth, called),
        "recall": reference.recall_score(truth, called),
        "specificity": reference.recall_score(1 - truth, ~called),
        "log_loss": reference.log_loss(truth, score),
    }
    assert {name: told[name][0] for name in expected} == pytest.approx(expected, rel=1e-5)
    for name in expected:
        assert told[name][1] < told[name][0] < told[name][2]
    assert (told["n"], told["positive"]) == (len(truth), truth.sum())
    assert (told["patients"], told["patients_positive"]) == (24, 12)


def test_studies_are_judged_by_the_series_probability_and_the_truth_of_the_study() -> None:
    cases = patients()
    told = report.summarise(cases, AT, draws=5)["study"]["epidural"]
    truth = [one.labels[:, 1].max() for one in cases]
    assert told["auc"][0] == pytest.approx(
        reference.roc_auc_score(truth, [one.series[1] for one in cases]), rel=1e-5
    )
    assert told["n"] == 24 and told["threshold"] == 0.4


def test_studies_without_slice_truth_count_as_studies_only() -> None:
    bare = [
        replace(one, labels=np.zeros((0, 6), np.uint8), study_labels=report.study(one)) for one in patients()
    ]
    told = report.summarise(bare, AT, draws=5)
    assert told["study"] == report.summarise(patients(), AT, draws=5)["study"]
    assert told["slice"]["any"] == {
        "n": 0,
        "positive": 0,
        "patients": 0,
        "patients_positive": 0,
        "threshold": 0.4,
    }
    assert told["cases"]["studies_without_slice_truth"] == 24 and "slice" not in told["rsna_log_loss"]


def test_a_class_that_is_not_told_counts_in_no_figure_of_it() -> None:
    """INSTANCE draws blood and tells no subtype; beside it a set that tells everything."""
    only_any = np.zeros((8, 6), bool)
    only_any[:, 0] = True
    whole, rest = patients(24), patients(24, seed=1)
    bare = [
        replace(one, patient=f"i{one.patient}", told=only_any, labels=one.labels * only_any) for one in rest
    ]
    told, alone = report.summarise([*whole, *bare], AT, draws=5), report.summarise(whole, AT, draws=5)
    for level in ("slice", "study"):
        assert told[level]["subdural"]["n"] == alone[level]["subdural"]["n"] < told[level]["any"]["n"]
        assert told[level]["subdural"]["auc"][0] == alone[level]["subdural"]["auc"][0]
        assert told["rsna_log_loss"][level][0] == alone["rsna_log_loss"][level][0]
    assert told["slice"]["any"]["positive"] == sum(int(one.labels[:, 0].sum()) for one in [*whole, *rest])
    assert told["cases"]["studies_with_untold_classes"] == 24
    by_itself = report.summarise(bare, AT, draws=5)
    assert by_itself["study"]["subdural"]["n"] == 0 and not by_itself["rsna_log_loss"]


def test_perfect_scores_are_right_in_everything_and_have_no_spread() -> None:
    cases = [case(f"p{index}") for index in range(6)]
    cases += [case(f"n{index}", labels=np.zeros((3, 6), np.uint8), slices=np.zeros((3, 6), np.float32),
                   series=np.zeros(6, np.float32)) for index in range(6)]  # fmt: skip
    told = report.summarise(cases, AT, draws=50)
    for which in ("slice", "study"):
        for name in ("auc", "ap", "accuracy", "f1", "precision", "recall", "specificity"):
            assert told[which]["any"][name] == [1, 1, 1]
        assert told[which]["any"]["ece"] == [0, 0, 0]
        assert told[which]["any"]["log_loss"][0] == pytest.approx(0, abs=1e-12)
    assert told["predictive_values"]["0.03"] == {"ppv": [1, 1, 1], "npv": [1, 1, 1]}


def test_constant_scores_have_an_auc_of_one_half_and_call_all_or_none() -> None:
    cases = [replace(one, slices=np.full((8, 6), 0.3, np.float32)) for one in patients()]
    told = report.summarise(cases, AT, draws=50)["slice"]["any"]
    assert told["auc"] == [0.5, 0.5, 0.5]
    assert told["recall"][0] == 0 and told["specificity"][0] == 1
    assert told["precision"] == [None, None, None]
    assert told["sensitivity_at_specificity_0.90"][0] == 0


def test_a_class_that_nobody_has_is_undefined_where_it_needs_positives() -> None:
    told = report.summarise(patients(), AT, draws=50)["study"]["subdural"]
    assert told["positive"] == 0
    for name in ("auc", "ap", "recall", "sensitivity_at_specificity_0.95"):
        assert told[name] == [None, None, None]
    assert told["specificity"][0] is not None and told["specificity"][1] is not None


def test_two_patients_with_a_class_are_too_few_for_an_interval() -> None:
    cases = patients()[1::2] + patients()[:3:2]
    told = report.summarise(cases, AT, draws=50)["study"]["any"]
    assert told["patients_positive"] == 2
    assert told["auc"][0] is not None and told["auc"][1:] == [None, None]
    assert told["recall"][1:] == [None, None] and told["specificity"][1] is not None


def test_nothing_has_an_interval_where_only_two_patients_stand_behind_it() -> None:
    """Of every figure, as the report says of how they are made."""
    two = report.summarise(patients()[:2], AT, draws=50)
    for which in ("slice", "study"):
        told = two[which]["any"]
        for name in ("accuracy", "log_loss", "ece", "specificity", "recall"):
            assert told[name][0] is not None and told[name][1:] == [None, None], name
        assert two["rsna_log_loss"][which][0] is not None and two["rsna_log_loss"][which][1:] == [None, None]

    def values(cases: list[Case]) -> list[list[float | None]]:
        told = report.summarise(cases, AT, draws=50)["predictive_values"]["0.03"]
        return [told["ppv"][1:], told["npv"][1:]]

    assert values(patients()[1::2] + patients()[:3:2]) == [[None, None]] * 2  # two with a bleed
    assert values(patients()[::2] + patients()[1:4:2]) == [[None, None]] * 2  # two without
    assert all(low is not None for low, _ in values(patients()))


def test_calibration_of_ten_cases_by_hand() -> None:
    score = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 0.95, 0.95, 0.95, 0.95, 1.0], np.float32)
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], np.uint8)
    cases = [
        case(f"p{place}", study_labels=np.full(6, truth[place]), series=np.full(6, score[place]))
        for place in range(10)
    ]
    told = report.summarise(cases, AT, draws=20)["study"]["any"]
    low, high = told["calibration"]
    assert (low["n"], low["predicted"], low["observed"][0]) == (4, pytest.approx(0.05), 0.25)
    assert (high["n"], high["low"], high["high"]) == (6, 0.9, 1.0)
    assert high["observed"][0] == pytest.approx(5 / 6, rel=1e-5)
    expected = 0.4 * (0.25 - 0.05) + 0.6 * abs(5 / 6 - (5 * 0.95 + 1) / 6)
    assert told["ece"][0] == pytest.approx(expected, rel=1e-4)


def test_the_rsna_log_loss_weights_any_twice_and_clips() -> None:
    wrong = np.zeros((3, 6), np.float32)
    wrong[:, 0] = 1  # "any" said of every slice, nothing else
    told = report.summarise([case(f"p{place}", slices=wrong) for place in range(4)], AT, draws=5)
    clipped = -np.log(1e-15)
    expected = (2 * clipped * RSNA_WEIGHTS[0] + clipped * RSNA_WEIGHTS[1]) / 3
    assert told["rsna_log_loss"]["slice"][0] == pytest.approx(expected, rel=1e-3)
    assert RSNA_WEIGHTS.sum() == pytest.approx(1)


def test_predictive_values_follow_from_sensitivity_and_specificity() -> None:
    told = report.summarise(patients(60), {"any": 0.7}, draws=50)
    right, wrong = told["study"]["any"]["recall"][0], 1 - told["study"]["any"]["specificity"][0]
    assert 0 < wrong < 1 and 0 < right < 1
    ppv = told["predictive_values"]["0.06"]["ppv"][0]
    assert ppv == pytest.approx(right * 0.06 / (right * 0.06 + wrong * 0.94), rel=1e-4)
    assert ppv < told["predictive_values"]["0.15"]["ppv"][0]
    assert told["predictive_values"]["0.03"]["npv"][0] > told["predictive_values"]["0.15"]["npv"][0]


def test_slices_are_judged_at_their_own_thresholds_where_there_are_any() -> None:
    told = report.summarise(patients(), AT, slice_thresholds={"any": 0.7}, draws=5)
    assert told["slice"]["any"]["threshold"] == 0.7 and told["study"]["any"]["threshold"] == 0.4
    assert told["slice"]["epidural"]["threshold"] is None and "recall" not in told["slice"]["epidural"]


def test_classes_that_the_model_does_not_tell_are_left_out() -> None:
    told = report.summarise(patients(), AT, classes=["any"], draws=5)
    assert list(told["slice"]) == list(told["study"]) == ["any"] and told["rsna_log_loss"] == {}
    with pytest.raises(PermanentError, match="stroke"):
        report.summarise(patients(), AT, classes=["stroke"])


def test_intervals_draw_patients_not_studies() -> None:
    cases = patients(12)
    doubled = cases + cases
    once, twice = (
        report.summarise(some, AT, draws=100)["slice"]["any"]["recall"] for some in (cases, doubled)
    )
    assert once == twice


def test_a_summary_is_json_and_the_same_each_time() -> None:
    told = report.summarise(patients(), AT, draws=50)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told == report.summarise(patients(), AT, draws=50)
    assert told != report.summarise(patients(), AT, draws=50, seed=1)


NAN = np.full((3, 6), np.nan, np.float32)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (case("jane", slices=NAN), "slices holds NaN"),
        (case("jane", series=NAN[0]), "series holds NaN"),
        (case("jane", series=np.full(6, 1.5, np.float32)), "outside 0 to 1"),
        (case("jane", explanation=np.full((3, 2, 2), np.nan, np.float16)), "explanation holds NaN"),
        (case("jane", labels=np.zeros((2, 6), np.uint8)), r"labels is \(2, 6\), not \(3, 6\)"),
        (case("jane", labels=np.full((3, 6), 2, np.uint8)), "neither 0 nor 1"),
        (case("jane", truth=np.zeros((3, 4, 4), bool), drawn=np.zeros((3, 5, 4), bool)), "drawn is"),
        (case("jane", cell_mm=(5.0, 0.0, 1.0)), "cell_mm"),
        (case("jane", labels=np.zeros((0, 6), np.uint8), slices=np.zeros((0, 6), np.float32)), "no slice"),
    ],
)
def test_a_case_that_cannot_be_judged_is_refused_with_its_patient(broken: Case, problem: str) -> None:
    with pytest.raises(PermanentError, match=f"'jane': .*{problem}"):
        report.summarise([case(), broken], AT)


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(PermanentError, match="no cases"):
        report.summarise([], AT)
