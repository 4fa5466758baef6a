"""How tests hold what two runtimes read in the same pictures against each other."""

from __future__ import annotations

import numpy as np

from workers.models.picture import Reading


def require_alike(one: Reading, other: Reading, tolerance: float) -> None:
    """Logits, and masks where there are any, differ by less; the last maps have the same shapes."""
    assert np.abs(one.class_logits - other.class_logits).max() < tolerance
    assert np.abs(one.mask_logits - other.mask_logits).max() < tolerance
    assert (one.masks is None) == (other.masks is None)
    if one.masks is not None and other.masks is not None:
        assert np.abs(one.masks - other.masks).max() < tolerance
    for maps, others in zip(one.features, other.features, strict=True):
        assert maps.shape == others.shape and maps.dtype == others.dtype
