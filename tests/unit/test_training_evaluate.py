"""Splitting patients, calibrating without looking, and what is kept of a prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.models.aggregate import Aggregation
from workers.preprocess import BONE, BRAIN, DEFAULT_VIEW, View
from workers.training import cache, evaluate, metrics, predict
from workers.training.datasets import Series
from workers.training.evaluate import Judged
from workers.training.predict import Prediction
from workers.training.recipes import Rules
from workers.training.train import average


def series(patient: str, positive: bool, name: str = "", windows: int = 1) -> Series:
    """Four slices; the middle two are bloody and intraparenchymal in a positive one."""
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, (0, 2)] = positive
    pictures = np.random.default_rng(len(patient)).integers(0, 255, (4, windows, 16, 16), np.uint8)
    told, hand = np.ones((4, 6), bool), np.zeros(4, bool)
    masks = np.zeros((4, 16, 16), np.uint8)
    return Series(patient, pictures, labels, masks, told, told, hand, name, cell_mm=(5.0, 1.0, 1.0))


def test_folds_hold_every_patient_once_and_spread_the_positive_ones() -> None:
    every = [series(str(index), index % 3 == 0) for index in range(30)]
    parts = evaluate.folds(every, 5, seed=1)
    assert sorted(index for part in parts for index in part) == list(range(30))
    assert [sum(every[index].labels.any() for index in part) for part in parts] == [2] * 5
    assert parts == evaluate.folds(every, 5, seed=1)


def test_series_of_one_patient_never_part_into_two_folds() -> None:
    every = [series(str(index // 3), index % 4 == 0) for index in range(30)]
    parts = evaluate.folds(every, 5, seed=1)
    assert sorted(index for part in parts for index in part) == list(range(30))
    owners = [{every[index].patient for index in part} for part in parts]
    assert sum(len(own) for own in owners) == len(set().union(*owners)) == 10


def predictions(count: int = 40) -> list[Prediction]:
    rng = np.random.default_rng(2)
    found = []
    for index in range(count):
        one = series(str(index), index % 2 == 0)
        logits = (one.labels * 6.0 - 3 + rng.normal(0, 1.5, one.labels.shape)).astype(np.float32)
        blood = np.zeros((4, 16, 16), np.uint8)
        blood[1, 2:4, 2:4] = 200
        heat = np.full((4, 8, 8), 0.5, np.float16)
        mask = np.zeros(blood.shape, bool)
        found.append(
            Prediction(one.patient, "", one.labels, one.told, one.truth, mask, one.known[:, 0], one.by_hand,
                       logits, logits, blood, heat)
        )  # fmt: skip
    return found


def test_calibration_makes_probabilities_that_are_right_on_average() -> None:
    found = predictions()
    aggregation = evaluate.calibrate(found, Aggregation.plain())
    said = [
        aggregation.slice_probabilities(aggregation.evidence(one.class_logits, one.mask_logits))[:, 0]
        for one in found
    ]
    assert np.mean(said) == pytest.approx(np.mean([one.labels[:, 0] for one in found]), abs=0.03)


def test_the_mixture_that_separates_is_chosen() -> None:
    noise = np.random.default_rng(5)
    found = [
        replace(one, class_logits=noise.normal(size=one.class_logits.shape).astype(np.float32))
        for one in predictions()
    ]
    assert evaluate.choose_mixture(found).mask_weight == 1.0


def test_a_patient_is_judged_without_their_own_truth() -> None:
    found = predictions()
    parts = [[index for index in range(40) if index % 5 == number] for number in range(5)]
    judged = evaluate.cross_fitted(found, parts)
    assert [one.case.patient for one in judged] == [one.patient for one in found]
    liar = replace(found[0], labels=1 - found[0].labels, truth=1 - found[0].truth)
    again = evaluate.cross_fitted([liar, *found[1:]], parts)
    assert np.array_equal(again[0].case.series, judged[0].case.series)
    assert not np.array_equal(again[1].case.series, judged[1].case.series)
    point = evaluate.operating_point(judged)
    assert point["positive"] == point["negative"] == 20 and point["sensitivity"] > 0.8


def test_a_class_that_is_not_known_has_no_probability_and_is_never_called() -> None:
    found = [replace(one, knows=frozenset({"any"})) for one in predictions()]
    (one, *_) = evaluate.cross_fitted(found, [list(range(40))])
    assert (one.case.slices[:, 0] > 0).all() and not one.case.slices[:, 1:].any() and not one.called[1:].any()


def test_slices_that_are_not_told_do_not_calibrate() -> None:
    found = predictions()
    blind = [
        replace(one, told=np.zeros_like(one.told), labels=np.ones_like(one.labels), truth=one.truth)
        for one in found[:20]
    ]
    one = evaluate.calibrate([*blind, *found[20:]], Aggregation.plain())
    other = evaluate.calibrate(found[20:], Aggregation.plain())
    assert one.slice_scale == other.slice_scale and one.slice_bias == other.slice_bias
    judged = evaluate.judge(blind[0], evaluate.Fitted(one, dict.fromkeys(CLASSES, 0.5)))
    assert not judged.case.slices_told.any() and judged.case.study_told.all()


def test_a_class_that_a_set_does_not_tell_is_calibrated_by_the_others_alone() -> None:
    """A set that draws blood and names no subtype teaches nothing about subtypes, not that there are none."""
    found = predictions()
    only_any = np.zeros((4, 6), bool)
    only_any[:, 0] = True
    untold = [
        replace(one, told=only_any, labels=one.labels * only_any, truth=one.truth * only_any[0])
        for one in found[:20]
    ]
    mixed, alone = evaluate.fit_operating([*untold, *found[20:]]), evaluate.fit_operating(found[20:])
    assert [mixed.thresholds[name] for name in CLASSES[2:]] == pytest.approx(
        [alone.thresholds[name] for name in CLASSES[2:]], abs=0.2
    )
    judged = evaluate.judge(untold[0], mixed).case
    assert judged.study_told.tolist() == [True] + 5 * [False]
    nobody = evaluate.fit_operating(untold)  # no subtype is told at all: it is called at one half
    assert nobody.thresholds["subdural"] == 0.5 and np.isfinite(nobody.aggregation.series_bias).all()


def _called(any_there: bool) -> Judged:
    (one,) = evaluate.cross_fitted(predictions(1), [[0]])
    return Judged(one.case, np.asarray([any_there] * 6))


def test_a_gate_that_stays_shut_draws_nothing() -> None:
    opened, shut = evaluate.gated([_called(True), _called(False)], [_called(False), _called(False)])
    assert opened.case.drawn is not None and opened.case.drawn.any()
    assert shut.case.drawn is not None and not shut.case.drawn.any()
    assert evaluate.agreement([_called(True), _called(False)], [_called(True)] * 2) == {
        "both": 1, "classifier_only": 0, "mask_only": 1, "neither": 0,
    }  # fmt: skip


def test_a_gated_mask_has_the_cells_of_the_segmenter() -> None:
    """Whose pictures may have another size than the classifier's: mL and mm are those of its own grid."""
    classified, segmented = _called(True), _called(True)
    finer = Judged(replace(segmented.case, cell_mm=(5.0, 0.5, 0.5)), segmented.called)
    (one,) = evaluate.gated(
        [replace(classified, case=replace(classified.case, cell_mm=(5.0, 2, 2)))], [finer]
    )
    assert one.case.cell_mm == (5.0, 0.5, 0.5)


