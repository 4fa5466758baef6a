"""What the analysis found, as frozen data, and its findings.json form. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = "ichnode-findings/1"
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
CLASSES = ("any", *SUBTYPES)
"""The order of every class axis in the project (that of the RSNA 2019 challenge, "any" first)."""


class Status(StrEnum):
    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"


class Consistency(StrEnum):
    """Whether the classifier and the mask tell the same story."""

    AGREE = "agree"
    CLASSIFIER_ONLY = "classifier_only"
    MASK_ONLY = "mask_only"
    SUBTYPE_DISAGREEMENT = "subtype_disagreement"


class Priority(StrEnum):
    """Reading priority proposed for the study, most urgent first."""

    STAT = "STAT"
    HIGH = "HIGH"
    ROUTINE = "ROUTINE"


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights decided: `sha256` is the hex digest of the weights file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Reason:
    """Why something was not done: a stable code, and words for a person."""

    code: str
    text: str


@dataclass(frozen=True)
class ClassFinding:
    """One class over the whole series; `key_slice_uid` is the slice that speaks loudest for it."""

    probability: float
    present: bool
    key_slice_uid: str | None = None


@dataclass(frozen=True)
class SliceFinding:
    """One source slice; `position_mm` is its place along the slice normal (patient LPS, mm)."""

    sop_instance_uid: str
    position_mm: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class SegmentationFinding:
    """The mask in numbers; `slices` are the SOP Instance UIDs of the slices that hold any of it."""

    volume_ml: float
    slices: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Everything one analysis of one revision of one series says.

    `slices` are in order along the slice normal; masks and heat maps kept beside the findings use
    the same order. When `status` is NOT_ANALYSED, `reason` is set and the result fields are empty.
    """

    model: ModelIdentity
    series_instance_uid: str
    revision: int
    status: Status
    reason: Reason | None = None
    classes: Mapping[str, ClassFinding] = field(default_factory=dict)
    slices: tuple[SliceFinding, ...] = ()
    segmentation: SegmentationFinding | None = None
    consistency: Consistency | None = None
    priority: Priority | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The findings.json form: plain dicts, lists, strings and numbers."""
        return {"schema": SCHEMA, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Findings:
        """Read back what `to_json` wrote. Raises ValueError for another schema."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"findings schema {data.get('schema')!r}: this version reads {SCHEMA!r}")
        segmentation = data["segmentation"]
        return cls(
            model=ModelIdentity(**data["model"]),
            series_instance_uid=data["series_instance_uid"],
            revision=data["revision"],
            status=Status(data["status"]),
            reason=Reason(**data["reason"]) if data["reason"] else None,
            classes={name: ClassFinding(**value) for name, value in data["classes"].items()},
            slices=tuple(SliceFinding(**value) for value in data["slices"]),
            segmentation=SegmentationFinding(segmentation["volume_ml"], tuple(segmentation["slices"]))
            if segmentation
            else None,
            consistency=Consistency(data["consistency"]) if data["consistency"] else None,
            priority=Priority(data["priority"]) if data["priority"] else None,
            timings_s=data["timings_s"],
            warnings=tuple(data["warnings"]),
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value
