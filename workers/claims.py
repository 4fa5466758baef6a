"""The jobs a worker has claimed: whose turn it is, the lease, and what becomes of each. Analyses nothing.

Every outcome is a state in the database, written under the name of this process: a job that was taken away
meanwhile is left as it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from node.domain.announcing import Stage
from node.domain.errors import OutOfReach, PermanentError, TransientError
from node.domain.findings import Findings, Reason
from node.domain.orders import Turn
from node.settings import Settings
from node.spool import Spool, Troubled
from node.store.jobs import Job, Word
from node.store.queue import Line, Taken
from node.store.records import Records
from workers.giving_up import end_if_device_lost
from workers.leasing import LEASE_S, leased, watched

log = logging.getLogger(__name__)

TIMEOUT = "model.timeout_s"


class Claims:
    """What the worker process `name` does to the rows of its jobs."""

    def __init__(self, settings: Settings, records: Records, spool: Spool, name: str) -> None:
        self._settings = settings
        self._records = records
        self._spool = spool
        self._name = name
        self._owed = False
        self._troubled = Troubled()

    def take(self, rung: int, only_stat: bool = False) -> Taken | None:
        """Claim the job whose turn it is, whichever rang. Raises OutOfReach where no file could be read."""
        now = time.time()
        orders = self._settings.orders
        self._spool.require_reach()
        line = Line(orders.rules, self._owed, orders.only_stat or only_stat, self._spool.depot.disk)
        taken = self._records.queue.take(rung, self._name, now + LEASE_S, now, line)
        if taken is None:
            return None
        self._owed = taken.owed
        if taken.turn is not Turn.ROUTINE:
            log.info("job %d goes first: %s", taken.job.id, taken.turn.value)
        return taken

    def leased(self, job: Job, timeout_s: float = math.inf) -> AbstractContextManager[None]:
        """The job stays ours while the block runs; should it hang for longer, this process ends."""
        renew = self._records.jobs.renew
        return leased(f"job {job.id}", lambda until: renew(job.id, self._name, until), timeout_s, TIMEOUT)

    def watched(self, job: Job) -> AbstractContextManager[None]:
        """This process ends should the block hang."""
        return watched(f"job {job.id}", self._settings.model.timeout_s, TIMEOUT)

    def is_ours(self, job: Job) -> bool:
        return self._records.jobs.renew(job.id, self._name, time.time() + LEASE_S)

    def give_back(self, job: Job) -> None:
        """As if it had never been taken."""
        self._records.jobs.give_back(job.id, self._name)

    def speak(self, job: Job, early: Findings) -> None:
        """The priority, as soon as the classes are known."""
        assert early.priority is not None
        log.info("job %d: %s", job.id, early.priority.value)
        word = Word(Stage.PRELIMINARY, early, self._settings.audiences, time.time())
        self._records.jobs.store_priority(job.id, self._name, early.priority, word)

    @contextmanager
    def outcome(self, job: Job) -> Iterator[None]:
        """What the block raises becomes the job's next state."""
        try:
            yield
            self._troubled.is_over(job.id)
        except PermanentError as error:
            self._fail(job, Reason(error.code, str(error)))
        except OutOfReach as error:
            log.warning("job %d goes back to the queue: %s", job.id, error)
            self._records.jobs.put_back(job.id, self._name, Reason("OUT_OF_REACH", str(error)), counts=False)
        except TransientError as error:
            if not self._waits_for_volume(job, error):
                self._put_back(job, Reason("TRANSIENT", str(error)))
        except Exception as error:
            if self._waits_for_volume(job, error):
                return
            log.exception("job %d broke", job.id)
            end_if_device_lost(error)
            self._put_back(job, Reason("WORKER_ERROR", f"{type(error).__name__}: {error}"))

    def _waits_for_volume(self, job: Job, error: Exception) -> bool:
        """Whether it went back to the queue, since its files may still turn out to be there, or to be taken.

        It counts as tried, so that it stands in nobody's way, and however often it is, as tried once.
        """
        if not self._troubled.waits(job.id, error):
            return False
        log.warning("job %d waits for the volume of data_dir: %s", job.id, error)
        reason = Reason("OUT_OF_REACH", f"the volume of data_dir: {error}")
        self._records.jobs.put_back(job.id, self._name, reason, counts=job.attempts == 1)
        return True

    def _fail(self, job: Job, reason: Reason) -> None:
        log.error("job %d cannot be analysed: %s: %s", job.id, reason.code, reason.text)
        self._records.jobs.fail(job.id, reason, self._name)

    def _put_back(self, job: Job, reason: Reason) -> None:
        if job.attempts >= self._settings.model.max_attempts:
            self._fail(job, Reason(reason.code, f"{reason.text} (in each of {job.attempts} attempts)"))
        else:
            log.warning("job %d goes back to the queue: %s", job.id, reason.text)
            self._records.jobs.put_back(job.id, self._name, reason)
