"""The Celery tasks of a worker process, and its start and end. The work itself is in `worker.py`."""

from __future__ import annotations

import logging
from typing import Any

from celery import current_app, shared_task
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down

from node.broker import ALONG_TASK, ANALYSE_TASK, PREPARE_TASK
from node.domain.choice import Active
from node.domain.errors import IchnodeError, PermanentError, TransientError
from node.settings import Settings
from node.store.records import open_records
from workers.giving_up import give_up
from workers.models.device import choose_runtime
from workers.selection import load_active, patiently, wish_of
from workers.worker import Worker

log = logging.getLogger(__name__)

_worker: Worker | None = None


@celeryd_after_setup.connect
def _start(instance: Any = None, **_: Any) -> None:
    """Load the model before the first job; a worker without a model does not start."""
    global _worker
    settings: Settings = instance.app.settings
    try:
        _worker = _with_its_model(settings)
        _worker.start()
    except IchnodeError as error:
        give_up("worker", error)
    except Exception as error:  # Celery would log it and go on, and nothing would be analysed
        log.exception("the worker breaks at its start")
        give_up("worker", error)


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


@shared_task(name=ALONG_TASK, ignore_result=True)
def read_along(series_uid: str) -> None:
    if _worker is not None:
        _worker.read_along(series_uid)


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
