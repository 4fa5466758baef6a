"""Keeps the networks busy while jobs wait: the next series are read and prepared while these are analysed.

Each job in hand is under a lease of its own from the moment it is claimed. Nothing is begun for a job that
was taken away meanwhile. A job that was tried before is worked alone: should a series take the worker down,
those that were in hand beside it lose one attempt by it, and no more. What is not begun when the worker ends
goes back to the queue as if it had never been taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from node.domain.acquisition import Acquisition
from node.domain.errors import TransientError
from node.domain.findings import Findings
from node.domain.orders import Turn
from node.settings import Worker as Bounds
from node.store.jobs import Job
from node.store.queue import Taken
from workers.ahead import Finished, Source
from workers.analyse import Classified, Ready, complete, first_word, make_ready, run_networks
from workers.load import Loaded
from workers.models.contract import Classification, Pipeline
from workers.stages import Stage

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often a worker that has its hands full looks whether a STAT job waits."""
ON_A_GPU = 12
GIVE_BACK_S = 5.0
"""For so long a worker that ends waits for a database that is away."""
BYTES_A_VOXEL = 16
"""Of a series in hand: float32 HU as read and as the networks see them, stored values, masks."""


@dataclass(eq=False)
class Held:
    """A job in hand, and how far it is."""

    job: Job
    turn: Turn
    source: Source
    size_bytes: int
    lease: ExitStack
    loaded: Loaded | None = None
    ready: Ready | None = None
    known: Classified | None = None
    alert_s: float = 0.0

    @property
    def is_stat(self) -> bool:
        return self.turn is Turn.STAT


@dataclass(frozen=True)
class Hands:
    """What a worker does to its jobs: the steps that belong to the database and the spool."""

    pipeline: Callable[[], Pipeline]
    take: Callable[[int, bool], Taken | None]
    """Claim the job whose turn it is: (whose bell rang, STAT and aged ones only)."""
    source: Callable[[Job], Source]
    voxels: Callable[[Job], int]
    load: Callable[[Source], Loaded]
    leased: Callable[[Job], AbstractContextManager[None]]
    outcome: Callable[[Job], AbstractContextManager[None]]
    """What the block raises becomes the job's next state."""
    watched: Callable[[Job], AbstractContextManager[None]]
    is_ours: Callable[[Job], bool]
    speak: Callable[[Job, Findings], None]
    store: Callable[[Job, Finished], None]
    give_back: Callable[[Job], object]
    alone: Callable[[Job], None]
    """The whole of a job at once, in this thread."""
    is_prepared: Callable[[Source], bool]
    """Whether its analysis is there already."""
    done: Callable[[], None]
    """One job more has gone through, whatever came of it."""


def look_ahead(bounds: Bounds, on_gpu: bool, max_attempts: int) -> int:
    """How many series a worker has in hand at most; 0: it does one after the other."""
    if bounds.look_ahead != "auto":
        return bounds.look_ahead
    return ON_A_GPU if on_gpu and max_attempts > 1 else 0


