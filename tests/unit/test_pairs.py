"""Two models side by side: kappa against the delta method, McNemar against scipy, who is right."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from node.domain.findings import CLASSES
from node.domain.opinion import ANY, bits
from node.quality.counts import Paired
from node.quality.pairs import Cross, Kappa, compare, kappa, mcnemar, times

EVERY = bits(CLASSES)
SUBDURAL = bits(("any", "subdural"))


def numeric_error(cells: tuple[int, int, int, int]) -> float:
    """The standard error of kappa by the delta method, with derivatives by differences: no closed form."""
    n = sum(cells)
    p = [count / n for count in cells]

    def value(a: float, b: float, c: float, d: float) -> float:
        observed, expected = a + d, (a + b) * (a + c) + (c + d) * (b + d)
        return (observed - expected) / (1 - expected)

    step = 1e-6
    slopes = []
    for k in range(4):
        up, down = list(p), list(p)
        up[k], down[k] = up[k] + step, down[k] - step
        slopes.append((value(*up) - value(*down)) / (2 * step))
    mean = sum(s * share for s, share in zip(slopes, p, strict=True))
    return math.sqrt(sum(share * (s - mean) ** 2 for s, share in zip(slopes, p, strict=True)) / n)


@pytest.mark.parametrize("cells", [(40, 9, 6, 45), (3, 2, 1, 94), (10, 30, 25, 35), (118, 4, 9, 1)])
def test_kappa_and_its_interval(cells: tuple[int, int, int, int]) -> None:
    found = kappa(Cross(*cells))
    one = [1] * (cells[0] + cells[1]) + [0] * (cells[2] + cells[3])
    two = [1] * cells[0] + [0] * cells[1] + [1] * cells[2] + [0] * cells[3]
    assert found.value == pytest.approx(cohen_kappa_score(one, two))
    assert found.value is not None and found.low is not None and found.high is not None
    half = 1.959964 * numeric_error(cells)
    assert found.low == pytest.approx(max(found.value - half, -1), abs=1e-5)
    assert found.high == pytest.approx(min(found.value + half, 1), abs=1e-5)


def test_what_kappa_cannot_say_is_not_said() -> None:
    assert kappa(Cross()) == Kappa(None, None, None)
    assert kappa(Cross(neither=50)) == Kappa(None, None, None), "nobody called anything"
    assert kappa(Cross(both=3, neither=50)) == Kappa(1.0, None, None), "no interval of no width"


@pytest.mark.parametrize(("active", "shadow"), [(1, 0), (3, 9), (12, 12), (0, 20), (41, 60)])
def test_mcnemar_is_the_exact_test_of_scipy(active: int, shadow: int) -> None:
    assert mcnemar(active, shadow).p_value == pytest.approx(binomtest(active, active + shadow).pvalue)
    assert mcnemar(0, 0).p_value is None


def paired(active: int, shadow: int, told: int | None, wrong: int | None, count: int, **more: int) -> Paired:
    of = {"active_evaluated": EVERY, "shadow_evaluated": EVERY, "sampled": 0} | more
    return Paired(active, of["active_evaluated"], shadow, of["shadow_evaluated"], told, wrong,
                  of["sampled"], count)  # fmt: skip


def test_the_readers_judge_the_active_model_and_by_that_the_other() -> None:
    rows = [
        paired(SUBDURAL, SUBDURAL, EVERY, 0, 7),  # both right
        paired(SUBDURAL, 0, EVERY, 0, 4),  # missed by the shadow model alone
        paired(0, SUBDURAL, EVERY, SUBDURAL, 1),  # found by the shadow model alone
        paired(SUBDURAL, 0, ANY, ANY, 3),  # a false alarm of the active model alone
        paired(0, 0, EVERY, 0, 20, sampled=1),
        paired(0, SUBDURAL, None, None, 2),  # differ, and nobody looked
    ]
    any_ = compare(rows)["any"]
    assert (any_.cross.both, any_.cross.active_only, any_.cross.shadow_only, any_.cross.neither) == (
        7,
        7,
        3,
        20,
    )
    assert (any_.active.sensitivity.count, any_.active.sensitivity.total) == (11, 12)
    assert (any_.shadow.sensitivity.count, any_.shadow.sensitivity.total) == (8, 12)
    assert (any_.active.specificity.count, any_.shadow.specificity.count) == (20, 23)
    assert (any_.bleeding.active_right, any_.bleeding.shadow_right) == (4, 1)
    assert (any_.clear.active_right, any_.clear.shadow_right) == (0, 3)
    assert (any_.differing_judged, any_.cross.differing, any_.sampled) == (8, 10, 20)
    subdural = compare(rows)["subdural"]
    assert subdural.active.judged == 32, "a plain disagreement says nothing of the kinds"


def test_a_class_that_one_of_them_cannot_tell_is_not_compared() -> None:
    found = compare([paired(SUBDURAL, ANY, None, None, 5, shadow_evaluated=ANY)])
    assert found["any"].cross.total == 5 and found["subdural"].cross.total == 0


def test_times() -> None:
    assert times([]).median is None
    found = times([*map(float, range(100)), None])
    assert (found.count, found.median, found.p95) == (100, 50.0, 95.0)
