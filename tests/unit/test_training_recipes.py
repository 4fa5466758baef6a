"""Every recipe end to end, as small as it goes: trained, judged, shipped, and run by the node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from tests.recipes import MADE, PATIENTS, patients, tiny_recipe
from tests.unit.test_families_pretrained import efficientnet_lite0_state
from workers.models.contract import MAP_SIZE
from workers.models.runtime import load_pipeline
from workers.models.sequence import SequenceModel, SequenceOutput, sequence_loss
from workers.models.slicewise import SequencePipeline
from workers.phantom import volume
from workers.preprocess import View
from workers.training import fit, recipes, sequence_fit, sequenced, ship, train
from workers.training.datasets import Series, phantom_series
from workers.training.learners import identity, learner
from workers.training.plan import PHANTOM_SEEDS, Plan
from workers.training.predict import Prediction, predict
from workers.training.recipes import RECIPES
from workers.training.sources import Source

LIGHT = [one.name for one in RECIPES if "seresnext" not in one.family]
HEAVY = [one.name for one in RECIPES if "seresnext" in one.family]


def _others(folder: Path, view: View) -> Iterator[Series]:
    """Four more patients, of another set."""
    return (replace(one, patient=f"o{n}") for n, one in enumerate(islice(patients(folder, view), 4)))


OTHERS = Source("others", "others", "nobody", "none", _others)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole table at 64 px, one step of two slices a stage; no pictures are drawn."""
    few = {"multitask-phantom": 3, "rim": 2, "efficientnet-3window": 2}
    small = (replace(tiny_recipe(one), phantoms=few.get(one.name, 2)) for one in RECIPES)
    monkeypatch.setattr(recipes, "RECIPES", tuple(small))
    monkeypatch.setattr(
        "workers.training.report.write",
        lambda folder, *told, **more: folder.mkdir(parents=True, exist_ok=True),
    )
    monkeypatch.setattr("workers.training.curves.draw", lambda history, title, path: None)
    monkeypatch.setattr("workers.training.outcome.REPEATS", 1)
    draw = phantom_series
    monkeypatch.setattr(
        "workers.training.datasets.phantom_series",
        lambda seed, size, view: draw(seed, slices=4, size=64, view=view),
    )


def _silent(name: str):  # type: ignore[no-untyped-def]
    return lambda *told: None


def _plan(name: str, out: Path, **changes: object) -> Plan:
    plan = Plan(recipes.recipe(name), out, "0.0.1", ((MADE, out),), phantoms=2, folds=2)
    return replace(plan, **changes)  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", LIGHT)
def test_a_recipe_trains_is_judged_and_runs_in_the_node(name: str, tmp_path: Path) -> None:
    outcome, identity = ship.run(_plan(name, tmp_path), _silent)
    assert outcome is not None and identity is not None and identity.version == "0.0.1"
    alone = [part.plan.recipe.name for part in outcome.parts if len(outcome.parts) > 1]
    assert [one["recipe"] for one in outcome.summary["seeds"]] == [*alone, name]
    assert outcome.summary["cases"]["patients"] == PATIENTS and outcome.facts["parameters"] > 10_000
    folder = tmp_path / name
    assert (folder / "report").is_dir()
    sidecar = json.loads((folder / f"{name}.json").read_text())
    assert sidecar["training_data"][-1]["patients"] == [f"p{number}" for number in range(PATIENTS)]

    pipeline = load_pipeline(folder / f"{name}.json", "cpu")
    assert pipeline.identity == identity
    head = volume(7, ("epidural",), slices=3, size=96, lowest_mm=-10)
    answer = pipeline.classify(head.hu, head.spacing_mm)
    known = [one in pipeline.knows for one in CLASSES]
    assert (answer.series[known] > 0).all() and (answer.slices[:, known] > 0).all()
    assert pipeline.segment(head.hu, head.spacing_mm, answer).shape == head.hu.shape
    heat = pipeline.explain(head.hu, head.spacing_mm, answer, "any")
    assert heat.shape == (3, MAP_SIZE, MAP_SIZE) and np.isfinite(heat).all()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["multitask-sequence", "default"])
