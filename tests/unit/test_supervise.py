"""The supervisor outlives its children, however often they die and whatever keeps them from starting."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from node import scp
from node.admin import roles, supervise
from node.admin.supervise import Child, Node
from node.admin.tended import RESTART_AT_MOST_S
from node.domain.errors import IchnodeError, SettingsError
from node.orders.listener import Hl7Listener
from node.settings import Hl7Orders, Scp, Settings, Web
from node.store.engine import open_engine
from node.store.records import Records, open_records
from node.store.views import BROKE
from tests.peers import eventually
from tests.ports import free_port


def test_a_folder_of_the_data_is_not_taken_for_the_program(tmp_path: Path) -> None:
    """With data_dir = "node" in the working folder, an editable install found its code there."""
    (tmp_path / "node" / "spool").mkdir(parents=True)
    for child in Node(Settings(data_dir=tmp_path / "node"), None)._children:
        command = [*child.command[: child.command.index("-m")], "-c", "from node.spool import Spool"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)


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


def test_a_data_dir_that_takes_no_lock_is_told_in_one_line(tmp_path: Path) -> None:
    """Somebody else's folder, or a full disk; here something else is in the place of the file."""
    (tmp_path / "up.lock").mkdir()
    with pytest.raises(SettingsError, match=r"up\.lock: Is a directory; choose a folder you own, "):
        Node(Settings(data_dir=tmp_path), None).run(lambda _: None)


@pytest.mark.parametrize("role", ["web", "up"])
def test_a_port_of_the_console_that_is_taken_is_told_by_name(role: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        web = Web(port=taken.getsockname()[1])
        settings = Settings(data_dir=tmp_path, web=web, scp=Scp(port=free_port()))
        told = (
            rf"cannot listen on 127\.0\.0\.1:{web.port} \(web\.host, web\.port\): .*; stop what uses the port"
        )
        node = Node(settings, None)
        run = {"web": lambda: roles.web(settings), "up": lambda: node.run(lambda _: None)}[role]
        with pytest.raises(SettingsError, match=told):
            run()
        assert not any(child.process for child in node._children)


@pytest.mark.parametrize("host", ["10.0.0..5", f"{'x' * 64}.example"])
def test_a_host_that_cannot_be_one_is_told_by_name(host: str) -> None:
    """A slip of the keyboard ended in a traceback."""
    with pytest.raises(SettingsError, match=r"\(scp\.host, scp\.port\): .*label.*; stop what uses"):
        scp.open_socket(Scp(host=host, port=free_port()))
    listener = Hl7Listener(
        Hl7Orders(host=host, port=free_port(), addresses=("10.0.0.0/8",)), Records(open_engine("sqlite://"))
    )
    with pytest.raises(SettingsError, match=r"\(orders\.hl7\.host, port\): .*label"):
        asyncio.run(listener.serve(lambda: True))


@pytest.mark.parametrize("clock_s", [0.0, -3600.0, 3600.0])
def test_a_node_is_up_whatever_happens_to_the_clock_meanwhile(clock_s: float, tmp_path: Path) -> None:
    """As when a machine gets the right time some moments after it booted."""
    settings = Settings(data_dir=tmp_path)
    with closing(open_records(settings)) as records:
        records.views.beat("settle@of the last run", "settle", {}, time.time() + clock_s)
        node = Node(settings, None)
        node._roles, node._children = ["settle"], []
        known = node._heard(records)
        records.views.beat("settle@h", "settle", {BROKE: True}, time.time() + clock_s)
        assert node._missing(records, known) == ["settle"]
        records.views.beat("settle@of this one", "settle", {}, time.time() + clock_s)
        assert node._missing(records, known) == []
        node._wait_ready(records, threading.Event().wait, known)


def test_a_role_that_takes_long_to_come_up_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that still compiled its model after 120 s was killed, and the whole node with it, for ever."""
    monkeypatch.setattr(supervise, "START_S", 0.0)
    monkeypatch.setattr(supervise, "TELL_EVERY_S", 0.1)
    settings, slow = Settings(data_dir=tmp_path), [sys.executable, "-c", "import time; time.sleep(600)"]
    with closing(open_records(settings)) as records, caplog.at_level("WARNING"):
        node = Node(settings, None)
        child = Child("worker", slow)
        node._redis, node._roles, node._children = None, ["settle", "worker"], [child]
        child.start()
        records.views.beat("settle@of this one", "settle", {}, time.time())
        waiting = threading.Thread(target=node._wait_ready, args=(records, threading.Event().wait, {}))
        waiting.start()
        try:
            eventually(lambda: "waits for worker, not up after" in caplog.text)
            assert child.process is not None
            child.process.kill()
            eventually(lambda: child.deaths == 1 and child.process and child.process.poll() is None)
            assert waiting.is_alive()
        finally:
            records.views.beat("worker@of this one", "worker", {}, time.time())
            waiting.join(timeout=20)
            node.stop()
        assert not waiting.is_alive()


def test_a_role_that_ends_at_its_start_ends_the_node(tmp_path: Path) -> None:
    """Settings that cannot be used are told at once."""
    with closing(open_records(Settings(data_dir=tmp_path))) as records:
        node = Node(Settings(data_dir=tmp_path), None)
        child = Child("worker", [sys.executable, "-c", "raise SystemExit(3)"])
        node._roles, node._children = ["worker"], [child]
        child.start()
        with pytest.raises(IchnodeError, match="worker ended with status 3 at its start"):
            node._wait_ready(records, threading.Event().wait, {})
