"""Rates and their intervals against scipy's own; what a click says; what follows from many of them."""

from __future__ import annotations

import itertools
import random

import pytest
from scipy.stats import binomtest

from node.admin.web import words
from node.admin.web.words import rate
from node.domain.findings import CLASSES, Priority
from node.domain.opinion import ANY, Judged, Opinion, Word, Wrong, bits, judged
from node.quality.agreement import agreement
from node.quality.counts import Analysed, Said
from node.quality.rates import exact, wilson

EVERY = bits(CLASSES)
SUBDURAL = bits(("any", "subdural"))


@pytest.mark.parametrize(
    ("count", "total"), [(0, 1), (0, 30), (1, 1), (7, 9), (45, 47), (30, 30), (500, 1000)]
)
def test_intervals_are_those_of_scipy(count: int, total: int) -> None:
    for ours, method in ((wilson, "wilson"), (exact, "exact")):
        theirs = binomtest(count, total).proportion_ci(0.95, method)  # type: ignore[arg-type]
        found = ours(count, total)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(0, 0).value is None and exact(0, 0).high is None


def said(opinion: Opinion, why: Wrong = Wrong.UNSPECIFIED, actual: tuple[str, ...] = ()) -> Word:
    return Word(opinion, "anna", 1.0, why, actual)


@pytest.mark.parametrize(
    ("verdict", "present", "word", "told", "wrong"),
    [
        (Priority.STAT, SUBDURAL, said(Opinion.AGREE), EVERY, 0),
        (Priority.ROUTINE, 0, said(Opinion.AGREE), EVERY, 0),
        (Priority.HIGH, 0, said(Opinion.AGREE), 0, 0),
        (Priority.STAT, SUBDURAL, said(Opinion.DISAGREE), ANY, ANY),
        (Priority.ROUTINE, 0, said(Opinion.DISAGREE), ANY, ANY),
        (Priority.HIGH, 0, said(Opinion.DISAGREE), 0, 0),
        (Priority.STAT, SUBDURAL, said(Opinion.DISAGREE, Wrong.NO_HAEMORRHAGE), EVERY, SUBDURAL),
        (Priority.HIGH, 0, said(Opinion.DISAGREE, Wrong.NO_HAEMORRHAGE), EVERY, 0),
        (Priority.STAT, SUBDURAL, said(Opinion.DISAGREE, Wrong.EXTENT), EVERY, 0),
        (Priority.ROUTINE, 0, said(Opinion.DISAGREE, Wrong.MISSED), ANY, ANY),
        (Priority.ROUTINE, 0, said(Opinion.DISAGREE, Wrong.MISSED, ("subdural",)), EVERY, SUBDURAL),
        (Priority.STAT, SUBDURAL, said(Opinion.DISAGREE, Wrong.SUBTYPE), ANY, 0),
        (
            Priority.STAT,
            SUBDURAL,
            said(Opinion.DISAGREE, Wrong.SUBTYPE, ("epidural",)),
            EVERY,
            bits(("subdural", "epidural")),
        ),
    ],
)
def test_what_a_click_says_of_each_class(
    verdict: Priority, present: int, word: Word, told: int, wrong: int
) -> None:
    assert judged(verdict, present, EVERY, word) == Judged(told, wrong)


def test_nothing_is_said_of_a_class_the_model_cannot_tell() -> None:
    knows = bits(("any", "subdural"))
    for verdict, opinion, why in itertools.product(Priority, Opinion, Wrong):
        word = said(opinion, why, ("epidural", "subdural"))
        told = judged(verdict, 0, knows, word)
        assert told.told & ~knows == 0 and told.wrong & ~knows == 0


def test_the_figures_of_a_group() -> None:
    rows = [
        Said(Priority.STAT, SUBDURAL, EVERY, 0, False, 18),
        Said(Priority.STAT, SUBDURAL, EVERY, SUBDURAL, False, 2),
        Said(Priority.STAT, SUBDURAL, ANY, 0, False, 1),  # a kind nobody named: says nothing of subdural
        Said(Priority.ROUTINE, 0, EVERY, 0, True, 49),
        Said(Priority.ROUTINE, 0, ANY, ANY, True, 1),
        Said(Priority.ROUTINE, 0, ANY, ANY, False, 4),
        Said(Priority.HIGH, 0, EVERY, 0, False, 3),
        Said(Priority.HIGH, 0, ANY, ANY, False, 1),
    ]
    found = agreement("all", Analysed(100, 10, 1000), rows)
    table = found.table
    assert (table.true_positive, table.false_positive) == (19, 2)
    assert (table.false_negative, table.true_negative) == (5, 49)
    assert (table.indeterminate_bleeding, table.indeterminate_clear) == (1, 3)
    assert found.verified_positive.value == 0.21 and found.verified_negative.value == 0.054
    assert (found.sample.count, found.sample.total) == (1, 50)
    subdural = found.classes["subdural"]
    assert (subdural.true_positive, subdural.false_positive, subdural.judged) == (18, 2, 69)
    # by hand: 100 · 19/21 bleed among the suspected, 1000 · 1/50 among the negatives
    assert found.corrected
    expected = 100 * 19 / 21 / (100 * 19 / 21 + 20)
    assert found.corrected.sensitivity[0] == pytest.approx(expected)
    assert found.corrected.sensitivity[1] < expected < found.corrected.sensitivity[2]


def test_without_a_judged_sample_nothing_is_corrected() -> None:
    rows = [
        Said(Priority.STAT, SUBDURAL, EVERY, 0, False, 18),
        Said(Priority.ROUTINE, 0, EVERY, 0, False, 40),
    ]
    assert agreement("all", Analysed(20, 0, 400), rows).corrected is None


def test_the_correction_holds_where_clicks_mislead() -> None:
    """Simulated: true sensitivity 0.80; readers judge all alarms, and doubtful negatives far more often."""
    chance, covered, clicked = random.Random(5), 0, []
    for _ in range(60):
        counts: dict[tuple[Priority, bool, bool], int] = {}
        totals = {Priority.STAT: 0, Priority.ROUTINE: 0}
        for _ in range(2000):
            bleeds = chance.random() < 0.15
            alarm = chance.random() < (0.80 if bleeds else 0.05)
            verdict = Priority.STAT if alarm else Priority.ROUTINE
            totals[verdict] += 1
            sampled = not alarm and chance.random() < 0.1
            if alarm or sampled or (not bleeds and chance.random() < 0.1):
                key = (verdict, bleeds == alarm, sampled)
                counts[key] = counts.get(key, 0) + 1
        rows = [
            Said(verdict, ANY if verdict is Priority.STAT else 0, ANY, 0 if right else ANY, sampled, n)
            for (verdict, right, sampled), n in counts.items()
        ]
        found = agreement("all", Analysed(totals[Priority.STAT], 0, totals[Priority.ROUTINE]), rows)
        assert found.corrected
        covered += found.corrected.sensitivity[1] <= 0.80 <= found.corrected.sensitivity[2]
        clicked.append(found.table.sensitivity.value or 0)
    assert covered >= 56
    assert sum(clicked) / len(clicked) > 0.93  # what the clicks alone would have said


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [(8, 9, "89 % (57–98 %)"), (2825, 2825, "100 % (99.9–100 %)"), (0, 2825, "0 % (0–0.1 %)"), (0, 0, "–")],
)
def test_what_is_not_certain_never_reads_as_certain(count: int, total: int, text: str) -> None:
    assert rate(wilson(count, total)).replace("\u00a0", " ").replace("\u2060", "") == text
    assert words.share(0.99996) == ">99.9 %" and words.share(0.00001) == "<0.1 %"
