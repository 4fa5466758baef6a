"""Whether a phantom study came out of the node as it always does. Pure; sends and stores nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from node.domain.findings import Findings

VOLUME_PART, VOLUME_ML = 0.05, 1.0
"""A volume may differ by the larger of these."""


class State(StrEnum):
    WANTED = "WANTED"  # somebody asked for it
    UNDER_WAY = "UNDER_WAY"
    OK = "OK"
    RECORDED = "RECORDED"  # the first one of its model: from now on this is expected
    WRONG = "WRONG"  # other values, or none
    LATE = "LATE"
    LOST = "LOST"  # the listener did not take it


GOOD = (State.OK, State.RECORDED)


@dataclass(frozen=True)
class Outcome:
    """What must stay the same: each probability, the priority, the volume (None where none is drawn)."""

    probabilities: Mapping[str, float]
    priority: str
    volume_ml: float | None
    slices: int

    @classmethod
    def of(cls, findings: Findings) -> Outcome:
        return cls(
            {name: found.probability for name, found in findings.classes.items()},
            findings.priority.value if findings.priority else "",
            findings.segmentation.volume_ml if findings.segmentation else None,
            len(findings.slices),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def differences(expected: Outcome, found: Outcome, tolerance: float) -> list[str]:
    """In words, what is not as expected; empty for a good one."""
    told = []
    for name in sorted({*expected.probabilities, *found.probabilities}):
        before, now = expected.probabilities.get(name), found.probabilities.get(name)
        if before is None or now is None:
            told.append(f"{name} is {'no longer' if now is None else 'newly'} evaluated")
        elif abs(before - now) > tolerance:
            told.append(f"{name} is {now:.3f}, expected {before:.3f}")
    if expected.priority != found.priority:
        told.append(f"priority is {found.priority or 'missing'}, expected {expected.priority or 'none'}")
    if (expected.volume_ml is None) != (found.volume_ml is None):
        told.append("a volume is missing" if found.volume_ml is None else "a volume is new")
    elif expected.volume_ml is not None and found.volume_ml is not None:
        allowed = max(VOLUME_ML, VOLUME_PART * expected.volume_ml)
        if abs(expected.volume_ml - found.volume_ml) > allowed:
            told.append(f"volume is {found.volume_ml:.1f} mL, expected {expected.volume_ml:.1f} mL")
    if expected.slices != found.slices:
        told.append(f"{found.slices} slices were read, expected {expected.slices}")
    return told
