"""From what the network says about single pictures to slice and series probabilities. Pure numpy.

The evidence for a class on a picture is a weighted sum of the class head's logit and the mask's
highest logits, smoothed over neighbouring pictures. A series speaks by the mean of its `top`
strongest pictures, so that one noisy slice alone does not raise an alarm. Both are made
probabilities by Platt scaling (Platt 1999) fitted on out-of-fold predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Aggregation:
    """`smoothing` is the weight of each neighbour (the picture itself has the rest); scales and
    biases are per class in the order of CLASSES."""

    class_weight: float
    mask_weight: float
    smoothing: float
    top: int
    slice_scale: tuple[float, ...]
    slice_bias: tuple[float, ...]
    series_scale: tuple[float, ...]
    series_bias: tuple[float, ...]

    @classmethod
    def plain(cls, class_weight: float = 0.5, mask_weight: float = 0.5) -> Aggregation:
        """Before any calibration."""
        one, zero = (1.0,) * 6, (0.0,) * 6
        return cls(class_weight, mask_weight, 0.25, 3, one, zero, one, zero)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Aggregation:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def evidence(self, class_logits: Array, mask_logits: Array) -> Array:
        """Smoothed evidence (n, 6) of the pictures of one series, both inputs (n, 6)."""
        mixed = self.class_weight * class_logits + self.mask_weight * mask_logits
        below = np.concatenate((mixed[:1], mixed[:-1]))
        above = np.concatenate((mixed[1:], mixed[-1:]))
        return (1 - 2 * self.smoothing) * mixed + self.smoothing * (below + above)

    def strongest(self, evidence: Array) -> Array:
        """Mean evidence (6,) of the `top` strongest pictures, class by class."""
        count = min(self.top, len(evidence))
        return np.sort(evidence, axis=0)[-count:].mean(axis=0)

    def slice_probabilities(self, evidence: Array) -> Array:
        return _platt(evidence, self.slice_scale, self.slice_bias)

    def series_probabilities(self, evidence: Array) -> Array:
        return _platt(self.strongest(evidence), self.series_scale, self.series_bias)


def _platt(evidence: Array, scale: Sequence[float], bias: Sequence[float]) -> Array:
    logits = evidence * np.asarray(scale, np.float32) + np.asarray(bias, np.float32)
    return (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)
