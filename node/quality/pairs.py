"""Two models over the same series: agreement, accuracy by what readers said, and what chance would explain.

What counts is whether a model calls a class present, whatever priority came of it. Counts; asks no database.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import bdtr, ndtri

from node.domain.findings import CLASSES
from node.domain.opinion import has
from node.quality.agreement import Table
from node.quality.counts import Paired
from node.quality.rates import LEVEL, Rate, wilson


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa (Educ Psychol Meas 20:37, 1960) and its interval; None where nothing can be said."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cross:
    """Two by two of what both models evaluated: who calls the class present."""

    both: int = 0
    active_only: int = 0
    shadow_only: int = 0
    neither: int = 0

    @property
    def total(self) -> int:
        return self.both + self.active_only + self.shadow_only + self.neither

    @property
    def differing(self) -> int:
        return self.active_only + self.shadow_only

    @property
    def agreement(self) -> Rate:
        return wilson(self.both + self.neither, self.total)

    @property
    def kappa(self) -> Kappa:
        return kappa(self)


@dataclass(frozen=True)
class McNemar:
    """Where one of the two is right and the other is not, and how often chance alone does that (exact)."""

    active_right: int
    shadow_right: int
    p_value: float | None


@dataclass(frozen=True)
class Compared:
    """One class. The tables hold what readers judged and both models evaluated."""

    name: str
    cross: Cross
    active: Table
    shadow: Table
    bleeding: McNemar
    """Of those with the class: a test of sensitivity."""
    clear: McNemar
    """Of those without: a test of specificity."""
    differing_judged: int
    """Of those on which the models differ: judged by a reader."""
    sampled: int
    """Of the judged ones: drawn by chance from what the active model called negative."""


@dataclass(frozen=True)
class Times:
    """Seconds at quantiles of the series that both have times of; None for none."""

    count: int
    median: float | None
    p95: float | None


def compare(rows: Iterable[Paired]) -> dict[str, Compared]:
    """By class, "any" first."""
    counted = list(rows)
    return {name: _compared(name, counted) for name in CLASSES}


def _compared(name: str, rows: Sequence[Paired]) -> Compared:
    mine = [row for row in rows if has(row.active_evaluated & row.shadow_evaluated, name)]
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for row in mine:
        cells[has(row.active_present, name), has(row.shadow_present, name)] += row.count
    judged = [row for row in mine if row.told is not None and has(row.told, name)]
    told = [(row, _truth(row, name)) for row in judged]
    return Compared(
        name,
        Cross(*cells.values()),
        _table((has(row.active_present, name), truth, row.count) for row, truth in told),
        _table((has(row.shadow_present, name), truth, row.count) for row, truth in told),
        _paired([row for row, truth in told if truth], name, True),
        _paired([row for row, truth in told if not truth], name, False),
        sum(r.count for r in judged if has(r.active_present, name) != has(r.shadow_present, name)),
        sum(row.count for row in judged if row.sampled),
    )


def _truth(row: Paired, name: str) -> bool:
    """What the reader saw, who judged the active model's word."""
    return has(row.active_present, name) != has(row.wrong or 0, name)


def _table(calls: Iterable[tuple[bool, bool, int]]) -> Table:
    """Of (called, true, count)."""
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for called, truth, count in calls:
        cells[called, truth] += count
    return Table(*cells.values())


def _paired(rows: Iterable[Paired], name: str, truth: bool) -> McNemar:
    active = shadow = 0
    for row in rows:
        called = has(row.active_present, name), has(row.shadow_present, name)
        active += row.count if called == (truth, not truth) else 0
        shadow += row.count if called == (not truth, truth) else 0
    return mcnemar(active, shadow)


def mcnemar(active_right: int, shadow_right: int) -> McNemar:
    """The exact test (McNemar, Psychometrika 12:153, 1947, with the binomial distribution), two-sided."""
    total = active_right + shadow_right
    if not total:
        return McNemar(0, 0, None)
    tail = float(bdtr(min(active_right, shadow_right), total, 0.5))
    return McNemar(active_right, shadow_right, min(1.0, 2 * tail))


def kappa(cross: Cross, level: float = LEVEL) -> Kappa:
    """With the large-sample interval of Fleiss, Cohen and Everitt (Psychol Bull 72:323, 1969), cut at ±1.

    None where both models say the same of every series; no interval where they never differ, since that
    formula then gives one of no width.
    """
    n = cross.total
    if not n:
        return Kappa(None, None, None)
    cells = ((cross.both, cross.active_only), (cross.shadow_only, cross.neither))
    p = [[count / n for count in row] for row in cells]
    rows = [sum(row) for row in p]
    columns = [p[0][k] + p[1][k] for k in (0, 1)]
    observed = p[0][0] + p[1][1]
    expected = sum(rows[k] * columns[k] for k in (0, 1))
    if expected >= 1:
        return Kappa(None, None, None)
    value = (observed - expected) / (1 - expected)
    if not cross.differing:
        return Kappa(value, None, None)
    same = sum(p[k][k] * ((1 - expected) - (rows[k] + columns[k]) * (1 - observed)) ** 2 for k in (0, 1))
    other = (1 - observed) ** 2 * sum(p[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    rest = (observed * expected - 2 * expected + observed) ** 2
    variance = max(same + other - rest, 0.0) / (n * (1 - expected) ** 4)
    half = float(ndtri((1 + level) / 2)) * math.sqrt(variance)
    return Kappa(value, max(value - half, -1.0), min(value + half, 1.0))


def times(seconds: Iterable[float | None]) -> Times:
    """Median and 95th percentile of what is known."""
    known = sorted(value for value in seconds if value is not None)
    if not known:
        return Times(0, None, None)
    at = (min(int(q * len(known)), len(known) - 1) for q in (0.5, 0.95))
    return Times(len(known), *(known[k] for k in at))
