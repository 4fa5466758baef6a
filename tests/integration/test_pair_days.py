"""Series that two models read, counted by day: whatever happens to them, the sums are those of a recount."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from typing import Any

import pytest

from node.domain.opinion import Opinion, Word
from node.store import pair_days, quality
from node.store.pairs import Asked
from node.store.records import Records
from tests.shadowed import ACTIVE, OTHER, Shadowed, read

DAY_S = 86400.0
BEGAN = 20_000 * DAY_S + 5000.0
BOTH = Asked(ACTIVE.sha256, OTHER.sha256)


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = BEGAN

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("tests.shadowed", "tests.site"):
        monkeypatch.setattr(f"{module}.time", made)
    return made


def answers(records: Records, now: float) -> list[Any]:
    """All that a page asks, for some times and scanners."""
    pairs = records.pairs
    windows = (
        BOTH,
        replace(BOTH, since=BEGAN + 1.5 * DAY_S),
        replace(BOTH, since=now - 3 * DAY_S, until=now),
    )
    found: list[Any] = [sorted(map(str, pairs.which()))]
    for asked in (*windows, *(replace(asked, scanner="ACME") for asked in windows)):
        rows, count = pairs.differing(asked, 3)
        found.append(sorted(map(str, map(astuple, pairs.counted(asked)))))
        found.append((pairs.scanners(asked), count, [row["job_id"] for row in rows]))
    return found


def recounted(records: Records, now: float, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The same without the summary."""
    with monkeypatch.context() as patch:
        patch.setattr(pair_days, "MOST_CHANGED", -1)
        return answers(records, now)


@pytest.mark.parametrize("seed", [1, 2])
def test_sums_are_those_of_a_recount(
    records: Records, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    node, chance = Shadowed(records), random.Random(seed)
    jobs: list[int] = []
    counted = 0
    for step in range(45):
        clock.now += chance.choice((0.0, 3000.0, 20_000.0, 100_000.0))
        deed = chance.choice(("read", "read", "judge", "withdraw", "draw", "again", "count"))
        job = chance.choice(jobs) if jobs else 0
        if deed == "read" or not job:
            scanner = chance.choice(("ACME", "Other"))
            jobs.append(node.both(f"1.{step}", chance.choice((0.1, 0.9)), chance.choice((0.1, 0.9)), scanner))
        elif deed == "judge":
            node.judged(job, chance.choice((Opinion.AGREE, Opinion.DISAGREE)))
        elif deed == "withdraw":
            records.reviews.withdraw(job)
        elif deed == "draw":
            records.quality.draw(1, 0.0, "anna", clock.now, chance)
        elif deed == "again":
            with records.engine.begin() as connection:  # the same model once more, another word
                found = read(chance.choice((0.1, 0.9)), ACTIVE)
                acquired = quality.Acquisition("ACME")
                quality.record(connection, (job, f"1.{step}"), found, acquired, clock.now)
        else:
            counted += records.pairs.count_days(clock.now)
        assert answers(records, clock.now) == recounted(records, clock.now, monkeypatch), (step, deed)
    assert counted > 5 and records.pairs.which()[0]["count"] > 9, "days were counted, and there was something"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_changes_while_a_day_is_counted_is_counted_again(
    records: Records, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers of SQLite are alone."""
    node = Shadowed(records)
    job = node.both("1.1", 0.9, 0.9)
    node.judged(job, Opinion.AGREE)
    clock.now += 2 * DAY_S
    with records.engine.begin() as connection:
        quality.say(connection, job, Word(Opinion.DISAGREE, "anna", clock.now))
        records.pairs.count_days(clock.now)
        assert {row.wrong for row in records.pairs.counted(BOTH)} == {0}, "not said yet"
    assert answers(records, clock.now) == recounted(records, clock.now, monkeypatch)
    assert {row.wrong for row in records.pairs.counted(BOTH)} != {0}
    records.pairs.count_days(clock.now)
    assert {row.wrong for row in records.pairs.counted(BOTH)} != {0}


def test_a_page_reads_the_days_that_are_counted(records: Records, clock: Clock) -> None:
    """So that it costs what the days cost: a sum that is wrong on purpose is seen."""
    node = Shadowed(records)
    node.both("1.1", 0.9, 0.1)
    clock.now += 2 * DAY_S
    assert records.pairs.count_days(clock.now) == 2 and records.pairs.count_days(clock.now) == 0
    with records.engine.begin() as connection:
        connection.execute(pair_days.pair_days.update().values(count=7))
    assert [row.count for row in records.pairs.counted(BOTH)] == [7]
    assert records.pairs.differing(BOTH, 5)[1] == 7
