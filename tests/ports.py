"""Ports for servers of the tests: of each no other test, worker or run is told, and no connection takes it.

A port that the kernel names is free only until it is closed again: a connection, or another test that asks
for one, may have it before the server that it is meant for. So each process of the tests has a block of its
own, held by a lock file as long as it lives, below those that the kernel gives to connections. Nothing here
keeps a foreign program from a port; where one listens already, the next port is taken.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from itertools import count
from pathlib import Path

FIRST, BLOCK, BLOCKS = 12000, 400, 50
"""Linux takes ports for connections from 32768 on (ip(7), ip_local_port_range)."""


class Ports:
    """The block of one process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o777, exist_ok=True)
        self._numbers = count()
        for block in range(BLOCKS):
            lock = os.open(folder / str(block), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._lock = lock  # until this process ends
            self._first = FIRST + block * BLOCK
            return
        raise RuntimeError(f"{BLOCKS} processes of tests hold ports already; end some, see {folder}")

    def take(self) -> int:
        """One after the other, so that one that was given back rests as long as may be."""
        for _ in range(BLOCK):
            port = self._first + next(self._numbers) % BLOCK
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise RuntimeError(f"no port is free from {self._first} to {self._first + BLOCK - 1}")


_mine: tuple[int, Ports] | None = None


def free_port() -> int:
    """A loopback port for a server; a forked process takes from a block of its own."""
    global _mine
    if _mine is None or _mine[0] != os.getpid():
        _mine = (os.getpid(), Ports(Path(tempfile.gettempdir()) / f"ichnode-test-ports-{os.getuid()}"))
    return _mine[1].take()
