"""Tells subscribers what became of workitems: UPS Event (PS3.4 CC.2.4), one association for what is due.

The node is the SCP of this SOP class and asks for that role. What is not taken is tried again, in front of
what follows on it of the same workitem, and given up after a day; what cannot be built is given up at once.
Nothing here changes a workitem.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import Association
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepEvent,
    UnifiedProcedureStepPush,
)

from node import transcode
from node.domain.errors import TransientError
from node.domain.workitems import Event
from node.frames import UNREADABLE
from node.scu import Peer, leave_responses, let_go, words
from node.settings import Destination, Settings, Watcher
from node.store.records import Records
from node.store.subscriptions import Due

log = logging.getLogger(__name__)

LOOK_S = 0.5
MOST_AT_ONCE = 100
WAIT_S, LONGEST_WAIT_S = 2.0, 600.0
GIVE_UP_S = 24 * 3600.0
FOR_GOOD = (0x0112, 0x0113, 0x0114, 0x0115, 0x0118, 0x0119, 0x0211, 0x0212)
"""No such instance, event type, argument or class (PS3.7 C.5): another try gets the same answer."""


@dataclass(frozen=True)
class _Came:
    """What came of one event: taken, given up as `refused` or in silence, or left to wait; texts say why."""

    taken: bool = False
    refused: str = ""
    waits: str = ""


class Reporter:
    """Everything that is due to one subscriber."""

    def __init__(self, watcher: Watcher, settings: Settings, records: Records) -> None:
        where = Destination(
            name=watcher.ae_title,
            ae_title=watcher.ae_title,
            host=watcher.host,
            port=watcher.port,
            tls=watcher.tls,
        )
        self._ae = watcher.ae_title
        self._peer = Peer(where, settings.scp.ae_title, "subscriber")
        self._subscriptions = records.subscriptions

    @property
    def ae_title(self) -> str:
        return self._ae

    def check(self) -> None:
        """Raises SettingsError for unusable certificates."""
        self._peer.check()

    def round(self, now: float) -> int:
        """Tell what is due; returns how much was taken. Raises TransientError as stores do."""
        due = self._subscriptions.due(self._ae, now, MOST_AT_ONCE)
        if not due:
            return 0
        left, taken, trouble, refused = due, 0, "", ""
        try:
            assoc = self._associate()
            try:
                while left:
                    one, came = left[0], self._contained(assoc, left[0], now)
                    left = _without(left, one) if came.waits else left[1:]
                    taken += came.taken
                    trouble, refused = came.waits or trouble, came.refused or refused
            finally:
                let_go(assoc)
        except _AwayError as error:
            trouble = str(error)
            self._later(left, trouble, now)
        if trouble or (refused and not taken):
            self._subscriptions.went_wrong(self._ae, trouble or refused, now, told=taken > 0)
        elif taken:
            self._subscriptions.went_well(self._ae, now)
        return taken

    def _contained(self, assoc: Association, one: Due, now: float) -> _Came:
        """What nobody thought of makes the event wait, and what follows of its workitem with it."""
        try:
            return self._attempt(assoc, one, now)
        except (TransientError, _AwayError):
            raise
        except Exception as error:
            if one.attempts == 0:
                log.exception("telling %s of a workitem broke", self._ae)
            why = f"{type(error).__name__} over workitem {one.sop_instance_uid}; report it with the log"
            self._later([one], why, now)
            return _Came(waits=why)

    def _attempt(self, assoc: Association, one: Due, now: float) -> _Came:
        information = _information(one)
        if information is None:  # no fault of the subscriber's
            self._give_up(one, "what is stored of it cannot be built; its state can be asked for by N-GET")
            return _Came()
        status = self._tell(assoc, one, information)
        if int(status.Status) == 0x0000:
            self._subscriptions.told(one)
            return _Came(taken=True)
        why = f"{self._peer.name} answers an event with {words(status)}; its log says why"
        if int(status.Status) in FOR_GOOD:
            self._give_up(one, why)
            return _Came(refused=why)
        self._later([one], why, now)
        return _Came(waits=why)

    def _associate(self) -> Association:
        contexts = [build_context(UnifiedProcedureStepEvent, [s]) for s in transcode.FALL_BACK]
        role = build_role(UnifiedProcedureStepEvent, scp_role=True)
        try:
            assoc = self._peer.associate(contexts, ext_neg=[role])
        except TransientError as error:
            raise _AwayError(str(error)) from error
        leave_responses(assoc)
        return assoc

    def _tell(self, assoc: Association, one: Due, information: Dataset) -> Dataset:
        """What it is answered with. Raises _AwayError where the next would fare no better."""
        try:
            status, _ = assoc.send_n_event_report(
                information,
                one.event,
                UnifiedProcedureStepPush,
                UID(one.sop_instance_uid),
                meta_uid=UnifiedProcedureStepEvent,
            )
        except (ValueError, RuntimeError) as error:
            step = "does it accept us in the role of SCP of UPS Event?"
            raise _AwayError(f"{self._peer.name}: an event cannot be sent ({error}); {step}") from error
        if "Status" not in status:
            raise _AwayError(f"{self._peer.name} does not answer an event; is it busy or stuck?")
        return status

    def _later(self, left: Sequence[Due], why: str, now: float) -> None:
        """These were not taken."""
        if left[0].attempts == 0:
            log.warning("event %d of workitem %s waits: %s", left[0].event, left[0].sop_instance_uid, why)
        again = []
        for one in left:
            if _waited_s(one.attempts) > GIVE_UP_S:
                self._give_up(one, why)
            else:
                again.append((one, now + _wait_s(one.attempts)))
        self._subscriptions.wait(again)

    def _give_up(self, one: Due, why: str) -> None:
        log.error("event %d of workitem %s is given up: %s", one.event, one.sop_instance_uid, why)
        self._subscriptions.give_up(one, self._ae)


def _wait_s(attempts: int) -> float:
    """How long to wait for the next try."""
    return min(WAIT_S * 2 ** min(attempts, 20), LONGEST_WAIT_S)


def _waited_s(attempts: int) -> float:
    """How long so many tries took. Days on which nobody tried, or by which the clock leapt, do not count."""
    return sum(_wait_s(before) for before in range(attempts))


def _information(one: Due) -> Dataset | None:
    """The Event Information (PS3.4 Table CC.2.4-1); None where it cannot be built, now or ever."""
    if one.content is None or one.event not in tuple(Event):
        return None
    try:
        ds = Dataset.from_json(one.content)
        ds.SpecificCharacterSet = "ISO_IR 192"  # readers write their own words into it
    except (AttributeError, TypeError, *UNREADABLE) as error:
        log.error("event %d of workitem %s: %s", one.event, one.sop_instance_uid, error)
        return None
    return ds if encode(ds, is_implicit_vr=True, is_little_endian=True) is not None else None


def _without(left: Sequence[Due], one: Due) -> list[Due]:
    """What is due of other workitems."""
    return [other for other in left if other.sop_instance_uid != one.sop_instance_uid]


class _AwayError(Exception):
    """The subscriber is away, or takes no event at all."""


def start_reporters(
    settings: Settings, records: Records, leads: Callable[[], bool], stopping: Callable[[float], bool]
) -> list[threading.Thread]:
    """A thread for each subscriber: one who is away holds up nobody. Raises SettingsError as TLS does."""
    reporters = [Reporter(watcher, settings, records) for watcher in settings.ups.watcher]
    for reporter in reporters:
        reporter.check()
    records.subscriptions.forget([watcher.ae_title for watcher in settings.ups.watcher])
    threads = [
        threading.Thread(target=_report_forever, args=(one, leads, stopping), name="ups events", daemon=True)
        for one in reporters
    ]
    for thread in threads:
        thread.start()
    return threads


def _report_forever(reporter: Reporter, leads: Callable[[], bool], stopping: Callable[[float], bool]) -> None:
    """Until `stopping(seconds)` says so; of several processes, the one that leads."""
    while not stopping(LOOK_S):
        try:
            if leads():
                reporter.round(time.time())
        except TransientError as error:
            log.error("events of workitems wait: %s", error)
        except Exception:
            log.exception("telling %s of workitems broke; it goes on", reporter.ae_title)
