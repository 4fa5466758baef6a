"""The state tables, a test for each (state, event): listed pairs lead where they must, others raise."""

from __future__ import annotations

from enum import StrEnum
from itertools import product

import pytest

from node.domain.errors import IllegalTransition
from node.domain.lifecycle import (
    ALERTS,
    DELIVERIES,
    JOBS,
    SERIES,
    SHADOWS,
    AlertEvent,
    AlertState,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    SeriesEvent,
    SeriesState,
    ShadowEvent,
    ShadowState,
    after,
    sources,
)

# Written out a second time on purpose: DESIGN's "States", event by event.
EXPECTED_SERIES = {
    "RECEIVING": {"INSTANCE_ARRIVED": "RECEIVING", "SETTLED": "COMPLETE"},
    "COMPLETE": {"INSTANCE_ARRIVED": "RECEIVING", "CHOSEN": "ACCEPTED", "REFUSED": "SKIPPED"},
    "ACCEPTED": {"INSTANCE_ARRIVED": "RECEIVING"},
    "SKIPPED": {"INSTANCE_ARRIVED": "RECEIVING", "RECONSIDERED": "COMPLETE"},
}
EXPECTED_JOBS = {
    "QUEUED": {"CLAIMED": "RUNNING", "NEWER_REVISION": "SUPERSEDED", "CANCELLED_BY_ADMIN": "CANCELLED"},
    "RUNNING": {
        "ANALYSIS_STORED": "ANALYSED",
        "LEASE_EXPIRED": "QUEUED",
        "FAILED_TRANSIENTLY": "QUEUED",
        "GIVEN_BACK": "QUEUED",
        "FAILED_FOR_GOOD": "FAILED",
        "NEWER_REVISION": "SUPERSEDED",
        "CANCELLED_BY_ADMIN": "CANCELLED",
    },
    "ANALYSED": {
        "OBJECTS_STORED": "COMPOSED",
        "FAILED_FOR_GOOD": "FAILED",
        "NEWER_REVISION": "SUPERSEDED",
        "CANCELLED_BY_ADMIN": "CANCELLED",
    },
    "COMPOSED": {"REANALYSED_BY_ADMIN": "QUEUED"},
    "FAILED": {"RETRIED_BY_ADMIN": "QUEUED", "NEWER_REVISION": "SUPERSEDED"},
    "SUPERSEDED": {},
    "CANCELLED": {"RETRIED_BY_ADMIN": "QUEUED", "NEWER_REVISION": "SUPERSEDED"},
}
EXPECTED_DELIVERIES = {
    "PENDING": {
        "ACCEPTED_BY_PEER": "SENT",
        "ATTEMPT_FAILED": "PENDING",
        "GIVEN_UP": "FAILED",
        "OVERTAKEN": "SUPERSEDED",
    },
    "SENT": {"COMMITMENT_CONFIRMED": "COMMITTED", "COMMITMENT_REFUSED": "PENDING"},
    "COMMITTED": {},
    "FAILED": {"RETRIED_BY_ADMIN": "PENDING", "OVERTAKEN": "SUPERSEDED"},
    "SUPERSEDED": {"ACCEPTED_BY_PEER": "SENT", "COMPOSED_AGAIN": "PENDING"},
}
EXPECTED_ALERTS = {
    "PENDING": {
        "TAKEN": "SENT",
        "RECEIPT_CAME": "ACKNOWLEDGED",
        "ATTEMPT_FAILED": "PENDING",
        "GIVEN_UP": "FAILED",
        "NEWER_WORD": "SUPERSEDED",
    },
    "SENT": {"RECEIPT_CAME": "ACKNOWLEDGED"},
    "ACKNOWLEDGED": {},
    "FAILED": {"NEWER_WORD": "SUPERSEDED", "RETRIED_BY_ADMIN": "PENDING"},
    "SUPERSEDED": {"TAKEN": "SENT", "RECEIPT_CAME": "ACKNOWLEDGED"},
}
EXPECTED_SHADOWS = {
    "WAITING": {"CLAIMED": "RUNNING", "LEFT_OUT": "SKIPPED"},
    "RUNNING": {
        "READ": "DONE",
        "FAILED_TRANSIENTLY": "WAITING",
        "LEASE_EXPIRED": "WAITING",
        "FAILED_FOR_GOOD": "FAILED",
        "LEFT_OUT": "SKIPPED",
    },
    "DONE": {},
    "FAILED": {},
    "SKIPPED": {},
}
Table = dict[tuple[StrEnum, StrEnum], StrEnum]
CASES = [
    pytest.param(table, state, event, expected[state.value].get(event.value), id=f"{name}-{state}-{event}")
    for name, table, expected, states, events in (
        ("series", SERIES, EXPECTED_SERIES, SeriesState, SeriesEvent),
        ("job", JOBS, EXPECTED_JOBS, JobState, JobEvent),
        ("delivery", DELIVERIES, EXPECTED_DELIVERIES, DeliveryState, DeliveryEvent),
        ("alert", ALERTS, EXPECTED_ALERTS, AlertState, AlertEvent),
        ("shadow", SHADOWS, EXPECTED_SHADOWS, ShadowState, ShadowEvent),
    )
    for state, event in product(states, events)
]


