"""A worker process at its work: from a doorbell to a stored analysis, or a head start before there is a job.

One process, one model; sends nothing. What is found before there is a job is told to nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from node.domain.choice import Active
from node.domain.errors import IchnodeError, OutOfReach, TransientError
from node.domain.findings import Findings
from node.domain.prior import Prior, latest
from node.liveness import is_gone, process_name
from node.maps import Maps, pack
from node.settings import Settings
from node.spool import SpoolFull, spool_of
from node.store.jobs import Job
from node.store.queue import Taken
from node.store.records import Records, open_records
from workers.ahead import Finished, Shelf, Source
from workers.along import Along, Eyes
from workers.analyse import analyse, with_loading, with_prior
from workers.backlog import Backlog, Hands, look_ahead
from workers.claims import TIMEOUT, Claims
from workers.following import Following
from workers.giving_up import end_if_device_lost
from workers.leasing import watched
from workers.load import Loaded, load_acquired
from workers.models.contract import Pipeline
from workers.models.several import Share, busy_s, runs_on_gpu
from workers.pulse import Pulse

log = logging.getLogger(__name__)


KEPT_LONGER_S = 60.0
"""What was decoded is kept for so much longer than a series may be silent before it counts as complete."""
LEFT_S = 1.0
"""For so long a job is left to the worker that has begun with its series…"""
LEFT_LOOK_S = 0.1
"""…and so often it is looked whether that one has it."""


class _JobWaits(Exception):
    """Whoever works ahead stops: another job, claimed just now, comes first."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


