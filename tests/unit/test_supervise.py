"""The supervisor outlives its children, however often they die and whatever keeps them from starting."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from node.admin import supervise
from node.admin.supervise import RESTART_AT_MOST_S, Child


def test_a_child_that_died_a_thousand_times_is_started_again() -> None:
    child = Child("worker", [sys.executable, "-c", ""], deaths=1100)
    child.start()
    assert child.process
    child.process.wait()
    child.tend()
    assert child.process is None
    assert 0 < child.restart_at - time.monotonic() <= RESTART_AT_MOST_S


def test_a_child_that_cannot_be_started_now_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    child = Child("worker", [sys.executable, "-c", ""])
    with monkeypatch.context() as patch:
        patch.setattr(supervise.subprocess, "Popen", no_memory)
        child.tend()
    assert child.process is None and child.restart_at > time.monotonic()
    child.restart_at = 0
    child.tend()
    assert isinstance(child.process, subprocess.Popen)
    child.process.wait()
