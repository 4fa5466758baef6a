"""Storage Commitment SCU (PS3.4 Annex J): asks for the promise, and takes the answer in. Sends no object.

The answer, an N-EVENT-REPORT, comes over the association of the question or over one that the destination
opens to the listener, at any time and in any process; so everything about it stands in the database.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from node import transcode
from node.domain.errors import TransientError
from node.frames import UNREADABLE
from node.retry import back_off_s, is_hopeless
from node.scu import Peer, let_go, words
from node.settings import Destination
from node.store.deliveries import Due
from node.store.records import Records

log = logging.getLogger(__name__)

REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 J.3.2.1
LINGER_S = 2.0
"""How long the association of the question stays open for an answer; later ones come to the listener."""
TAKEN_IN_S = 30.0
"""…and how long one that came may take to be written down."""
SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.11
INVALID_ARGUMENT = 0x0115  # PS3.7 C.5.10
DUPLICATE_TRANSACTION = 0x0131
FAILURE_REASONS = {  # PS3.3 C.14.1.1
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class / instance conflict",
    0x0122: "referenced SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
Answer = Callable[[Dataset], int]


@dataclass(frozen=True)
class Report:
    """What a destination says of a request; `failed` gives the Failure Reason by SOP Instance UID."""

    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, int]


def read_report(ds: Dataset) -> Report | None:
    """The Event Information of an N-EVENT-REPORT (PS3.4 J.3.3.1); None where it cannot be read, or names no
    transaction."""
    try:
        uid = str(ds.get("TransactionUID") or "")
        committed = [str(i.ReferencedSOPInstanceUID) for i in ds.get("ReferencedSOPSequence") or []]
        failed = {
            str(i.ReferencedSOPInstanceUID): int(i.get("FailureReason") or PROCESSING_FAILURE)
            for i in ds.get("FailedSOPSequence") or []
        }
    except (AttributeError, OSError, TypeError, *UNREADABLE):
        return None
    return Report(uid, tuple(committed), failed) if uid else None


def ask(peer: Peer, transaction_uid: str, objects: Sequence[Due], answer: Answer) -> None:
    """Ask once; `answer` gets what comes back over the same association, if anything does.

    Raises TransientError when the request was not taken.
    """
    came, answered = threading.Event(), threading.Event()

    def on_report(event: evt.Event) -> tuple[int, None]:
        came.set()
        return answer(event.event_information), None

    def on_sent(event: evt.Event) -> None:
        if came.is_set():
            answered.set()  # its response is out: a release in front of that would leave it without one

    contexts = [build_context(StorageCommitmentPushModel, [syntax]) for syntax in transcode.FALL_BACK]
    handlers = [(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_PDU_SENT, on_sent)]
    assoc = peer.associate(contexts, evt_handlers=handlers)
    try:
        try:
            status, _ = assoc.send_n_action(
                _request(transaction_uid, objects),
                REQUEST_COMMITMENT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (ValueError, RuntimeError) as error:
            text = f"{peer.name}: storage commitment cannot be asked for: {error}"
            raise TransientError(f"{text}; set commitment = false where it has none") from error
        if "Status" not in status or status.Status != SUCCESS:
            text = f"{peer.name}: storage commitment was answered with {words(status)}"
            raise TransientError(f"{text}; its log says why")
        if not answered.wait(LINGER_S) and came.is_set():
            answered.wait(TAKEN_IN_S)
    finally:
        let_go(assoc)


def take_in(ds: Dataset, records: Records, destinations: Iterable[Destination], now: float) -> int:
    """Write an answer down; the status of the N-EVENT-REPORT (PS3.7 10.3.1)."""
    report = read_report(ds)
    try:
        request = records.commitments.find(report.transaction_uid) if report else None
        if report is None or request is None:
            log.warning("storage commitment of an unknown transaction %s", report and report.transaction_uid)
            return INVALID_ARGUMENT
        count = records.commitments.committed(request, report.committed, now)
        by_name = {destination.name: destination for destination in destinations}
        for due in records.commitments.concerned(request, report.failed):
            reason = report.failed[due.sop_instance_uid]
            _refuse(records, due, reason, by_name.get(request.destination), now)
        records.commitments.answered(request.transaction_uid, now)
    except TransientError as error:
        log.error("a storage commitment cannot be recorded: %s", error)
        return PROCESSING_FAILURE
    log.info("%s committed to %d objects, not to %d", request.destination, count, len(report.failed))
    return SUCCESS


def _refuse(records: Records, due: Due, reason: int, destination: Destination | None, now: float) -> None:
    if reason == DUPLICATE_TRANSACTION:  # it says nothing about the object: ask under another name
        records.commitments.wait([due.id], now)
        return
    text = f"no storage commitment: {FAILURE_REASONS.get(reason, 'unknown reason')} (0x{reason:04X})"
    log.warning("%s is sent again to %s: %s", due.sop_instance_uid, destination and destination.name, text)
    delay = back_off_s(due.attempts, destination, random.random()) if destination else 0
    records.commitments.refused(due.id, text, f"0x{reason:04X}", now + delay)
    if destination and is_hopeless(due, destination, now):
        records.deliveries.give_up(due.id, text, f"0x{reason:04X}")


def _request(transaction_uid: str, objects: Sequence[Due]) -> Dataset:
    """The Action Information of the N-ACTION (PS3.4 J.3.2.1.1)."""
    ds = Dataset()
    ds.TransactionUID = UID(transaction_uid)
    items = []
    for due in objects:
        item = Dataset()
        item.ReferencedSOPClassUID = UID(due.sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(due.sop_instance_uid)
        items.append(item)
    ds.ReferencedSOPSequence = items
    return ds