def test_a_sidecar_tells_of_the_phantoms_that_parts_of_parts_learned_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.plan.HELD_OUT", 2)
    ship.run(_plan(name, tmp_path, phantoms=None), _silent)
    facts = json.loads((tmp_path / name / f"{name}.json").read_text())
    drawn = recipes.recipe("multitask-phantom").phantoms
    assert facts["training_data"][0]["seeds"] == [PHANTOM_SEEDS, PHANTOM_SEEDS + drawn - 1]


@pytest.mark.usefixtures("tiny")
def test_a_second_run_trains_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan("cnn-baseline", tmp_path)
    first, shipped = ship.run(plan, _silent)
    monkeypatch.setattr("workers.training.fit.Run._step", lambda *_: pytest.fail("trained again"))
    again, same = ship.run(plan, _silent)
    assert first is not None and again is not None
    assert again.summary["study"]["any"]["auc"] == first.summary["study"]["any"]["auc"]
    assert same == shipped


@pytest.mark.usefixtures("tiny")
def test_a_set_that_is_added_is_learned_from_or_refused_but_never_passed_over(tmp_path: Path) -> None:
    """In the folder of an earlier run, which knew neither the set nor these folds."""
    ship.run(_plan("cnn-baseline", tmp_path), _silent)
    for changes in ({"data": ((MADE, tmp_path), (OTHERS, tmp_path))}, {"folds": 4}):
        with pytest.raises(PermanentError, match="other patients"):
            ship.run(_plan("cnn-baseline", tmp_path, **changes), _silent)


def renamed(folder: Path, view: View) -> Iterator[Series]:
    return (replace(one, patient=one.patient.replace("p", "q")) for one in patients(folder, view))


def corrected(folder: Path, view: View) -> Iterator[Series]:
    return (replace(one, labels=np.roll(one.labels, 1, axis=0)) for one in patients(folder, view))


def predicted_anew(folder: Path, reader: Callable[[Path, View], Iterator[Series]]) -> list[Prediction]:
    """Cache and checkpoints were removed, as one is told to; the predictions of the run before were left."""
    plan = _plan("cnn-baseline", folder, ship=False)
    ship.run(plan, _silent)
    for checkpoint in (folder / "cnn-baseline").glob("*.ckpt"):
        checkpoint.unlink()
    shutil.rmtree(folder / "cache")
    outcome, _ = ship.run(replace(plan, data=((replace(MADE, reader=reader), folder),)), _silent)
    assert outcome is not None
    return outcome.parts[0].validated.averaged()


@pytest.mark.usefixtures("tiny")
def test_predictions_of_whom_a_set_held_before_are_not_those_of_its_patients(tmp_path: Path) -> None:
    found = predicted_anew(tmp_path, renamed)
    assert {one.patient for one in found} == {f"q{n}" for n in range(PATIENTS)}


@pytest.mark.usefixtures("tiny")
def test_predictions_of_labels_that_were_corrected_since_are_made_anew(tmp_path: Path) -> None:
    found = predicted_anew(tmp_path, corrected)
    assert {z for one in found for z in np.flatnonzero(one.labels[:, 0])} == {2, 3}


@pytest.mark.usefixtures("tiny")
def test_a_sequence_model_of_other_patients_or_networks_is_refused(tmp_path: Path) -> None:
    """It read other features, and may have learned from whom it is to judge."""
    plan = _plan("multitask-sequence", tmp_path, ship=False)
    ship.run(plan, _silent)
    networks = tmp_path / "multitask-phantom"
    shutil.copytree(networks, tmp_path / "kept")

    shutil.rmtree(networks)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(PermanentError, match=r"sequence.*of other patients; remove it"):
        ship.run(replace(plan, data=((replace(MADE, reader=renamed), tmp_path),)), _silent)

    shutil.rmtree(networks)
    shutil.rmtree(tmp_path / "cache")
    shutil.move(tmp_path / "kept", networks)
    ship.run(plan, _silent)
    path = next(networks.glob("fold-0-*-third.ckpt"))
    state = fit.read_checkpoint(path, plan.device)
    changed = {name: value + 1 for name, value in state["average"].items()}
    fit.write_checkpoint(path, {**state, "average": changed})
    with pytest.raises(PermanentError, match="on what other networks say"):
        ship.run(plan, _silent)


