"""Makes this process yield to every other one. Never fails: where a system can do less, it does less."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil


def yield_to_others(nice: int) -> None:
    """So nice towards others for the CPU (nice(2); 0: not at all), the last for the disk, and the first to go
    when memory runs out.

    Where the scheduler groups sessions (sched(7), autogroup), the group as a whole is made as nice.
    SCHED_IDLE would go further, and starve on a machine that is always busy. Threads inherit it: call this
    first.
    """
    if not nice:
        return
    with contextlib.suppress(OSError):
        os.nice(nice)
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    for file, value in (("autogroup", str(nice)), ("oom_score_adj", "1000")):
        with contextlib.suppress(OSError):
            Path("/proc/self", file).write_text(value)