@dataclass
class Backlog:
    """`feed` is called for each doorbell, always in the same thread; everything else happens in others."""

    hands: Hands
    bounds: Bounds
    most: int
    _held: list[Held] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._reading: Stage[Held] = Stage("read", self._read, self.bounds.readers)
        self._network: Stage[Held] = Stage("network", self._classify, 1, self.bounds.together)
        self._finishing: Stage[Held] = Stage("finish", self._finish, self.bounds.readers)

    @property
    def is_idle(self) -> bool:
        return not self._held

    def feed(self, rung: int) -> None:
        """Take the job whose turn it is in hand, once there is room. STAT has room for one more."""
        taken = None
        while taken is None and not self._stopping:
            if self._has_room():
                taken = self.hands.take(rung, False)
                break
            if len(self._held) <= self.most and not any(one.is_stat for one in self._held):
                taken = self.hands.take(0, True)
            if taken is None:
                with self._changed:
                    self._changed.wait(LOOK_S)
        if taken is not None:
            self._begin(taken)

    def stop_taking(self) -> None:
        self._stopping = True

    def wait_idle(self) -> None:
        """Until nothing is in hand."""
        with self._changed:
            while self._held:
                self._changed.wait()

    def close(self) -> None:
        """What the networks or a finishing thread have begun is finished; the rest goes back to the queue."""
        self.stop_taking()
        left = [*self._reading.close(), *self._network.close()]
        self._finishing.close(empty=True)
        for held in left:
            held.lease.close()
        self._give_back([held.job for held in left])

    def _give_back(self, left: list[Job]) -> None:
        """What does not get back costs an attempt: its lease runs out, and another worker takes it."""
        give_up_at = time.monotonic() + GIVE_BACK_S
        while left:
            try:
                self.hands.give_back(left[0])
                left = left[1:]
            except TransientError as error:
                if time.monotonic() > give_up_at:
                    log.error("jobs %s wait for their leases to run out: %s", [j.id for j in left], error)
                    return
                time.sleep(LOOK_S)

    def _begin(self, taken: Taken) -> None:
        job = taken.job
        with self.hands.outcome(job):
            source = self.hands.source(job)
            if job.attempts > 1 or self.hands.is_prepared(source):
                with self.hands.leased(job):
                    if job.attempts > 1:
                        self.wait_idle()
                self.hands.alone(job)
                return
            lease = ExitStack()
            lease.enter_context(self.hands.leased(job))
            held = Held(job, taken.turn, source, self.hands.voxels(job) * BYTES_A_VOXEL, lease)
            with self._changed:
                self._held.append(held)
            self._reading.put(held)

    def _has_room(self) -> bool:
        """For one more as large as the largest. Where nothing is in hand there is room for any."""
        with self._changed:
            used = sum(one.size_bytes for one in self._held)
            largest = max((one.size_bytes for one in self._held), default=0)
            return len(self._held) < self.most and used + largest <= self.bounds.look_ahead_mb * 2**20

    @contextmanager
    def _step(self, held: Held, *, is_last: bool = False) -> Iterator[None]:
        """A step of one job. What goes wrong ends the job, as the last step does: it is no longer in hand."""
        is_done = False
        try:
            with self.hands.outcome(held.job), self.hands.watched(held.job):
                yield
                is_done = True
        except TransientError as error:  # the lease runs out, and another worker takes the job
            log.error("job %d: what came of it cannot be told: %s", held.job.id, error)
        finally:
            if is_last or not is_done:
                self._let_go(held)

    def _read(self, some: list[Held]) -> None:
        (held,) = some
        if not self._still_ours(held):
            return
        with self._step(held):
            held.loaded = self.hands.load(held.source)
            held.ready = make_ready(held.loaded.volume, self.hands.pipeline())
            self._network.put(held)

    def _classify(self, some: list[Held]) -> None:
        """The networks over the slices of several series, and the first word about each."""
        ours = [held for held in some if self._still_ours(held)]
        pipelines = {id(held.ready.pipeline): held.ready.pipeline for held in ours if held.ready}
        for pipeline in pipelines.values():
            batch = [held for held in ours if held.ready and held.ready.pipeline is pipeline]
            began = time.perf_counter()
            answers = self._together(batch)
            took_s = (time.perf_counter() - began) / len(batch)
            for held, answer in zip(batch, answers, strict=True):
                with self._step(held):
                    self._speak(held, answer, took_s)
                    self._finishing.put(held)

    def _together(self, batch: Sequence[Held]) -> Sequence[Classification | None]:
        """What the networks say of each; None where they fail: then each is asked, and may fail, alone."""
        if len(batch) == 1:
            return [None]
        try:
            with ExitStack() as watches:
                for held in batch:
                    watches.enter_context(self.hands.watched(held.job))
                return run_networks([held.ready for held in batch if held.ready])
        except Exception:
            log.exception("%d series at once failed; each is tried alone", len(batch))
            return [None] * len(batch)

    def _speak(self, held: Held, answer: Classification | None, took_s: float) -> None:
        assert held.ready is not None
        began = time.perf_counter()
        if answer is None:
            (answer,) = run_networks([held.ready])
            took_s = time.perf_counter() - began
        began = time.perf_counter()
        uid, revision = held.source.series_instance_uid, held.source.revision
        held.known = first_word(held.ready, answer, took_s, uid, revision)
        self.hands.speak(held.job, held.known.early)
        held.alert_s = time.perf_counter() - began

    def _finish(self, some: list[Held]) -> None:
        (held,) = some
        with self._step(held, is_last=True):
            assert held.known is not None and held.loaded is not None
            analysis = complete(held.known, alert_s=held.alert_s)
            acquisition: Acquisition = held.loaded.acquisition
            self.hands.store(held.job, Finished(held.known.early, analysis, acquisition, held.loaded.load_s))
            log.info("job %d: analysed", held.job.id)

    def _still_ours(self, held: Held) -> bool:
        """False, and let go, when the job was cancelled or superseded, or its lease was lost."""
        try:
            if self.hands.is_ours(held.job):
                return True
            log.info("job %d was taken away meanwhile", held.job.id)
        except TransientError as error:
            log.error("job %d is let go: %s", held.job.id, error)
        self._let_go(held)
        return False

    def _let_go(self, held: Held) -> None:
        held.lease.close()
        self.hands.done()
        with self._changed:
            self._held.remove(held)
            self._changed.notify_all()
