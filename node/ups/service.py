"""What is answered to readers who ask for workitems, take them and finish them. Knows no association.

A claim is shown on the worklist; a workitem that is COMPLETED acknowledges the word of its study. Neither
changes what was found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag

from node.contained import Setbacks
from node.domain.errors import TransientError
from node.domain.findings import Findings, Priority
from node.domain.workitems import (
    FILTERED,
    NO_SUCH_UPS,
    SUCCESS,
    UNKNOWN_RECEIVER,
    Input,
    StepState,
    Work,
)
from node.frames import UNREADABLE
from node.outputs import wording
from node.outputs.uids import derived
from node.outputs.workitem import date_time, served
from node.settings import Settings
from node.store.audit import Actor
from node.store.incidents import Code, Incident
from node.store.records import Records
from node.store.steps import Item, Values
from node.store.subscriptions import ALL, Matching
from node.store.workitems import Broken, Terms
from node.ups.matching import answer, matches

log = logging.getLogger(__name__)

PENDING = 0xFF00
SOME_NOT_SUPPORTED = 0x0001  # PS3.4 Tables CC.2.6-1 and CC.2.7-2
INVALID_ARGUMENT = 0x0115  # PS3.7 C.5.10
NO_SUCH_ACTION = 0x0123  # PS3.7 C.5
RESOURCE_LIMITATION = 0x0213
# Action Type IDs, PS3.4 CC.2.1 to CC.2.3
CHANGE_STATE, REQUEST_CANCEL, SUBSCRIBE, UNSUBSCRIBE, SUSPEND = 1, 2, 3, 4, 5
CANCEL_REASONS = (
    "ReasonForCancellation",
    "ProcedureStepDiscontinuationReasonCodeSequence",
    "ContactURI",
    "ContactDisplayName",
)
"""What a request to cancel may bring along (PS3.4 Table CC.2.2-1)."""
PROGRESS = "ProcedureStepProgressInformationSequence"
PERFORMED = "UnifiedProcedureStepPerformedProcedureSequence"
SETTABLE = (PROGRESS, PERFORMED)
SERVED_FOR_S = 30 * 24 * 3600.0
MADE_FOR_S = 24 * 3600.0
"""A study analysed longer ago gets no workitem: a service just turned on begins with today's."""
MAKE_EVERY_S = 1.0
LONGEST_PERFORMED = 256 * 1024
LONGEST_KEYS = 16 * 1024
NOT_MATCHED = ("ReceivingAE", "DeletionLock", "SpecificCharacterSet")
"""What comes along with the keys of a filtered subscription (PS3.4 Table CC.2.3-1)."""
RESULT_FOLLOWS = "The result of the AI analysis follows"
NOT_ANALYSED_YET = "First word of the classifier; the analysis goes on."


