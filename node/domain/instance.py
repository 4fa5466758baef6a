"""The header facts of one SOP instance that the node decides by. Holds them; reads no file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

Vector = tuple[float, ...]
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT and Legacy Converted Enhanced CT Image Storage: multi-frame."""


class SliceRef(NamedTuple):
    """One slice of the source: an instance, or one frame (from 1) of a multi-frame instance."""

    sop_instance_uid: str
    frame_number: int | None = None


@dataclass(frozen=True)
class Frame:
    """What one frame of a multi-frame instance says of its own (PS3.3 C.7.6.16); None: as the instance."""

    image_type: tuple[str, ...] | None = None
    kernel: str | None = None
    contrast_agent: str | None = None
    acquisition_number: int | None = None
    position: Vector | None = None
    orientation: Vector | None = None
    pixel_spacing: Vector | None = None
    slice_thickness: float | None = None
    rescaled: bool | None = None
    stack: str | None = None


@dataclass(frozen=True)
class Instance:
    """One SOP instance as its header tells it; absent or unreadable values are None or empty.

    Lengths in mm, `position` and `orientation` in patient LPS (PS3.3 C.7.6.2). A multi-frame CT holds
    what its frames differ in as `per_frame`; `slices` gives each of them as an instance of its own.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    image_type: tuple[str, ...] = ()
    manufacturer: str = ""
    station_name: str = ""
    body_part: str = ""
    study_description: str = ""
    series_description: str = ""
    protocol_name: str = ""
    kernel: str = ""
    contrast_agent: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    rows: int | None = None
    columns: int | None = None
    frames: int = 1
    position: Vector | None = None
    orientation: Vector | None = None
    pixel_spacing: Vector | None = None
    slice_thickness: float | None = None
    rescaled: bool = False
    """RescaleSlope and RescaleIntercept are both there, so stored values can become HU."""
    frame_of_reference_uid: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    requested_priority: str = ""
    """Requested Procedure Priority (0040,1003), else Study Priority ID (0032,000C), as it was written."""
    stack: str = ""
    """Which volume of a multi-frame object: StackID and TemporalPositionIndex (PS3.3 C.7.6.16.2.2)."""
    frame_number: int | None = None
    """Set in what `slices` gives of a multi-frame instance; counted from 1."""
    per_frame: tuple[Frame, ...] = ()

    @property
    def ref(self) -> SliceRef:
        return SliceRef(self.sop_instance_uid, self.frame_number)

    def slices(self) -> tuple[Instance, ...]:
        """Every frame as an instance with `frame_number`; of a single-frame one just itself."""
        if not self.per_frame:
            return (self,)
        return tuple(
            replace(self, frames=1, per_frame=(), frame_number=number, **_stated(frame))
            for number, frame in enumerate(self.per_frame, start=1)
        )

    def slice_alike(
        self,
        sop_instance_uid: str,
        instance_number: int | None,
        acquisition_number: int | None,
        position: Vector | None,
    ) -> Instance:
        """Another slice of the series, whose header says the same otherwise; a quicker `replace`."""
        other = object.__new__(Instance)
        other.__dict__.update(
            self.__dict__,
            sop_instance_uid=sop_instance_uid,
            instance_number=instance_number,
            acquisition_number=acquisition_number,
            position=position,
        )
        return other

    def to_json(self) -> dict[str, Any]:
        own = dict(zip(_TO_JSON, _VALUES(self), strict=True))  # numbers, texts and tuples of them
        own["per_frame"] = [_stated(frame) for frame in self.per_frame]
        return own

    def to_json_text(self) -> str:
        """The same as a text; what slices of a series have in common is put into words only once."""
        own = {name: getattr(self, name) for name in _OF_A_SLICE}
        return f"{json.dumps(own)[:-1]}, {self._in_common[1:]}"

    @cached_property
    def _in_common(self) -> str:
        """Goes along into whatever `slice_alike` makes of it."""
        return json.dumps({k: v for k, v in self.to_json().items() if k not in _OF_A_SLICE})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instance:
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in _tuples(data).items() if k in known and k != "per_frame"}
        return cls(**values, per_frame=tuple(Frame(**_tuples(f)) for f in data.get("per_frame") or ()))


_OF_A_SLICE = ("sop_instance_uid", "instance_number", "acquisition_number", "position")
_TO_JSON = [field.name for field in fields(Instance) if field.name not in ("per_frame", "frame_number")]
_VALUES = attrgetter(*_TO_JSON)


def _stated(frame: Frame) -> dict[str, Any]:
    """The fields in which a frame differs from its instance."""
    return {f.name: value for f in fields(frame) if (value := getattr(frame, f.name)) is not None}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
