"""How many instances the sender of a series holds, asked by C-FIND (PS3.4 C.6.2.1) in a thread of its own.

The clock asks what is known, and never waits. Nothing is stored: who starts anew asks anew. A number counts
only if it was asked for after the last instance came; an archive that does not answer counts for nothing.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from node.domain.errors import TransientError
from node.domain.reconciliation import ArchivedStudy
from node.domain.sender import Peer
from node.query import Archivist
from node.settings import Archive, Settings

log = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0
"""The same study is asked about no more often: an archive may still be receiving it."""
LEAVE_ALONE_S = 60.0
"""After an archive that did not answer."""
MOST_KNOWN = 1000
MOST_WAITING = 100
LOOK_S = 0.2

Ask = Callable[[Archive, str], Mapping[str, int]]
"""Instances of each series of a study, by Series Instance UID. Raises TransientError."""


class Counts(Protocol):
    """What the clock needs."""

    def expected(self, study_uid: str, series_uid: str, peer: Peer, since: float) -> int | None: ...


@dataclass(frozen=True)
class _Answer:
    asked_at: float
    instances: Mapping[str, int]


class Counting:
    """Of the archives that are to be asked; the clock calls `expected`, a thread of its own `run`."""

    def __init__(self, settings: Settings, ask: Ask | None = None) -> None:
        self._archives = {archive.ae_title.strip(): archive for archive in settings.archive if archive.counts}
        self._ask = ask or (lambda archive, uid: ask_archive(archive, uid, settings.scp.ae_title))
        self._known: dict[str, _Answer] = {}
        self._to_ask: queue.Queue[tuple[str, str]] = queue.Queue(MOST_WAITING)
        self._waiting: set[str] = set()
        self._left_alone: dict[str, float] = {}

    @property
    def has_archives(self) -> bool:
        return bool(self._archives)

    def expected(self, study_uid: str, series_uid: str, peer: Peer, since: float) -> int | None:
        """How many instances of the series the peer held at some moment after `since`; None: unknown yet."""
        if peer.calling_ae.strip() not in self._archives:
            return None
        answer = self._known.get(study_uid)
        if answer is None or answer.asked_at < since or time.time() - answer.asked_at > ASK_AGAIN_S:
            self._want(study_uid, peer.calling_ae.strip())
        if answer is None or answer.asked_at < since:
            return None
        return answer.instances.get(series_uid)

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Ask what is wanted until `stopping(seconds)` says so."""
        while not stopping(LOOK_S):
            try:
                while self.answer_one():
                    pass
            except Exception:
                log.exception("counting broke; it goes on")

    def answer_one(self) -> bool:
        """Ask about one study. False when nobody wants to know anything."""
        try:
            study_uid, title = self._to_ask.get_nowait()
        except queue.Empty:
            return False
        try:
            if time.monotonic() >= self._left_alone.get(title, 0.0):
                self._find_out(study_uid, title)
        finally:
            self._waiting.discard(study_uid)
        return True

    def _find_out(self, study_uid: str, title: str) -> None:
        asked_at = time.time()
        try:
            counted = self._ask(self._archives[title], study_uid)
        except TransientError as error:
            log.warning("study %s cannot be counted: %s", study_uid, error)
            self._left_alone[title] = time.monotonic() + LEAVE_ALONE_S
            return
        self._known.pop(study_uid, None)
        self._known[study_uid] = _Answer(asked_at, counted)
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def _want(self, study_uid: str, title: str) -> None:
        if study_uid in self._waiting:
            return
        self._waiting.add(study_uid)
        try:
            self._to_ask.put_nowait((study_uid, title))
        except queue.Full:
            self._waiting.discard(study_uid)


def ask_archive(archive: Archive, study_uid: str, calling_ae: str) -> dict[str, int]:
    """One association, released at once. Raises TransientError."""
    with Archivist(archive.peer, calling_ae) as archivist:
        study = archivist.with_series(ArchivedStudy(study_uid))
    return {s.series_instance_uid: s.instances for s in study.series if s.instances is not None}
