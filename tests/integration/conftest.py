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
from tests.ceph import Ceph
from tests.s3 import KEYS, Moto, S3Server
from tests.site import Site, browser


@pytest.fixture
def blank_records(settings: Settings, blank_sqlite: Path) -> Iterator[Records]:
    """The records of the node, in SQLite, with nothing in them."""
    shutil.copyfile(blank_sqlite, settings.data_dir / "ichnode.sqlite3")
    opened = open_records(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """Ceph's RADOS gateway; skips where it is not installed."""
    made = Ceph()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    made = Moto(tmp_path_factory.mktemp("s3") / "log")
    yield made
    made.stop()


@pytest.fixture(scope="module", params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """A bucket of each maker, for those who ask for it."""
    made: S3Server = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def emptied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the bucket are in the environment, and nothing is in it, for those who ask for one."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    if "server" in request.fixturenames:
        request.getfixturevalue("server").empty()


@pytest.fixture
def site(records: Records, settings: Settings) -> Site:
    return Site(records, settings)


@pytest.fixture
def client(settings: Settings, records: Records) -> TestClient:
    """A browser on the machine of a node without users; follows no redirection."""
    return browser(settings, records, follow_redirects=False)
