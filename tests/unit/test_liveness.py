"""Names of processes, and who may be called dead."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import liveness
from node.liveness import is_gone, is_visible, namespace, process_name, started


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names and judgements as in another pid namespace of the same host name."""
    monkeypatch.setattr(liveness, "namespace", lambda: "0123abcd")
    yield


def test_a_name_is_host_namespace_start_and_pid() -> None:
    assert process_name() == f"{socket.gethostname()}:{namespace()}:{started(os.getpid()):x}:{os.getpid()}"
    assert started(os.getpid()) > 0
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
    assert not is_gone(f"another-host:{namespace()}:1f:{dead_pid()}")


def test_a_pid_that_was_given_again_is_not_the_process_that_had_it() -> None:
    """A container that is started anew calls its process 1 once more."""
    start, pid = started(os.getpid()), os.getpid()
    before = process_name().replace(f":{start:x}:{pid}", f":{start - 1:x}:{pid}")
    assert is_visible(before) and is_gone(before)
    unknown = process_name().replace(f":{start:x}:{pid}", f":0:{pid}")
    assert is_visible(unknown) and not is_gone(unknown)


def test_the_start_of_a_process_is_read_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(map(str, range(3, 53)))
    (tmp_path / "7/stat").write_text(f"7 (a) 1 (b) {fields}")
    monkeypatch.setattr(liveness, "PROC", tmp_path)
    assert started(7) == 22 and started(8) == 0


def test_a_name_of_an_earlier_version_is_never_judged() -> None:
    assert not is_gone(f"{socket.gethostname()}:{namespace()}:{dead_pid()}")


def test_a_pid_of_another_namespace_says_nothing_whatever_it_is_here(elsewhere: None) -> None:
    name = process_name(dead_pid())
    assert is_gone(name)
    liveness_here = f"{socket.gethostname()}:ffffffff:1f:{dead_pid()}"
    assert not is_gone(liveness_here)


@pytest.mark.parametrize("changed", ["boot", "namespace"])
def test_a_reboot_or_a_namespace_changes_the_name(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = namespace()
    monkeypatch.setattr(liveness, "BOOT_ID", tmp_path / "boot")
    monkeypatch.setattr(liveness, "PID_NAMESPACE", tmp_path / "ns")
    (tmp_path / "boot").write_text(
        "other" if changed == "boot" else Path("/proc/sys/kernel/random/boot_id").read_text()
    )
    there = Path("/proc/self/ns/pid").readlink().name if changed == "boot" else "pid:[1]"
    (tmp_path / "ns").symlink_to(there)
    assert namespace.__wrapped__() != here


def test_a_process_in_a_real_namespace_of_its_own_is_not_judged_by_its_pid() -> None:
    """The same host name, another pid namespace: its pid 1 is not our pid 1."""
    if shutil.which("unshare") is None:
        pytest.skip("not on the PATH: unshare")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c",
               "from node.liveness import process_name; print(process_name())"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system makes no pid namespace: {done.stderr.strip()}")
    name = done.stdout.strip()
    assert name.rpartition(":")[2] == "1" and name != process_name(1)
    assert not is_gone(name)


def test_a_process_of_somebody_else_that_lives_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert not is_gone(process_name(1))


@pytest.mark.parametrize(
    "name",
    ["", ":", "12", f"{socket.gethostname()}", f"{socket.gethostname()}:", f"{socket.gethostname()}:-1",
     f"{socket.gethostname()}:x", f"{socket.gethostname()}:1²", f"{socket.gethostname()}:0",
     f"{socket.gethostname()}:4194304", f"{socket.gethostname()}:0123abcd:x:1"],
)  # fmt: skip
def test_what_is_no_name_is_never_judged(name: str) -> None:
    assert not is_gone(name)
