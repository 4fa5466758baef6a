"""What tests of the console share: a node with one PACS, and templates that are compiled once.

A module that needs other settings, or something in the records, has a fixture of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from jinja2 import Environment, FileSystemBytecodeCache

from node.settings import Destination, Settings
from node.store.records import Records


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
def records(blank_records: Records) -> Records:
    return blank_records
