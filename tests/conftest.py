"""Fixtures that more than one ring of tests needs. Nothing here starts a node."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.settings import PREFIX
from node.store.engine import migrate, open_engine
from node.store.records import Records
from tests.postgres import Postgres

IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
ACCEPTANCE = "tests/acceptance/"


def pytest_configure() -> None:
    os.environ.pop("COLUMNS", None)  # tables are as wide as they are, whatever the terminal of the run
    _work_in_memory()


def _work_in_memory() -> None:
    """Temporary folders in memory where there is room: else most of a run is waiting for a disk to sync.

    What `fsync` is worth shows when the power fails, on a disk as little as here. TMPDIR or
    PYTEST_DEBUG_TEMPROOT (pytest's own) name another place.
    """
    if "TMPDIR" in os.environ or not IN_MEMORY.is_dir() or not os.access(IN_MEMORY, os.W_OK):
        return
    if min(shutil.disk_usage(IN_MEMORY).free, psutil.virtual_memory().available / 2) >= ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported and collected stays: gone through now and never again.

    Else each full collection stops every thread of a run for a second or more, servers and peers among them.
    """
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: a file goes to one worker, which keeps what the file shares; acceptance as a whole to one.

    So two whole nodes never wait for each other's cores, and what is fast runs beside what waits.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByRing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ACCEPTANCE if nodeid.startswith(ACCEPTANCE) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # acceptance comes first: it takes longest
    return ByRing(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch on one thread, where any test uses it: several only wait for one another on busy cores."""
    if "torch" in sys.modules:  # not imported for nothing
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory and an environment without ICHNODE_…; returns the directory."""
    for key in [key for key in os.environ if key.startswith(PREFIX)]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run; skips where none is installed."""
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def blank_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with today's schema and no row, to be copied: making one takes longer than many a test."""
    path = tmp_path_factory.mktemp("blank") / "blank.sqlite3"
    _migrated(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def blank_postgres(postgres: Postgres) -> str:
    """The same in PostgreSQL: the name of a database to be a template."""
    url = postgres.create()
    _migrated(url)
    return url.rpartition("/")[2]


def _migrated(url: str) -> None:
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database."""
    return str(request.param)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[str]:
    """A database of each kind without a schema."""
    if database == "sqlite":
        yield f"sqlite:///{tmp_path}/test.sqlite3"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def records(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Records]:
    """Records in a database of each kind, with the schema made and nothing in it."""
    if database == "sqlite":
        shutil.copyfile(request.getfixturevalue("blank_sqlite"), tmp_path / "test.sqlite3")
        with closing(Records(open_engine(f"sqlite:///{tmp_path}/test.sqlite3"))) as made:
            yield made
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create(request.getfixturevalue("blank_postgres"))
    with closing(Records(open_engine(url))) as made:
        yield made
    server.drop(url)
