"""The Celery tasks: claim a job, analyse it, store what was found; or begin before there is a job.

One process, one model; sends nothing. What is found before there is a job is told to nobody.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from celery import current_app, shared_task
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down

from node.broker import ANALYSE_TASK, PREPARE_TASK
from node.domain.announcing import Stage
from node.domain.choice import Active
from node.domain.errors import IchnodeError, OutOfReach, PermanentError, TransientError
from node.domain.findings import Findings, Reason
from node.domain.orders import Turn
from node.domain.prior import Prior, latest
from node.liveness import process_name
from node.maps import Maps, pack
from node.settings import Settings
from node.spool import spool_of
from node.store.jobs import Job, Word
from node.store.queue import Line, Taken
from node.store.records import Records, open_records
from workers.ahead import Finished, Shelf, Source
from workers.analyse import analyse, with_loading, with_prior
from workers.backlog import Backlog, Hands, look_ahead
from workers.giving_up import give_up
from workers.leasing import LEASE_S, leased, watched
from workers.load import Loaded, load_acquired
from workers.models.contract import Pipeline
from workers.models.device import choose_runtime
from workers.models.several import Share, busy_s, runs_on_gpu
from workers.pulse import Pulse
from workers.selection import load_active, patiently, wish_of

log = logging.getLogger(__name__)

TIMEOUT = "model.timeout_s"


class _JobWaits(Exception):
    """Whoever works ahead stops: another job, claimed just now, comes first."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


