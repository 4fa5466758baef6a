"""Names of processes, and who may be called dead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from node.liveness import is_gone, process_name


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_name_is_host_and_pid() -> None:
    assert process_name() == f"{socket.gethostname()}:{os.getpid()}"
    assert process_name(17).endswith(":17")


@pytest.mark.parametrize("length", [10, 57, 64, 200])
def test_a_name_fits_its_column_whatever_the_host_is_called(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * length)
    assert len(process_name(4194304)) <= 64
    assert process_name(4194304).endswith(":4194304")


def test_this_process_is_not_gone() -> None:
    assert not is_gone(process_name())


def test_a_process_that_ended_is_gone() -> None:
    assert is_gone(process_name(dead_pid()))


def test_a_process_that_ended_is_gone_on_a_host_with_a_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 64)
    assert is_gone(process_name(dead_pid()))


def test_a_process_of_another_host_is_never_judged() -> None:
    assert not is_gone(f"another-host:{dead_pid()}")


def test_a_process_of_somebody_else_that_lives_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert not is_gone(process_name(1))


@pytest.mark.parametrize(
    "name",
    ["", ":", "12", f"{socket.gethostname()}", f"{socket.gethostname()}:", f"{socket.gethostname()}:-1",
     f"{socket.gethostname()}:x", f"{socket.gethostname()}:1²", f"{socket.gethostname()}:0"],
)  # fmt: skip
def test_what_is_no_name_is_never_judged(name: str) -> None:
    assert not is_gone(name)
