"""The Celery task of the shadow worker: read what was analysed with another model, and store what it says.

It runs in a process of its own at the lowest priority, writes no row but its own, and sends nothing. What
goes wrong here is counted, and no study knows of it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from celery import current_app, shared_task
from celery.signals import celeryd_after_setup, worker_shutdown

from node.broker import SHADOW_TASK
from node.domain.errors import IchnodeError, OutOfReach, PermanentError, TransientError
from node.domain.findings import Findings, Reason
from node.liveness import process_name
from node.settings import Settings
from node.spool import spool_of
from node.store.records import Records, open_records
from node.store.shadows import Shadowing
from workers.analyse import analyse, with_loading
from workers.giving_up import end_if_device_lost, give_up
from workers.head import require_head
from workers.leasing import LEASE_S, leased
from workers.load import load_volume
from workers.models.contract import Pipeline
from workers.models.runtime import load_pipeline
from workers.pulse import Pulse
from workers.selection import patiently, place_of

log = logging.getLogger(__name__)

ROLE = "shadow-worker"


class ShadowWorker:
    """What the process keeps from one series to the next."""

    def __init__(self, settings: Settings, pipeline: Pipeline, records: Records) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._records = records
        self._spool = spool_of(settings)
        self._name = process_name()
        self._done = 0
        self.pulse = Pulse(records, ROLE, self._standing)

    def run(self, rung: int) -> None:
        """Read the series that waits longest, whichever rang. Every outcome is a state in the database."""
        now, sha256 = time.time(), self._pipeline.identity.sha256
        taken = self._records.shadows.take(rung, sha256, self._name, now + LEASE_S, now)
        if taken is None:
            log.info("shadow reading %d has to wait, or is over", rung)
            return
        renew, settings = self._records.shadows.renew, self._settings.shadow
        what = f"shadow reading {taken.id}"
        try:
            with leased(
                what, lambda until: renew(taken.id, self._name, until), settings.timeout_s, "shadow.timeout_s"
            ):
                self._read(taken)
        except PermanentError as error:
            self._fail(taken, Reason(error.code, str(error)))
        except OutOfReach as error:
            log.warning("%s is tried again later: %s", what, error)
            self._records.shadows.put_back(taken.id, self._name, Reason("OUT_OF_REACH", str(error)))
        except TransientError as error:
            self._put_back(taken, Reason("TRANSIENT", str(error)))
        except Exception as error:
            log.exception("%s broke", what)
            end_if_device_lost(error)
            self._put_back(taken, Reason("WORKER_ERROR", f"{type(error).__name__}: {error}"))
        self._done += 1

    def _read(self, taken: Shadowing) -> None:
        findings = self._findings(taken)
        if not self._records.shadows.store(taken.id, self._name, findings, time.time()):
            log.info("shadow reading %d counts no more; it is thrown away", taken.id)

    def _findings(self, taken: Shadowing) -> Findings:
        """The whole way of an analysis, pictures included: what fails in it must not do so once it counts."""
        began = time.perf_counter()
        uid = taken.series_instance_uid
        self._records.held.require_reach(uid, self._spool.depot.disk)
        volume = load_volume(self._spool.fetch(self._records.arrivals.paths(uid)))
        require_head(volume.hu, volume.pixel_spacing_mm, volume.thickness_mm)
        load_s = time.perf_counter() - began
        analysis = analyse(volume, self._pipeline, series_instance_uid=uid, revision=taken.revision)
        return with_loading(analysis, load_s, ()).findings

    def _fail(self, taken: Shadowing, reason: Reason) -> None:
        log.error("shadow reading %d of job %d is given up: %s", taken.id, taken.job_id, reason.text)
        self._records.shadows.fail(taken.id, self._name, reason, time.time())

    def _put_back(self, taken: Shadowing, reason: Reason) -> None:
        if taken.attempts >= self._settings.shadow.max_attempts:
            self._fail(taken, Reason(reason.code, f"{reason.text} (in each of {taken.attempts} attempts)"))
        else:
            log.warning("shadow reading %d is tried again later: %s", taken.id, reason.text)
            self._records.shadows.put_back(taken.id, self._name, reason)

    def _standing(self) -> dict[str, Any]:
        identity = self._pipeline.identity
        model = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
        return {**model, "pipeline": place_of(self._settings.shadow.pipeline), "jobs_done": self._done}


_worker: ShadowWorker | None = None


@celeryd_after_setup.connect
def _start(instance: Any = None, **_: Any) -> None:
    """Load the model before the first series; one that cannot be loaded is waited for, and says why."""
    global _worker
    settings: Settings = instance.app.settings
    if settings.shadow.threads:
        torch.set_num_threads(settings.shadow.threads)
    try:
        records = open_records(settings)
        wanted = settings.shadow
        pipeline = patiently(
            records, ROLE, lambda: load_pipeline(wanted.pipeline, wanted.device), lambda: True
        )
        _worker = ShadowWorker(settings, pipeline, records)
        _worker.pulse.start()
    except IchnodeError as error:
        give_up("shadow worker", error)
    except Exception as error:  # Celery would log it and go on, and nothing would be read
        log.exception("the shadow worker breaks at its start")
        give_up("shadow worker", error)


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    if _worker is not None:
        _worker.pulse.stop()


@shared_task(name=SHADOW_TASK, ignore_result=True)
def read_series(number: int) -> None:
    if _worker is None:
        raise PermanentError("NO_MODEL", f"{current_app.main}: this is no shadow worker")
    _worker.run(number)