@pytest.mark.usefixtures("tiny")
def test_a_sidecar_names_the_patients_of_each_of_several_sets(tmp_path: Path) -> None:
    ship.run(_plan("cnn-baseline", tmp_path, data=((MADE, tmp_path), (OTHERS, tmp_path))), _silent)
    facts = json.loads((tmp_path / "cnn-baseline" / "cnn-baseline.json").read_text())
    told = {one["name"]: one["patients"] for one in facts["training_data"]}
    assert told == {
        "made": [f"p{number}" for number in range(PATIENTS)],
        "others": [f"o{number}" for number in range(4)],
    }


@pytest.mark.usefixtures("tiny")
def test_a_fold_in_which_there_is_nobody_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="fewer --folds"):
        ship.run(_plan("cnn-baseline", tmp_path, folds=5), _silent)


@pytest.mark.usefixtures("tiny")
def test_a_report_of_one_fold_tells_of_the_patients_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("workers.training.report.write", lambda *told, limits=(), **_: said.extend(limits))
    outcome, _ = ship.run(_plan("cnn-baseline", tmp_path, only=(0,), ship=False), _silent)
    assert outcome is not None
    assert outcome.facts["patients"] == outcome.summary["cases"]["patients"] == PATIENTS / 2
    assert "other folds" not in outcome.facts["protocol"], "there were none"
    assert "chosen on its own patients" in said[0]


@pytest.mark.usefixtures("tiny")
@pytest.mark.usefixtures("tiny")
def test_after_one_fold_of_a_recipe_that_stops_early_all_of_them_can_be_run(tmp_path: Path) -> None:
    plan = _plan("cnn-baseline", tmp_path, only=(0,))
    stages = tuple(replace(stage, patience=2) for stage in plan.recipe.stages)
    first = plan.of(replace(plan.recipe, stages=stages))
    train.final(first, 1, [[1] * len(stages)], _silent)
    whole = replace(first, only=())
    for _ in range(2):
        _, lengths = train.final(whole, 1, [[1] * len(stages), [3] * len(stages)], _silent)
        assert lengths == [2] * len(stages)


def test_three_seeds_are_three_networks_and_one_answer(tmp_path: Path) -> None:
    outcome, _ = ship.run(_plan("cnn-baseline", tmp_path, seeds=3), _silent)
    assert outcome is not None
    alone = outcome.summary["seeds"]
    assert [one["seed"] for one in alone] == [1, 2, 3]
    assert len({one["slice_auc"] for one in alone}) == 3, "each seed is judged by what it alone said"
    assert json.loads((tmp_path / "cnn-baseline" / "cnn-baseline.json").read_text())["members"] == 3


@pytest.mark.usefixtures("tiny")
def test_a_soup_of_snapshots_and_seeds_is_one_network_of_their_mean_weights(tmp_path: Path) -> None:
    plan = _plan("multitask-phantom", tmp_path, seeds=2, soup=True)
    outcome, _ = ship.run(plan, _silent)
    assert outcome is not None and plan.soups == ((1, 2),)
    assert json.loads((tmp_path / plan.recipe.name / "multitask-phantom.json").read_text())["members"] == 1
    assert [one["seed"] for one in outcome.summary["seeds"]] == [1, 2]

    snapshots = [state for seed in (1, 2) for state in train.fold(plan, 0, seed, _silent)[0]]
    assert len(snapshots) == 4
    weights = [state["class_head.weight"] for state in snapshots]
    assert not torch.equal(weights[0], weights[-1])
    (soup,) = train.together(plan, snapshots)
    assert torch.allclose(soup["class_head.weight"], sum(weights) / 4)  # type: ignore[arg-type]
    assert soup["stem.1.num_batches_tracked"].dtype == torch.int64
    first = outcome.parts[0].validated.averaged()[0]
    series = next(one for one in plan.real(train.view_of(plan.recipe)) if one.patient == first.patient)
    said = predict(train.pipeline(plan, [soup]), series)
    assert np.allclose(said.class_logits, first.class_logits, atol=1e-4)


def test_a_soup_is_of_networks_that_share_a_pretraining(tmp_path: Path) -> None:
    """Others lie in different valleys: their mean knows nothing."""
    whole = {one.recipe.name: one for one in _plan("default", tmp_path, seeds=2, soup=True).whole()}
    assert {name for name, one in whole.items() if one.souped} == {"multitask-phantom", "rim"}
    states = [{"weight": torch.zeros(2)}, {"weight": torch.ones(2)}]
    assert train.together(whole["efficientnet-3window"], states) == states
    assert torch.equal(train.together(whole["rim"], states)[0]["weight"], torch.full((2,), 0.5))


