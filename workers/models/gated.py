"""Classification first, segmentation only where it was positive, and whether they agree. Never the reverse.

A gated mask is no second opinion on a negative CT: where the classifier sees nothing the segmenter does
not run, so `mask_only` cannot arise and cannot raise a priority. What is saved is the segmenter's time
on the many CTs without blood. Within a positive CT the segmenter draws freely, and `agreement` sets what
it drew against what the classifier said, slice by slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.findings import CLASSES, Consistency, ModelIdentity
from workers.models import several
from workers.models.contract import Classification, Mask, Pipeline, Spacing, Volume
from workers.models.engine import Engine

ANY = CLASSES.index("any")


@dataclass
class _State:
    """What the classifier kept, and what the segmenter keeps once it has run: it runs at most once."""

    classified: Classification
    segmented: Classification | None = None


@dataclass(frozen=True)
class Agreement:
    """Slices (by number) that both, only the classifier, or only the mask call bloody; and the whole.

    `segmenter_any` is the segmenter's own series probability, None where the gate stayed shut.
    """

    consistency: Consistency
    both: tuple[int, ...]
    classifier_only: tuple[int, ...]
    mask_only: tuple[int, ...]
    segmenter_any: float | None


class GatedPipeline:
    """See `workers.models.contract.Pipeline`. Both parts are pipelines; each may be of any family.

    `slice_threshold` > 0 also clears the mask on slices whose "any" stays below it.
    """

    draws = True

    def __init__(
        self,
        classifier: Pipeline,
        segmenter: Pipeline,
        slice_threshold: float = 0.0,
        identity: ModelIdentity | None = None,
    ) -> None:
        self.classifier = classifier
        self.segmenter = segmenter
        self.slice_threshold = slice_threshold
        self.identity = identity or joint_identity(classifier.identity, segmenter.identity)
        self.knows: frozenset[str] = getattr(classifier, "knows", frozenset(CLASSES))

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.classifier.thresholds

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification:
        return _kept(self.classifier.classify(hu, spacing_mm))

    def prepare(self, hu: Volume, spacing_mm: Spacing) -> Any:
        """As the classifier will see it; the segmenter seldom looks."""
        return several.prepare(self.classifier, hu, spacing_mm)

    def classify_all(self, prepared: Sequence[Any]) -> list[Classification]:
        return [_kept(answer) for answer in several.classify_all(self.classifier, prepared)]

    def engines(self) -> list[Engine]:
        parts = (self.classifier, self.segmenter)
        return [engine for part in parts for engine in getattr(part, "engines", list)()]

    def opens(self, classification: Classification) -> bool:
        """Whether the series holds haemorrhage of any kind, so that the segmenter shall look."""
        return bool(classification.series[ANY] >= self.thresholds["any"])

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        if not self.opens(classification):
            return np.zeros(hu.shape, bool)
        own = self._segmented(hu, spacing_mm, classification)
        return self._gate(self.segmenter.segment(hu, spacing_mm, own), classification)

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        if not self.opens(classification):
            return {}
        own = self._segmented(hu, spacing_mm, classification)
        parts = self.segmenter.segment_subtypes(hu, spacing_mm, own)
        gated = {name: self._gate(mask, classification) for name, mask in parts.items()}
        return {name: mask for name, mask in gated.items() if mask.any()}

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> NDArray[np.float32]:
        """The classifier's own map: it is the classifier that decided."""
        state = classification.state
        known = state.classified if isinstance(state, _State) else _stranger(classification)
        return self.classifier.explain(hu, spacing_mm, known, class_name)

    def agreement(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Agreement:
        """Slice by slice, the classifier's "any" against the mask, before `slice_threshold` clears it.

        For want of one of its own, a slice is judged by the threshold of the series.
        """
        if not self.opens(classification):
            return Agreement(Consistency.AGREE, (), (), (), None)
        spoken = classification.slices[:, ANY] >= self.thresholds["any"]
        own = self._segmented(hu, spacing_mm, classification)
        drawn = self.segmenter.segment(hu, spacing_mm, own).any(axis=(1, 2))
        return Agreement(
            Consistency.AGREE if drawn.any() else Consistency.CLASSIFIER_ONLY,
            _numbers(spoken & drawn),
            _numbers(spoken & ~drawn),
            _numbers(drawn & ~spoken),
            float(own.series[ANY]),
        )

    def _segmented(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Classification:
        """The segmenter's own reading of the volume; never the classifier's probabilities."""
        state = classification.state
        if not isinstance(state, _State):
            return self.segmenter.classify(hu, spacing_mm)
        if state.segmented is None:
            state.segmented = self.segmenter.classify(hu, spacing_mm)
        return state.segmented

    def _gate(self, mask: Mask, classification: Classification) -> Mask:
        kept = classification.slices[:, ANY] >= self.slice_threshold
        return mask & kept[:, None, None]


def _kept(answer: Classification) -> Classification:
    """The classifier's answer as our own."""
    return Classification(answer.slices, answer.series, _State(answer))


def joint_identity(classifier: ModelIdentity, segmenter: ModelIdentity) -> ModelIdentity:
    """One identity for two models: its digest changes when either's does."""
    digest = hashlib.sha256(f"{classifier.sha256} {segmenter.sha256}".encode()).hexdigest()
    return ModelIdentity(
        f"{classifier.name}+{segmenter.name}", f"{classifier.version}+{segmenter.version}", digest
    )


def _stranger(classification: Classification) -> Classification:
    """The probabilities without a state that is not the classifier's."""
    return Classification(classification.slices, classification.series)


def _numbers(slices: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(number) for number in np.flatnonzero(slices))
