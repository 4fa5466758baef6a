"""The reading priority that results propose, and whether classifier and mask agree."""

from __future__ import annotations

from itertools import product

import pytest

from node.domain.findings import CLASSES, ClassFinding, Consistency, Priority
from node.domain.priority import MIN_MASK_ML, consistency, priority

THRESHOLDS = dict.fromkeys(CLASSES, 0.5)


def classes(**probabilities: float) -> dict[str, ClassFinding]:
    values = {name: probabilities.get(name, 0.01) for name in CLASSES}
    return {name: ClassFinding(value, value >= 0.5) for name, value in values.items()}


@pytest.mark.parametrize(
    ("found", "agreement", "expected"),
    [
        (classes(any=0.9), Consistency.AGREE, Priority.STAT),
        (classes(any=0.9), Consistency.CLASSIFIER_ONLY, Priority.STAT),
        (classes(any=0.9), None, Priority.STAT),
        (classes(subdural=0.6), Consistency.AGREE, Priority.STAT),
        (classes(), Consistency.MASK_ONLY, Priority.HIGH),
        (classes(any=0.4), None, Priority.HIGH),
        (classes(epidural=0.35), Consistency.AGREE, Priority.ROUTINE),
        (classes(any=0.34), Consistency.AGREE, Priority.ROUTINE),
        (classes(), None, Priority.ROUTINE),
    ],
)
def test_priority(found: dict[str, ClassFinding], agreement: Consistency | None, expected: Priority) -> None:
    assert priority(found, THRESHOLDS, agreement) is expected


@pytest.mark.parametrize(("any_", "agreement"), list(product((0.01, 0.4, 0.9), Consistency)))
def test_a_mask_never_lowers_what_was_sent_early(any_: float, agreement: Consistency) -> None:
    urgency = list(Priority)
    early = priority(classes(any=any_), THRESHOLDS)
    assert urgency.index(priority(classes(any=any_), THRESHOLDS, agreement)) <= urgency.index(early)


@pytest.mark.parametrize(
    ("found", "volume_ml", "subtypes", "expected"),
    [
        (classes(), 0.0, None, Consistency.AGREE),
        (classes(), 0.05, None, Consistency.AGREE),
        (classes(), MIN_MASK_ML, None, Consistency.MASK_ONLY),
        (classes(), 2.0, None, Consistency.MASK_ONLY),
        (classes(any=0.9), 2.0, None, Consistency.AGREE),
        (classes(any=0.9), 0.05, None, Consistency.CLASSIFIER_ONLY),
        (classes(any=0.9, subdural=0.8), 2.0, {"subdural", "epidural"}, Consistency.AGREE),
        (classes(any=0.9, subdural=0.8), 2.0, {"epidural"}, Consistency.SUBTYPE_DISAGREEMENT),
        (classes(any=0.9), 2.0, {"epidural"}, Consistency.AGREE),
        (classes(subdural=0.8), 0.0, None, Consistency.CLASSIFIER_ONLY),
    ],
)
def test_consistency(
    found: dict[str, ClassFinding], volume_ml: float, subtypes: set[str] | None, expected: Consistency
) -> None:
    assert consistency(found, volume_ml, subtypes) is expected