class Service:
    """The workitems of one node."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self._ups = settings.ups
        self._records = records
        named = next((d.ae_title for d in settings.destination if d.ae_title), "")
        self._retrieve_ae = settings.ups.retrieve_ae_title or named
        self._zone = ZoneInfo(settings.web.time_zone) if settings.web.time_zone else None
        self._watchers = frozenset(watcher.ae_title for watcher in settings.ups.watcher)
        self._setbacks = Setbacks(time.monotonic)
        self._told: set[str] = set()
        """Of what cannot be read: the log says it once."""

    def make(self, now: float) -> int:
        """Workitems for what was found since; what is outdated is CANCELED. Returns how many are new.

        One that breaks holds up no other; it is tried again, ever more seldom, and an incident names it.
        """
        made = self._records.workitems.make(
            Terms(
                self._ups.priorities,
                now - MADE_FOR_S,
                workitem_uid,
                self._wants,
                self._ups.claim_h * 3600,
                self._setbacks.is_due,
            ),
            now,
        )
        for broken in made.broken:
            self._broke(broken, now)
        if made.new:
            log.info("%d workitems for readers", made.new)
        return made.new

    def _broke(self, broken: Broken, now: float) -> None:
        """The log has the traceback once."""
        if self._setbacks.broke(broken.name) > 1:
            return
        why = f"{type(broken.error).__name__}: {broken.error}"
        text = (
            f"{broken.name} can be neither offered to readers nor taken back ({why}); report it with the log"
        )
        log.error("%s", text, exc_info=broken.error)
        study = broken.study_instance_uid
        incident = Incident(Code.WORKITEM_STUCK, study, broken.name, "", "", text)
        self._records.incidents.note(incident, now)

    def _wants(self, item: Item, ae: str, keys: Values) -> bool:
        """Whether a workitem matches what a subscriber asked for; where that cannot be read, it does."""
        try:
            return self._holds(Dataset.from_json(keys), item)
        except (AttributeError, TypeError, *UNREADABLE) as error:
            self._say_once(
                f"the keys of subscriber {ae} cannot be read ({error}); it is told of everything "
                "until it subscribes again"
            )
            return True

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.error("%s", text)

    def make_forever(self, stopping: Callable[[float], bool]) -> None:
        """So that a workitem is there, and dated, when its result is, and not when somebody asks."""
        while not stopping(MAKE_EVERY_S):
            try:
                self.make(time.time())
            except TransientError as error:
                log.error("workitems wait: %s", error)
            except Exception:
                log.exception("making workitems broke; it goes on")

    def find(self, identifier: Dataset) -> Iterator[tuple[int, Dataset]]:
        """The workitems that match, the most urgent first (C-FIND, PS3.4 CC.2.8)."""
        now = time.time()
        self.make(now)
        wants_inputs = "InputInformationSequence" in identifier
        asked = str(identifier.get("ProcedureStepState") or "").strip()
        state = StepState(asked) if asked in tuple(StepState) else None  # what is done outnumbers the rest
        for item in self._records.workitems.listed(now - SERVED_FOR_S, state):
            candidate = self._dataset(item, wants_inputs)
            if matches(identifier, candidate, self._zone):
                yield PENDING, answer(identifier, candidate)

    def get(self, uid: str, tags: Sequence[BaseTag]) -> tuple[int, Dataset | None]:
        """The attributes asked for, or all (N-GET, PS3.4 CC.2.7). The Transaction UID is never told."""
        item = self._records.workitems.get(uid)
        if item is None:
            return NO_SUCH_UPS, None
        whole = self._dataset(item, True)
        if not tags:
            return SUCCESS, whole
        found = Dataset()
        for tag in tags:
            if tag in whole:
                found[tag] = whole[tag]
        found.SpecificCharacterSet = whole.SpecificCharacterSet
        missing = any(tag not in whole for tag in tags)
        return SOME_NOT_SUPPORTED if missing else SUCCESS, found

    def set(self, uid: str, given: Dataset) -> tuple[int, Dataset | None]:
        """What its performer says of it (N-SET, PS3.4 CC.2.6): progress, and what was done."""
        news = Dataset()
        for keyword in SETTABLE:
            if keyword in given:
                news[keyword] = given[keyword]
        as_json = news.to_json_dict()
        if len(repr(as_json)) > LONGEST_PERFORMED:
            return RESOURCE_LIMITATION, None

        def merged(before: dict[str, Any]) -> dict[str, Any]:
            return {**before, **as_json}

        transaction_uid = str(given.get("TransactionUID") or "")
        status = self._records.workitems.set(uid, transaction_uid, merged, time.time())
        if status is None:
            return NO_SUCH_UPS, None
        known = {*SETTABLE, "TransactionUID", "SpecificCharacterSet"}
        beyond = any(element.keyword not in known for element in given)
        return (SOME_NOT_SUPPORTED if status == SUCCESS and beyond else status), None

    def act(self, uid: str, action: int, given: Dataset, reader: Actor) -> int:
        """N-ACTION: take, finish or give up a workitem; have it cancelled; hear of it (PS3.4 CC.2.1 to 3)."""
        if action == REQUEST_CANCEL:
            return self._request_cancel(uid, given, reader)
        if action in (SUBSCRIBE, UNSUBSCRIBE, SUSPEND):
            return self._subscribe(uid, action, given, reader)
        return self._change(uid, given, reader) if action == CHANGE_STATE else NO_SUCH_ACTION

    def _change(self, uid: str, given: Dataset, reader: Actor) -> int:
        wanted = str(given.get("ProcedureStepState") or "")
        if wanted not in tuple(StepState):
            return INVALID_ARGUMENT
        transaction_uid = str(given.get("TransactionUID") or "")
        status = self._records.workitems.change(uid, StepState(wanted), transaction_uid, reader, time.time())
        if status is None:
            return NO_SUCH_UPS
        log.info("workitem %s: %s by %s: 0x%04X", uid, wanted, reader.name, status)
        return status

    def _request_cancel(self, uid: str, given: Dataset, watcher: Actor) -> int:
        now = time.time()
        why = Dataset()
        why.RequestingAE = watcher.name
        why.update({element.tag: element for element in given if element.keyword in CANCEL_REASONS})
        progress = Dataset()
        progress.ProcedureStepCancellationDateTime = date_time(now)
        progress.ReasonForCancellation = str(given.get("ReasonForCancellation") or f"asked by {watcher.name}")
        as_json = why.to_json_dict()
        if len(repr(as_json)) > LONGEST_PERFORMED:
            return RESOURCE_LIMITATION
        sequence = {"vr": "SQ", "Value": [progress.to_json_dict()]}
        status = self._records.workitems.request_cancel(uid, as_json, sequence, watcher, now)
        log.info("workitem %s: %s asks to cancel it: %s", uid, watcher.name, status)
        return NO_SUCH_UPS if status is None else status

    def _subscribe(self, uid: str, action: int, given: Dataset, reader: Actor) -> int:
        """PS3.4 CC.2.3; the Receiving AE may be another than the one that asks."""
        receiver = str(given.get("ReceivingAE") or "").strip()
        if not receiver or (action == SUSPEND and uid not in ALL):
            return INVALID_ARGUMENT
        if receiver not in self._watchers:
            log.warning(
                "%s names %s as a receiver of events, who is in no [[ups.watcher]]", reader.name, receiver
            )
            return UNKNOWN_RECEIVER
        subscriptions, status = self._records.subscriptions, SUCCESS
        if action == SUBSCRIBE and uid in ALL:
            status = self._subscribe_to_all(receiver, uid, given)
        elif action == SUBSCRIBE:
            known = subscriptions.subscribe(receiver, uid, _wants_lock(given), time.time())
            status = SUCCESS if known else NO_SUCH_UPS
        elif action == UNSUBSCRIBE:
            status = SUCCESS if subscriptions.unsubscribe(receiver, uid) else NO_SUCH_UPS
        else:
            subscriptions.suspend(receiver)
        log.info("subscriptions of %s: action %d on %s: 0x%04X", receiver, action, uid, status)
        return status

    def _subscribe_to_all(self, receiver: str, uid: str, given: Dataset) -> int:
        """With matching keys for FILTERED (PS3.4 CC.2.3.3.1), which may not be empty."""
        now = time.time()
        matching = None
        if uid == FILTERED:
            keys = Dataset()
            keys.update({e.tag: e for e in given if e.keyword not in NOT_MATCHED})
            if not len(keys):
                return INVALID_ARGUMENT
            as_json = keys.to_json_dict()
            if len(repr(as_json)) > LONGEST_KEYS:
                return RESOURCE_LIMITATION
            matching = Matching(as_json, lambda item: self._holds(keys, item))
        since = now - SERVED_FOR_S
        self._records.subscriptions.subscribe_to_all(receiver, _wants_lock(given), since, now, matching)
        return SUCCESS

    def _holds(self, keys: Dataset, item: Item) -> bool:
        return matches(keys, self._dataset(item, False), self._zone)

    def _dataset(self, item: Item, with_inputs: bool) -> Dataset:
        performed = self._performed(item)
        if item.state is StepState.CANCELED and not performed.get(PROGRESS):
            progress = Dataset()  # what CANCELED requires, PS3.4 Table CC.2.5-3
            progress.ProcedureStepCancellationDateTime = date_time(item.changed_at)
            performed.ProcedureStepProgressInformationSequence = DicomSequence([progress])
        work = work_of(item, self._inputs(item) if with_inputs else ())
        return served(work, self._ups.worklist_label, self._retrieve_ae, performed)

    def _performed(self, item: Item) -> Dataset:
        """What its performer said of it; nothing where that cannot be read."""
        try:
            return Dataset.from_json(item.performed)
        except (AttributeError, TypeError, *UNREADABLE) as error:
            self._say_once(
                f"workitem {item.uid} is shown without what its performer said, which cannot be "
                f"read ({error}); report it with the log"
            )
            return Dataset()

    def _inputs(self, item: Item) -> tuple[Input, ...]:
        """The source images first; without them where retention took them away."""
        slices, reports = self._records.workitems.inputs(item)
        found = {item.series_instance_uid: slices, **reports}
        return tuple(Input(uid, tuple(objects)) for uid, objects in found.items() if objects)


def _wants_lock(given: Dataset) -> bool:
    return str(given.get("DeletionLock") or "").strip().upper() == "TRUE"


def workitem_uid(series_uid: str, revision: int, offer: int = 1) -> str:
    """One for each revision of an analysed series, and for each time it is offered again."""
    return derived("workitem", series_uid, revision, *([offer] if offer > 1 else []))


def work_of(item: Item, inputs: tuple[Input, ...]) -> Work:
    header = item.header
    return Work(
        uid=item.uid,
        study_instance_uid=item.study_instance_uid,
        priority=item.priority,
        label=_label(item),
        comment=_comment(item),
        scheduled_at=item.created_at,
        patient_name=item.study["patient_name"],
        patient_id=item.study["patient_id"],
        issuer_of_patient_id=header.get("issuer_of_patient_id") or "",
        patient_birth_date=header.get("patient_birth_date") or "",
        accession_number=item.study["accession_number"],
        state=item.state,
        changed_at=item.changed_at,
        replaces=workitem_uid(item.series_instance_uid, item.revision, item.offer - 1)
        if item.offer > 1
        else "",
        inputs=inputs,
    )


def _findings(item: Item) -> Findings | None:
    try:
        return Findings.from_json(item.findings) if item.findings else None
    except (ValueError, KeyError, TypeError):
        return None


def _label(item: Item) -> str:
    """The headline of its result; before there is one, of what its priority says."""
    found = _findings(item)
    if found is None and item.priority is not Priority.STAT:
        return RESULT_FOLLOWS
    return wording.HEADLINES[wording.verdict(found) if found else wording.Verdict.SUSPECTED]


def _comment(item: Item) -> str:
    found = _findings(item)
    words = wording.segmentation_words(found) if found else NOT_ANALYSED_YET
    return f"{words} {wording.RESEARCH_USE}".strip()
