"""A PostgreSQL server of the tests' own: a throw-away cluster on loopback, stopped by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.peers import REQUIRE
from tests.ports import free_port

DEBIAN = Path("/usr/lib/postgresql")


def installed() -> Path | None:
    """The folder with `initdb` and `postgres`, if there is one."""
    newest = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if newest:
        return newest[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def binaries() -> Path:
    """The same; skips (or fails) where there is none."""
    if found := installed():
        return found
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"no PostgreSQL server here ({REQUIRE}=1)")
    pytest.skip("no PostgreSQL server here")


class Postgres:
    """One cluster; `create` makes a database in it, empty or as its template is, and returns its URL.

    In a `folder` of the caller's it outlives this object, and is found again there on the same `port`.
    """

    def __init__(self, folder: Path | None = None, port: int = 0) -> None:
        programs = binaries()
        self._keep = folder is not None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="ichnode-pg-", dir=_in_memory()))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._port = port or free_port()
        self._count = 0
        data = self._folder / "data"
        self._run_as = self._unprivileged()
        if not data.exists():
            self._call(
                str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"
            )
        self._command = [
            *self._run_as, str(programs / "postgres"), "-D", str(data), "-p", str(self._port),
            "-k", str(self._folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._folder)
        self._wait()

    def halt(self, number: signal.Signals = signal.SIGINT) -> None:
        """As an administrator's restart: what is connected is cut off, what was committed stays.

        With SIGQUIT it ends at once, without a checkpoint, and recovers from its log at the next start.
        """
        self.process.send_signal(number)
        self.process.wait(timeout=60)

    def _unprivileged(self) -> list[str]:
        """PostgreSQL refuses to run as root."""
        if os.getuid() != 0:
            return []
        user = next((name for name in ("postgres", "nobody") if _exists(name)), None)
        if user is None or shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
        entry = pwd.getpwnam(user)
        os.chown(self._folder, entry.pw_uid, entry.pw_gid)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]

    def _call(self, *command: str) -> None:
        subprocess.run([*self._run_as, *command], check=True, capture_output=True, cwd=self._folder)

    def _admin(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host="127.0.0.1", port=self._port, user="postgres", autocommit=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._admin().close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, self._log()
                time.sleep(0.05)

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def create(self, template: str = "template1") -> str:
        self._count += 1
        name = f"test_{self._count}"
        with self._admin() as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")  # type: ignore[call-overload]
        return self.url(name)

    def drop(self, url: str) -> None:
        """Each has a thousand files: hundreds would fill the memory, and take minutes to remove."""
        with self._admin() as admin:
            admin.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")  # type: ignore[call-overload]

    @property
    def socket(self) -> Path:
        """On which it answers this machine, beside loopback."""
        return self._folder / f".s.PGSQL.{self._port}"

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/{name}"

    def disconnect_all(self) -> None:
        """Break every connection of others, as a restart of the server does."""
        with self._admin() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)  # at once: nobody needs these databases again
        self.process.wait(timeout=20)
        if not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)


def _in_memory() -> str | None:
    """/dev/shm, where pytest's own folders lie there too (tests/conftest.py): then there is room."""
    place = "/dev/shm"
    return place if os.environ.get("PYTEST_DEBUG_TEMPROOT") == place else None


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
