"""A node for tests that look at it from outside: a module says its `settings`; the rest follows from them.

A module that needs something in the records has a fixture of that name on top of `blank_records`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from node.settings import Settings
from node.store.records import Records, open_records
from tests.s3 import KEYS, S3Server
from tests.site import Site, browser


@pytest.fixture
def blank_records(settings: Settings, blank_sqlite: Path) -> Iterator[Records]:
    """The records of the node, in SQLite, with nothing in them."""
    shutil.copyfile(blank_sqlite, settings.data_dir / "ichnode.sqlite3")
    opened = open_records(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A bucket, for those who ask for it."""
    made = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield made
    made.stop()


@pytest.fixture
def emptied(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are in the environment, and nothing is in it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server.empty()


@pytest.fixture
def site(records: Records, settings: Settings) -> Site:
    return Site(records, settings)


@pytest.fixture
def client(settings: Settings, records: Records) -> TestClient:
    """A browser on the machine of a node without users; follows no redirection."""
    return browser(settings, records, follow_redirects=False)
