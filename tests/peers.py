"""Programs of other makers that tests talk to. A missing one skips the test, unless peers are required."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRE = "ICHNODE_REQUIRE_PEERS"


def requires(*programs: str) -> None:
    """Skip, or fail where ICHNODE_REQUIRE_PEERS=1, unless every program is on the PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    reason = f"not on the PATH: {', '.join(missing)}"
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason} ({REQUIRE}=1)")
    pytest.skip(reason)