def test_predictions_come_back_as_saved(tmp_path: Path) -> None:
    found = predictions(3)
    found[1] = replace(found[1], cell_mm=(5.0, 1.5, 1.5), knows=frozenset({"any"}))
    predict.save(tmp_path / "p.npz", found)
    for one, again in zip(found, predict.load(tmp_path / "p.npz"), strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(again, name)), name


def test_seeds_are_averaged_by_their_logits_and_masks() -> None:
    one = predictions(1)[0]
    other = replace(one, class_logits=one.class_logits + 2, blood=np.zeros_like(one.blood))
    both = average([one, other, other])
    assert np.allclose(both.class_logits, one.class_logits + 4 / 3)
    assert both.blood is not None and both.blood.max() == 67


def test_thresholds_by_best_f1_and_by_areas_that_follow_the_true_ones() -> None:
    found = []
    for index, one in enumerate(predictions()):
        blood = np.full((4, 16, 16), 70, np.uint8)  # a haze that says nothing, and the true bleed in it
        blood[:, : index % 7] = 90
        mask = np.zeros((4, 16, 16), bool)
        mask[:, : 1 + index % 5, :3] = True
        blood[mask] = 180
        found.append(replace(one, blood=blood, mask=mask))
    threshold = evaluate.area_threshold(found)
    assert threshold is not None and 90 < threshold * 255 <= 180
    fitted = evaluate.fit_operating(found, Rules(series="f1", mask="area"))
    assert fitted.mask_threshold == threshold
    truth, score = np.array([0, 1, 0, 1, 1.0]), np.array([0.1, 0.4, 0.5, 0.6, 0.7])
    assert metrics.threshold_of_best_f1(truth, score) == 0.4
    assert np.isnan(metrics.threshold_of_best_f1(np.zeros(3), score[:3]))
    assert evaluate.area_threshold([replace(one, blood=None) for one in found]) is None


