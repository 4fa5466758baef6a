"""The three commands from end to end, as small as they go; and real pictures, where they are at hand."""

from __future__ import annotations

import io
import json
import os
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from node.domain.findings import SUBTYPES
from tests.recipes import tiny_recipe
from workers.commands_models import _bar, _figures, _follow, evaluate, models, train
from workers.models.catalogue import CATALOGUE
from workers.training import datasets, recipes, sources
from workers.training.datasets import box_mask, ct_ich
from workers.training.plan import Plan
from workers.training.sources import Source

CT_ICH = os.environ.get("ICHNODE_TEST_DATA", "")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and phantoms as small as they go, drawn by this process."""
    monkeypatch.setattr(recipes, "RECIPES", tuple(map(tiny_recipe, recipes.RECIPES)))
    draw = partial(datasets.phantom_series, slices=6)
    monkeypatch.setattr(datasets, "phantom_series", lambda seed, size, view: draw(seed, size=64, view=view))
    monkeypatch.setattr("workers.commands_models.os.cpu_count", lambda: 1)


@pytest.mark.usefixtures("small")
def test_train_then_evaluate_a_toy_model(tmp_path: Path) -> None:
    runs, name = tmp_path / "runs", "multitask-phantom"
    arguments = [name, "--phantoms", "2", "--steps", "2", "--out", str(runs), "--version", "0.0.1"]
    trained = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert trained.exit_code == 0, trained.output
    facts = json.loads((runs / name / f"{name}.json").read_text())
    assert facts["version"] == "0.0.1" and facts["sha256"] in trained.output
    assert facts["metrics"]["protocol"] == "held-out phantoms; no patient was used"
    assert facts["metrics"]["largest_logit_difference_of_shipped_weights"] < 0.5

    arguments = [name, "--runs", str(runs), "--phantoms", "2", "--out", str(tmp_path / "report")]
    judged = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert judged.exit_code == 0, judged.output
    assert json.loads((tmp_path / "report" / "report.json").read_text())["cases"]["patients"] == 2
    assert "synthetic heads, held out of training" in (tmp_path / "report" / "report.html").read_text()


def test_figures_are_whole_in_a_narrow_terminal() -> None:
    figures = {"positive": 12, "auc": [0.442, 0.264, 0.612], "ap": [0.264, 0.123, 0.401]}
    summary = {"cases": {"patients": 61, "slices": 9}, "study": {"intraparenchymal": figures}, "slice": {}}
    narrow = Console(width=80, record=True, file=io.StringIO())
    narrow.print(_figures(summary))
    assert "…" not in narrow.export_text()


def test_size_and_steps_hold_for_the_parts_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(
        "workers.training.ship.run", lambda plan, watch: (plans.append(plan), (None, None))[1]
    )
    (tmp_path / "set").mkdir()
    data = ["--data", f"ct-ich:{tmp_path}/set", "--out", str(tmp_path / "runs")]
    for recipe in ("sequence", "gated"):
        arguments = [recipe, *data, "--size", "64", "--steps", "3"]
        CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert len(plans) == 2
    for plan in plans:
        assert plan.recipe.size == 64
        for part in plan.parts():
            assert part.recipe.size == 64 and all(stage.steps == 3 for stage in part.recipe.stages)


def test_no_soup_is_made_of_networks_that_share_no_pretraining(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    data = ["--data", f"ct-ich:{tmp_path}/set", "--out", str(tmp_path / "runs")]
    refused = CliRunner().invoke(train, ["cnn-baseline", *data, "--soup"])
    assert refused.exit_code == 1 and "share no pretraining" in refused.output


def test_public_weights_are_refused_where_no_network_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be passed over, and the sidecar name them all the same."""
    plans: list[str] = []
    monkeypatch.setattr(
        "workers.training.ship.run", lambda plan, watch: (plans.append(plan.recipe.name), (None, None))[1]
    )
    (tmp_path / "set").mkdir()
    (tmp_path / "public.pth").write_bytes(b"")
    given = ["--data", f"ct-ich:{tmp_path}/set", "--init", str(tmp_path / "public.pth")]
    for one in recipes.RECIPES:
        done = CliRunner().invoke(train, [one.name, *given, "--out", str(tmp_path / "runs")])
        assert done.exit_code == 0 or "leave it out" in done.output, done.output
    passed_over = {"multitask", "multitask-phantom", "multitask-sequence", "rim", "rim-sequence"}
    small = {"unet-small", "cnn-baseline", "cnn-softmax"}
    assert set(plans) == {one.name for one in recipes.RECIPES} - passed_over - small


