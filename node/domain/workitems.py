"""Unified Procedure Steps that readers may take: their states and what may be done in each (PS3.4 Annex CC).

One workitem stands for reading one revision of one analysed study. Decides; holds no dataset and no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from node.domain.findings import Priority


class StepState(StrEnum):
    """Procedure Step State (0074,1000), PS3.4 CC.1.1."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


class Event(IntEnum):
    """Event Type ID (PS3.4 Table CC.2.4-1); 4 and 5, of the SCP and of who is assigned, are not sent."""

    STATE = 1
    CANCEL_REQUESTED = 2
    PROGRESS = 3


class Ended(StrEnum):
    """Why the node itself ended a workitem: its job may be offered again where that holds no more."""

    NEWER = "NEWER"  # a newer revision has one, or an admin cancelled the job
    READ = "READ"  # its study was acknowledged in the console
    TAKEN_BACK = "TAKEN_BACK"  # from who took it: by an admin, or since nothing was heard for long


GLOBAL = "1.2.840.10008.5.1.4.34.5"
"""The well-known instance that stands for all workitems, those to come included (PS3.4 CC.2.3.2)."""
FILTERED = "1.2.840.10008.5.1.4.34.5.1"
"""…and for those of them that match the keys of the request (PS3.4 CC.2.3.3)."""
FINAL = (StepState.COMPLETED, StepState.CANCELED)
STEP_PRIORITY = {Priority.STAT: "HIGH", Priority.HIGH: "MEDIUM", Priority.ROUTINE: "LOW"}
"""Scheduled Procedure Step Priority (0074,1200) knows these three; HIGH stands for STAT (PS3.3 C.30)."""

# Statuses of PS3.4 Tables CC.2.1-2, CC.2.2-2, CC.2.3-3, CC.2.6-1 and CC.2.7-2
SUCCESS = 0x0000
ALREADY_CANCELED = 0xB304
ALREADY_COMPLETED = 0xB306
MAY_NOT_BE_UPDATED = 0xC300
WRONG_TRANSACTION = 0xC301
ALREADY_IN_PROGRESS = 0xC302
ONLY_BY_N_CREATE = 0xC303
FINAL_STATE_UNMET = 0xC304
NO_SUCH_UPS = 0xC307
UNKNOWN_RECEIVER = 0xC308
NOT_IN_PROGRESS = 0xC310
IS_COMPLETED = 0xC311
NOBODY_HEARS = 0xC312
MEANINGS = {
    SUCCESS: "Success",
    ALREADY_CANCELED: "The UPS is already in the requested state of CANCELED",
    ALREADY_COMPLETED: "The UPS is already in the requested state of COMPLETED",
    MAY_NOT_BE_UPDATED: "The UPS may no longer be updated",
    WRONG_TRANSACTION: "The correct Transaction UID was not provided",
    ALREADY_IN_PROGRESS: "The UPS is already IN PROGRESS",
    ONLY_BY_N_CREATE: "The UPS may only become SCHEDULED via N-CREATE",
    FINAL_STATE_UNMET: "The UPS has not met final state requirements for the requested state change",
    NO_SUCH_UPS: "Specified SOP Instance UID does not exist or is not a UPS managed by this SCP",
    UNKNOWN_RECEIVER: "Receiving AE-TITLE is unknown to this SCP",
    NOT_IN_PROGRESS: "The UPS is not yet in the IN PROGRESS state",
    IS_COMPLETED: "The UPS is already COMPLETED",
    NOBODY_HEARS: "The performer cannot be contacted",
}


@dataclass(frozen=True)
class Standing:
    """A workitem as it stands; `transaction_uid` is known to its performer alone."""

    state: StepState
    transaction_uid: str = ""
    complete: bool = False
    """What COMPLETED requires was set by N-SET (PS3.4 CC.2.5.1.1)."""


def change_state(now: Standing, wanted: str, transaction_uid: str) -> int:
    """The status of an N-ACTION Change UPS State: PS3.4 Table CC.1.1-2, row by row."""
    if wanted == StepState.SCHEDULED:
        return ONLY_BY_N_CREATE
    if not transaction_uid or (now.transaction_uid and transaction_uid != now.transaction_uid):
        return WRONG_TRANSACTION
    table = {
        (StepState.SCHEDULED, StepState.IN_PROGRESS): SUCCESS,
        (StepState.IN_PROGRESS, StepState.IN_PROGRESS): ALREADY_IN_PROGRESS,
        (StepState.COMPLETED, StepState.IN_PROGRESS): MAY_NOT_BE_UPDATED,
        (StepState.CANCELED, StepState.IN_PROGRESS): MAY_NOT_BE_UPDATED,
        (StepState.SCHEDULED, StepState.COMPLETED): NOT_IN_PROGRESS,
        (StepState.IN_PROGRESS, StepState.COMPLETED): SUCCESS if now.complete else FINAL_STATE_UNMET,
        (StepState.COMPLETED, StepState.COMPLETED): ALREADY_COMPLETED,
        (StepState.CANCELED, StepState.COMPLETED): MAY_NOT_BE_UPDATED,
        (StepState.SCHEDULED, StepState.CANCELED): NOT_IN_PROGRESS,
        (StepState.IN_PROGRESS, StepState.CANCELED): SUCCESS,
        (StepState.COMPLETED, StepState.CANCELED): MAY_NOT_BE_UPDATED,
        (StepState.CANCELED, StepState.CANCELED): ALREADY_CANCELED,
    }
    return table[now.state, StepState(wanted)]


def request_cancel(state: StepState) -> int:
    """The status of an N-ACTION Request UPS Cancel (PS3.4 Table CC.2.2-2), as far as the state decides it."""
    over = {StepState.COMPLETED: IS_COMPLETED, StepState.CANCELED: ALREADY_CANCELED}
    return over.get(state, SUCCESS)


def set_attributes(now: Standing, transaction_uid: str) -> int:
    """The status of an N-SET, by the same table: only the performer, and only while it is in progress."""
    if now.state in FINAL:
        return MAY_NOT_BE_UPDATED
    if now.state is StepState.SCHEDULED:
        return NOT_IN_PROGRESS
    return SUCCESS if transaction_uid and transaction_uid == now.transaction_uid else WRONG_TRANSACTION


@dataclass(frozen=True)
class Work:
    """What a workitem says. Times in seconds since the epoch; texts as the source's header says them."""

    uid: str
    study_instance_uid: str
    priority: Priority
    label: str
    comment: str
    scheduled_at: float
    patient_name: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_birth_date: str = ""
    accession_number: str = ""
    state: StepState = StepState.SCHEDULED
    changed_at: float | None = None
    replaces: str = ""
    """The workitem that this one takes the place of."""
    inputs: tuple[Input, ...] = ()


@dataclass(frozen=True)
class Input:
    """A series to look at, with the (SOP Class UID, SOP Instance UID) of its objects."""

    series_instance_uid: str
    objects: tuple[tuple[str, str], ...]