@pytest.mark.usefixtures("tiny")
def test_a_sequence_model_reads_the_soup_of_its_networks(tmp_path: Path) -> None:
    """And what was trained without is not taken for it: it reads another number of networks."""
    for soup, networks in ((False, 2), (True, 1)):
        ship.run(_plan("rim-sequence", tmp_path, only=(0,), soup=soup), _silent)
        facts = json.loads((tmp_path / "rim-sequence" / "rim-sequence.json").read_text())
        assert facts["members"] == networks + 1


@pytest.mark.usefixtures("tiny")
def test_the_winners_system_is_trained_stage_by_stage(tmp_path: Path) -> None:
    assert set(HEAVY) == {"seresnext101-3window", "seresnext101-3slice", "sequence"}
    outcome, _ = ship.run(_plan("sequence", tmp_path, only=(0,), ship=False), _silent)
    assert outcome is not None and outcome.facts["folds"] == "1 of 2"
    assert outcome.facts["parameters"] == 2 * 46_918_710 + 3_398_418
    for part in ("seresnext101-3window", "seresnext101-3slice"):
        assert (tmp_path / part / "fold-0-seed-1-fit.ckpt").exists()


def test_public_weights_are_taught_only_where_the_recipe_says(tmp_path: Path) -> None:
    """The stem and the kept blocks, with every running statistic, are those of the file afterwards."""
    torch.manual_seed(3)
    one = tiny_recipe(recipes.recipe("efficientnet-3window"))
    torch.save(efficientnet_lite0_state(), tmp_path / "lite0.pth")
    teacher = learner(one, tmp_path / "lite0.pth")
    before = {name: value.clone() for name, value in teacher.network().state_dict().items()}
    corpus = fit.Corpus(list(patients(tmp_path, teacher.view)), ())
    after = fit.Run(one, replace(one.stages[0], ema=0.0), teacher, seed=1).fit(corpus).weights
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = [f"trunk.blocks.{number}." for number in range(one.kept, 16)]
    taught = (*blocks, "trunk.top.", "head.")
    assert all(name.startswith(taught) and "running" not in name for name in changed)
    assert {"head.weight", "trunk.blocks.15.project.0.weight"} <= changed


def test_a_checkpoint_that_began_with_other_public_weights_is_refused(tmp_path: Path) -> None:
    one = replace(tiny_recipe(recipes.recipe("efficientnet-3window")), kept=17)
    for name in ("one", "other"):
        torch.save(efficientnet_lite0_state(), tmp_path / f"{name}.pth")
    first, second = (learner(one, tmp_path / f"{name}.pth") for name in ("one", "other"))
    corpus = fit.Corpus(list(patients(tmp_path, first.view)), ())
    fit.Run(one, one.stages[0], first, seed=1).fit(corpus, tmp_path / "fit.ckpt")
    with pytest.raises(PermanentError, match="other settings"):
        fit.Run(one, one.stages[0], second, seed=1).fit(corpus, tmp_path / "fit.ckpt")


def test_no_patient_of_a_fold_teaches_or_stops_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def note(plan, stage, corpus, *rest):  # type: ignore[no-untyped-def]
        seen.append(({one.patient for one in corpus.real}, {one.patient for one in corpus.validation}))
        raise StopIteration

    monkeypatch.setattr(train, "_fit", note)
    plan = _plan("resnet18-3window", tmp_path, recipe=tiny_recipe(recipes.recipe("resnet18-3window")))
    divided = train.folds(plan.real(train.view_of(plan.recipe)), 2, plan.seed)
    for number in (0, 1):
        with pytest.raises(StopIteration):
            train.fold(plan, number, 1, _silent)
        taught, stopped = seen[-1]
        test = {f"p{index}" for index in divided[number]}
        assert taught and stopped and not taught & stopped and not (taught | stopped) & test


def test_the_sequence_model_learns_what_lies_in_the_features() -> None:
    torch.manual_seed(0)
    cnns = [learner(tiny_recipe(recipes.recipe("cnn-baseline"))).network() for _ in range(2)]
    series = list(patients(Path(), View(learner(recipes.recipe("cnn-baseline")).view.windows, 64)))
    whole = SequenceModel(2, width=64)
    operating = train.Operating.plain()
    reader = SequencePipeline(identity(RECIPES[0]), cnns, whole, operating)
    one = recipes.recipe("sequence")
    stage = replace(one.stages[0], steps=12, batch=4, learning_rate=3e-3)
    fitted = sequence_fit.fit_sequence(reader, series, one, stage, seed=1)
    assert np.mean(fitted.history.training[-3:]) < np.mean(fitted.history.training[:3])


