"""The simulation of a large site: what can be told without it must come out of it."""

from __future__ import annotations

import random
from math import isnan

import pytest

from tests.bench.simulation import (
    COMPOSE_S,
    DAY_S,
    HOURS,
    QUIET_S,
    SEND_S,
    Site,
    arrivals,
    quantile,
    simulate,
)

FEW = Site(studies_a_day=20, days=30)
MANY = Site(studies_a_day=2000, days=2)


def test_as_many_come_as_were_said_and_when() -> None:
    times = list(arrivals(Site(days=20), random.Random(1)))
    assert times == sorted(times)
    assert len(times) == pytest.approx(20 * 2000, rel=0.02)
    share = sum(8 <= t % DAY_S / 3600 < 20 for t in times) / len(times)
    assert share == pytest.approx(sum(HOURS[8:20]) / sum(HOURS), rel=0.02)


def test_nobody_waits_where_little_comes() -> None:
    found = simulate(8, FEW, (3.0,), seed=1)
    assert found.quantile(0.5) == pytest.approx(QUIET_S + 3.0 + COMPOSE_S + SEND_S)


def test_the_same_seed_tells_the_same() -> None:
    assert simulate(2, MANY, (2.0, 4.0), seed=3) == simulate(2, MANY, (2.0, 4.0), seed=3)
    assert simulate(2, MANY, (2.0, 4.0), seed=3) != simulate(2, MANY, (2.0, 4.0), seed=4)


def test_work_is_neither_lost_nor_made() -> None:
    came = list(arrivals(MANY, random.Random(5)))
    found = simulate(3, MANY, (2.0,), seed=5)
    assert found.busy == pytest.approx(len(found.waits_s) * 2.0 / (3 * 2 * DAY_S))
    assert len(found.waits_s) == sum(map(len, found.by_hour)) and len(came) > 3000


def test_too_few_workers_fall_behind_and_more_make_good() -> None:
    slow = (50.0,)
    waits = [simulate(n, MANY, slow, seed=1).quantile(0.95) for n in (1, 2, 3, 6)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 3600 and waits[-1] < 300


def test_what_was_held_back_comes_at_once_and_nothing_before() -> None:
    site = Site(days=3, backlog_after_h=1.0)
    times = list(arrivals(site, random.Random(2)))
    assert not [t for t in times if 12 <= t % DAY_S / 3600 < 13]
    assert sum(t % DAY_S == 13 * 3600 for t in times) == pytest.approx(
        3 * 2000 * HOURS[12] / sum(HOURS), rel=0.2
    )
    assert simulate(2, site, (2.0,), 1).quantile(0.99) > simulate(2, Site(days=3), (2.0,), 1).quantile(0.99)


def test_quantiles() -> None:
    assert [quantile((1.0, 2.0, 3.0, 4.0), part) for part in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]
    assert isnan(quantile((), 0.5))
