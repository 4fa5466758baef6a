"""Names of processes, and whether one is gone. Judges none but those whose pids this process can see.

A pid means something only within one boot of one kernel and one pid namespace: two containers may share
a host name and not their pids. So the name tells which namespace the pid is of.
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
LONGEST = 64


def process_name(pid: int | None = None) -> str:
    """host:namespace:pid, at most 64 characters; the host's name is cut where it is longer."""
    suffix = f":{namespace()}:{pid or os.getpid()}"
    return socket.gethostname()[: LONGEST - len(suffix)] + suffix


@cache
def namespace() -> str:
    """Eight hex digits that differ wherever the same pid means another process."""
    try:
        where = BOOT_ID.read_text() + PID_NAMESPACE.readlink().name
    except OSError:  # not Linux: the host's name must do
        where = ""
    return hashlib.sha256(where.encode()).hexdigest()[:8]


def is_visible(name: str) -> bool:
    """Whether the name is of a process of this pid namespace, alive or not."""
    host, _, pid = name.rpartition(":")
    return pid.isdecimal() and bool(host) and name == process_name(int(pid))


def is_gone(name: str) -> bool:
    """True only for a process of this pid namespace whose pid is no longer there."""
    if not is_visible(name):
        return False
    try:
        os.kill(int(name.rpartition(":")[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
