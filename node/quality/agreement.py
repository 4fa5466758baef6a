"""Running sensitivity, specificity and predictive values from what readers clicked. Counts; asks no database.

Readers open what alarms: of the negatives few are ever looked at. What follows from the clicks as they are
is therefore a too rosy sensitivity; with a random sample of the negatives it can be corrected (Begg and
Greenes, Biometrics 39:207, 1983). Both are given, with how many were looked at, and never one for the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from node.domain.findings import CLASSES, Priority
from node.domain.opinion import has
from node.quality.counts import Analysed, Said
from node.quality.rates import LEVEL, Rate, exact, wilson


@dataclass(frozen=True)
class Table:
    """Two by two, of what was judged; indeterminate results stand beside it, by what the readers saw."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0
    indeterminate_bleeding: int = 0
    indeterminate_clear: int = 0

    @property
    def judged(self) -> int:
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def sensitivity(self) -> Rate:
        return wilson(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Rate:
        return wilson(self.true_negative, self.true_negative + self.false_positive)

    @property
    def ppv(self) -> Rate:
        return wilson(self.true_positive, self.true_positive + self.false_positive)

    @property
    def npv(self) -> Rate:
        return wilson(self.true_negative, self.true_negative + self.false_negative)


@dataclass(frozen=True)
class Corrected:
    """Sensitivity and specificity as they would be, had everything been judged; value, low, high."""

    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]


@dataclass(frozen=True)
class Agreement:
    """One group of analyses (a scanner, a model, a month, all): the figures for "any" and for each class."""

    name: str
    analysed: Analysed
    table: Table
    classes: dict[str, Table]
    verified_positive: Rate
    """Suspected ones that were judged, of all suspected ones."""
    verified_negative: Rate
    sample: Rate
    """Missed ones, of the judged ones of the random sample of negatives; an exact interval."""
    corrected: Corrected | None


def agreement(name: str, analysed: Analysed, said: Iterable[Said]) -> Agreement:
    """The figures of one group."""
    rows = list(said)
    judged = [row for row in rows if has(row.told, "any")]
    positive = sum(row.count for row in judged if row.verdict is Priority.STAT)
    negative = [row for row in judged if row.verdict is Priority.ROUTINE]
    sampled = [row for row in negative if row.sampled]
    missed = sum(row.count for row in sampled if has(row.wrong, "any"))
    sample = exact(missed, sum(row.count for row in sampled))
    table = _table(rows, "any")
    return Agreement(
        name,
        analysed,
        table,
        {one: _table(rows, one) for one in CLASSES if one != "any"},
        wilson(positive, analysed.suspected),
        wilson(sum(row.count for row in negative), analysed.not_detected),
        sample,
        corrected(analysed, table, sample),
    )


def _table(rows: Iterable[Said], name: str) -> Table:
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 0, "high_true": 0, "high_false": 0}
    for row in rows:
        if not has(row.told, name):
            continue
        called, wrong = has(row.present, name), has(row.wrong, name)
        truth = called != wrong
        if row.verdict is Priority.HIGH:
            key = "high_true" if truth else "high_false"
        else:
            key = ("tp" if truth else "fp") if called else ("fn" if truth else "tn")
        counts[key] += row.count
    return Table(*counts.values())


def corrected(analysed: Analysed, table: Table, sample: Rate) -> Corrected | None:
    """None without a judged sample of negatives or without a judged alarm.

    The alarms that were judged stand for all of them, the sample for all negatives; indeterminate results
    are left out. The interval joins the exact limits of both shares at 97.5 %, so it is rather too wide.
    """
    alarms = table.true_positive + table.false_positive
    if sample.value is None or not alarms or not analysed.suspected:
        return None
    level = 1 - (1 - LEVEL) / 2
    bleeding, missed = exact(table.true_positive, alarms, level), exact(sample.count, sample.total, level)
    positive, negative = analysed.suspected, analysed.not_detected

    def sensitivity(p: float, q: float) -> float:
        """`p` of the positives and `q` of the negatives bleed."""
        return positive * p / ((positive * p + negative * q) or 1.0)

    def specificity(p: float, q: float) -> float:
        return negative * (1 - q) / ((negative * (1 - q) + positive * (1 - p)) or 1.0)

    p, q = (bleeding.value, bleeding.low, bleeding.high), (missed.value, missed.low, missed.high)
    p0, p_low, p_high = (value or 0.0 for value in p)
    q0, q_low, q_high = (value or 0.0 for value in q)
    return Corrected(
        (sensitivity(p0, q0), sensitivity(p_low, q_high), sensitivity(p_high, q_low)),
        (specificity(p0, q0), specificity(p_low, q_high), specificity(p_high, q_low)),
    )
