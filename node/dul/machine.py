"""The upper layer's state machine (PS3.8 Table 9-10) for an acceptor that never asks for a release itself.

A table and one look-up; it acts on nothing. Left out are the states of a requestor (Sta4, Sta5) and of one
who asked for a release (Sta7, Sta9 to Sta12), which such an acceptor never enters.
"""

from __future__ import annotations

from enum import Enum


class _Constant(Enum):
    """Looked up for every PDU: hashed by identity, not by the text of its name."""

    __hash__ = object.__hash__


class State(_Constant):
    """PS3.8 9.2.2."""

    IDLE = "Sta1"
    AWAITING_REQUEST = "Sta2"  # transport is open, no A-ASSOCIATE-RQ yet
    AWAITING_ANSWER = "Sta3"  # whether to accept is ours to say
    ESTABLISHED = "Sta6"
    AWAITING_RELEASE = "Sta8"  # the peer wants to release; the response is ours to give
    AWAITING_CLOSE = "Sta13"


class Event(_Constant):
    """PS3.8 9.2.3."""

    ASSOCIATE_AC = "Evt3"
    ASSOCIATE_RJ = "Evt4"
    CONNECTED = "Evt5"
    ASSOCIATE_RQ = "Evt6"
    ACCEPT = "Evt7"
    REJECT = "Evt8"
    SEND_DATA = "Evt9"
    DATA = "Evt10"
    RELEASE_RQ = "Evt12"
    RELEASE_RP = "Evt13"
    RELEASE = "Evt14"
    ABORT = "Evt15"  # we wish to
    ABORTED = "Evt16"  # the peer did
    CLOSED = "Evt17"
    ARTIM_EXPIRED = "Evt18"
    INVALID = "Evt19"  # a PDU that is unknown or cannot be read


class Action(_Constant):
    """PS3.8 9.2.1."""

    START_ARTIM = "AE-5"
    DECIDE = "AE-6"
    SEND_AC = "AE-7"
    SEND_RJ = "AE-8"
    SEND_DATA = "DT-1"
    TAKE_DATA = "DT-2"
    INDICATE_RELEASE = "AR-2"
    SEND_RELEASE_RP = "AR-4"
    CLOSED_AT_LAST = "AR-5"
    SEND_DATA_LATE = "AR-7"
    SEND_ABORT_AS_USER = "AA-1"
    CLOSE = "AA-2"
    ABORTED = "AA-3"
    BROKEN_OFF = "AA-4"
    CLOSED_EARLY = "AA-5"
    IGNORE = "AA-6"
    ABORT_AGAIN = "AA-7"
    SEND_ABORT_AS_PROVIDER = "AA-8"


_IDLE, _REQUEST, _ANSWER, _UP, _RELEASE, _CLOSE = State
_A, _E = Action, Event

TABLE: dict[tuple[Event, State], tuple[Action, State]] = {
    (_E.ASSOCIATE_AC, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.ASSOCIATE_AC, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_AC, _UP): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_AC, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_AC, _CLOSE): (_A.IGNORE, _CLOSE),
    (_E.ASSOCIATE_RJ, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.ASSOCIATE_RJ, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RJ, _UP): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RJ, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RJ, _CLOSE): (_A.IGNORE, _CLOSE),
    (_E.CONNECTED, _IDLE): (_A.START_ARTIM, _REQUEST),
    (_E.ASSOCIATE_RQ, _REQUEST): (_A.DECIDE, _ANSWER),
    (_E.ASSOCIATE_RQ, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RQ, _UP): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RQ, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.ASSOCIATE_RQ, _CLOSE): (_A.ABORT_AGAIN, _CLOSE),
    (_E.ACCEPT, _ANSWER): (_A.SEND_AC, _UP),
    (_E.REJECT, _ANSWER): (_A.SEND_RJ, _CLOSE),
    (_E.SEND_DATA, _UP): (_A.SEND_DATA, _UP),
    (_E.SEND_DATA, _RELEASE): (_A.SEND_DATA_LATE, _RELEASE),
    (_E.DATA, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.DATA, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.DATA, _UP): (_A.TAKE_DATA, _UP),
    (_E.DATA, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.DATA, _CLOSE): (_A.IGNORE, _CLOSE),
    (_E.RELEASE_RQ, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.RELEASE_RQ, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.RELEASE_RQ, _UP): (_A.INDICATE_RELEASE, _RELEASE),
    (_E.RELEASE_RQ, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.RELEASE_RQ, _CLOSE): (_A.IGNORE, _CLOSE),
    (_E.RELEASE_RP, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.RELEASE_RP, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.RELEASE_RP, _UP): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.RELEASE_RP, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.RELEASE_RP, _CLOSE): (_A.IGNORE, _CLOSE),
    (_E.RELEASE, _RELEASE): (_A.SEND_RELEASE_RP, _CLOSE),
    (_E.ABORT, _ANSWER): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.ABORT, _UP): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.ABORT, _RELEASE): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.ABORTED, _REQUEST): (_A.CLOSE, _IDLE),
    (_E.ABORTED, _ANSWER): (_A.ABORTED, _IDLE),
    (_E.ABORTED, _UP): (_A.ABORTED, _IDLE),
    (_E.ABORTED, _RELEASE): (_A.ABORTED, _IDLE),
    (_E.ABORTED, _CLOSE): (_A.CLOSE, _IDLE),
    (_E.CLOSED, _REQUEST): (_A.CLOSED_EARLY, _IDLE),
    (_E.CLOSED, _ANSWER): (_A.BROKEN_OFF, _IDLE),
    (_E.CLOSED, _UP): (_A.BROKEN_OFF, _IDLE),
    (_E.CLOSED, _RELEASE): (_A.BROKEN_OFF, _IDLE),
    (_E.CLOSED, _CLOSE): (_A.CLOSED_AT_LAST, _IDLE),
    (_E.ARTIM_EXPIRED, _REQUEST): (_A.CLOSE, _IDLE),
    (_E.ARTIM_EXPIRED, _CLOSE): (_A.CLOSE, _IDLE),
    (_E.INVALID, _REQUEST): (_A.SEND_ABORT_AS_USER, _CLOSE),
    (_E.INVALID, _ANSWER): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.INVALID, _UP): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.INVALID, _RELEASE): (_A.SEND_ABORT_AS_PROVIDER, _CLOSE),
    (_E.INVALID, _CLOSE): (_A.ABORT_AGAIN, _CLOSE),
}
"""What to do, and where that leads; Table 9-10, read down its columns."""


def step(event: Event, state: State) -> tuple[Action, State]:
    """Raises KeyError for what cannot happen: an empty field of the table is a fault of our own."""
    return TABLE[event, state]