def test_a_soup_is_made_of_the_parts_of_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that share a pretraining stand two steps below the default."""
    plans: list[Plan] = []
    monkeypatch.setattr(
        "workers.training.ship.run", lambda plan, watch: (plans.append(plan), (None, None))[1]
    )
    (tmp_path / "set").mkdir()
    data = ["--data", f"ct-ich:{tmp_path}/set", "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(train, ["default", *data, "--soup"])
    assert done.exit_code == 0, done.output
    assert {one.recipe.name for one in plans[0].whole() if one.souped} == {"multitask-phantom", "rim"}


def test_a_part_that_is_asked_for_again_has_one_line_in_the_progress() -> None:
    with _bar() as bar:
        _follow(bar, "fold-0")(12, 12, 0.3)
        _follow(bar, "fold-1")
        _follow(bar, "fold-0")
        assert [(one.completed, one.total) for one in bar.tasks] == [(12, 12), (0, None)]


def test_the_table_tells_of_reports_only(tmp_path: Path) -> None:
    empty = CliRunner().invoke(train, ["table", "--out", str(tmp_path)])
    assert empty.exit_code == 1 and "train a recipe with --data first" in empty.output


def test_what_cannot_be_trained_is_refused_with_the_next_step(tmp_path: Path) -> None:
    for arguments, told in (
        (["default"], "give --data KIND:FOLDER"),
        (["default", "--data", "nosuch:/"], "ct-ich-nifti"),
        (["default", "--data", f"ct-ich:{tmp_path}/none"], "is no folder"),
        (["default", "--data", f"cq500:{tmp_path}"], "cannot be trained on: evaluate on it"),
        (["robustness", "cnn-baseline", "--data", f"cq500:{tmp_path}"], "cannot be trained on"),
        (["multitask-phantom", "--only", "5"], "folds are 0 to 4"),
    ):
        result = CliRunner().invoke(train, [*arguments, "--out", str(tmp_path / "runs")])
        assert result.exit_code != 0 and told in result.output, result.output


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train, ["cnn-baseline", "--data", "ct-ich:.", "--folds", "0"]),
        (train, ["cnn-baseline", "--data", "ct-ich:.", "--folds", "1"]),
        (train, ["cnn-baseline", "--data", "ct-ich:.", "--seeds", "0"]),
        (train, ["cnn-baseline", "--data", "ct-ich:.", "--steps", "0"]),
        (train, ["multitask-phantom", "--phantoms", "-3"]),
        (train, ["unet-small", "--data", "ct-ich:.", "--size", "100"]),
        (train, ["robustness", "unet-small", "--data", "ct-ich:.", "--size", "100"]),
        (train, ["robustness", "cnn-baseline", "--data", "ct-ich:.", "--seeds", "0"]),
        (evaluate, ["default", "--phantoms", "0"]),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_option(
    command: click.Command, arguments: list[str], tmp_path: Path
) -> None:
    given = [] if command is evaluate else ["--out", str(tmp_path)]
    refused = CliRunner().invoke(command, [*arguments, *given])
    assert refused.exit_code == 2, refused.output
    assert f"Invalid value for '{arguments[-2]}'" in refused.output


def test_a_recipe_that_begins_with_phantoms_needs_some(tmp_path: Path) -> None:
    refused = CliRunner().invoke(train, ["multitask-phantom", "--phantoms", "0", "--out", str(tmp_path)])
    assert refused.exit_code == 1 and "begins with phantoms: give --phantoms 1 or more" in refused.output


def test_a_set_of_which_nothing_can_be_read_is_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the node would analyse none of the series of any study."""
    none = Source("none", "none", "nobody", "none", lambda folder, view: iter(()))
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, none))
    told = CliRunner().invoke(evaluate, ["--data", f"none:{tmp_path}", "--device", "cpu"])
    assert told.exit_code == 1 and "no series in none" in told.output, repr(told.exception)


def test_models_lists_the_catalogue_with_digests() -> None:
    listed = CliRunner().invoke(models, ["--json"], catch_exceptions=False)
    rows = json.loads(listed.output)
    assert [row["name"] for row in rows] == [known.name for known in CATALOGUE]
    assert all(len(row["sha256"]) == 64 for row in rows)
    assert all(row["figures"].startswith("study 0.") and " of 61; slice 0." in row["figures"] for row in rows)
    assert CliRunner().invoke(models, []).exit_code == 0


def test_unknown_recipes_and_pipelines_are_refused_with_the_names_there_are() -> None:
    for command, arguments in ((train, ["no-such"]), (evaluate, ["no-such"])):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code != 0
        assert "default" in result.output


