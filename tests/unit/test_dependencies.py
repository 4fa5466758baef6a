"""What the node is built on: direct dependencies in tested ranges, and no weights that can run code."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
FOR_TESTS = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
RUNS_CODE = ("pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")


@pytest.mark.parametrize("requirement", NEEDED + FOR_TESTS, ids=lambda r: str(r.name))
def test_a_dependency_has_a_range_and_the_tests_run_within_it(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {">=", "=="} and operators & {"<", "=="}, "from which version, and below which"
    if requirement.marker is None or requirement.marker.evaluate():
        assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


@pytest.mark.parametrize("file", sorted([*ROOT.glob("node/**/*.py"), *ROOT.glob("workers/**/*.py")]), ids=str)
def test_no_file_is_read_as_code(file: Path) -> None:
    """Weights are safetensors; what torch itself wrote, such as a checkpoint, is read as weights alone."""
    for name, call in calls(ast.parse(file.read_text())):
        if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert given(call, "weights_only") is True, f"line {call.lineno}: {name} without weights_only"
        if name in ("np.load", "numpy.load"):
            assert given(call, "allow_pickle") in (None, False), f"line {call.lineno}: {name} of pickles"
        library, _, function = name.partition(".")
        assert not (library in RUNS_CODE and function in ("load", "loads", "open", "Unpickler")), name
        assert name not in ("torch.jit.load", "torch.package.PackageImporter", "yaml.load"), name


def test_the_shipped_weights_are_safetensors() -> None:
    shipped = {path.suffix for path in (ROOT / "workers" / "models" / "weights").iterdir()}
    assert shipped <= {".safetensors", ".json"}
