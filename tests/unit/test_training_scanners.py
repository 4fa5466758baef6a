"""Patients as other scanners would show them: they teach, and nobody is judged by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.recipes import MADE, PATIENTS, tiny_recipe
from workers.phantom import volume
from workers.preprocess import WIDE_BRAIN, Spacing, View, Volume
from workers.training import recipes, train
from workers.training.cache import key
from workers.training.evaluate import folds
from workers.training.plan import Plan
from workers.training.scanners import GAIN, OFFSET_HU, OtherScanner, rescanned

SPACING: Spacing = (5.0, 0.5, 0.5)
VIEW = View((WIDE_BRAIN,), 64)


@pytest.fixture(scope="module")
def head() -> Volume:
    return volume(3, ("epidural",), slices=4, size=128, lowest_mm=-20).hu


@pytest.mark.parametrize("seed", range(12))
def test_a_scanner_changes_grain_and_values_but_moves_nothing(head: Volume, seed: int) -> None:
    shown = rescanned(head, SPACING, np.random.default_rng(seed))
    assert shown.dtype == np.float32 and shown.shape == head.shape and np.isfinite(shown).all()
    assert not np.allclose(shown, head, atol=0.5)

    def likeness(to: Volume) -> float:
        return float(np.corrcoef(shown.ravel(), to.ravel())[0, 1])

    moved = [np.roll(head, step, axis) for axis in range(3) for step in (-1, 1)]
    assert likeness(head) > max(likeness(one) for one in moved)
    brain = (head > 20) & (head < 45)
    moved_hu = np.median(shown[brain]) - np.median(head[brain])
    assert abs(moved_hu) < 45 * GAIN + OFFSET_HU + 3


def test_scanners_are_harder_and_softer_than_the_one_that_was(head: Volume) -> None:
    def detail(hu: Volume) -> float:
        return float(np.abs(np.diff(hu, axis=2)).mean())

    shown = [detail(rescanned(head, SPACING, np.random.default_rng(seed))) for seed in range(30)]
    assert min(shown) < 0.9 * detail(head) and max(shown) > 1.3 * detail(head)


def test_a_scanner_shows_the_same_twice_and_another_shows_something_else(head: Volume) -> None:
    first, again, second = (OtherScanner.of(VIEW, number).prepare(head, SPACING) for number in (1, 1, 2))
    assert np.array_equal(first.pictures, again.pictures)
    assert not np.array_equal(first.pictures, second.pictures)
    assert first.pictures.shape == (4, 1, 64, 64)


def test_each_scanner_has_its_place_in_the_cache() -> None:
    assert len({key("set", view) for view in (VIEW, OtherScanner.of(VIEW, 1), OtherScanner.of(VIEW, 2))}) == 3


@pytest.mark.parametrize("number", range(3))
def test_other_scanners_teach_and_their_patients_are_those_of_the_fold(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny_recipe(recipes.recipe("cnn-baseline")), scanners=2)
    plan = Plan(recipe, tmp_path, "0.0.1", ((MADE, tmp_path),), phantoms=2, folds=3)
    corpora: list[train.Corpus] = []
    monkeypatch.setattr(train, "networks", lambda plan, corpus, *_: (corpora.append(corpus), ([], []))[1])

    real = plan.real(train.view_of(recipe))
    apart = {real[index].patient for index in folds(real, plan.folds, plan.seed)[number]}
    train.fold(plan, number, 1, lambda name: lambda *told: None)
    stopping = {one.patient for one in corpora[0].validation}
    names = [one.patient for one in corpora[0].real]
    assert not (apart | stopping) & set(names) and len(apart | stopping | set(names)) == PATIENTS
    assert all(names.count(name) == 3 for name in names)
    same = [one for one in corpora[0].real if one.patient == names[0]]
    assert all(np.array_equal(one.labels, same[0].labels) for one in same)
    assert not np.array_equal(same[0].pictures, same[1].pictures)
    shown = {one.patient: one for one in real}
    assert all(np.array_equal(one.pictures, shown[one.patient].pictures) for one in corpora[0].validation)

    train.final(plan, 1, (), lambda name: lambda *told: None)
    assert len(corpora[1].real) == 3 * PATIENTS
