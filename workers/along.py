"""Decodes slices of series that still arrive, on a worker that has nothing else to do. Stores nothing.

What is decoded is kept under its spool path: nothing in the spool is written over, so the same path is the
same image. Whoever analyses the series takes what is there and reads the rest itself. A real job stops it
at once; what cannot be decoded is left to whoever analyses the series, who will say so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node.domain.errors import IchnodeError, OutOfReach
from node.domain.lifecycle import SeriesState
from node.store.early import Arrived
from workers.images import Image, decoded
from workers.load import read_image
from workers.volume import threads

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often it is looked for slices that came."""
SLEEP_S = 1.0
"""How often it is looked whether the worker is free again, where nobody says so."""
AT_WORK_S = 2.0
"""For so long it is waited for slices that are being decoded just now."""
NICE = 10
"""Of the decoding threads: receiving goes first."""
ALIVE = (SeriesState.RECEIVING, SeriesState.COMPLETE, SeriesState.ACCEPTED)
"""Of any other series nothing is wanted any more."""


@dataclass(frozen=True)
class Eyes:
    """How slices are found and read: the steps that belong to the database and the spool."""

    arrived: Callable[[str], Arrived]
    """State and spool paths of a series. Raises TransientError."""
    fetch: Callable[[str], Path]
    """A file by its spool path. Raises OutOfReach."""
    give_back: Callable[[Sequence[str]], object]
    """Somebody else may decode these series. Raises TransientError."""
    is_busy: Callable[[], bool] = lambda: False
    """A job is in hand, though nobody is in `making_way`."""


@dataclass(eq=False)
class _Series:
    """One that is followed."""

    uid: str
    came_at: float
    """When a slice was last seen to have come, by the monotonic clock."""
    is_ours: bool = True
    """False once it was given back: what is decoded is kept, and nothing is added."""
    size_bytes: int = 0
    paths: frozenset[str] = frozenset()
    waiting: deque[str] = field(default_factory=deque)
    at_work: set[str] = field(default_factory=set)
    images: dict[str, Image] = field(default_factory=dict)

    def keep(self, path: str, image: Image) -> None:
        self.images[path] = image
        self.size_bytes += image.size_bytes

    def drop(self, path: str) -> None:
        if (image := self.images.pop(path, None)) is not None:
            self.size_bytes -= image.size_bytes

    @property
    def wants(self) -> bool:
        return self.is_ours and bool(self.waiting)


