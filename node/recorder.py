"""Records what came over one listener process, together where that is possible. Decides nothing.

`record_new` is over once the record is committed: whoever comes first writes for all that wait. `later` only
promises a record, of an instance whose file is safe and whose series this very association is known to carry,
so that whoever finds the association's end missing finds the file as well (`node.scan.recover`). A promise is
kept within `later_s` seconds, before anything else of the association is recorded, and before its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.domain.errors import TransientError
from node.domain.instance import Instance
from node.store.arrivals import Arrivals, Known, NewInstance

log = logging.getLogger(__name__)

LATER_S = 0.02
MOST_AT_ONCE = 100
"""In one transaction; and no more promises than that are open at any time."""
AGAIN_S = 1.0


@dataclass
class _Waiting:
    new: NewInstance
    is_done: bool = False
    recorded: bool = False
    error: TransientError | None = None


@dataclass(frozen=True)
class _Promised:
    new: NewInstance
    otherwise: Callable[[], None]


class Recorder:
    """One for each listener process. Any thread may use it."""

    def __init__(self, arrivals: Arrivals, most_in_series: int, later_s: float = 0.0) -> None:
        """`later_s`: how long a record may take that was only promised; 0: none is."""
        self._arrivals = arrivals
        self._most_in_series = most_in_series
        self._later_s = later_s
        self._lock = threading.Lock()
        """Of what follows; held for moments."""
        self._queue: list[_Waiting] = []
        self._promised: dict[str, _Promised] = {}
        """By SOP Instance UID, in the order in which they came."""
        self._carried: dict[str, set[tuple[str, str]]] = {}
        """The series of which an instance is recorded, by association."""
        self._thread: threading.Thread | None = None
        self._is_behind = False
        """A promise could not be kept in time: no more are made until all are."""
        self._turn = threading.Lock()
        """Held while something is written."""
        self._wake = threading.Event()

    def inquire(self, sop_instance_uid: str) -> Callable[[], Known]:
        """As `Arrivals.inquire`, promises kept. Raises TransientError when the database is away."""
        if sop_instance_uid in self._promised:
            self.flush()
        return self._arrivals.inquire(sop_instance_uid)

    def record_new(self, new: NewInstance) -> bool:
        """Whether it is recorded; False when it needs more than that (`Arrivals.record_new`).

        Raises TransientError when the database is away.
        """
        mine = _Waiting(new)
        with self._lock:
            self._queue.append(mine)
        while not mine.is_done:  # who held the turn before may have taken it along
            with self._turn:
                if not mine.is_done:
                    self._write(self._take())
        if mine.error is not None:
            raise TransientError(str(mine.error)) from mine.error
        return mine.recorded

    def carries(self, association_id: str, instance: Instance) -> None:
        """It is recorded with the association: others of its series may be promised from now on."""
        if self._later_s:
            with self._lock:
                self._carried.setdefault(association_id, set()).add(_series(instance))

    def later(self, new: NewInstance, otherwise: Callable[[], None]) -> bool:
        """Promise a record of an instance whose file and name are on disk; False: it must be made at once.

        `otherwise` records it in another way, should that be needed; it may be called again, and raises
        TransientError when the database is away.
        """
        uid = new.instance.sop_instance_uid
        with self._lock:
            series = self._carried.get(new.association_id, ())
            if (
                self._is_behind
                or _series(new.instance) not in series
                or len(self._promised) >= MOST_AT_ONCE
                or uid in self._promised
            ):
                return False
            self._promised[uid] = _Promised(new, otherwise)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                self._thread.start()
        if not self._wake.is_set():  # else somebody promised before, and nobody has looked since
            self._wake.set()
        return True

    def flush(self) -> None:
        """Keep every promise that was made. Raises TransientError when the database is away."""
        if self._promised:
            with self._turn:
                self._keep_promises()

    def ended(self, association_id: str) -> None:
        """Nothing more comes over it."""
        with self._lock:
            self._carried.pop(association_id, None)

    def close(self) -> None:
        """The process ends. What cannot be recorded now is found by whoever closes its associations."""
        self._later_s = 0.0
        try:
            self.flush()
        except TransientError as error:
            log.error(
                "%d instances are on disk and recorded at the next start: %s", len(self._promised), error
            )

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(self._later_s)  # for others to come
            self._wake.clear()
            try:
                self.flush()
            except TransientError as error:
                log.error("%d instances on disk wait for their records: %s", len(self._promised), error)
                time.sleep(AGAIN_S)
                self._wake.set()

    def _take(self) -> list[_Waiting]:
        with self._lock:
            taken, self._queue = self._queue[:MOST_AT_ONCE], self._queue[MOST_AT_ONCE:]
        return taken

    def _write(self, waiting: list[_Waiting]) -> None:
        """Each of them is done after this, whatever happens; promises come first."""
        try:
            self._keep_promises()
            recorded = self._arrivals.record_new([one.new for one in waiting], self._most_in_series)
            for one in waiting:
                one.recorded = recorded
        except TransientError as error:
            for one in waiting:
                one.error = error
        finally:
            for one in waiting:
                one.is_done = True

    def _keep_promises(self) -> None:
        """By whoever has the turn. Raises TransientError; then those that are left stay."""
        while self._promised:
            with self._lock:
                promised = list(self._promised.values())
            try:
                if not self._recorded_together(promised):
                    self._one_by_one(promised)
            except TransientError:
                self._is_behind = True
                raise
            with self._lock:
                for one in promised:
                    del self._promised[one.new.instance.sop_instance_uid]
        self._is_behind = False

    def _recorded_together(self, promised: list[_Promised]) -> bool:
        try:
            return self._arrivals.record_new([one.new for one in promised], self._most_in_series)
        except TransientError:
            raise
        except Exception:
            log.exception("%d instances cannot be recorded together", len(promised))
            return False

    def _one_by_one(self, promised: list[_Promised]) -> None:
        """Something in the records contradicts: lookups come before answers until it is seen what."""
        with self._lock:
            for one in promised:
                self._carried.pop(one.new.association_id, None)
        for one in promised:
            try:
                one.otherwise()
            except TransientError:
                raise
            except Exception:
                uid, path = one.new.instance.sop_instance_uid, one.new.file.path
                log.exception("%s cannot be recorded; its file stays at %s for the next scan", uid, path)


def _series(instance: Instance) -> tuple[str, str]:
    """With its study: one that says another study contradicts what is recorded, and is looked up."""
    return instance.study_instance_uid, instance.series_instance_uid
