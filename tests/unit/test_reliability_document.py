"""docs/reliability.md names tests: every one of them must be there, or a promise stands on nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[\w/]+/)?\w+\.py)(?:::(\w+))?`", TEXT)))


def test_the_document_names_tests() -> None:
    assert len(NAMED) >= 12


@pytest.mark.parametrize(("file", "part"), NAMED, ids=lambda value: value or "whole")
def test_what_the_document_names_is_there(file: str, part: str) -> None:
    (found,) = [path for path in ROOT.glob("tests/**/*.py") if path.as_posix().endswith("/" + file)]
    assert not part or re.search(rf"^(class|def) {part}\b", found.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_figure_is_left_open() -> None:
    assert not re.search(r"[A-Z]+_FIGURES|TODO|TBD", TEXT)
