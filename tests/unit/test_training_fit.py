"""A tiny network learns a few phantom slices, and a stopped run ends where an unbroken one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.training.augment import Augmentation, augment
from workers.training.datasets import Series, SliceDataset, phantom_series
from workers.training.fit import CHECKPOINT_EVERY, Corpus, Run, Sampler
from workers.training.losses import LossWeights, loss
from workers.training.recipes import RECIPES, Recipe, recipe

WIDTHS = (8, 8, 16, 16)
STILL = Augmentation(
    rotation_deg=0,
    scale=0,
    aspect=0,
    shift=0,
    flip=0,
    gain=0,
    offset=0,
    noise=0,
    blur=0,
    slice_swap=0,
    lone_slice=0,
)


@pytest.fixture(scope="module")
def bloody() -> Series:
    """The first phantom with a good deal of blood."""
    for seed in range(20):
        series = phantom_series(seed, slices=10, size=96)
        if series.labels[:, 0].sum() >= 3 and (series.masks > 0).sum() > 500:
            return series
    raise AssertionError("no phantom with blood among the first")


def _recipe(steps: int, augmentation: Augmentation = STILL) -> Recipe:
    stage = replace(RECIPES[0].pretrain, steps=steps, batch=8, learning_rate=5e-3)
    return replace(RECIPES[0], widths=WIDTHS, dropout=0.0, augmentation=augmentation, pretrain=stage)


def test_a_few_slices_can_be_learnt_by_heart(bloody: Series) -> None:
    losses: list[float] = []
    tiny = _recipe(40)
    Run(tiny, tiny.pretrain, seed=1).fit(Corpus((), [bloody]), progress=lambda *args: losses.append(args[2]))
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_a_stopped_run_ends_where_an_unbroken_one_does(
    bloody: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.fit.CHECKPOINT_EVERY", 2)
    assert CHECKPOINT_EVERY > 2
    tiny, corpus = _recipe(5, Augmentation()), Corpus((), [bloody])
    whole = Run(tiny, tiny.pretrain, seed=3).fit(corpus)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, value: float) -> None:
        if step == 3:
            raise Stopped

    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Stopped):
        Run(tiny, tiny.pretrain, seed=3).fit(corpus, checkpoint, stop)
    seen: list[int] = []
    resumed = Run(tiny, tiny.pretrain, seed=3).fit(corpus, checkpoint, lambda step, *_: seen.append(step))
    assert seen == [3, 4, 5]
    for name, value in whole.items():
        assert torch.allclose(value.float(), resumed[name].float(), atol=1e-5), name


def test_unlabelled_blood_is_not_taught_as_an_empty_mask(bloody: Series) -> None:
    dataset = SliceDataset([bloody])
    place = int(np.flatnonzero(bloody.labels[:, 0])[0])
    sample = dataset[place]
    labels, mask = torch.from_numpy(sample.labels)[None], torch.zeros(1, *sample.mask.shape)
    tiny = Run(_recipe(1), _recipe(1).pretrain, seed=0).network.eval()
    with torch.no_grad():
        output = tiny(torch.from_numpy(sample.picture)[None])
    weights = LossWeights(agreement=0)
    unknown = loss(output, labels, mask, torch.zeros(1, 6), weights)
    no_mask = loss(output, labels, mask, torch.zeros(1, 6), replace(weights, mask_pixels=0, mask_dice=0))
    taught = loss(output, labels, mask, torch.ones(1, 6), weights)
    assert float(unknown) == pytest.approx(float(no_mask), rel=1e-5)
    assert taught > unknown


def test_batches_mix_phantoms_and_real_slices_by_share(bloody: Series) -> None:
    real = replace(bloody, patient="real", labels=np.zeros_like(bloody.labels))
    stage = replace(RECIPES[0].finetune[0], batch=12, phantom_share=0.25, positive_share=1.0)
    pictures, labels, _, _ = Sampler(Corpus([real], [bloody]), stage).batch(np.random.default_rng(0))
    assert pictures.shape[0] == 12
    assert int(labels[:, 0].sum()) == 3
    with pytest.raises(ValueError, match="nothing to learn"):
        Sampler(Corpus((), ()), stage)


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


def test_recipes_are_found_by_name() -> None:
    assert recipe("default") is RECIPES[0]
    with pytest.raises(KeyError, match="default"):
        recipe("no such recipe")
