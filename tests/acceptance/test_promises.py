"""Listeners killed while images stream in: what was answered is recorded. The long run is `promises.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.promises import run

pytestmark = pytest.mark.acceptance


def test_what_was_answered_is_recorded_however_often_listeners_are_killed(tmp_path: Path) -> None:
    found = run(tmp_path, seconds=4.0, senders=2)
    assert found.kills > 0 and found.answered > 0
    assert (found.without_record, found.without_file) == (0, 0)
