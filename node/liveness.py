"""Names of processes, and whether one is gone. Judges none but those whose pids this process can see.

A pid means something only within one boot of one kernel and one pid namespace: two containers may share
a host name and not their pids. So the name tells which namespace the pid is of. And a pid is given again: a
container that is started anew calls its process 1 once more, in a namespace that may have the old number. So
the name tells when the process started, too.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
PROC = Path("/proc")
LONGEST = 64
_NAME = re.compile(r".+:[0-9a-f]{8}:([0-9a-f]+):([1-9][0-9]*)", re.ASCII)


def process_name(pid: int | None = None) -> str:
    """host:namespace:start:pid, at most 64 characters; the host's name is cut where it is longer."""
    if pid is None or pid == os.getpid():
        return _own_name()
    return _named(started(pid), pid)


@cache
def _own_name() -> str:
    return _named(started(os.getpid()), os.getpid())


os.register_at_fork(after_in_child=_own_name.cache_clear)


def started(pid: int) -> int:
    """Clock ticks from boot to the start of a process, proc(5); 0 where that cannot be told."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[19])  # field 22; the name in brackets may hold anything
    except (OSError, IndexError, ValueError):
        return 0


@cache
def namespace() -> str:
    """Eight hex digits that differ wherever the same pid means another process."""
    try:
        where = BOOT_ID.read_text() + PID_NAMESPACE.readlink().name
    except OSError:  # not Linux: the host's name must do
        where = ""
    return hashlib.sha256(where.encode()).hexdigest()[:8]


def _named(start: int, pid: int) -> str:
    suffix = f":{namespace()}:{start:x}:{pid}"
    return socket.gethostname()[: LONGEST - len(suffix)] + suffix


def is_visible(name: str) -> bool:
    """Whether the name is of a process of this pid namespace, alive or not."""
    start, pid = _parts(name)
    return start is not None and name == _named(start, pid)


def is_gone(name: str) -> bool:
    """True only for a process of this pid namespace whose pid is no longer there, or is somebody else's."""
    start, pid = _parts(name)
    if start is None or name != _named(start, pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = started(pid)
    return bool(start and now and start != now)


def _parts(name: str) -> tuple[int | None, int]:
    """Start and pid; (None, 0) for what is no name."""
    found = _NAME.fullmatch(name)
    return (int(found[1], 16), int(found[2])) if found else (None, 0)
