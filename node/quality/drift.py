"""Whether recent analyses look like those of a reference: input and scores, one feature at a time. Pure.

An alarm needs both: a difference that chance does not explain (Kolmogorov-Smirnov, or chi-squared for
names), and one large enough to matter. PSI is given beside it, since many know it; it decides nothing,
because with a hundred studies it lies above its usual thresholds by chance alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

from node.quality.counts import FEATURES, NAMES, Shift

FEWEST = 30
"""With fewer known values on either side nothing is said."""
BINS = 10

Values = Sequence[Any]


def shifts(reference: Mapping[str, Values], recent: Mapping[str, Values]) -> list[Shift]:
    """Every feature that is known often enough on both sides."""
    found = []
    for feature in FEATURES:
        before = [v for v in reference.get(feature, ()) if v not in (None, "")]
        after = [v for v in recent.get(feature, ()) if v not in (None, "")]
        if min(len(before), len(after)) >= FEWEST:
            found.append((_names if feature in NAMES else _numbers)(feature, before, after))
    return found


def _numbers(feature: str, before: Values, after: Values) -> Shift:
    """Kolmogorov-Smirnov with its asymptotic p-value, which ties make larger, never smaller."""
    old, new = np.sort(np.asarray(before, float)), np.sort(np.asarray(after, float))
    every = np.concatenate([old, new])
    below = [np.searchsorted(side, every, "right") / len(side) for side in (old, new)]
    distance = float(np.abs(below[0] - below[1]).max())
    p_value = float(kolmogorov(distance * np.sqrt(len(old) * len(new) / (len(old) + len(new)))))
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    counted = [
        np.bincount(np.searchsorted(edges, side, "left"), minlength=len(edges) + 1) for side in (old, new)
    ]
    return Shift(feature, len(old), len(new), distance, p_value, psi(*counted), _usual(old), _usual(new))


def _usual(values: NDArray[np.float64]) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _names(feature: str, before: Values, after: Values) -> Shift:
    old, new = Counter(map(str, before)), Counter(map(str, after))
    names = sorted({*old, *new})
    counts = np.array([[old[name] for name in names], [new[name] for name in names]], float)
    share = counts / counts.sum(axis=1, keepdims=True)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    p_value = float(chdtrc(len(names) - 1, chi2)) if len(names) > 1 else 1.0
    distance = float(np.abs(share[0] - share[1]).sum() / 2)
    return Shift(
        feature,
        int(counts[0].sum()),
        int(counts[1].sum()),
        distance,
        p_value,
        psi(counts[0], counts[1]),
        _commonest(old),
        _commonest(new),
    )


def _commonest(counts: Counter[str]) -> str:
    total = counts.total()
    return ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in counts.most_common(3))


def psi(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Population stability index of two rows of counts; half a count is added to each, so none is 0."""
    old, new = (np.asarray(row, float) + 0.5 for row in (before, after))
    p, q = old / old.sum(), new / new.sum()
    return float(((q - p) * np.log(q / p)).sum())
