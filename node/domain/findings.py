"""What the analysis found, as frozen data, and its findings.json form. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from node.domain.instance import SliceRef

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


class Side(StrEnum):
    """Of the patient, as judged by the mid-sagittal plane of the head, never by the middle of the image."""

    LEFT = "left"
    RIGHT = "right"
    BILATERAL = "bilateral"
    MIDLINE = "midline"


class Priority(StrEnum):
    """Reading priority proposed for the study, most urgent first."""

    STAT = "STAT"
    HIGH = "HIGH"
    ROUTINE = "ROUTINE"


def most_urgent(*priorities: Priority | None) -> Priority | None:
    """Of those that are known; None where none is."""
    known = [priority for priority in priorities if priority is not None]
    return min(known, key=list(Priority).index, default=None)


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
    """One class over the whole series; the key slice is the one that speaks loudest for it.

    `key_frame_number` (from 1) tells which frame, where the source is multi-frame.
    """

    probability: float
    present: bool
    key_slice_uid: str | None = None
    key_frame_number: int | None = None

    @property
    def key_slice(self) -> SliceRef | None:
        return SliceRef(self.key_slice_uid, self.key_frame_number) if self.key_slice_uid else None


@dataclass(frozen=True)
class SliceFinding:
    """One source slice; `position_mm` is its place along the slice normal (patient LPS, mm).

    `frame_number` (from 1) tells which frame of the instance, where that is multi-frame.
    """

    sop_instance_uid: str
    position_mm: float
    probabilities: Mapping[str, float]
    frame_number: int | None = None

    @property
    def ref(self) -> SliceRef:
        return SliceRef(self.sop_instance_uid, self.frame_number)


@dataclass(frozen=True)
class Abc2:
    """The bedside estimate A × B × C / 2 of the largest connected part (Kothari, Stroke 27:1304, 1996).

    A is the longest diameter on the slice where the part is largest, B the longest one across it there, C
    the height of its slices: those above 75 % of the largest area count fully, from 25 % on by half.
    """

    volume_ml: float
    a_mm: float
    b_mm: float
    c_mm: float


@dataclass(frozen=True)
class SegmentationFinding:
    """The mask in numbers; `slices` are the SOP Instance UIDs of the slices that hold any of it.

    Of a multi-frame source `frame_numbers` (from 1) tells the frame of each; else it is empty.
    What was not measured (an empty mask, findings of an earlier version) is None or empty. `diameter_mm`
    is the largest in the plane of any one slice, `subtypes_ml` what a pipeline that divides its mask gave
    each subtype; `left_ml` and `right_ml` add up to the whole.
    """

    volume_ml: float
    slices: tuple[str, ...]
    frame_numbers: tuple[int, ...] = ()
    abc2: Abc2 | None = None
    diameter_mm: float | None = None
    side: Side | None = None
    side_method: str | None = None
    left_ml: float | None = None
    right_ml: float | None = None
    components: int | None = None
    subtypes_ml: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SegmentationFinding:
        read: dict[str, Any] = {
            **data,
            "slices": tuple(data["slices"]),
            "frame_numbers": tuple(data.get("frame_numbers", ())),
            "abc2": Abc2(**data["abc2"]) if data.get("abc2") else None,
            "side": Side(data["side"]) if data.get("side") else None,
        }
        return cls(**read)


@dataclass(frozen=True)
class Comparison:
    """This mask against that of the latest earlier head CT of the same patient analysed here.

    `study_uid`, `series_uid`, `revision`, `study_date`, `study_time` (DA, TM), `model` and `before_ml` are
    those of the earlier one. `change_percent` is None where its mask was empty. `remarks` say in words why
    the comparison may mislead; without any it is reliable.
    """

    study_uid: str
    series_uid: str
    revision: int
    study_date: str
    study_time: str
    model: ModelIdentity
    before_ml: float
    change_ml: float
    change_percent: float | None
    expansion: bool
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        read = {**data, "model": ModelIdentity(**data["model"]), "remarks": tuple(data["remarks"])}
        return cls(**read)


@dataclass(frozen=True)
class Findings:
    """Everything one analysis of one revision of one series says.

    `slices` are in order along the slice normal; masks and heat maps kept beside the findings use
    the same order. When `status` is NOT_ANALYSED, `reason` is set and the result fields are empty.
    `classes` holds only what the model can tell; the classes it cannot are listed in `not_evaluated`.
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
    not_evaluated: tuple[str, ...] = ()
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """The findings.json form: plain dicts, lists, strings and numbers."""
        return {"schema": SCHEMA, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Findings:
        """Read back what `to_json` wrote. Raises ValueError for another schema."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"findings schema {data.get('schema')!r}: this version reads {SCHEMA!r}")
        segmentation, comparison = data["segmentation"], data.get("comparison")
        return cls(
            model=ModelIdentity(**data["model"]),
            series_instance_uid=data["series_instance_uid"],
            revision=data["revision"],
            status=Status(data["status"]),
            reason=Reason(**data["reason"]) if data["reason"] else None,
            classes={name: ClassFinding(**value) for name, value in data["classes"].items()},
            slices=tuple(SliceFinding(**value) for value in data["slices"]),
            segmentation=SegmentationFinding.from_json(segmentation) if segmentation else None,
            consistency=Consistency(data["consistency"]) if data["consistency"] else None,
            priority=Priority(data["priority"]) if data["priority"] else None,
            timings_s=data["timings_s"],
            warnings=tuple(data["warnings"]),
            not_evaluated=tuple(data.get("not_evaluated", ())),
            comparison=Comparison.from_json(comparison) if comparison else None,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value
