"""Fixtures that more than one ring of tests needs. Nothing here starts a node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.settings import PREFIX
from node.store.engine import migrate, open_engine
from node.store.records import Records
from tests.postgres import Postgres


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


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.sqlite3"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create()


@pytest.fixture
def records(database_url: str) -> Iterator[Records]:
    """Records in an empty database of each kind, with the schema made."""
    engine = open_engine(database_url)
    migrate(engine)
    made = Records(engine)
    yield made
    made.close()