@pytest.mark.usefixtures("tiny")
def test_a_run_killed_while_it_wrote_the_sequence_model_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = fit.Fitted({"weight": torch.ones(2)}, fit.History())
    monkeypatch.setattr(sequenced.SequencedSlices, "pipeline", lambda *_: None)
    monkeypatch.setattr(train, "fit_sequence", lambda *_: trained)

    def once() -> train.State:
        return train._sequence(_plan("sequence", tmp_path), [{}, {}], fit.Corpus((), ()), "final", 1, _silent)

    def killed(state: object, path: Path) -> None:
        path.write_bytes(b"PK half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", killed)
        once()
    assert torch.equal(once()["weight"], torch.ones(2)) and torch.equal(once()["weight"], torch.ones(2))


def test_a_set_that_names_no_subtype_teaches_the_sequence_model_that_there_is_blood() -> None:
    """INSTANCE: of a bloody slice only "any" is told. Left out, its clean slices alone would teach."""
    labels, told = torch.zeros(1, 4, 6), torch.ones(1, 4, 6)
    labels[0, 1:3, 0], told[0, 1:3, 1:] = 1, 0
    logits = torch.zeros(1, 4, 6, requires_grad=True)
    sequence_loss(SequenceOutput(logits, logits.detach()), labels, told).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 1:3, 0] < 0).all() and not logits.grad[0, 1:3, 1:].any()
    assert (logits.grad[0, (0, 3)] > 0).all()

    cnns = [learner(tiny_recipe(recipes.recipe("cnn-baseline"))).network()]
    reader = SequencePipeline(identity(RECIPES[0]), cnns, SequenceModel(1, 64), train.Operating.plain())
    one = next(patients(Path(), View(learner(recipes.recipe("cnn-baseline")).view.windows, 64)))
    read = sequence_fit.read(reader, replace(one, told=told[0].bool().numpy()), RECIPES[0], 1, 0)
    assert torch.equal(read.valid, told[0])


def test_crops_keep_their_slices_together_and_padding_counts_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = torch.arange(40.0)[:, None].expand(-1, 6)
    whole = sequence_fit.Read(labels[:, None, :], labels[:, None, :], torch.full((40,), 5.0), labels,
                              torch.ones(40, 6))  # fmt: skip
    for _ in range(20):
        part = sequence_fit.crop(whole, rng)
        steps = set(part.labels[:, 0].diff().tolist())
        assert len(steps) == 1 and abs(next(iter(steps))) * 5 == part.steps_mm[0] and len(part.labels) <= 24
        batch = sequence_fit.stack([part])
        assert batch.labels.shape == (1, 24, 6) and batch.valid.sum() == 6 * len(part.labels)


def test_another_size_length_or_scanners_hold_for_the_parts_too(tmp_path: Path) -> None:
    for name in ("gated", "sequence"):
        chosen = recipes.recipe(name).adjusted(64, 3, 1)
        plan = replace(_plan("gated", tmp_path), recipe=chosen, size=64, steps=3, scanners=1)
        assert len(plan.parts()) == 2
        for one in (chosen, *(part.recipe for part in plan.parts())):
            assert one.size == 64 and one.scanners == 1 and all(stage.steps == 3 for stage in one.stages)
    plain = recipes.recipe("default")
    assert plain.adjusted(None, None) == plain


def test_recipes_are_found_by_name() -> None:
    assert recipes.recipe("default") is RECIPES[0]
    with pytest.raises(KeyError, match="default"):
        recipes.recipe("no such recipe")
    with pytest.raises(KeyError, match="put together"):
        learner(recipes.recipe("gated"))


def test_an_empty_set_of_patients_is_refused(tmp_path: Path) -> None:
    empty = Source("none", "none", "nobody", "none", lambda folder, view: iter(()))
    plan = replace(_plan("cnn-baseline", tmp_path), data=((empty, tmp_path),))
    with pytest.raises(PermanentError, match="no series"):
        ship.run(plan, _silent)