class Along:
    """Threads that decode what is followed. May be asked from any thread."""

    def __init__(self, eyes: Eyes, most_bytes: int, kept_s: float, count: int = 0) -> None:
        """`kept_s`: a series of which nothing comes for so long is forgotten. `count`: of threads."""
        self._eyes = eyes
        self._most_bytes = most_bytes
        self._kept_s = kept_s
        self._threads = count or threads()
        self._changed = threading.Condition()
        self._followed: dict[str, _Series] = {}
        self._largest = 0
        self._hindered = 0
        self._running = False
        self._stopping = False
        self.slices_decoded = 0
        self.slices_used = 0
        """…of these: by an analysis."""

    @property
    def size_bytes(self) -> int:
        with self._changed:
            return self._size_bytes()

    def is_free(self) -> bool:
        """Whether another series could be followed: no slice waits to be decoded."""
        with self._changed:
            return not (
                self._stopping or self._is_hindered() or any(o.wants for o in self._followed.values())
            )

    def begin(self, series_uid: str) -> None:
        """Follow a series from now on."""
        with self._changed:
            self._followed.setdefault(series_uid, _Series(series_uid, time.monotonic())).is_ours = True
            if not self._running and not self._stopping:
                self._running = True
                self._start("along", self._watch)
                for number in range(self._threads):
                    self._start(f"along-{number}", self._work)
            self._changed.notify_all()

    @contextmanager
    def making_way(self) -> Iterator[None]:
        """Nothing is decoded while the block runs."""
        with self._changed:
            self._hindered += 1
        try:
            yield
        finally:
            with self._changed:
                self._hindered -= 1
                self._changed.notify_all()

    def images(self, series_uid: str, paths: Sequence[str]) -> dict[str, Image]:
        """What is decoded of these files, by path. What is being decoded just now is waited for, briefly."""
        deadline = time.monotonic() + AT_WORK_S
        with self._changed:
            one = self._followed.get(series_uid)
            while one is not None and one.at_work and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            found = one.images if one is not None else {}
            ready = {path: found[path] for path in paths if path in found}
            self.slices_used += len(ready)
            return ready

    def give_back(self, but: str = "") -> None:
        """A job was taken: somebody else may decode all other series."""
        with self._changed:
            others = [one for one in self._followed.values() if one.is_ours and one.uid != but]
            for one in others:
                one.is_ours = False
        self._told([one.uid for one in others])

    def forget(self, series_uid: str) -> None:
        """It was analysed, or nobody wants it."""
        with self._changed:
            self._followed.pop(series_uid, None)

    def standing(self) -> dict[str, int]:
        """For the heartbeat: slices decoded early, how many of them were of use, and bytes kept just now."""
        with self._changed:
            counts = {"slices_early": self.slices_decoded, "slices_early_used": self.slices_used}
            return {**counts, "early_bytes": self._size_bytes()}

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.give_back()

    def look(self) -> None:
        """What came since the last look. Raises IchnodeError."""
        with self._changed:
            uids = list(self._followed)
        for uid in uids:
            arrived = self._eyes.arrived(uid)
            with self._changed:
                one = self._followed.get(uid)
                if one is not None:
                    self._take_note(one, arrived)

    def _take_note(self, one: _Series, arrived: Arrived) -> None:
        """Slices that were replaced or removed are no longer kept."""
        paths, now = frozenset(arrived.paths), time.monotonic()
        if paths - one.paths:
            one.came_at = now
        if arrived.state not in ALIVE or now - one.came_at > self._kept_s:
            del self._followed[one.uid]
            return
        gone, new = one.paths - paths, [path for path in arrived.paths if path not in one.paths]
        one.paths = paths
        for path in gone:
            one.drop(path)
        one.waiting = deque(path for path in (*one.waiting, *new) if path not in gone)
        self._changed.notify_all()

    def _told(self, series_uids: Sequence[str]) -> None:
        if not series_uids:
            return
        try:
            self._eyes.give_back(series_uids)
        except IchnodeError as error:
            log.warning("%d series are not given back: %s", len(series_uids), error)

    def _start(self, name: str, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    def _watch(self) -> None:
        """Looks as long as anything is followed and the worker is free; otherwise sleeps."""
        while True:
            with self._changed:
                while not self._stopping and (self._is_hindered() or not self._followed):
                    self._changed.wait(SLEEP_S)
                if self._stopping:
                    return
            try:
                self.look()
            except IchnodeError as error:
                log.info("what came cannot be told just now: %s", error)
            except Exception:
                log.exception("looking for slices that came broke")
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, LOOK_S)

    def _work(self) -> None:
        _go_behind()
        while task := self._next():
            one, path = task
            image = self._decoded(path)
            with self._changed:
                one.at_work.discard(path)
                if image is not None and path in one.paths and self._followed.get(one.uid) is one:
                    one.keep(path, image)
                    self._largest = max(self._largest, image.size_bytes)
                    self.slices_decoded += 1
                self._changed.notify_all()

    def _next(self) -> tuple[_Series, str] | None:
        """A slice to be decoded; None at the end."""
        with self._changed:
            while not self._stopping:
                wanting = [one for one in self._followed.values() if one.wants]
                if wanting and not self._is_hindered() and self._make_room():
                    path = wanting[0].waiting.popleft()
                    wanting[0].at_work.add(path)
                    return wanting[0], path
                self._changed.wait(SLEEP_S)
            return None

    def _decoded(self, path: str) -> Image | None:
        """None where it cannot be, or it has several frames: then it came at once, and nothing is won."""
        try:
            image = read_image(self._eyes.fetch(path))
            return None if image.instance.frames > 1 else decoded(image)
        except (IchnodeError, OSError) as error:
            level = logging.INFO if isinstance(error, OutOfReach) else logging.WARNING
            log.log(level, "%s is not decoded ahead: %s", path, error)
        except Exception:
            log.exception("decoding %s ahead broke", path)
        return None

    def _size_bytes(self) -> int:
        return sum(one.size_bytes for one in self._followed.values())

    def _is_hindered(self) -> bool:
        return self._hindered > 0 or self._eyes.is_busy()

    def _is_full(self) -> bool:
        """Counting what is being decoded as large as the largest there was."""
        at_work = sum(len(one.at_work) for one in self._followed.values())
        return self._size_bytes() + (at_work + 1) * self._largest > self._most_bytes

    def _make_room(self) -> bool:
        """False where there is none. The series that is silent for longest makes way for one that arrives."""
        while self._is_full():
            resting = [one for one in self._followed.values() if not one.wants and not one.at_work]
            if not resting:
                return False
            longest = min(resting, key=lambda one: one.came_at)
            log.info("series %s: what was decoded ahead makes way", longest.uid)
            del self._followed[longest.uid]
        return True


def _go_behind() -> None:
    """This thread yields to others (Linux gives each thread a nice value of its own, sched(7))."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except OSError as error:
        log.debug("no lower priority: %s", error)