class Worker:
    """What a worker process keeps from one job to the next."""

    def __init__(self, settings: Settings, pipeline: Pipeline, active: Active | None = None) -> None:
        """`active`: the choice that `pipeline` follows; without it the worker keeps what it was given."""
        self.settings = settings
        self.pipeline = pipeline
        self._active = active
        self._following = threading.Lock()
        self._counting = threading.Lock()
        self.records: Records = open_records(settings)
        self.spool = spool_of(settings)
        self.name = process_name()
        self.jobs_done = 0
        self.jobs_ahead = 0
        """…of these: analysed before the job was there."""
        self.shelf = Shelf(settings.ahead.keep_mb * 2**20)
        self._owed = False
        self._pulse = Pulse(self.records, "worker", self.standing)
        self._busy = Share()
        most = look_ahead(settings.worker, runs_on_gpu(pipeline), settings.model.max_attempts)
        self.backlog = Backlog(self._hands(), settings.worker, most) if most else None

    def _count(self) -> None:
        with self._counting:
            self.jobs_done += 1

    def _hands(self) -> Hands:
        return Hands(
            pipeline=lambda: self.pipeline,
            take=self._claim,
            source=self._source,
            voxels=lambda job: sum(
                (one.rows or 0) * (one.columns or 0) * one.frames
                for one in self.records.decisions.gather(job.series_instance_uid).instances
            ),
            load=self._load,
            leased=self._leased,
            outcome=self._outcome,
            watched=lambda job: watched(f"job {job.id}", self.settings.model.timeout_s, TIMEOUT),
            is_ours=lambda job: self.records.jobs.renew(job.id, self.name, time.time() + LEASE_S),
            speak=self._speak,
            store=self._store,
            give_back=lambda job: self.records.jobs.give_back(job.id, self.name),
            alone=self._do,
            done=self._count,
            is_prepared=self.shelf.has,
        )

    def run(self, rung: int) -> None:
        """Do the job whose turn it is, whichever rang. Every outcome is a state in the database."""
        if not self.follow():
            return
        if self.backlog is not None:
            self.backlog.feed(rung)
            return
        job = self._take(rung)
        if job is None:
            log.info("job %d is taken or over, and none waits", rung)
            return
        self._do(job)

    def _take(self, rung: int) -> Job | None:
        taken = self._claim(rung)
        return taken.job if taken else None

    def _claim(self, rung: int, only_stat: bool = False) -> Taken | None:
        """Claim the job whose turn it is."""
        now = time.time()
        orders = self.settings.orders
        self.spool.require_reach()
        line = Line(orders.rules, self._owed, orders.only_stat or only_stat, self.spool.depot.disk)
        taken = self.records.queue.take(rung, self.name, now + LEASE_S, now, line)
        if taken is None:
            return None
        self._owed = taken.owed
        if taken.turn is not Turn.ROUTINE:
            log.info("job %d goes first: %s", taken.job.id, taken.turn.value)
        return taken

    def _do(self, job: Job) -> None:
        with self._held(job):
            self._analyse(job)

    @contextmanager
    def _held(self, job: Job) -> Iterator[None]:
        """The block works on a claimed job, under a lease; what it raises becomes the job's next state."""
        with self._outcome(job), self._leased(job, self.settings.model.timeout_s):
            yield
        self._count()

    @contextmanager
    def _leased(self, job: Job, timeout_s: float = math.inf) -> Iterator[None]:
        """The job stays ours while the block runs; should it hang for longer, this process ends."""
        renew = self.records.jobs.renew
        with leased(f"job {job.id}", lambda until: renew(job.id, self.name, until), timeout_s, TIMEOUT):
            yield

    @contextmanager
    def _outcome(self, job: Job) -> Iterator[None]:
        """What the block raises becomes the job's next state."""
        try:
            yield
        except PermanentError as error:
            self._fail(job, Reason(error.code, str(error)))
        except OutOfReach as error:
            log.warning("job %d goes back to the queue: %s", job.id, error)
            self.records.jobs.put_back(job.id, self.name, Reason("OUT_OF_REACH", str(error)), counts=False)
        except TransientError as error:
            self._put_back(job, Reason("TRANSIENT", str(error)))
        except Exception as error:
            log.exception("job %d broke", job.id)
            self._put_back(job, Reason("WORKER_ERROR", f"{type(error).__name__}: {error}"))

    def prepare(self, series_uid: str, revision: int) -> None:
        """Analyse a series that may become a job, unless one waits. What goes wrong, its job will tell."""
        try:
            if not self.settings.ahead.head_start or not self.records.queue.is_empty():
                return
            if self.backlog is not None and not self.backlog.is_idle:
                return
            if not self.follow():
                return
            self._begin(Source.of(series_uid, revision, self.records.arrivals.paths(series_uid)))
        except _JobWaits as waiting:
            log.info("series %s: the head start makes way for job %d", series_uid, waiting.job.id)
            self._do(waiting.job)
        except IchnodeError as error:
            log.info("series %s: no head start: %s", series_uid, error)
        except Exception:
            log.exception("the head start of series %s broke", series_uid)

    def _begin(self, source: Source) -> None:
        """The analysis waits on the shelf for its job, or becomes the job, should that come meanwhile."""
        began = time.perf_counter()
        adopted: list[Job] = []
        with ExitStack() as held:
            what = f"the head start of series {source.series_instance_uid}"
            held.enter_context(watched(what, self.settings.model.timeout_s, TIMEOUT))

            def on_classified(early: Findings) -> None:
                if not self.follow() or early.model != self.pipeline.identity:
                    return  # another model was chosen meanwhile: this is nobody's word any more
                job = self._take(0)
                if job is None:
                    return
                if self._source(job) != source:
                    raise _JobWaits(job)
                held.enter_context(self._held(job))
                adopted.append(job)
                self._speak(job, early)

            finished = self._work(source, on_classified)
            if adopted:
                self.jobs_ahead += 1
                self._store(adopted[0], finished)
            else:
                self.shelf.put(source, finished)
            took_s = time.perf_counter() - began
            log.info("series %s: analysed ahead in %.1f s", source.series_instance_uid, took_s)

    def _source(self, job: Job) -> Source:
        paths = self.records.arrivals.paths(job.series_instance_uid)
        return Source.of(job.series_instance_uid, job.revision, paths)

    def _speak(self, job: Job, early: Findings) -> None:
        """The priority, as soon as the classes are known."""
        assert early.priority is not None
        log.info("job %d: %s", job.id, early.priority.value)
        word = Word(Stage.PRELIMINARY, early, self.settings.audiences, time.time())
        self.records.jobs.store_priority(job.id, self.name, early.priority, word)

    def _work(self, source: Source, on_classified: Callable[[Findings], None]) -> Finished:
        """The same for a job and ahead of it: from files to an analysis."""
        loaded = self._load(source)
        words: list[Findings] = []

        def hear(early: Findings) -> None:
            words.append(early)
            on_classified(early)

        analysis = analyse(
            loaded.volume,
            self.pipeline,
            series_instance_uid=source.series_instance_uid,
            revision=source.revision,
            on_classified=hear,
        )
        return Finished(words[0], analysis, loaded.acquisition, loaded.load_s)

    def _load(self, source: Source) -> Loaded:
        began = time.perf_counter()
        self.records.held.require_reach(source.series_instance_uid, self.spool.depot.disk)
        loaded = load_acquired(self.spool.fetch(source.paths))
        return replace(loaded, load_s=time.perf_counter() - began)

    def _analyse(self, job: Job) -> None:
        began, source = time.perf_counter(), self._source(job)
        finished = self.shelf.take(source)
        if finished is not None and finished.early.model == self.pipeline.identity:
            self.jobs_ahead += 1
            log.info("job %d: was analysed ahead", job.id)
            self._speak(job, finished.early)
        else:
            finished = self._work(source, lambda early: self._speak(job, early))
        self._store(job, finished)
        log.info("job %d: analysed in %.1f s", job.id, time.perf_counter() - began)

    def _prior(self, job: Job) -> Prior:
        """The latest earlier head CT of the patient that was analysed here."""
        now, candidates = self.records.priors.candidates(job.series_instance_uid)
        return latest(now, candidates) if now else Prior(None)

    def _store(self, job: Job, finished: Finished) -> None:
        notes = self.records.decisions.notes(job.series_instance_uid)
        analysis = with_loading(with_prior(finished.analysis, self._prior(job)), finished.load_s, notes)
        path = self.spool.job_path(job.id, job.attempts, "maps.npz")
        try:
            self.spool.write(path, (pack(Maps(analysis.masks, analysis.heat, analysis.subtypes)),))
        except OutOfReach:  # the job comes again, and should it come here, the work is done
            self.shelf.put(self._source(job), finished)
            raise
        stored = self.records.jobs.store_analysis(
            job.id,
            self.name,
            analysis.findings,
            path,
            time.time(),
            self.settings.audiences,
            finished.acquisition,
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

    def follow(self) -> bool:
        """Load the model that is chosen by now. False when it is not to be had here: then the worker ends.

        Whoever starts it anew gets one that waits for the model, and meanwhile keeps no job from others.
        """
        with self._following:
            if self._active is None:
                return True
            active = self.records.promotions.active(self.settings.model.pipeline)
            if active == self._active:
                return True
            try:
                pipeline = load_active(active, self.settings.model)
            except PermanentError as error:
                log.critical("this worker ends: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)  # Celery's warm shutdown: what is in work is finished
                return False
            if pipeline is not self.pipeline:
                log.warning("the active model is %s from now on", _said(pipeline))
            self.pipeline, self._active = pipeline, active
            return True

    def standing(self) -> dict[str, Any]:
        """For the heartbeat: which model is loaded, and how many jobs were done."""
        try:
            self.follow()
        except TransientError as error:
            log.warning("whether another model was chosen cannot be told: %s", error)
        identity = self.pipeline.identity
        model = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
        done = {"jobs_done": self.jobs_done, "jobs_ahead": self.jobs_ahead}
        share = self._busy.of(busy_s(self.pipeline), time.monotonic())
        return {**model, **done, **({} if share is None else {"network_busy": round(share, 3)})}

    def start(self) -> None:
        self._pulse.start()

    def stop_taking(self) -> None:
        """No more jobs: this process is about to end."""
        if self.backlog is not None:
            self.backlog.stop_taking()

    def stop(self) -> None:
        if self.backlog is not None:
            self.backlog.close()
        self._pulse.stop()


def _said(pipeline: Pipeline) -> str:
    identity = pipeline.identity
    return f"{identity.name} {identity.version}, sha256 {identity.sha256[:12]}…"


_worker: Worker | None = None


@celeryd_after_setup.connect
def _start(instance: Any = None, **_: Any) -> None:
    """Load the model before the first job; a worker without a model does not start."""
    global _worker
    settings: Settings = instance.app.settings
    try:
        _worker = _with_its_model(settings)
    except IchnodeError as error:
        give_up("worker", error)
    _worker.start()


def _with_its_model(settings: Settings) -> Worker:
    """A promoted model that is not to be had is waited for: it may still come, or be taken back."""
    records = open_records(settings)

    def active() -> Active:
        return records.promotions.active(settings.model.pipeline)

    def load() -> Worker:
        chosen = active()
        return Worker(settings, load_active(chosen, settings.model), chosen)

    try:
        return patiently(records, "worker", load, lambda: active().promoted is not None)
    finally:
        records.close()


@worker_shutting_down.connect
def _stop_taking(**_: Any) -> None:
    if _worker is not None:
        _worker.stop_taking()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    if _worker is not None:
        _worker.stop()


@shared_task(name=ANALYSE_TASK, ignore_result=True)
def analyse_job(job_id: int) -> None:
    if _worker is None:
        raise PermanentError("NO_MODEL", f"{current_app.main}: this process was not started as a worker")
    try:
        _worker.run(job_id)
    except TransientError as error:  # the database is away: a lease runs out, and the clock rings again
        log.error("no job is taken or finished now: %s", error)


@shared_task(name=PREPARE_TASK, ignore_result=True)
def prepare_series(series_uid: str, revision: int) -> None:
    if _worker is not None:
        _worker.prepare(series_uid, revision)


def check_model(settings: Settings) -> str:
    """For `ichnode doctor`: the weights are there, their digest is right, and what will run them."""
    records = open_records(settings)
    try:
        active = records.promotions.active(settings.model.pipeline)
    finally:
        records.close()
    identity = load_active(active, settings.model).identity
    promoted = active.promoted
    how = f", promoted by {promoted.who}" if promoted else ""
    runtime = choose_runtime(wish_of(settings.model)).words
    return f"{identity.name} {identity.version}, sha256 {identity.sha256[:16]}…, on {runtime}{how}"
