"""Which pipeline a worker loads: the one the settings name, or the very weights an admin promoted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from node.domain.choice import Active
from node.domain.errors import PermanentError
from node.settings import Model
from node.store.records import Records
from workers.models.catalogue import CATALOGUE
from workers.models.contract import Pipeline
from workers.models.device import Wish
from workers.models.runtime import load_pipeline
from workers.pulse import REFUSES, Pulse

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_AGAIN_S = 5.0
TAKE_BACK = "put it there, or go back to the model before (`ichnode shadow rollback`)"


def load_active(active: Active, model: Model) -> Pipeline:
    """Raises PermanentError MODEL_REFUSED for a promoted model that is not to be had on this host."""
    promoted = active.promoted
    if promoted is None:
        return load_pipeline(active.pipeline, wish_of(model))
    said = f"{promoted.model.name} {promoted.model.version}, promoted by {promoted.who}"
    try:
        pipeline = load_pipeline(active.pipeline, wish_of(model))
    except PermanentError as error:
        text = f"{said}, cannot be loaded on this host: {error}; {TAKE_BACK}"
        raise PermanentError("MODEL_REFUSED", text) from error
    if pipeline.identity.sha256 != active.sha256:
        found, wanted = pipeline.identity.sha256[:12], active.sha256[:12]
        text = f"{said}, has sha256 {wanted}…, but {active.pipeline} on this host has {found}…; {TAKE_BACK}"
        raise PermanentError("MODEL_REFUSED", text)
    return pipeline


def wish_of(model: Model) -> Wish:
    """What shall run the active model."""
    return Wish(model.device, model.precision, model.compile)


def place_of(pipeline: str) -> str:
    """A pipeline as other processes name it: its catalogue name, else the absolute path of its sidecar."""
    if any(known.name == pipeline for known in CATALOGUE):
        return pipeline
    return str(Path(pipeline).resolve())


def patiently(records: Records, role: str, load: Callable[[], T], is_worth_waiting: Callable[[], bool]) -> T:
    """What `load` gives. Where it cannot, says so in log and heartbeat, takes no work, and tries again.

    Raises the PermanentError at once where waiting is not worth it: nobody but the settings could help.
    """
    said = ""
    pulse = Pulse(records, role, lambda: {REFUSES: said})
    while True:
        try:
            return load()
        except PermanentError as error:
            if not is_worth_waiting():
                raise
            if str(error) != said:
                log.critical("the %s takes no work: %s", role, error)
            said = str(error)
            pulse.once()
        time.sleep(LOOK_AGAIN_S)
