"""How a worker ends that cannot start: with the reason in the log and status 1, whatever Celery would say."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

log = logging.getLogger(__name__)


def give_up(who: str, error: Exception) -> NoReturn:
    """End this process at once. Nothing may have begun that needs an orderly end.

    A SystemExit would not do: while a worker starts, Celery takes it for a wish to stop, tells nobody the
    reason and ends with 0.
    """
    log.critical("the %s cannot start: %s", who, error)
    logging.shutdown()
    os._exit(1)
