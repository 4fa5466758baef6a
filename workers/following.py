"""Keeps a worker on the model that is chosen by now. Chooses none; without the chosen one the worker ends."""

from __future__ import annotations

import logging
import os
import signal
import threading

from node.domain.choice import Active
from node.domain.errors import PermanentError
from node.settings import Model
from node.store.records import Records
from workers.models.contract import Pipeline
from workers.selection import load_active

log = logging.getLogger(__name__)


class Following:
    """The pipeline of one process, and the choice it follows."""

    def __init__(self, records: Records, model: Model, pipeline: Pipeline, active: Active | None) -> None:
        """`active`: the choice that made `pipeline`; without it the worker keeps what it was given."""
        self.pipeline = pipeline
        self.active = active
        self._records = records
        self._model = model
        self._lock = threading.Lock()

    def follow(self) -> bool:
        """Load the model that is chosen by now. False when it is not to be had here: then the worker ends.

        Whoever starts it anew gets one that waits for the model, and meanwhile keeps no job from others.
        Raises TransientError when the choice cannot be read.
        """
        with self._lock:
            if self.active is None:
                return True
            active = self._records.promotions.active(self._model.pipeline)
            if active == self.active:
                return True
            try:
                pipeline = load_active(active, self._model)
            except PermanentError as error:
                log.critical("this worker ends: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)  # Celery's warm shutdown: what is in work is finished
                return False
            if pipeline is not self.pipeline:
                log.warning("the active model is %s from now on", _said(pipeline))
            self.pipeline, self.active = pipeline, active
            return True


def _said(pipeline: Pipeline) -> str:
    identity = pipeline.identity
    return f"{identity.name} {identity.version}, sha256 {identity.sha256[:12]}…"
