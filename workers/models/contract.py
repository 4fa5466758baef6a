"""What a pipeline takes and answers, and the check that an answer is one. Knows no network and no DICOM.

**Head CT input.** `hu` float32 (z, y, x) in HU, canonical: row 0 anterior, column 0 patient right (x
grows to patient left, y to posterior), slices feet to head; `spacing_mm` (z, y, x), z the usual
perpendicular step. Whoever calls brings the source into this form, thin slices among thick ones put together
(`workers.even`), and maps answers back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, ModelIdentity

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

MAP_SIZE = 128
"""Side of an explanation map; it covers the field of view of the source slice exactly."""


@dataclass(frozen=True)
class Classification:
    """Probabilities in the order of CLASSES: `slices` (z, 6) and `series` (6,), float32 0..1.

    `state` belongs to the pipeline that made it, which may keep what it needs to segment and
    explain without running its network again.
    """

    slices: NDArray[np.float32]
    series: NDArray[np.float32]
    state: object = field(default=None, repr=False, compare=False)


class Classifier(Protocol):
    """Says how likely each class is. `thresholds` are per class, for the series probability."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...

    @property
    def knows(self) -> frozenset[str]:
        """The classes it can tell; of the others it says nothing, whatever number stands there."""
        ...

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification: ...


class Segmenter(Protocol):
    """Draws the blood on the grid of `hu`. Only a gated pipeline consults the probabilities to do so."""

    @property
    def draws(self) -> bool:
        """False for one that has no mask to give: its empty mask is no statement."""
        ...

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        """Any blood, bool (z, y, x)."""
        ...

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        """Blood by subtype, bool (z, y, x), for the subtypes that have any; empty if it cannot tell."""
        ...


class Explainer(Protocol):
    """Shows where a class was seen."""

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> NDArray[np.float32]:
        """Grad-CAM++ maps 0..1, (z, MAP_SIZE, MAP_SIZE), comparable over the series."""
        ...


class Pipeline(Classifier, Segmenter, Explainer, Protocol):
    """All three in one, sharing one run of the network."""


def require_probabilities(values: NDArray[np.float32], shape: tuple[int, ...], what: str) -> None:
    """Raise PermanentError unless `values` are finite numbers 0..1 of this shape.

    A broken output must stop the analysis: read as numbers it would look like a negative result.
    """
    if values.shape != shape:
        raise PermanentError(
            "MODEL_OUTPUT_INVALID", f"{what} has shape {values.shape} where {shape} is due; check the model"
        )
    if not np.isfinite(values).all():
        raise PermanentError(
            "MODEL_OUTPUT_INVALID", f"{what} holds NaN or infinity; check the weights and the input"
        )
    if values.size and (values.min() < 0 or values.max() > 1):
        raise PermanentError("MODEL_OUTPUT_INVALID", f"{what} lies outside 0..1; check the model")


def require_classification(answer: Classification, slices: int) -> Classification:
    """The same classification, once shape and values are right."""
    require_probabilities(answer.slices, (slices, len(CLASSES)), "slice probabilities")
    require_probabilities(answer.series, (len(CLASSES),), "series probabilities")
    return answer
