"""Distances against scipy's own tests, and how often the alarm is right and wrong."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from node.quality.counts import FEATURES
from node.quality.drift import FEWEST, psi, shifts


def one(feature: str, before: list[object], after: list[object]):  # type: ignore[no-untyped-def]
    (found,) = shifts({feature: before}, {feature: after})
    return found


def test_numbers_are_judged_as_scipy_does() -> None:
    chance = random.Random(3)
    before = [chance.gauss(33, 1.2) for _ in range(300)]
    after = [chance.gauss(33.6, 1.2) for _ in range(100)]
    found, theirs = one("head_hu", before, after), ks_2samp(before, after, method="exact")
    assert found.distance == pytest.approx(theirs.statistic)
    assert theirs.pvalue / 2 < found.p_value < theirs.pvalue * 4  # ours is asymptotic, rather too large


def test_names_are_judged_as_scipy_does() -> None:
    before, after = ["H31s"] * 200 + ["H40s"] * 100, ["H31s"] * 20 + ["H40s"] * 60 + ["J40s"] * 20
    found = one("kernel", before, after)
    theirs = chi2_contingency([[200, 100, 0], [20, 60, 20]], correction=False)
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert found.distance == pytest.approx(200 / 300 - 0.2)
    assert found.drifted and found.before == "H31s 67 %, H40s 33 %"


def test_psi_of_equal_shares_is_nothing() -> None:
    assert psi(np.array([300, 300]), np.array([300, 300])) == 0
    assert psi(np.array([90, 10]), np.array([10, 90])) > 0.25


def test_nothing_is_said_of_few_or_unknown_values() -> None:
    assert shifts({"kvp": [120.0] * FEWEST}, {"kvp": [None] * 100 + [80.0] * (FEWEST - 1)}) == []
    assert not one("kvp", [120.0] * 300, [120.0] * 100).drifted
    assert not one("kernel", ["H31s"] * 300, ["H31s"] * 100).drifted
    assert one("kvp", [120.0] * 300, [80.0] * 100).drifted


def test_alarms_are_rare_without_a_change_and_sure_with_one() -> None:
    chance = np.random.default_rng(11)
    false = found = 0
    for _ in range(120):
        before, same = chance.beta(1.2, 12, 300), chance.beta(1.2, 12, 100)
        false += one("any_probability", list(before), list(same)).drifted
        doubled = np.minimum(2 * chance.beta(1.2, 12, 100), 1)
        found += one("any_probability", list(before), list(doubled)).drifted
    assert false <= 1
    assert found >= 102


def test_every_feature_is_kept_with_the_analyses() -> None:
    from node.store.tables import analyses

    assert set(FEATURES) <= set(analyses.c.keys())
