"""SIGTERM is heard whenever it comes: also while the main thread looks whether it has come."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

from node.admin.roles import stopping

ROUNDS = 100
LISTENING = f"""
import signal
from node.admin.roles import stopping

signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
for _ in range({ROUNDS}):
    with stopping() as stop:
        while not stop(0):
            pass
print("heard all", flush=True)
"""


def test_no_signal_is_lost_whatever_the_main_thread_does() -> None:
    """A lock that the main thread and the handler both want would hang it within a few rounds."""
    with subprocess.Popen([sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGTERM)
            time.sleep(1e-3)
        process.kill()
        assert process.stdout.read() == "heard all\n", "it no longer hears SIGTERM"


def test_every_thread_hears_of_it_at_once() -> None:
    heard: list[bool] = []
    with stopping() as stop:
        threads = [threading.Thread(target=lambda: heard.append(stop(60))) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert not stop(0) and not stop(0.01)
        stop.__self__.set()  # type: ignore[attr-defined]  # what the handler does
        for thread in threads:
            thread.join(30)
    assert heard == [True] * 5 and stop(60)
