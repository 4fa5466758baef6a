"""Cases for the tests of the evaluation report: made up, with a known truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.training.report import Case


def case(patient: str = "p", **fields: Any) -> Case:
    """Three slices, the middle one with epidural blood, told rightly; fields as wanted."""
    labels = np.zeros((3, 6), np.uint8)
    labels[1, :2] = 1
    told = {
        "labels": labels,
        "slices": labels.astype(np.float32),
        "series": labels.max(axis=0).astype(np.float32),
    }
    return Case(patient, **(told | fields))


def patients(count: int = 24, seed: int = 0, size: int = 16) -> list[Case]:
    """Half of them with a bleed; probabilities that separate well but not fully, masks and maps beside it."""
    rng = np.random.default_rng(seed)
    return [_patient(f"p{index:02d}", index % 2 == 0, rng, size) for index in range(count)]


def _patient(name: str, bleeds: bool, rng: np.random.Generator, size: int) -> Case:
    labels = np.zeros((8, 6), np.uint8)
    truth = np.zeros((8, size, size), bool)
    if bleeds:
        labels[2:5, (0, 1 + int(rng.integers(0, 3)))] = 1
        truth[2:5, 4:9, 4:9] = True
    logits = labels * 4.0 - 3 + rng.normal(0, 1.5, labels.shape)
    slices = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Case(
        patient=name,
        labels=labels,
        slices=slices,
        series=slices.max(axis=0),
        drawn=np.roll(truth, int(rng.integers(0, 4)), axis=2),
        truth=truth,
        mask_known=np.arange(8) != 3,
        by_hand=np.arange(8) == 2,
        explanation=rng.random((8, 4, 4)).astype(np.float16),
    )
