"""A tiny network learns a few phantom slices, and a stopped run ends where an unbroken one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from node.domain.errors import PermanentError
from workers.training import curves
from workers.training.augment import STILL, Augmentation, augment
from workers.training.datasets import Batch, Series, SliceDataset, phantom_series
from workers.training.fit import (
    CHECKPOINT_EVERY,
    Corpus,
    Fitted,
    History,
    Progress,
    Run,
    Sampler,
    read_checkpoint,
    schedule,
    write_checkpoint,
)
from workers.training.learners import learner
from workers.training.losses import LossWeights, Truth, multitask_loss
from workers.training.recipes import Recipe, Stage, recipe

WIDTHS = (8, 8, 16, 16)


@pytest.fixture(scope="module")
def bloody() -> Series:
    """The first phantom with a good deal of blood."""
    for seed in range(20):
        series = phantom_series(seed, slices=10, size=96)
        if series.labels[:, 0].sum() >= 3 and (series.masks > 0).sum() > 500:
            return series
    raise AssertionError("no phantom with blood among the first")


def _recipe(augmentation: Augmentation = STILL) -> Recipe:
    return replace(recipe("multitask-phantom"), widths=WIDTHS, dropout=0.0, augmentation=augmentation)


def _stage(steps: int) -> Stage:
    return Stage("tiny", 8, 5e-3, steps=steps, phantom_share=1.0, ema=0.9)


def _fit(
    tiny: Recipe,
    stage: Stage,
    corpus: Corpus,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Fitted:
    return Run(tiny, stage, learner(tiny), seed=3).fit(corpus, checkpoint, progress)


def test_a_few_slices_can_be_learnt_by_heart(bloody: Series) -> None:
    fitted = _fit(_recipe(), _stage(40), Corpus((), [bloody]))
    losses = fitted.history.training
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_a_stopped_run_ends_where_an_unbroken_one_does(
    bloody: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.fit.CHECKPOINT_EVERY", 2)
    assert CHECKPOINT_EVERY > 2
    tiny, corpus = _recipe(Augmentation()), Corpus((), [bloody], [bloody])
    whole = _fit(tiny, _stage(5), corpus)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, value: float) -> None:
        if step == 3:
            raise Stopped

    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Stopped):
        _fit(tiny, _stage(5), corpus, checkpoint, stop)
    seen: list[int] = []
    resumed = _fit(tiny, _stage(5), corpus, checkpoint, lambda step, *_: seen.append(step))
    assert seen == [2, 3, 4, 5], "the first is told of where it goes on"
    for name, value in whole.weights.items():
        assert torch.allclose(value.float(), resumed.weights[name].float(), atol=1e-5), name
    assert np.allclose(whole.history.training, resumed.history.training, atol=1e-4)
    assert [step for step, _, _ in resumed.history.validation] == [1, 2, 3, 4, 5]
    told: list[tuple[int, int]] = []
    over = _fit(tiny, _stage(5), corpus, checkpoint, lambda step, steps, _: told.append((step, steps)))
    assert told == [(5, 5)], "it was over, and says so"
    assert torch.equal(over.weights["class_head.weight"], resumed.weights["class_head.weight"])


def test_a_checkpoint_of_other_settings_is_refused(bloody: Series, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    _fit(_recipe(), _stage(1), Corpus((), [bloody]), checkpoint)
    with pytest.raises(PermanentError, match="other settings; remove it"):
        _fit(_recipe(), _stage(2), Corpus((), [bloody]), checkpoint)


def test_a_checkpoint_that_learned_from_other_patients_is_refused(bloody: Series, tmp_path: Path) -> None:
    """Another set, or other folds, in the same folder: its network may have seen whom it is to judge."""
    checkpoint = tmp_path / "run.ckpt"
    taught, stop = [bloody], [replace(bloody, patient="stops")]
    _fit(_recipe(), _stage(1), Corpus(taught, (), stop), checkpoint)
    other = replace(bloody, patient="other")
    for corpus in (Corpus([other], (), stop), Corpus([bloody, other], (), stop), Corpus(taught, (), [other])):
        with pytest.raises(PermanentError, match=r"other patients; remove it"):
            _fit(_recipe(), _stage(1), corpus, checkpoint)
    _fit(_recipe(), _stage(1), Corpus(taught, (), stop), checkpoint)


def test_a_checkpoint_that_learned_other_labels_is_refused(bloody: Series, tmp_path: Path) -> None:
    """The same patients, whose labels were corrected; one of a version that did not note them is taken."""
    checkpoint = tmp_path / "run.ckpt"
    _fit(_recipe(), _stage(1), Corpus([bloody], ()), checkpoint)
    corrected = replace(bloody, labels=1 - bloody.labels)
    with pytest.raises(PermanentError, match=r"other labels; remove it"):
        _fit(_recipe(), _stage(1), Corpus([corrected], ()), checkpoint)
    state = read_checkpoint(checkpoint, torch.device("cpu"))
    del state["labels"]
    write_checkpoint(checkpoint, state)
    _fit(_recipe(), _stage(1), Corpus([corrected], ()), checkpoint)


def test_a_checkpoint_of_fewer_phantoms_is_refused(bloody: Series, tmp_path: Path) -> None:
    """As after a first try with `--phantoms 1`; one of a version that did not count them is taken."""
    checkpoint = tmp_path / "run.ckpt"
    _fit(_recipe(), _stage(1), Corpus((), [bloody]), checkpoint)
    with pytest.raises(PermanentError, match=r"1 phantoms, not of 2; remove it"):
        _fit(_recipe(), _stage(1), Corpus((), [bloody, bloody]), checkpoint)
    state = read_checkpoint(checkpoint, torch.device("cpu"))
    del state["phantoms"]
    write_checkpoint(checkpoint, state)
    _fit(_recipe(), _stage(1), Corpus((), [bloody, bloody]), checkpoint)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a file"])
def test_a_broken_checkpoint_is_named_with_what_to_do(bloody: Series, tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "run.ckpt"
    checkpoint.write_bytes(content)
    with pytest.raises(PermanentError, match=r"run.ckpt cannot be read.*remove it"):
        _fit(_recipe(), _stage(1), Corpus((), [bloody]), checkpoint)
    assert checkpoint.read_bytes() == content


def test_patience_ends_a_run_and_goes_back_to_its_best(bloody: Series) -> None:
    upside_down = replace(bloody, labels=1 - bloody.labels)
    stage = replace(_stage(60), patience=2, learning_rate=0.05, ema=0.0)
    fitted = _fit(_recipe(), stage, Corpus((), [bloody], [upside_down]))
    history = fitted.history
    assert len(history.training) < 60 and len(history.validation) == history.best + 3
    last = Run(_recipe(), stage, learner(_recipe()), 3)
    last.start_from(fitted.weights)
    last._validate([upside_down])
    assert last.history.validation[0][1] == pytest.approx(history.validation[history.best][1], rel=1e-3)


def _tensors(batch: Batch) -> tuple[Tensor, Truth]:
    pictures, *truth = (torch.from_numpy(getattr(batch, name)) for name in Batch.__dataclass_fields__)
    labels, told, masks, known = truth
    return pictures, Truth(labels, told, masks, known)


def test_what_is_not_known_or_not_told_teaches_nothing(bloody: Series) -> None:
    dataset = SliceDataset([bloody], (-1, 0, 1))
    pictures, truth = _tensors(dataset.batch([int(np.flatnonzero(bloody.labels[:, 0])[0])]))
    network = learner(_recipe()).network().eval()
    with torch.no_grad():
        output = network(pictures)
    weights, none = LossWeights(agreement=0), torch.zeros(1, 6)

    def value(truth: Truth, weights: LossWeights = weights) -> float:
        return float(multitask_loss(output, truth, pictures[:, 1:2], weights))

    wrong = truth._replace(masks=torch.zeros_like(truth.masks))
    unknown = value(wrong._replace(known=none))
    assert unknown == pytest.approx(value(wrong, replace(weights, mask_pixels=0, mask_dice=0)), rel=1e-5)
    assert value(wrong) > unknown
    untold = wrong._replace(known=none, told=none)
    assert value(untold) == 0 and value(untold._replace(labels=1 - truth.labels)) == 0


def test_batches_mix_phantoms_and_real_slices_by_share(bloody: Series) -> None:
    real = replace(bloody, patient="real", labels=np.zeros_like(bloody.labels))
    stage = replace(_stage(1), batch=12, phantom_share=0.25, positive_share=1.0)
    batch = Sampler(Corpus([real], [bloody]), stage, (-1, 0, 1)).batch(np.random.default_rng(0))
    assert batch.pictures.shape == (12, 3, 128, 128)
    assert int(batch.labels[:, 0].sum()) == 3
    with pytest.raises(ValueError, match="nothing to learn"):
        Sampler(Corpus((), ()), stage)


def test_neighbours_are_the_slices_around_and_the_ends_stand_in(bloody: Series) -> None:
    dataset = SliceDataset([bloody], (1, 0, -1))
    first, second = dataset.batch([0, 1]).pictures
    assert np.array_equal(first[1], first[2]) and np.array_equal(first[0], second[1])
    assert np.array_equal(SliceDataset([bloody]).batch([1]).pictures[0, 0], second[1])


def test_schedules_start_full_and_end_low() -> None:
    for kind in ("cosine", "halving", "restarts"):
        assert schedule(kind, 0.051) > 0.9 and schedule(kind, 0.999) < 0.05, kind
    assert schedule("restarts", 0.26) > 0.95
    assert schedule("constant", 1.0) == 1.0
    with pytest.raises(KeyError, match="cosine"):
        schedule("no such", 0)


def test_augmentation_keeps_shapes_and_moves_masks_with_pictures() -> None:
    rng = np.random.default_rng(1)
    pictures = torch.zeros(6, 3, 64, 64)
    pictures[:, :, 20:30, 12:22] = 0.6
    masks = torch.zeros(6, 6, 64, 64)
    masks[:, 0, 20:30, 12:22] = 1
    moved = replace(STILL, rotation_deg=25, scale=0.15, shift=0.08, flip=0.5)
    changed, with_them = augment(pictures, masks, rng, moved)
    assert changed.shape == pictures.shape
    assert not torch.equal(changed, pictures)
    bright = changed[:, 1] > 0.3
    overlap = (bright & (with_them[:, 0] > 0)).sum() / (with_them[:, 0] > 0).sum()
    assert overlap > 0.95
    same, _ = augment(pictures, masks, np.random.default_rng(1), STILL)
    assert torch.allclose(same, pictures, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 12, 200])
def test_a_short_run_has_a_curve_too(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over all steps is a single point, of which a line shows nothing."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    curves.draw(History([1.0 / (step + 1) for step in range(steps)]), "a run", tmp_path / "run.png")
    (line,) = drawn[0].axes[0].get_lines()
    assert len(line.get_xdata()) >= 2 or line.get_marker() == ".", "nothing to be seen"
    assert steps < 4 or len(line.get_xdata()) > steps / 2
