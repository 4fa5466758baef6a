"""The order desk: asks the worklist about each study once, and listens to HL7 orders. Delays no intake.

What cannot be asked now is tried a few times more, and the study's page says so; the study is analysed in
its turn all the same.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from node.domain.errors import IchnodeError, TransientError
from node.domain.orders import Said, Source
from node.orders.listener import Hl7Listener
from node.orders.worklist import Worklist
from node.settings import Settings
from node.store.orders import ToAsk
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.5
ASK_AGAIN_S = 30.0
MOST_ATTEMPTS = 3
ASKED_FOR_S = 3600.0
"""Studies that came longer ago are not asked about any more."""


class Desk:
    """One round of asking after another."""

    def __init__(self, settings: Settings, records: Records, worklist: Worklist | None) -> None:
        self._settings = settings
        self._orders = records.orders
        self._worklist = worklist

    def round(self, now: float) -> int:
        """Ask about what came; returns how many studies were due. Raises TransientError as stores do."""
        if self._worklist is None:
            return 0
        due = self._orders.to_ask(now - ASKED_FOR_S, now - ASK_AGAIN_S, MOST_ATTEMPTS)
        for study in due:
            if not self._ask(self._worklist, study, now):
                break  # the others would wait as long for nothing
        return len(due)

    def _ask(self, worklist: Worklist, study: ToAsk, now: float) -> bool:
        uid = study.about.study_instance_uid
        try:
            priority, text = worklist.priority_of(study.about, study.study_date)
            if priority is not None:
                self._orders.say(Said(Source.WORKLIST, priority, study.about, now, worklist.name))
                log.info("study %s was ordered %s (worklist)", uid, priority.value)
        except TransientError as error:
            log.warning("study %s: its order cannot be looked up: %s", uid, error)
            self._orders.asked(uid, False, str(error), now)
            return False
        except Exception as error:  # of this study, its answer or its orders: HL7 and the others go on
            log.exception("study %s: asking %s broke", uid, worklist.name)
            self._orders.asked(uid, False, f"{type(error).__name__}; see the log of the order desk", now)
            return True
        self._orders.asked(uid, True, text, now)
        return True


def run(
    settings: Settings,
    records: Records,
    stopping: Callable[[float], bool],
    leads: Callable[[], bool] = lambda: True,
) -> None:
    """Until `stopping(seconds)` says so: who `leads` asks the worklist, and each takes HL7.

    Raises SettingsError when the HL7 port cannot be had.
    """
    peer = settings.orders.worklist
    worklist = Worklist(peer, settings.scp.ae_title) if peer.ae_title else None
    if worklist:
        worklist.check()
    listening = _start_listener(settings, records, stopping) if settings.orders.hl7.port else None
    desk = Desk(settings, records, worklist)
    while not stopping(TICK_S):
        if listening and listening.failed:
            raise listening.failed
        try:
            if leads():
                desk.round(time.time())
        except TransientError as error:
            log.error("the order desk skips a round: %s", error)


class _Listening(threading.Thread):
    """The HL7 listener with an event loop of its own; `failed` is why it ended before its time."""

    def __init__(self, listener: Hl7Listener, stopping: Callable[[float], bool]) -> None:
        super().__init__(name="hl7", daemon=True)
        self._listener = listener
        self._stopping = stopping
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._listener.serve(lambda: self._stopping(0)))
        except (IchnodeError, OSError, RuntimeError) as error:
            self.failed = error
        except Exception as error:  # whatever it is: the desk ends with it, and is started anew
            log.exception("the HL7 listener broke")
            self.failed = error


def _start_listener(settings: Settings, records: Records, stopping: Callable[[float], bool]) -> _Listening:
    thread = _Listening(Hl7Listener(settings.orders.hl7, records), stopping)
    thread.start()
    return thread