def test_a_recipe_says_at_which_probability_a_mask_is_drawn() -> None:
    assert evaluate.fit_operating(predictions(), Rules(mask_threshold=0.3)).mask_threshold == 0.3


def test_the_patient_whose_score_makes_the_best_f1_is_called_at_that_threshold() -> None:
    """Thresholds have four decimals: rounded up, the one would leave out the patient it was chosen for."""
    found = predictions()
    for step in range(40):
        moved = [replace(one, class_logits=one.class_logits + 0.01 * step) for one in found]
        fitted = evaluate.fit_operating(moved, Rules(series="f1"))
        scores = np.array([_any(one, fitted) for one in moved])
        truth = np.array([float(one.truth[0]) for one in moved])
        best = metrics.threshold_of_best_f1(truth, scores)
        assert fitted.thresholds["any"] <= best


def _any(prediction: Prediction, fitted: evaluate.Fitted) -> float:
    return float(evaluate.judge(prediction, fitted).case.series[0])


def test_a_cache_keeps_every_series_apart_and_is_read_once(tmp_path: Path) -> None:
    every = [series("a", True, "1"), series("a", False, "2"), replace(series("b", False), study=(1,) * 6)]
    reads = []

    def reader():  # type: ignore[no-untyped-def]
        reads.append(1)
        yield from every

    for _ in range(2):
        found = cache.cached(tmp_path / "set", reader() if not reads else iter(()))
        assert [(one.patient, one.name, one.study) for one in found] == [
            ("a", "1", None), ("a", "2", None), ("b", "", (1,) * 6)
        ]  # fmt: skip
        for one, again in zip(every, found, strict=True):
            assert np.array_equal(one.pictures, again.pictures) and np.array_equal(one.labels, again.labels)
            assert again.cell_mm == (5.0, 1.0, 1.0)
    assert found[2].truth.tolist() == [1] * 6
    assert cache.patients(found) == ["a", "b"]


@pytest.mark.parametrize("name", [cache.PICTURES, cache.MASKS, cache.ARRAYS, cache.FACTS])
def test_a_cache_of_which_a_part_is_missing_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    """As after a power cut, or a copy that was broken off."""
    cache.write(tmp_path / "set", [series("a", True)])
    content = (tmp_path / "set" / name).read_bytes()
    (tmp_path / "set" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(PermanentError, match=r"set cannot be read.*remove it"):
        cache.cached(tmp_path / "set", iter(()))


def test_a_set_without_series_leaves_no_cache_behind(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="no series for set"):
        cache.cached(tmp_path / "set", iter(()))
    assert not list(tmp_path.iterdir())


def test_of_two_runs_that_prepare_one_set_at_once_the_first_wins(tmp_path: Path) -> None:
    def slower():  # type: ignore[no-untyped-def]
        yield series("a", True, "1")
        cache.write(tmp_path / "set", iter([series("b", False)]))
        kept.extend(cache.read(tmp_path / "set"))

    kept: list[Series] = []
    found = cache.cached(tmp_path / "set", slower())
    assert [one.patient for one in found] == ["b"]
    assert int(kept[0].pictures.sum()) == int(found[0].pictures.sum())  # still mapped, and whole
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_cache_is_named_by_all_that_decides_its_pictures() -> None:
    views = (DEFAULT_VIEW, View(DEFAULT_VIEW.windows, 96), View((BRAIN,), 128), View((BRAIN, BONE), 128))
    assert len({cache.key("x", view) for view in views}) == 4
