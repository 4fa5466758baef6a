"""A result of nobody, built when a process starts: after it the first real one loads nothing more."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from node.outputs.catalogue import ALL_NAMES
from node.outputs.rehearsal import rehearse

FIRST_RESULT = """
import json, sys
from node.outputs.catalogue import NAMES, build_all
from node.outputs.context import Context
from node.outputs.encoding import encode
from node.outputs.rehearsal import rehearse
from node.outputs.source import Source
from node.pixels import hounsfield
from tests.factories import MADE_AT, analysed, bleed, ct_series

series, masks = ct_series(3, 32), bleed(3, 32)
findings = analysed(series, {"any": 0.9, "subdural": 0.9}, masks=masks)
source = Source.ordered(series, findings, hounsfield)
context = Context(findings, source, MADE_AT, "0.1.0", masks, masks * 0.5)
if sys.argv[1] == "rehearsed":
    rehearse(NAMES)
before = set(sys.modules)
for made in build_all(context).values():
    for ds in made:
        encode(ds)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_everything_that_may_be_asked_for_can_be_rehearsed() -> None:
    rehearse(ALL_NAMES)


@pytest.mark.parametrize("how", ["rehearsed", "cold"])
def test_after_a_rehearsal_the_first_result_loads_nothing_more(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_RESULT, how], stdout=subprocess.PIPE, check=True)
    assert bool(json.loads(done.stdout)) == (how == "cold")