@pytest.mark.parametrize(("table", "state", "event", "to"), CASES)
def test_pair(table: Table, state: StrEnum, event: StrEnum, to: str | None) -> None:
    if to is not None:
        assert after(table, state, event).value == to
        return
    with pytest.raises(IllegalTransition) as caught:
        after(table, state, event)
    assert state.value in str(caught.value) and event.value in str(caught.value)


@pytest.mark.parametrize(
    ("table", "event"),
    [(JOBS, e) for e in JobEvent]
    + [(DELIVERIES, e) for e in DeliveryEvent]
    + [(ALERTS, e) for e in AlertEvent]
    + [(SHADOWS, e) for e in ShadowEvent],
    ids=lambda value: getattr(value, "value", ""),
)
def test_an_event_of_all_but_series_leads_to_one_state_alone(table: Table, event: StrEnum) -> None:
    """`_move` of the store writes the target of the event's first source for every source."""
    assert len({table[state, event] for state in sources(table, event)}) == 1


def test_every_event_of_a_series_but_an_arrival_leads_on_from_complete_or_receiving() -> None:
    assert sources(SERIES, SeriesEvent.INSTANCE_ARRIVED) == tuple(SeriesState)
    assert (
        sources(SERIES, SeriesEvent.CHOSEN) == sources(SERIES, SeriesEvent.REFUSED) == (SeriesState.COMPLETE,)
    )


@pytest.mark.parametrize(
    ("table", "states", "ends"),
    [
        (SERIES, SeriesState, set()),
        (JOBS, JobState, {JobState.SUPERSEDED}),
        (DELIVERIES, DeliveryState, {DeliveryState.COMMITTED}),
        (ALERTS, AlertState, {AlertState.ACKNOWLEDGED}),
        (SHADOWS, ShadowState, {ShadowState.DONE, ShadowState.FAILED, ShadowState.SKIPPED}),
    ],
    ids=["series", "job", "delivery", "alert", "shadow"],
)
def test_only_what_is_over_is_a_dead_end(table: Table, states: type[StrEnum], ends: set[StrEnum]) -> None:
    assert {state for state in states if not any(source == state for source, _ in table)} == ends


@pytest.mark.parametrize(
    ("table", "states", "start"),
    [
        (SERIES, SeriesState, SeriesState.RECEIVING),
        (JOBS, JobState, JobState.QUEUED),
        (DELIVERIES, DeliveryState, DeliveryState.PENDING),
        (ALERTS, AlertState, AlertState.PENDING),
        (SHADOWS, ShadowState, ShadowState.WAITING),
    ],
    ids=["series", "job", "delivery", "alert", "shadow"],
)
def test_every_state_can_be_reached(table: Table, states: type[StrEnum], start: StrEnum) -> None:
    reached, before = {start}, set[StrEnum]()
    while reached != before:
        before = set(reached)
        reached |= {to for (state, _), to in table.items() if state in before}
    assert reached == set(states)


def test_every_unfinished_state_can_reach_the_end() -> None:
    """Nothing waits for ever: a job can always end composed, a delivery always be sent."""
    for table, ends in (
        (JOBS, {JobState.COMPOSED, JobState.SUPERSEDED}),
        (DELIVERIES, {DeliveryState.SENT}),
        (ALERTS, {AlertState.SENT, AlertState.ACKNOWLEDGED}),
    ):
        can, before = set[StrEnum](ends), set[StrEnum]()
        while can != before:
            before = set(can)
            can |= {state for (state, _), to in table.items() if to in before}
        assert {state for state, _ in table} <= can


def test_sources_of_an_event() -> None:
    assert set(sources(JOBS, JobEvent.CANCELLED_BY_ADMIN)) == {
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.ANALYSED,
    }
