"""`ichnode up`: the whole node as child processes. Restarts what dies; leaves nothing behind at its end."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from node import scp
from node.admin.reach import check_reachable
from node.admin.roles import ending_with_this, prepare, stopping
from node.admin.tended import Tended
from node.broker import BundledRedis
from node.domain.errors import IchnodeError, SettingsError, TransientError
from node.settings import Settings
from node.store.records import Records, open_records
from node.store.views import BROKE

log = logging.getLogger(__name__)

START_ORDER = ("listen", "settle", "worker", "deliver", "announce", "web", "orders", "shadow-worker")
NOT_WAITED_FOR = ("shadow-worker",)
"""The node is up without them, whatever becomes of them."""
STOP_GRACE_S = 7.0
START_S = 120.0
"""What ends within ends the node: its settings cannot be used. Later it is started again."""
TELL_EVERY_S = 30.0


@dataclass
class Child(Tended):
    """A process of a program of its own, in a session of its own."""

    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def launch(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            start_new_session=True,
            preexec_fn=ending_with_this(),  # safe: this process has no threads
        )

    def ended(self) -> int | None:
        if self.process is None or self.process.poll() is None:
            return None
        status, self.process = self.process.returncode, None
        return status

    @property
    def is_there(self) -> bool:
        return self.process is not None

    def signal_all(self, number: signal.Signals) -> None:
        """To the child and whatever it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


PROGRAM = (sys.executable, "-P", "-m", "node")
"""Not looked for in the working folder: a data_dir of the name "node" may lie there."""


class Node:
    """All roles of one machine."""

    def __init__(self, settings: Settings, config: Path | None) -> None:
        self._settings = settings
        self._redis = None if settings.broker.url else BundledRedis(settings)
        self._roles = roles_of(settings)
        self._children = [Child(role, [*PROGRAM, role, *_options(settings, config)]) for role in self._roles]

    def run(self, on_ready: Callable[[Records], None]) -> None:
        """Until SIGTERM or SIGINT. Raises IchnodeError when the node cannot start."""
        prepare(self._settings)
        self._lock = _only_one(self._settings.data_dir)
        scp.open_socket(self._settings.scp).close()  # a port that is taken is told at once, and by name
        scp.open_socket(self._settings.web, "web").close()
        records = open_records(self._settings)
        check_reachable(self._settings, records)  # told at once, too, and not as the end of a child
        heard = self._heard(records)
        with stopping() as stop:
            try:
                self._start_redis()
                for child in self._children:
                    child.start()
                self._wait_ready(records, stop, heard)
                if not stop(0):
                    on_ready(records)
                while not stop(0.3):
                    self._tend()
            finally:
                records.close()
                self.stop()

    def _everything(self) -> list[Child]:
        return [*([self._redis_child] if self._redis else []), *self._children]

    def _start_redis(self) -> None:
        if self._redis is None:
            return
        self._redis.clean()
        self._redis_child = Child("redis", self._redis.command())
        self._redis_child.start()
        self._redis.wait_ready()

    def _heard(self, records: Records) -> dict[str, float]:
        """When each process was heard of last, by its own clock."""
        return {p["process"]: p["seen_at"] for p in records.views.processes(time.time())}

    def _missing(self, records: Records, heard: Mapping[str, float]) -> list[str]:
        """The roles that nobody was heard of since `heard`."""
        now_heard = records.views.processes(time.time())
        new = [p for p in now_heard if p["seen_at"] != heard.get(p["process"])]
        alive = {p["role"] for p in new if BROKE not in p["detail"]}
        return [role for role in self._roles if role not in alive and role not in NOT_WAITED_FOR]

    def _wait_ready(
        self, records: Records, stop: Callable[[float], bool], heard: Mapping[str, float]
    ) -> None:
        """Every role was heard of since `heard`, however long it takes: a model may have to be compiled.

        Raises IchnodeError when one ends at its start.
        """
        began = told = time.monotonic()
        missing = self._roles
        while not stop(0.1):
            now = time.monotonic()
            if now - began < START_S:
                self._require_none_ended()
                missing = self._missing(records, heard)
            else:
                self._tend()
                with contextlib.suppress(TransientError):  # the others go on meanwhile
                    missing = self._missing(records, heard)
            if not missing:
                return
            if now - told >= TELL_EVERY_S:
                told = now
                why = "a slow disk, or a model that is compiled, takes its time"
                log.warning("waits for %s, not up after %.0f s; %s", ", ".join(missing), now - began, why)

    def _require_none_ended(self) -> None:
        for child in self._children:
            if child.name not in NOT_WAITED_FOR and child.process and child.process.poll() is not None:
                status = child.process.returncode
                raise IchnodeError(f"{child.name} ended with status {status} at its start")

    def _tend(self) -> None:
        for child in self._everything():
            child.tend()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is still there; Redis goes last."""
        children = [child for child in self._children if child.process]
        for child in children:
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < deadline and any(c.process and c.process.poll() is None for c in children):
            time.sleep(0.05)
        redis = getattr(self, "_redis_child", None)
        if redis is not None:
            children.append(redis)
        for child in children:
            child.signal_all(signal.SIGKILL)
            if child.process:
                child.process.wait()
        if self._redis is not None:
            self._redis.clean()


def roles_of(settings: Settings) -> list[str]:
    """The roles that these settings give something to do, in the order in which they start."""
    return [role for role in START_ORDER if role not in settings.idle_roles]


def _only_one(data_dir: Path) -> TextIO:
    """A lock that lasts as long as this process. Raises SettingsError when it cannot be had."""
    file = data_dir / "up.lock"
    try:
        lock = file.open("w")
    except OSError as error:
        text = f"data_dir: {file}: {error.strerror}; choose a folder you own, on a disk that has room"
        raise SettingsError(text) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        text = f"another `ichnode up` uses {data_dir}; stop it, or choose another data_dir"
        raise SettingsError(text) from None
    return lock


def _options(settings: Settings, config: Path | None) -> list[str]:
    options = ["--data-dir", str(settings.data_dir.resolve())]
    return [*options, "--config", str(config)] if config else options
