"""Names of processes, and whether one of this host is gone. A process of another host is never judged."""

from __future__ import annotations

import os
import socket


def process_name(pid: int | None = None) -> str:
    """host:pid, at most 64 characters."""
    suffix = f":{pid or os.getpid()}"
    return socket.gethostname()[: 64 - len(suffix)] + suffix


def is_gone(name: str) -> bool:
    """True only for a process of this host whose pid is no longer there."""
    host, _, pid = name.rpartition(":")
    if not pid.isdecimal() or name != process_name(int(pid)) or not host:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
