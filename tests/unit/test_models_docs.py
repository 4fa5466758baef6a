"""The worked example of docs/models.md is run as it stands there: file, line, weights, settings."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from node.domain.findings import CLASSES
from workers.analyse import analyse
from workers.load import load_head
from workers.models import families
from workers.models.runtime import load_pipeline
from workers.phantom_series import write_series

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the page, with its line among the builders and its weights in the working folder."""
    module_text, line, weights = _blocks("python")
    path = tmp_path / "brightness.py"
    path.write_text(module_text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("brightness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "brightness", module)
    spec.loader.exec_module(module)
    added = eval("{" + line.strip() + "}", {"brightness": module})
    monkeypatch.setattr(families, "BUILDERS", {**families.BUILDERS, **added})
    monkeypatch.chdir(tmp_path)
    exec(weights, {})
    yield module


def test_the_example_of_the_page_reads_a_head(example: ModuleType, tmp_path: Path) -> None:
    (settings,) = _blocks("toml")
    pipeline = load_pipeline(tomllib.loads(settings)["model"]["pipeline"])
    assert isinstance(pipeline, example.BrightnessPipeline) and pipeline.identity.name == "brightness"
    files = write_series(tmp_path / "head", 3, ("epidural",), slices=24, size=256)
    analysis = analyse(load_head(files), pipeline, series_instance_uid="1.2", revision=1)
    assert analysis.findings.classes["any"].probability > 0.5 and analysis.masks.any()
    assert analysis.findings.not_evaluated == tuple(name for name in CLASSES if name != "any")
