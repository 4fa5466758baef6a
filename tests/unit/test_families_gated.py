"""The gate: the segmenter looks only where the classifier was positive, and what they agree on is told."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from node.domain.findings import CLASSES, Consistency, ModelIdentity
from workers.models.contract import Classification, Mask, Spacing, Volume
from workers.models.gated import GatedPipeline, joint_identity

SPACING = (5.0, 1.0, 1.0)
HU = np.zeros((4, 8, 8), np.float32)


class _Fixed:
    """A pipeline that answers what it was told to, and counts its runs."""

    def __init__(self, name: str, any_slices: list[float], drawn: tuple[int, ...] = ()) -> None:
        self.identity = ModelIdentity(name, "1", name * 3)
        self.thresholds = dict.fromkeys(CLASSES, 0.5)
        self.any_slices, self.drawn = any_slices, drawn
        self.runs = self.segmentations = 0

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification:
        self.runs += 1
        slices = np.zeros((len(hu), 6), np.float32)
        slices[:, 0] = self.any_slices
        return Classification(slices, slices.max(axis=0), self)

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        assert classification.state is self, "a part must get its own state, never the other's"
        self.segmentations += 1
        mask = np.zeros(hu.shape, bool)
        mask[list(self.drawn), 2:4, 2:4] = True
        return mask

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        return {"subdural": self.segment(hu, spacing_mm, classification)}

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> np.ndarray:
        assert classification.state in (self, None)
        return np.full((len(hu), 4, 4), 0.25, np.float32)


def _gated(
    said: list[float], drawn: tuple[int, ...], slice_threshold: float = 0.0
) -> tuple[GatedPipeline, _Fixed]:
    segmenter = _Fixed("s", [0.3, 0.3, 0.3, 0.3], drawn)
    return GatedPipeline(_Fixed("c", said), segmenter, slice_threshold), segmenter


def test_where_nothing_is_positive_the_segmenter_never_runs() -> None:
    gated, segmenter = _gated([0.1, 0.4, 0.2, 0.1], (1, 2))
    answer = gated.classify(HU, SPACING)
    assert not gated.segment(HU, SPACING, answer).any()
    assert gated.segment_subtypes(HU, SPACING, answer) == {}
    told = gated.agreement(HU, SPACING, answer)
    assert told.consistency is Consistency.AGREE
    assert (told.both, told.classifier_only, told.mask_only, told.segmenter_any) == ((), (), (), None)
    assert segmenter.runs == segmenter.segmentations == 0


def test_a_positive_series_is_segmented_in_one_run() -> None:
    gated, segmenter = _gated([0.1, 0.9, 0.8, 0.1], (2, 3))
    answer = gated.classify(HU, SPACING)
    assert segmenter.runs == 0  # the alarm does not wait for the segmenter
    mask = gated.segment(HU, SPACING, answer)
    assert mask.any(axis=(1, 2)).tolist() == [False, False, True, True]
    assert set(gated.segment_subtypes(HU, SPACING, answer)) == {"subdural"}
    assert segmenter.runs == 1


def test_agreement_is_told_slice_by_slice() -> None:
    gated, _ = _gated([0.1, 0.9, 0.8, 0.1], (2, 3))
    told = gated.agreement(HU, SPACING, gated.classify(HU, SPACING))
    assert told.consistency is Consistency.AGREE
    assert (told.both, told.classifier_only, told.mask_only) == ((2,), (1,), (3,))
    assert told.segmenter_any == pytest.approx(0.3)


def test_a_segmenter_that_finds_nothing_disagrees() -> None:
    gated, _ = _gated([0.1, 0.9, 0.8, 0.1], ())
    told = gated.agreement(HU, SPACING, gated.classify(HU, SPACING))
    assert told.consistency is Consistency.CLASSIFIER_ONLY
    assert told.classifier_only == (1, 2)


def test_the_slice_gate_clears_the_mask_but_not_the_disagreement() -> None:
    gated, _ = _gated([0.1, 0.9, 0.8, 0.1], (2, 3), slice_threshold=0.5)
    answer = gated.classify(HU, SPACING)
    assert gated.segment(HU, SPACING, answer).any(axis=(1, 2)).tolist() == [False, False, True, False]
    assert gated.agreement(HU, SPACING, answer).mask_only == (3,)


def test_a_classification_read_back_from_disk_is_enough() -> None:
    gated, segmenter = _gated([0.1, 0.9, 0.8, 0.1], (2,))
    answer = gated.classify(HU, SPACING)
    bare = Classification(answer.slices, answer.series)
    assert np.array_equal(gated.segment(HU, SPACING, bare), gated.segment(HU, SPACING, answer))
    assert gated.explain(HU, SPACING, bare, "any").shape == (4, 4, 4)
    assert gated.explain(HU, SPACING, answer, "any").max() == pytest.approx(0.25)
    assert segmenter.runs == 2


def test_the_joint_identity_changes_with_either_part() -> None:
    one, two, other = (ModelIdentity(name, "1", name * 8) for name in "abc")
    joint = joint_identity(one, two)
    assert joint.name == "a+b" and len(joint.sha256) == 64
    assert len({joint.sha256, joint_identity(one, other).sha256, joint_identity(two, one).sha256}) == 3
