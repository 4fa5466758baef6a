"""findings.json: written and read back, and what earlier versions wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from node.domain.findings import (
    Abc2,
    ClassFinding,
    Comparison,
    Findings,
    ModelIdentity,
    SegmentationFinding,
    Side,
    Status,
)

MODEL = ModelIdentity("test-model", "1.2.3", "ab" * 32)
COMPLETE = Findings(
    MODEL,
    "1.2.3",
    2,
    Status.ANALYSED,
    classes={"any": ClassFinding(0.9, True, "1.2.3.4", 7)},
    segmentation=SegmentationFinding(
        12.5, ("1.2.3.4",), (7,), Abc2(11.0, 40.0, 22.0, 25.0), 41.5, Side.LEFT, "skull", 12.5, 0.0, 1,
        {"subdural": 12.5},
    ),
    not_evaluated=("epidural",),
    comparison=Comparison("1", "1.1", 1, "20260101", "1015", MODEL, 8.0, 4.5, 56.25, True, ("small",)),
)  # fmt: skip
BEFORE: dict[str, Any] = {
    "schema": "ichnode-findings/1",
    "model": {"name": "default", "version": "1.0.0", "sha256": "00"},
    "series_instance_uid": "1.2.3",
    "revision": 1,
    "status": "analysed",
    "reason": None,
    "classes": {"any": {"probability": 0.9, "present": True, "key_slice_uid": "1.2.3.4"}},
    "slices": [{"sop_instance_uid": "1.2.3.4", "position_mm": 5.0, "probabilities": {"any": 0.9}}],
    "segmentation": {"volume_ml": 3.5, "slices": ["1.2.3.4"]},
    "consistency": "agree",
    "priority": "STAT",
    "timings_s": {"total": 1.0},
    "warnings": [],
}


def test_everything_survives_being_written() -> None:
    assert Findings.from_json(json.loads(json.dumps(COMPLETE.to_json()))) == COMPLETE


def test_what_the_first_version_wrote_is_read() -> None:
    found = Findings.from_json(BEFORE)
    assert found.segmentation == SegmentationFinding(3.5, ("1.2.3.4",))
    assert (found.not_evaluated, found.comparison) == ((), None)


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="ichnode-findings/2"):
        Findings.from_json({**BEFORE, "schema": "ichnode-findings/2"})
