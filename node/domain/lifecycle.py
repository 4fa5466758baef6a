"""THE state tables of series, jobs, deliveries, alerts, gaps, shadow readings. An unlisted pair raises."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from node.domain.errors import IllegalTransition


class SeriesState(StrEnum):
    RECEIVING = "RECEIVING"  # instances are still arriving, or may be
    COMPLETE = "COMPLETE"  # by the evidence of node.domain.completeness; not yet decided on
    ACCEPTED = "ACCEPTED"  # the series of its study that is analysed
    SKIPPED = "SKIPPED"  # not analysed, for a coded reason


class SeriesEvent(StrEnum):
    INSTANCE_ARRIVED = "INSTANCE_ARRIVED"  # also raises the revision when the series was past RECEIVING
    SETTLED = "SETTLED"
    CHOSEN = "CHOSEN"
    REFUSED = "REFUSED"
    RECONSIDERED = "RECONSIDERED"  # the series that was chosen instead could not be analysed


class JobState(StrEnum):
    QUEUED = "QUEUED"  # waits for a worker
    RUNNING = "RUNNING"  # a worker holds the lease
    ANALYSED = "ANALYSED"  # findings and masks are stored; objects are not built yet
    COMPOSED = "COMPOSED"  # objects are stored and their deliveries exist
    FAILED = "FAILED"  # will not be analysed; a "not analysed" report goes out instead
    SUPERSEDED = "SUPERSEDED"  # a newer revision of the series took its place
    CANCELLED = "CANCELLED"  # by an admin


class JobEvent(StrEnum):
    CLAIMED = "CLAIMED"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    FAILED_TRANSIENTLY = "FAILED_TRANSIENTLY"
    GIVEN_BACK = "GIVEN_BACK"  # a worker ends that had not begun with it
    FAILED_FOR_GOOD = "FAILED_FOR_GOOD"
    ANALYSIS_STORED = "ANALYSIS_STORED"
    OBJECTS_STORED = "OBJECTS_STORED"
    NEWER_REVISION = "NEWER_REVISION"
    CANCELLED_BY_ADMIN = "CANCELLED_BY_ADMIN"
    RETRIED_BY_ADMIN = "RETRIED_BY_ADMIN"
    REANALYSED_BY_ADMIN = "REANALYSED_BY_ADMIN"  # the same model makes the same objects


class DeliveryState(StrEnum):
    PENDING = "PENDING"  # due at its next_try_at
    SENT = "SENT"  # the destination answered the C-STORE with Success or Warning
    COMMITTED = "COMMITTED"  # the destination promised to keep it (PS3.4 Annex J)
    FAILED = "FAILED"  # given up; an admin may retry
    SUPERSEDED = "SUPERSEDED"  # a newer result of its series is there for the destination: never sent


class DeliveryEvent(StrEnum):
    ACCEPTED_BY_PEER = "ACCEPTED_BY_PEER"
    ATTEMPT_FAILED = "ATTEMPT_FAILED"
    GIVEN_UP = "GIVEN_UP"
    COMMITMENT_CONFIRMED = "COMMITMENT_CONFIRMED"
    COMMITMENT_REFUSED = "COMMITMENT_REFUSED"
    RETRIED_BY_ADMIN = "RETRIED_BY_ADMIN"
    OVERTAKEN = "OVERTAKEN"  # a newer result of its series was composed for the same destination
    COMPOSED_AGAIN = "COMPOSED_AGAIN"  # it belongs to the latest result again


class AlertState(StrEnum):
    PENDING = "PENDING"  # due at its next_try_at
    SENT = "SENT"  # the channel took it, and tells nothing more or will tell later
    ACKNOWLEDGED = "ACKNOWLEDGED"  # the receiver said that it has it
    FAILED = "FAILED"  # given up; an admin may retry
    SUPERSEDED = "SUPERSEDED"  # something newer was to be told before it went out


class AlertEvent(StrEnum):
    TAKEN = "TAKEN"
    RECEIPT_CAME = "RECEIPT_CAME"
    ATTEMPT_FAILED = "ATTEMPT_FAILED"
    GIVEN_UP = "GIVEN_UP"
    NEWER_WORD = "NEWER_WORD"
    RETRIED_BY_ADMIN = "RETRIED_BY_ADMIN"


class GapState(StrEnum):
    OPEN = "OPEN"  # an archive holds what never came here
    WANTED = "WANTED"  # to be fetched, at its next_try_at
    FETCHED = "FETCHED"  # the archive says that it sent all of it
    CLOSED = "CLOSED"  # it is here, or the archive holds it no longer
    FAILED = "FAILED"  # could not be fetched
    DISMISSED = "DISMISSED"  # an admin does not want it


class GapEvent(StrEnum):
    ASKED_FOR = "ASKED_FOR"  # by an admin or by a rule
    ATTEMPT_FAILED = "ATTEMPT_FAILED"
    GIVEN_UP = "GIVEN_UP"
    RETRIEVED = "RETRIEVED"
    DID_NOT_COME = "DID_NOT_COME"  # although the archive said so
    FILLED = "FILLED"
    SEEN_AGAIN = "SEEN_AGAIN"
    GREW = "GREW"  # more is missing than was dismissed
    DISMISSED_BY_ADMIN = "DISMISSED_BY_ADMIN"


class ShadowState(StrEnum):
    WAITING = "WAITING"  # for the shadow worker, and until no job of the active model waits
    RUNNING = "RUNNING"  # the shadow worker holds the lease
    DONE = "DONE"  # what it read is stored
    FAILED = "FAILED"  # given up; the study knows nothing of it
    SKIPPED = "SKIPPED"  # not read, for a coded reason


class ShadowEvent(StrEnum):
    CLAIMED = "CLAIMED"
    READ = "READ"
    FAILED_TRANSIENTLY = "FAILED_TRANSIENTLY"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    FAILED_FOR_GOOD = "FAILED_FOR_GOOD"
    LEFT_OUT = "LEFT_OUT"  # too late, too many, or its job counts no more


SERIES: dict[tuple[SeriesState, SeriesEvent], SeriesState] = {
    (SeriesState.RECEIVING, SeriesEvent.INSTANCE_ARRIVED): SeriesState.RECEIVING,
    (SeriesState.RECEIVING, SeriesEvent.SETTLED): SeriesState.COMPLETE,
    (SeriesState.COMPLETE, SeriesEvent.INSTANCE_ARRIVED): SeriesState.RECEIVING,
    (SeriesState.COMPLETE, SeriesEvent.CHOSEN): SeriesState.ACCEPTED,
    (SeriesState.COMPLETE, SeriesEvent.REFUSED): SeriesState.SKIPPED,
    (SeriesState.ACCEPTED, SeriesEvent.INSTANCE_ARRIVED): SeriesState.RECEIVING,
    (SeriesState.SKIPPED, SeriesEvent.INSTANCE_ARRIVED): SeriesState.RECEIVING,
    (SeriesState.SKIPPED, SeriesEvent.RECONSIDERED): SeriesState.COMPLETE,
}

JOBS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.CLAIMED): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.NEWER_REVISION): JobState.SUPERSEDED,
    (JobState.QUEUED, JobEvent.CANCELLED_BY_ADMIN): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.ANALYSIS_STORED): JobState.ANALYSED,
    (JobState.RUNNING, JobEvent.LEASE_EXPIRED): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.FAILED_TRANSIENTLY): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.GIVEN_BACK): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.FAILED_FOR_GOOD): JobState.FAILED,
    (JobState.RUNNING, JobEvent.NEWER_REVISION): JobState.SUPERSEDED,
    (JobState.RUNNING, JobEvent.CANCELLED_BY_ADMIN): JobState.CANCELLED,
    (JobState.ANALYSED, JobEvent.OBJECTS_STORED): JobState.COMPOSED,
    (JobState.ANALYSED, JobEvent.FAILED_FOR_GOOD): JobState.FAILED,
    (JobState.ANALYSED, JobEvent.NEWER_REVISION): JobState.SUPERSEDED,
    (JobState.ANALYSED, JobEvent.CANCELLED_BY_ADMIN): JobState.CANCELLED,
    (JobState.COMPOSED, JobEvent.REANALYSED_BY_ADMIN): JobState.QUEUED,
    (JobState.FAILED, JobEvent.RETRIED_BY_ADMIN): JobState.QUEUED,
    (JobState.FAILED, JobEvent.NEWER_REVISION): JobState.SUPERSEDED,
    (JobState.CANCELLED, JobEvent.RETRIED_BY_ADMIN): JobState.QUEUED,
    (JobState.CANCELLED, JobEvent.NEWER_REVISION): JobState.SUPERSEDED,
}

DELIVERIES: dict[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (DeliveryState.PENDING, DeliveryEvent.ACCEPTED_BY_PEER): DeliveryState.SENT,
    (DeliveryState.PENDING, DeliveryEvent.ATTEMPT_FAILED): DeliveryState.PENDING,
    (DeliveryState.PENDING, DeliveryEvent.GIVEN_UP): DeliveryState.FAILED,
    (DeliveryState.SENT, DeliveryEvent.COMMITMENT_CONFIRMED): DeliveryState.COMMITTED,
    (DeliveryState.SENT, DeliveryEvent.COMMITMENT_REFUSED): DeliveryState.PENDING,
    (DeliveryState.PENDING, DeliveryEvent.OVERTAKEN): DeliveryState.SUPERSEDED,
    (DeliveryState.FAILED, DeliveryEvent.OVERTAKEN): DeliveryState.SUPERSEDED,
    (DeliveryState.FAILED, DeliveryEvent.RETRIED_BY_ADMIN): DeliveryState.PENDING,
    (DeliveryState.SUPERSEDED, DeliveryEvent.COMPOSED_AGAIN): DeliveryState.PENDING,
    # it was on its way already when the newer one was composed
    (DeliveryState.SUPERSEDED, DeliveryEvent.ACCEPTED_BY_PEER): DeliveryState.SENT,
}

ALERTS: dict[tuple[AlertState, AlertEvent], AlertState] = {
    (AlertState.PENDING, AlertEvent.TAKEN): AlertState.SENT,
    (AlertState.PENDING, AlertEvent.RECEIPT_CAME): AlertState.ACKNOWLEDGED,
    (AlertState.PENDING, AlertEvent.ATTEMPT_FAILED): AlertState.PENDING,
    (AlertState.PENDING, AlertEvent.GIVEN_UP): AlertState.FAILED,
    (AlertState.PENDING, AlertEvent.NEWER_WORD): AlertState.SUPERSEDED,
    (AlertState.SENT, AlertEvent.RECEIPT_CAME): AlertState.ACKNOWLEDGED,
    (AlertState.FAILED, AlertEvent.NEWER_WORD): AlertState.SUPERSEDED,
    (AlertState.FAILED, AlertEvent.RETRIED_BY_ADMIN): AlertState.PENDING,
    # it was on its way already when the newer word came
    (AlertState.SUPERSEDED, AlertEvent.TAKEN): AlertState.SENT,
    (AlertState.SUPERSEDED, AlertEvent.RECEIPT_CAME): AlertState.ACKNOWLEDGED,
}

GAPS: dict[tuple[GapState, GapEvent], GapState] = {
    (GapState.OPEN, GapEvent.ASKED_FOR): GapState.WANTED,
    (GapState.OPEN, GapEvent.FILLED): GapState.CLOSED,
    (GapState.OPEN, GapEvent.DISMISSED_BY_ADMIN): GapState.DISMISSED,
    (GapState.WANTED, GapEvent.ATTEMPT_FAILED): GapState.WANTED,
    (GapState.WANTED, GapEvent.GIVEN_UP): GapState.FAILED,
    (GapState.WANTED, GapEvent.RETRIEVED): GapState.FETCHED,
    (GapState.WANTED, GapEvent.FILLED): GapState.CLOSED,
    (GapState.WANTED, GapEvent.DISMISSED_BY_ADMIN): GapState.DISMISSED,
    (GapState.FETCHED, GapEvent.FILLED): GapState.CLOSED,
    (GapState.FETCHED, GapEvent.DID_NOT_COME): GapState.FAILED,
    (GapState.FAILED, GapEvent.ASKED_FOR): GapState.WANTED,
    (GapState.FAILED, GapEvent.FILLED): GapState.CLOSED,
    (GapState.FAILED, GapEvent.DISMISSED_BY_ADMIN): GapState.DISMISSED,
    (GapState.DISMISSED, GapEvent.ASKED_FOR): GapState.WANTED,
    (GapState.DISMISSED, GapEvent.FILLED): GapState.CLOSED,
    (GapState.DISMISSED, GapEvent.GREW): GapState.OPEN,
    (GapState.CLOSED, GapEvent.SEEN_AGAIN): GapState.OPEN,
}

SHADOWS: dict[tuple[ShadowState, ShadowEvent], ShadowState] = {
    (ShadowState.WAITING, ShadowEvent.CLAIMED): ShadowState.RUNNING,
    (ShadowState.WAITING, ShadowEvent.LEFT_OUT): ShadowState.SKIPPED,
    (ShadowState.RUNNING, ShadowEvent.READ): ShadowState.DONE,
    (ShadowState.RUNNING, ShadowEvent.FAILED_TRANSIENTLY): ShadowState.WAITING,
    (ShadowState.RUNNING, ShadowEvent.LEASE_EXPIRED): ShadowState.WAITING,
    (ShadowState.RUNNING, ShadowEvent.FAILED_FOR_GOOD): ShadowState.FAILED,
    (ShadowState.RUNNING, ShadowEvent.LEFT_OUT): ShadowState.SKIPPED,
}

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def after(table: dict[tuple[S, E], S], state: S, event: E) -> S:
    """The state that follows. Raises IllegalTransition for a pair the table does not list."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value} is not possible in state {state.value}") from None


def sources(table: dict[tuple[S, E], S], event: E) -> tuple[S, ...]:
    """Every state in which `event` is possible."""
    return tuple(state for (state, listed) in table if listed == event)
