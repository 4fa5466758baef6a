"""A nudge ends a wait, and none is lost between a look and the wait behind it."""

from __future__ import annotations

import threading

import pytest

from node import deliver
from node.nudge import Nudge

LONG_S = 600.0
"""Longer than any test may take."""


def test_a_nudge_ends_the_wait_of_everybody_even_if_it_came_before() -> None:
    nudge = Nudge()
    waits = [nudge.waiting(lambda seconds: False) for _ in range(2)]
    nudge.give()
    assert [wait(LONG_S) for wait in waits] == [False, False]


def test_each_nudge_ends_one_wait_and_time_ends_the_others() -> None:
    asked: list[float] = []

    def stopping(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) == 2

    nudge = Nudge()
    wait = nudge.waiting(stopping)
    nudge.give()
    assert [wait(LONG_S), wait(0.001)] == [False, True]
    assert asked == [0, 0], "the wait is ours"


def test_a_courier_looks_as_soon_as_it_is_nudged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "TICK_S", LONG_S)
    nudge, looked, over = Nudge(), threading.Semaphore(0), threading.Event()

    class Idle:
        def pause_s(self) -> float:
            return LONG_S

        def round(self) -> bool:
            looked.release()
            return True

    thread = threading.Thread(
        target=deliver.run, args=(Idle(), lambda seconds: over.is_set()), kwargs={"nudge": nudge}, daemon=True
    )
    thread.start()
    for _ in range(2):
        while not looked.acquire(timeout=0.05):
            nudge.give()
    over.set()
    while thread.is_alive():
        nudge.give()
        thread.join(timeout=0.05)