def test_a_loose_box_is_filled_with_what_is_bright_in_it_and_not_bone() -> None:
    y, x = np.mgrid[:256, :256]
    radius = np.hypot(y - 128, x - 128)
    hu = np.where(radius < 100, 30.0, np.where(radius < 112, 1000.0, -1000.0))
    clot = np.hypot(y - 128, x - 80) < 14
    hu[clot] = 65
    filled = box_mask(hu.astype(np.float32), (80 / 256, 0.5, 0.35, 0.35))
    assert 2 * (filled & clot).sum() / (filled.sum() + clot.sum()) > 0.85
    assert not box_mask(hu.astype(np.float32), (0.7, 0.5, 0.1, 0.1)).any()


INDEX = "patient,slice,brain_path,bone_path,mask_path,any," + ",".join(SUBTYPES)


def ct_ich_folder(folder: Path, *rows: str, boxes: str = "") -> Path:
    """Two patients of four slices in the form that is read; `rows` are appended to the index."""
    (folder / "brain").mkdir(parents=True)
    lines = [INDEX]
    y, x = np.ogrid[:64, :64]
    head = np.where((y - 32) ** 2 + (x - 32) ** 2 < 24**2, 120, 0).astype(np.uint8)
    for patient in (1, 2):
        for number in range(4):
            Image.fromarray(head).save(folder / "brain" / f"{patient}_{number}.png")
            lines.append(f"{patient},{number},brain/{patient}_{number}.png,,,0,0,0,0,0,0")
    (folder / "index.csv").write_text("\n".join([*lines, *rows]) + "\n")
    (folder / "boxes.csv").write_text(f"patient,slice,subtype,xc,yc,w,h\n{boxes}")
    return folder


def surveyed(folder: Path) -> Result:
    arguments = ["explore", "--kind", "ct-ich", "--data", str(folder), "--out", str(folder / "out")]
    return CliRunner().invoke(train, arguments)


def test_equal_rows_of_ct_ich_are_one_slice(tmp_path: Path) -> None:
    done = surveyed(ct_ich_folder(tmp_path / "set", "1,0,brain/1_0.png,,,0,0,0,0,0,0"))
    assert done.exit_code == 0 and "2 patients, 2 series, 8 slices" in done.output, done.output


def test_what_is_wrong_with_a_set_of_ct_ich_is_named_in_a_line(tmp_path: Path) -> None:
    broken = {
        "differ; remove the wrong one": ct_ich_folder(tmp_path / "a", "1,0,brain/1_0.png,,,1,1,0,0,0,0"),
        "line 10: any is 'x'": ct_ich_folder(tmp_path / "b", "1,9,brain/1_0.png,,,x,0,0,0,0,0"),
        "line 2: no subtype 'ABC'": ct_ich_folder(tmp_path / "c", boxes="1,0,ABC,0.5,0.5,0.1,0.1\n"),
    }
    gone = ct_ich_folder(tmp_path / "gone")
    (gone / "brain" / "2_0.png").unlink()
    broken["brain/2_0.png is not there"] = gone
    for number, kept in enumerate((0, 8, -60), 1):
        folder = ct_ich_folder(tmp_path / f"half-{number}")
        picture = folder / "brain" / f"2_{number}.png"
        picture.write_bytes(picture.read_bytes()[:kept])
        broken[f"brain/2_{number}.png cannot be read"] = folder
    for name in ("index.csv", "boxes.csv"):
        folder = ct_ich_folder(tmp_path / f"no-{name}")
        (folder / name).unlink()
        broken[f"{name} is not there"] = folder
    lacking = ct_ich_folder(tmp_path / "lacking")
    (lacking / "index.csv").write_text((lacking / "index.csv").read_text().replace("epidural", "other"))
    broken["has no column epidural"] = lacking
    for told, folder in broken.items():
        done = surveyed(folder)
        assert done.exit_code == 1 and told in done.output, (told, done.output, done.exception)


@pytest.mark.skipif(not CT_ICH, reason="ICHNODE_TEST_DATA is not set: no folder with ct-ich")
def test_unlabelled_blood_of_ct_ich_is_never_a_known_empty_mask() -> None:
    for series in ct_ich(Path(CT_ICH) / "ct-ich"):
        for channel in range(6):
            positive = series.labels[:, channel] > 0
            empty = ((series.masks >> channel) & 1).sum((1, 2)) == 0
            drawn_elsewhere = (series.masks & 1).sum((1, 2)) > 0
            assert not (positive & series.known[:, channel] & empty & ~drawn_elsewhere).any()
        assert series.pictures.shape[1:] == (1, 128, 128)
