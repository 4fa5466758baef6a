"""Programs of other makers that tests talk to. A missing one skips the test, unless peers are required."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

REQUIRE = "ICHNODE_REQUIRE_PEERS"


def requires(*programs: str) -> None:
    """Skip, or fail where ICHNODE_REQUIRE_PEERS=1, unless every program is on the PATH."""
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        missing(f"not on the PATH: {', '.join(absent)}")


def missing(reason: str) -> NoReturn:
    """Skip, or fail where every peer must be there."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason} ({REQUIRE}=1)")
    pytest.skip(reason)


def eventually(what: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true answer of `what`; fails when none comes in time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)
    return answer
