"""Fixtures that more than one ring of tests needs. Nothing here starts a node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.settings import PREFIX


@pytest.fixture
def no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory and an environment without ICHNODE_…; returns the directory."""
    for key in [key for key in os.environ if key.startswith(PREFIX)]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    return tmp_path
