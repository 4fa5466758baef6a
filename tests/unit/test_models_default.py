"""The shipped model on held-out phantoms: it finds bleeds, draws them, and leaves healthy heads alone."""

from __future__ import annotations

import numpy as np
import pytest

from node.domain.findings import CLASSES, SUBTYPES
from workers.models.contract import Classification, Pipeline
from workers.models.runtime import load_pipeline
from workers.phantom import PhantomVolume, volume

FIRST_SEED = 950_000
SIZE = 192
BLEEDS = ("epidural", "intraparenchymal", "intraventricular", "subdural")
Read = tuple[PhantomVolume, Classification]


def _head(seed: int, bleeds: tuple[str, ...]) -> PhantomVolume:
    return volume(seed, bleeds, slices=18, size=SIZE, lowest_mm=-45)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return load_pipeline("default", "cpu")


@pytest.fixture(scope="module")
def bloody(model: Pipeline) -> list[Read]:
    heads = (_head(FIRST_SEED + index, (name,)) for index, name in enumerate(2 * BLEEDS))
    return [(head, model.classify(head.hu, head.spacing_mm)) for head in heads if head.masks.sum() > 800]


@pytest.fixture(scope="module")
def healthy(model: Pipeline) -> list[Read]:
    heads = (_head(FIRST_SEED + 100 + index, ()) for index in range(5))
    return [(head, model.classify(head.hu, head.spacing_mm)) for head in heads]


def test_bleeds_are_found_and_healthy_heads_are_not_alarmed_about(
    model: Pipeline, bloody: list[Read], healthy: list[Read]
) -> None:
    threshold = model.thresholds["any"]
    assert len(bloody) >= 6
    assert np.mean([answer.series[0] >= threshold for _, answer in bloody]) >= 0.75
    assert np.mean([answer.series[0] < threshold for _, answer in healthy]) >= 0.75


def test_slices_with_blood_score_above_slices_without(bloody: list[Read]) -> None:
    differences = []
    for head, answer in bloody:
        positive = head.masks.any(axis=(0, 2, 3))
        differences.append(answer.slices[positive, 0].mean() - answer.slices[~positive, 0].mean())
    assert np.mean(np.asarray(differences) > 0) >= 0.8


def test_the_mask_overlaps_the_blood(model: Pipeline, bloody: list[Read]) -> None:
    dice = []
    for head, answer in bloody:
        truth = head.masks.any(axis=0)
        drawn = model.segment(head.hu, head.spacing_mm, answer)
        dice.append(2 * (drawn & truth).sum() / max(1, drawn.sum() + truth.sum()))
    assert np.median(dice) > 0.4


def test_subtype_masks_divide_the_whole(model: Pipeline, bloody: list[Read]) -> None:
    head, answer = bloody[0]
    whole = model.segment(head.hu, head.spacing_mm, answer)
    parts = model.segment_subtypes(head.hu, head.spacing_mm, answer)
    assert set(parts) <= set(SUBTYPES)
    for mask in parts.values():
        assert not (mask & ~whole).any()


def test_the_map_points_near_the_blood_more_often_than_chance(model: Pipeline, bloody: list[Read]) -> None:
    """Chance: the share of the head that lies within the same distance of blood."""
    hits, chances = [], []
    for head, answer in bloody:
        truth = head.masks.any(axis=0)
        z = int(truth.sum((1, 2)).argmax())
        heat = model.explain(head.hu, head.spacing_mm, answer, "any")[z]
        coarse = truth[z].reshape(64, SIZE // 64, 64, SIZE // 64).any((1, 3)).repeat(2, 0).repeat(2, 1)
        near = np.zeros((128, 128), bool)
        for row, column in np.argwhere(coarse)[::4]:
            near[max(row - 10, 0) : row + 11, max(column - 10, 0) : column + 11] = True
        peak = np.unravel_index(heat.argmax(), heat.shape)
        hits.append(bool(near[peak]))
        soft = (
            head.hu[z].reshape(64, SIZE // 64, 64, SIZE // 64).mean((1, 3)).repeat(2, 0).repeat(2, 1) > -200
        )
        chances.append((near & soft).sum() / soft.sum())
    assert np.mean(hits) > np.mean(chances)


def test_healthy_slices_stay_darker_than_bloody_ones(
    model: Pipeline, bloody: list[Read], healthy: list[Read]
) -> None:
    def brightest(reads: list[Read]) -> float:
        maps = (model.explain(head.hu, head.spacing_mm, answer, "any") for head, answer in reads[:4])
        return float(np.mean([one.max() for one in maps]))

    assert brightest(healthy) < brightest(bloody)


def test_the_answer_does_not_depend_on_the_matrix_size(model: Pipeline) -> None:
    """A head at 512 pixels, as scanners send it, reads much like the same head at 192."""
    small, large = (
        volume(FIRST_SEED, ("epidural",), slices=12, size=size, lowest_mm=-20) for size in (192, 512)
    )
    answers = [model.classify(head.hu, head.spacing_mm) for head in (small, large)]
    place = CLASSES.index("any")
    assert abs(answers[0].series[place] - answers[1].series[place]) < 0.35
    assert answers[1].series[place] >= model.thresholds["any"]
