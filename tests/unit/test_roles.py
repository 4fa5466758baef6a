"""Children end with their parent, also when it ends before they have become what they are to be."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from node.admin.roles import beating, prepare
from node.settings import Settings
from node.store.records import Records, open_records
from tests.peers import eventually
from tests.ports import free_port
from workers import pulse

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's end"
)

HEARD_TOO_EARLY = """
import os, signal, subprocess, sys
from node.admin.roles import ending_with_this

signal.signal(signal.SIGTERM, lambda *_: None)  # as a supervisor listens for its own end
bind = ending_with_this()


def told_before_exec():
    bind()
    os.kill(os.getpid(), signal.SIGTERM)


child = subprocess.Popen([sys.executable, "-c", "print('goes on')"], preexec_fn=told_before_exec)
print(child.wait())
"""

DIES_AT_START = """
import sys
from pathlib import Path
from node.admin import roles

def work(parent):
    with Path(sys.argv[1]).open("a") as starts:
        starts.write(".")
    raise RuntimeError("no certificate")

roles._prefork([work])
"""
NO_ROOM_FOR_A_CHILD = """
import os, sys
from pathlib import Path
from node.admin import roles

fork, calls = os.fork, []

def no_memory_at_first():
    calls.append(1)
    if len(calls) in (2, 3):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

def work(parent):
    with Path(sys.argv[1]).open("a") as starts:
        starts.write(".")

os.fork = no_memory_at_first
roles._prefork([work])
"""


def _starts(code: str, tmp_path: Path, seconds: float) -> int:
    """How often a child of the listener was started within so many seconds."""
    starts = tmp_path / "starts"
    parent = subprocess.Popen([sys.executable, "-c", code, str(starts)], stderr=subprocess.DEVNULL)
    while not starts.exists() and parent.poll() is None:
        time.sleep(0.05)
    time.sleep(seconds)
    parent.terminate()
    assert parent.wait(timeout=30) == 0
    return len(starts.read_text())


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "from node.admin.roles import die_with_parent; die_with_parent({}); print('goes on')"
    orphan, child = _run(code.format("-1")), _run("import os; " + code.format("os.getppid()"))
    assert (orphan.returncode, orphan.stdout) == (1, "")
    assert (child.returncode, child.stdout) == (0, "goes on\n"), child.stderr


def test_word_of_the_end_is_not_lost_between_fork_and_exec() -> None:
    done = _run(HEARD_TOO_EARLY)
    assert done.stdout == f"{-signal.SIGTERM}\n", done.stderr


def test_a_listener_that_dies_at_its_start_is_started_ever_more_slowly(tmp_path: Path) -> None:
    """Once every 0.2 s it took a core, and wrote a traceback each time."""
    assert 3 <= _starts(DIES_AT_START, tmp_path, 5) <= 7


def test_a_listener_for_which_there_is_no_memory_now_is_started_later(tmp_path: Path) -> None:
    """The parent ended in its place, and every association with it."""
    assert _starts(NO_ROOM_FOR_A_CHILD, tmp_path, 3) >= 2


def test_the_web_role_takes_its_leave(tmp_path: Path) -> None:
    """Told to stop it ends with 0, and no process that is gone stands on the console."""
    port = free_port()
    (tmp_path / "ichnode.toml").write_text(f'data_dir = "data"\nweb = {{ port = {port} }}\n')
    records = open_records(Settings(data_dir=tmp_path / "data"))
    process = subprocess.Popen([sys.executable, "-m", "node", "web"], cwd=tmp_path)
    while not records.views.processes(0) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert records.views.processes(0) == []
    records.close()


def test_a_role_that_breaks_takes_no_leave(tmp_path: Path) -> None:
    """Its row went as if it had been told to stop: nobody missed it, where others of its role went on."""

    def alive() -> list[bool]:
        return [row["alive"] for row in records.views.processes(time.time())]

    with closing(open_records(Settings(data_dir=tmp_path))) as records:
        for _ in range(2):
            with suppress(RuntimeError), beating(records, "deliver"):
                eventually(lambda: alive() == [True])
                raise RuntimeError("no certificate")
            assert alive() == [False]
        with beating(records, "deliver"):
            eventually(lambda: alive() == [True])
        assert alive() == []


def test_a_new_data_dir_is_nobody_elses(tmp_path: Path) -> None:
    """The database in it names patients; `mkdir` gives its mode to the last folder alone."""
    settings = Settings(data_dir=tmp_path / "var" / "data")
    prepare(settings)
    for folder in (settings.data_dir, settings.data_dir / "spool"):
        assert not folder.stat().st_mode & 0o007, folder
    settings.data_dir.chmod(0o755)
    prepare(settings)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o755, "what an admin chose stays"


def test_a_worker_that_takes_its_leave_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat on its way put the row back after it was removed, and the worker was missed for a day."""
    monkeypatch.setattr(pulse, "LEAVE_WITHIN_S", 20.0)
    told: list[str] = []
    left = threading.Event()

    class Views:
        def beat(self, *_: object) -> None:
            on_its_way.set()
            left.wait(0.5)
            told.append("beats")

        def part(self, _: str) -> None:
            told.append("leaves")
            left.set()

    on_its_way = threading.Event()
    worker = pulse.Pulse(cast(Records, SimpleNamespace(views=Views())), "worker", dict)
    worker.start()
    assert on_its_way.wait(20)
    worker.stop()
    eventually(lambda: len(told) == 2)
    assert told == ["beats", "leaves"]
