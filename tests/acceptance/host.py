"""One host of several: plays the init system. Starts roles, starts again what dies, ends them when it ends.

`python -m tests.acceptance.host NAME CONFIG ROLE…`. Run under `unshare --pid --uts` it is process 1 of a host
of its own, with its own host name and its own pids.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

AGAIN_S = 1.0


def main() -> None:
    name, config, *roles = sys.argv[1:]
    if os.getpid() == 1:
        socket.sethostname(name)
    over = False

    def end(*_: object) -> None:
        nonlocal over
        over = True

    signal.signal(signal.SIGTERM, end)
    running = {role: _start(role, config) for role in roles}
    started = dict.fromkeys(roles, time.monotonic())
    while not over:
        time.sleep(0.1)
        for role, process in running.items():
            if process.poll() is not None and time.monotonic() - started[role] > AGAIN_S:
                print(f"{name}: {role} ended with status {process.returncode}; again", file=sys.stderr)
                running[role], started[role] = _start(role, config), time.monotonic()
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()


def _start(role: str, config: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "node", role, "--config", config])


if __name__ == "__main__":
    main()
