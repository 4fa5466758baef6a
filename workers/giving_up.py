"""How a worker ends that cannot start, or go on: with the reason in the log, whatever Celery would say."""

from __future__ import annotations

import logging
import os
import signal
from typing import NoReturn

import torch

log = logging.getLogger(__name__)


def give_up(who: str, error: Exception) -> NoReturn:
    """End this process at once. Nothing may have begun that needs an orderly end.

    A SystemExit would not do: while a worker starts, Celery takes it for a wish to stop, tells nobody the
    reason and ends with 0.
    """
    log.critical("the %s cannot start: %s", who, error)
    logging.shutdown()
    os._exit(1)


def end_if_device_lost(error: Exception) -> None:
    """By Celery's warm shutdown, where `error` is one that a GPU raises again until the process ends.

    Every series after it would fail in turn. Whoever starts the worker anew gets a sound one.
    """
    if isinstance(error, torch.AcceleratorError):
        said = str(error).strip().partition("\n")[0]
        log.critical("this worker ends: its device is lost: %s", said)
        os.kill(os.getpid(), signal.SIGTERM)
