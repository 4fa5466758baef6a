"""What tests of the console share: a node with one PACS, its records in SQLite, a browser on its machine.

A module that needs other settings, or something in the records, has a fixture of the same name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from jinja2 import Environment, FileSystemBytecodeCache

from node.admin.web.app import make_app
from node.settings import Destination, Settings
from node.store.records import Records, open_records
from tests.site import Site


@pytest.fixture(scope="session", autouse=True)
def _templates_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each node compiles its templates, which takes longer than most of its answers."""
    cache = FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.admin.web.site.Environment", partial(Environment, bytecode_cache=cache))
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    return Settings(data_dir=tmp_path, destination=(Destination(name="pacs", ae_title="PACS"),))


@pytest.fixture
def records(settings: Settings, blank_sqlite: Path) -> Iterator[Records]:
    shutil.copyfile(blank_sqlite, settings.data_dir / "ichnode.sqlite3")
    opened = open_records(settings)
    yield opened
    opened.close()


@pytest.fixture
def site(records: Records, settings: Settings) -> Site:
    return Site(records, settings)


@pytest.fixture
def client(settings: Settings, records: Records) -> TestClient:
    """A browser on the machine of a node without users; follows no redirection."""
    app = make_app(settings, records)
    headers = {"Accept": "text/html"}
    return TestClient(app, base_url="http://127.0.0.1:8080", headers=headers, follow_redirects=False)