class Worker:
    """What a worker process keeps from one job to the next."""

    def __init__(self, settings: Settings, pipeline: Pipeline, active: Active | None = None) -> None:
        """`active` as for `Following`."""
        self.settings = settings
        self.records: Records = open_records(settings)
        self.spool = spool_of(settings)
        self.name = process_name()
        self.model = Following(self.records, settings.model, pipeline, active)
        self.claims = Claims(settings, self.records, self.spool, self.name)
        self._counting = threading.Lock()
        self.jobs_done = 0
        self.jobs_ahead = 0
        """…of these: analysed before the job was there."""
        self.shelf = Shelf(settings.ahead.keep_mb * 2**20)
        self._pulse = Pulse(self.records, "worker", self.standing)
        self._busy = Share()
        most = look_ahead(settings.worker, runs_on_gpu(pipeline), settings.model.max_attempts)
        self.backlog = Backlog(self._hands(), settings.worker, most) if most else None
        kept_s = settings.completeness.max_wait_s + KEPT_LONGER_S
        self.along = Along(self._eyes(), settings.ahead.decode_mb * 2**20, kept_s)

    @property
    def pipeline(self) -> Pipeline:
        return self.model.pipeline

    def _count(self) -> None:
        with self._counting:
            self.jobs_done += 1

    def _hands(self) -> Hands:
        return Hands(
            pipeline=lambda: self.pipeline,
            take=self._take,
            source=self._source,
            voxels=self._voxels,
            load=self._load,
            leased=self.claims.leased,
            outcome=self.claims.outcome,
            watched=self.claims.watched,
            is_ours=self.claims.is_ours,
            speak=self.claims.speak,
            store=self._store,
            give_back=self.claims.give_back,
            alone=self._do,
            done=self._count,
            is_prepared=self.shelf.has,
        )

    def _eyes(self) -> Eyes:
        disk = self.spool.depot.disk
        return Eyes(
            arrived=lambda uid: self.records.early.arrived(uid, disk),
            fetch=lambda path: self.spool.fetch([path])[0],
            give_back=lambda uids: self.records.early.give_back(uids, self.name),
            is_busy=lambda: self.backlog is not None and not self.backlog.is_idle,
        )

    def run(self, rung: int) -> None:
        """Do the job whose turn it is, whichever rang. Every outcome is a state in the database."""
        if not self.model.follow():
            return
        self._leave_to_whoever_began(rung)
        if self.backlog is not None:
            self.backlog.feed(rung)
        elif taken := self._take(rung):
            self._do(taken.job)
        else:
            log.info("job %d is taken or over, and none waits", rung)

    def _take(self, rung: int, only_stat: bool = False) -> Taken | None:
        taken = self.claims.take(rung, only_stat)
        if taken is not None:
            self.along.give_back(but=taken.job.series_instance_uid)
        return taken

    def _leave_to_whoever_began(self, rung: int) -> None:
        """A worker that has begun with the series of this job hears its bell, too."""
        if not self.settings.ahead.head_start:
            return
        for _ in range(round(LEFT_S / LEFT_LOOK_S)):
            who = self.records.early.who_has(rung)
            if who in (None, self.name) or is_gone(str(who)):
                return
            time.sleep(LEFT_LOOK_S)

    def _do(self, job: Job) -> None:
        with self.along.making_way(), self._held(job):
            self._analyse(job)

    def read_along(self, series_uid: str) -> None:
        """Decode a series while it arrives, unless there is anything else to do."""
        try:
            if (
                not self.settings.ahead.decodes
                or not self.along.is_free()
                or not self.records.queue.is_empty()
            ):
                return
            if self.records.early.claim(series_uid, self.name):
                log.info("series %s is decoded as it arrives", series_uid)
                self.along.begin(series_uid)
        except IchnodeError as error:
            log.info("series %s is not decoded early: %s", series_uid, error)

    @contextmanager
    def _held(self, job: Job) -> Iterator[None]:
        """The block works on a claimed job, under a lease; what it raises becomes the job's next state."""
        with self.claims.outcome(job), self.claims.leased(job, self.settings.model.timeout_s):
            yield
        self._count()

    def prepare(self, series_uid: str, revision: int) -> None:
        """Analyse a series that may become a job, unless one waits. What goes wrong, its job will tell."""
        try:
            if not self.settings.ahead.head_start or not self.records.queue.is_empty():
                return
            if self.backlog is not None and not self.backlog.is_idle:
                return
            if not self.model.follow():
                return
            self.records.early.take_over(series_uid, self.name)
            with self.along.making_way():
                self._begin(Source.of(series_uid, revision, self.records.arrivals.paths(series_uid)))
        except _JobWaits as waiting:
            log.info("series %s: the head start makes way for job %d", series_uid, waiting.job.id)
            self._do(waiting.job)
        except IchnodeError as error:
            log.info("series %s: no head start: %s", series_uid, error)
        except Exception as error:
            log.exception("the head start of series %s broke", series_uid)
            end_if_device_lost(error)

    def _begin(self, source: Source) -> None:
        """The analysis waits on the shelf for its job, or becomes the job, should that come meanwhile."""
        began = time.perf_counter()
        adopted: list[Job] = []
        with ExitStack() as held:
            what = f"the head start of series {source.series_instance_uid}"
            held.enter_context(watched(what, self.settings.model.timeout_s, TIMEOUT))

            def on_classified(early: Findings) -> None:
                if not self.model.follow() or early.model != self.pipeline.identity:
                    return  # another model was chosen meanwhile: this is nobody's word any more
                taken = self._take(0)
                if taken is None:
                    return
                if self._source(taken.job) != source:
                    raise _JobWaits(taken.job)
                held.enter_context(self._held(taken.job))
                adopted.append(taken.job)
                self.claims.speak(taken.job, early)

            finished = self._work(source, on_classified)
            if adopted:
                self.jobs_ahead += 1
                self._store(adopted[0], finished)
            else:
                self.shelf.put(source, finished)
            took_s = time.perf_counter() - began
            log.info("series %s: analysed ahead in %.1f s", source.series_instance_uid, took_s)

    def _voxels(self, job: Job) -> int:
        instances = self.records.decisions.gather(job.series_instance_uid).instances
        return sum((one.rows or 0) * (one.columns or 0) * one.frames for one in instances)

    def _source(self, job: Job) -> Source:
        paths = self.records.arrivals.paths(job.series_instance_uid)
        return Source.of(job.series_instance_uid, job.revision, paths)

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
        files = dict(zip(source.paths, self.spool.fetch(source.paths), strict=True))
        images = self.along.images(source.series_instance_uid, source.paths)
        loaded = load_acquired([*files.values()], {files[path]: image for path, image in images.items()})
        return replace(loaded, load_s=time.perf_counter() - began)

    def _analyse(self, job: Job) -> None:
        began, source = time.perf_counter(), self._source(job)
        finished = self.shelf.take(source)
        if finished is not None and finished.early.model == self.pipeline.identity:
            self.jobs_ahead += 1
            log.info("job %d: was analysed ahead", job.id)
            self.claims.speak(job, finished.early)
        else:
            finished = self._work(source, lambda early: self.claims.speak(job, early))
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
        except (OutOfReach, SpoolFull, OSError):  # should the job come here again, the work is done
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
        self.along.forget(job.series_instance_uid)
        if not stored:
            log.warning("job %d was taken away meanwhile; its analysis is thrown away", job.id)

    def standing(self) -> dict[str, Any]:
        """For the heartbeat: which model is loaded, and how many jobs were done."""
        try:
            self.model.follow()
        except TransientError as error:
            log.warning("whether another model was chosen cannot be told: %s", error)
        identity = self.pipeline.identity
        model = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
        done = {"jobs_done": self.jobs_done, "jobs_ahead": self.jobs_ahead, **self.along.standing()}
        share = self._busy.of(busy_s(self.pipeline), time.monotonic())
        return {**model, **done, **({} if share is None else {"network_busy": round(share, 3)})}

    def start(self) -> None:
        self._pulse.start()

    def stop_taking(self) -> None:
        """No more jobs: this process is about to end."""
        if self.backlog is not None:
            self.backlog.stop_taking()

    def stop(self) -> None:
        self.along.stop()
        if self.backlog is not None:
            self.backlog.close()
        self._pulse.stop()
