"""Shares with their 95 % intervals. Gives no interval where nothing was counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import betaincinv, ndtri

LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """`count` of `total`, with the interval [`low`, `high`]; all None where `total` is 0."""

    count: int
    total: int
    value: float | None
    low: float | None
    high: float | None


def wilson(count: int, total: int, level: float = LEVEL) -> Rate:
    """The score interval (Wilson, JASA 22:209, 1927): close to its level on average, also for few."""
    if not total:
        return Rate(count, 0, None, None, None)
    z = float(ndtri((1 + level) / 2))
    share, scale = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if count == 0 else max(middle - half, 0.0)
    high = 1.0 if count == total else min(middle + half, 1.0)
    return Rate(count, total, share, low, high)


def exact(count: int, total: int, level: float = LEVEL) -> Rate:
    """The interval of Clopper and Pearson (Biometrika 26:404, 1934): never covers less than its level."""
    if not total:
        return Rate(count, 0, None, None, None)
    tail = (1 - level) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Rate(count, total, count / total, low, high)
