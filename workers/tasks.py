"""The Celery task: claim a job, analyse it, store what was found. One process, one model; sends nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import current_app, shared_task
from celery.signals import celeryd_after_setup, worker_shutdown

from node.broker import ANALYSE_TASK
from node.domain.acquisition import Acquisition
from node.domain.announcing import Stage
from node.domain.errors import IchnodeError, PermanentError, TransientError
from node.domain.findings import Findings, Reason
from node.domain.orders import Turn
from node.domain.prior import Prior, latest
from node.liveness import process_name
from node.maps import Maps, pack
from node.settings import Settings
from node.spool import Spool
from node.store.jobs import Job, Word
from node.store.queue import Line
from node.store.records import Records, open_records
from workers.analyse import Analysis, analyse, with_loading, with_prior
from workers.head import require_head
from workers.load import acquired, load_volume
from workers.models.contract import Pipeline
from workers.models.runtime import load_pipeline

log = logging.getLogger(__name__)

LEASE_S = 30.0
RENEW_S = 5.0


class Worker:
    """What a worker process keeps from one job to the next."""

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        self.settings = settings
        self.pipeline = pipeline
        self.records: Records = open_records(settings)
        self.spool = Spool(settings.data_dir.resolve() / "spool", settings.spool.reserve_mb * 2**20)
        self.name = process_name()
        self.jobs_done = 0
        self._owed = False
        self._over = threading.Event()

    def run(self, rung: int) -> None:
        """Do the job whose turn it is, whichever rang. Every outcome is a state in the database."""
        now = time.time()
        orders = self.settings.orders
        line = Line(orders.rules, self._owed, orders.only_stat)
        taken = self.records.queue.take(rung, self.name, now + LEASE_S, now, line)
        if taken is None:
            log.info("job %d is taken or over, and none waits", rung)
            return
        job, self._owed = taken.job, taken.owed
        if taken.turn is not Turn.ROUTINE:
            log.info("job %d goes first: %s", job.id, taken.turn.value)
        try:
            with self._leased(job):
                self._analyse(job)
        except PermanentError as error:
            self._fail(job, Reason(error.code, str(error)))
        except TransientError as error:
            self._put_back(job, Reason("TRANSIENT", str(error)))
        except Exception as error:
            log.exception("job %d broke", job.id)
            self._put_back(job, Reason("WORKER_ERROR", f"{type(error).__name__}: {error}"))
        self.jobs_done += 1

    def _analyse(self, job: Job) -> None:
        began = time.perf_counter()
        paths = [self.spool.absolute(p) for p in self.records.arrivals.paths(job.series_instance_uid)]
        notes = self.records.decisions.notes(job.series_instance_uid)
        volume = load_volume(paths)
        evidence = require_head(volume.hu, volume.pixel_spacing_mm, volume.thickness_mm)
        acquisition = acquired(paths, volume, evidence)
        load_s = time.perf_counter() - began

        def on_classified(early: Findings) -> None:
            assert early.priority is not None
            log.info("job %d: %s", job.id, early.priority.value)
            word = Word(Stage.PRELIMINARY, early, self.settings.audiences, time.time())
            self.records.jobs.store_priority(job.id, self.name, early.priority, word)

        analysis = analyse(
            volume,
            self.pipeline,
            series_instance_uid=job.series_instance_uid,
            revision=job.revision,
            on_classified=on_classified,
        )
        analysis = with_prior(analysis, self._prior(job))
        self._store(job, with_loading(analysis, load_s, notes), acquisition)
        log.info("job %d: analysed in %.1f s", job.id, time.perf_counter() - began)

    def _prior(self, job: Job) -> Prior:
        """The latest earlier head CT of the patient that was analysed here."""
        now, candidates = self.records.priors.candidates(job.series_instance_uid)
        return latest(now, candidates) if now else Prior(None)

    def _store(self, job: Job, analysis: Analysis, acquisition: Acquisition) -> None:
        path = self.spool.job_path(job.id, job.attempts, "maps.npz")
        self.spool.write(path, (pack(Maps(analysis.masks, analysis.heat, analysis.subtypes)),))
        stored = self.records.jobs.store_analysis(
            job.id, self.name, analysis.findings, path, time.time(), self.settings.audiences, acquisition
        )
        if not stored:
            log.warning("job %d was taken away meanwhile; its analysis is thrown away", job.id)

    def _fail(self, job: Job, reason: Reason) -> None:
        log.error("job %d cannot be analysed: %s: %s", job.id, reason.code, reason.text)
        self.records.jobs.fail(job.id, reason, self.name)

    def _put_back(self, job: Job, reason: Reason) -> None:
        if job.attempts >= self.settings.model.max_attempts:
            self._fail(job, Reason(reason.code, f"{reason.text} (in each of {job.attempts} attempts)"))
        else:
            log.warning("job %d goes back to the queue: %s", job.id, reason.text)
            self.records.jobs.put_back(job.id, self.name, reason)

    @contextmanager
    def _leased(self, job: Job) -> Iterator[None]:
        """Renews the lease while the block runs, and ends the whole process when it hangs.

        No exception reaches native code that never returns; the lease it holds would keep the job for ever.
        """
        over = threading.Event()
        deadline = time.monotonic() + self.settings.model.timeout_s

        def renew() -> None:
            while not over.wait(min(RENEW_S, max(deadline - time.monotonic(), 0))):
                if time.monotonic() >= deadline:
                    log.critical("job %d hangs: longer than model.timeout_s; this worker ends", job.id)
                    logging.shutdown()
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    self.records.jobs.renew(job.id, self.name, time.time() + LEASE_S)
                except TransientError as error:
                    log.warning("lease of job %d: %s", job.id, error)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def beat_forever(self) -> None:
        """Heartbeats say which model is loaded and how many jobs were done."""
        identity = self.pipeline.identity
        while True:
            detail = {"model": identity.name, "version": identity.version, "jobs_done": self.jobs_done}
            try:
                self.records.views.beat(f"worker@{self.name}", "worker", detail, time.time())
            except TransientError as error:
                log.warning("heartbeat: %s", error)
            if self._over.wait(RENEW_S):
                return

    def stop(self) -> None:
        self._over.set()
        self.records.views.part(f"worker@{self.name}")


_worker: Worker | None = None


@celeryd_after_setup.connect
def _start(instance: Any = None, **_: Any) -> None:
    """Load the model before the first job; a worker without a model does not start."""
    global _worker
    settings: Settings = instance.app.settings
    try:
        _worker = Worker(settings, load_pipeline(settings.model.pipeline, settings.model.device))
    except IchnodeError as error:
        raise SystemExit(f"the worker cannot start: {error}") from error
    threading.Thread(target=_worker.beat_forever, name="heartbeat", daemon=True).start()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    if _worker is not None:
        _worker.stop()


@shared_task(name=ANALYSE_TASK, ignore_result=True)
def analyse_job(job_id: int) -> None:
    if _worker is None:
        raise PermanentError("NO_MODEL", f"{current_app.main}: this process was not started as a worker")
    _worker.run(job_id)


def check_model(settings: Settings) -> str:
    """For `ichnode doctor`: the weights are there, and their digest is right."""
    identity = load_pipeline(settings.model.pipeline, settings.model.device).identity
    return f"{identity.name} {identity.version}, sha256 {identity.sha256[:16]}…"
