"""Disturbed heads: each change does what it says, and figures under it are those of unseen patients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from node.domain.errors import PermanentError
from node.pixels import AIR_HU
from tests.recipes import MADE, patients, tiny_recipe
from workers.commands_models import train
from workers.phantom import volume
from workers.preprocess import WIDE_BRAIN, Spacing, View, Volume
from workers.training import recipes, robustness
from workers.training.datasets import Series
from workers.training.disturb import (
    DISTURBANCES,
    Disturbance,
    DisturbedView,
    as_it_is,
    clipped,
    disturbance,
    noise,
    scaled,
    sharp,
    smooth,
    thick,
    tilted,
    turned,
)
from workers.training.plan import Plan

SPACING: Spacing = (5.0, 0.5, 0.5)


@pytest.fixture(scope="module")
def head() -> Volume:
    return volume(3, (), slices=4, size=128, lowest_mm=-20).hu


def _spot(z: int = 2, y: int = 40, x: int = 64) -> Volume:
    hu = np.full((5, 128, 128), AIR_HU, np.float32)
    hu[z, y, x] = 1000.0
    return hu


def test_noise_is_as_strong_as_told_and_the_same_twice(head: Volume) -> None:
    once, again = noise(5.0)(head, SPACING), noise(5.0)(head, SPACING)
    assert np.array_equal(once, again)
    assert np.std(once - head) == pytest.approx(5.0, rel=0.01)


def test_kernels_take_detail_away_and_add_it(head: Volume) -> None:
    def detail(hu: Volume) -> float:
        return float(np.abs(np.diff(hu, axis=2)).mean())

    assert (
        detail(smooth(1.0)(head, SPACING)) < 0.8 * detail(head) < 0.8 * detail(sharp(1.0, 1.0)(head, SPACING))
    )


def test_values_windows_and_thickness(head: Volume) -> None:
    assert np.allclose(scaled(1.1, -6.0)(head, SPACING), head * 1.1 - 6, atol=1e-3)
    kept = clipped(0.0, 80.0)(head, SPACING)
    assert set(np.unique(kept[head <= -200])) == {AIR_HU}
    assert kept[head > -200].min() == 0 and kept[head > -200].max() == 80
    thicker = thick(head, SPACING)
    assert np.allclose(thicker[0], (head[0] + head[1]) / 2) and np.array_equal(thicker[-1], head[-1])


def test_a_turned_head_and_a_tilted_gantry_move_what_is_in_it() -> None:
    quarter = turned(90.0)(_spot(), SPACING)
    assert np.unravel_index(quarter.argmax(), quarter.shape)[0] == 2
    assert np.unravel_index(quarter[2].argmax(), (128, 128)) != (40, 64)
    rows = np.tan(np.deg2rad(15)) * 5 / 0.5
    for z in range(5):
        found = np.unravel_index(tilted(15.0)(_spot(z), SPACING)[z].argmax(), (128, 128))
        assert found[1] == 64 and found[0] == pytest.approx(40 + (z - 2) * rows, abs=0.6)


def test_a_slice_alone_is_seen_as_if_no_other_had_been_sent(head: Volume) -> None:
    view = View((WIDE_BRAIN,), 64)
    seen = DisturbedView.of(view, Disturbance("alone", "", as_it_is, alone=True)).prepare(head, SPACING)
    assert len(seen.pictures) == len(head) == len(seen.centres)
    for z in range(len(head)):
        assert np.array_equal(seen.pictures[z], view.prepare(head[z : z + 1], SPACING).pictures[0])


def test_a_slice_alone_without_a_head_is_shown_where_the_head_of_the_others_is(head: Volume) -> None:
    empty = head.copy()
    empty[-1] = AIR_HU
    view = DisturbedView.of(View((WIDE_BRAIN,), 64), disturbance("alone"))
    assert view.prepare(empty, SPACING).pictures[-1].max() == 0


@pytest.mark.parametrize("one", DISTURBANCES, ids=lambda one: one.name)
def test_no_disturbance_moves_or_adds_a_slice(one: Disturbance, head: Volume) -> None:
    before = head.copy()
    changed = one.change(head, SPACING)
    wider = 1.5 if one.name == "exported" else 1.0
    assert changed.shape == (len(head), *(wider * side for side in head.shape[1:]))
    assert np.isfinite(changed).all()
    assert np.array_equal(head, before)
    view = View((WIDE_BRAIN,), 64)
    seen, plain = DisturbedView.of(view, one).prepare(head, SPACING), view.prepare(head, SPACING)
    assert seen.pictures.shape == plain.pictures.shape
    assert one.alone or not np.array_equal(seen.pictures, plain.pictures)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole table at 64 px, one step of two slices a stage."""
    smaller = tuple(replace(tiny_recipe(one), phantoms=2) for one in recipes.RECIPES)
    monkeypatch.setattr(recipes, "RECIPES", smaller)
    monkeypatch.setattr("workers.training.curves.draw", lambda history, title, path: None)


@pytest.mark.usefixtures("tiny")
def test_what_disturbs_nothing_changes_no_figure_and_a_lost_window_does(tmp_path: Path) -> None:
    """The default is asked through both of its views; nothing is trained a second time."""
    plan = Plan(recipes.recipe("default"), tmp_path, data=((MADE, tmp_path),), folds=2)
    nothing = Disturbance("nothing", "the same again", as_it_is)
    gone = Disturbance("gone", "no value is left", clipped(500.0, 501.0))
    told: list[str] = []
    rows = robustness.measure(
        plan, lambda name: lambda *step: told.append(name), (nothing, gone, disturbance("alone"))
    )
    before, same, lost, alone = rows
    assert before.name == "undisturbed" and before.slice_change is None
    assert same.slice_auc == before.slice_auc and same.study_auc == before.study_auc
    assert same.slice_change == [0.0, 0.0, 0.0] == same.study_change
    assert (same.sensitivity, same.specificity) == (before.sensitivity, before.specificity)
    assert lost.slice_change != [0.0, 0.0, 0.0] and lost.slice_auc != before.slice_auc
    assert alone.study_auc is None and alone.sensitivity is None and alone.slice_auc[0] is not None
    assert told.count(robustness.NAME) == 3

    path = robustness.write(tmp_path / "kept", "default: robustness", rows)
    assert "| gone | no value is left | 0." in path.read_text()
    assert [one["name"] for one in json.loads((path.parent / "robustness.json").read_text())] == [
        row.name for row in rows
    ]
    assert (path.parent / "robustness.png").stat().st_size > 5_000


@pytest.mark.usefixtures("tiny")
def test_networks_are_never_asked_about_patients_they_have_seen(tmp_path: Path) -> None:
    """A series in which a disturbance left nothing to be read moves those behind it to other networks."""

    def reader(folder: Path, view: View) -> Iterator[Series]:
        return islice(patients(folder, view), int(isinstance(view, DisturbedView)), None)

    made = replace(MADE, reader=reader)
    plan = Plan(recipes.recipe("cnn-baseline"), tmp_path, data=((made, tmp_path),), folds=2)
    with pytest.raises(PermanentError, match="p0"):
        robustness.measure(plan, lambda name: lambda *step: None, (disturbance("noise-5"),))


def test_an_unknown_disturbance_is_answered_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    arguments = ["robustness", "cnn-baseline", "--data", f"ct-ich:{tmp_path}/set", "--disturb", "hail"]
    answer = CliRunner().invoke(train, arguments)
    assert answer.exit_code != 0 and "noise-5" in answer.output
