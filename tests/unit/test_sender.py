"""When a sender is taken to have done its work, and when a series is complete by that."""

from __future__ import annotations

import pytest

from node.domain.completeness import Complete, Evidence, Wait, completeness
from node.domain.sender import KNOWN_AFTER, Carriage, Habit, Peer, is_done
from tests.unit.test_completeness import slices, stepped

CT1, CT2 = Peer("CT1", "10.0.0.1"), Peer("CT2", "10.0.0.2")
WHOLE = Habit((1,) * KNOWN_AFTER)
QUIET_S, MAX_WAIT_S, SURE_S = 10.0, 120.0, 2.0


@pytest.mark.parametrize(
    ("counts", "whole"),
    [((), False), ((1, 1), False), ((1, 1, 1), True), ((1, 1, 1, 2), False), ((30, 1, 1, 1, 1), False)],
)
def test_a_habit_is_known_after_a_few_studies_and_lost_by_a_single_one(
    counts: tuple[int, ...], whole: bool
) -> None:
    assert Habit(counts).is_whole is whole


@pytest.mark.parametrize(
    ("carriage", "done"),
    [
        (Carriage(frozenset({CT1}), 1, 1), True),
        (Carriage(frozenset({CT1}), 1, 0), False),  # open, or aborted
        (Carriage(frozenset({CT1}), 2, 2), False),
        (Carriage(frozenset({CT1, CT2}), 2, 2), False),
        (Carriage(frozenset(), 0, 0), False),
    ],
)
def test_done_is_who_released_the_only_association_of_the_study(carriage: Carriage, done: bool) -> None:
    assert is_done(carriage, WHOLE) is done
    assert not is_done(carriage, Habit((1, 1, 1, 3)))


def evidence(gaps: bool = False, **more: object) -> Evidence:
    positions = stepped(5, 5, 5, 10, 5, 5) if gaps else stepped(*[5.0] * 20)
    return Evidence(1000.0, instances=slices(positions), **{"associations_open": 0, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "waits_s"),
    [
        (evidence(sender_is_done=True), SURE_S),
        (evidence(expected_instances=21), SURE_S),
        (evidence(), QUIET_S),
        (evidence(gaps=True, sender_is_done=True), MAX_WAIT_S),
        (evidence(aborted=True, sender_is_done=True), MAX_WAIT_S),
        (evidence(associations_open=1, sender_is_done=True), MAX_WAIT_S),
        (evidence(expected_instances=22, sender_is_done=True), MAX_WAIT_S),
    ],
)
def test_the_short_wait_is_for_what_nothing_speaks_against(found: Evidence, waits_s: float) -> None:
    def at(seconds: float) -> object:
        return completeness(found, 1000.0 + seconds, QUIET_S, MAX_WAIT_S, SURE_S)

    assert isinstance(at(waits_s - 0.1), Wait)
    assert isinstance(at(waits_s), Complete)


def test_it_never_makes_a_wait_longer() -> None:
    assert completeness(evidence(sender_is_done=True), 1010.0, QUIET_S, MAX_WAIT_S, 60.0) == Complete()
