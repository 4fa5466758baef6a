"""The header facts of one SOP instance that the node decides by. Holds them; reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Instance:
    """One SOP instance as its header tells it; absent or unreadable values are None or empty.

    Lengths in mm, `position` and `orientation` in patient LPS (PS3.3 C.7.6.2). For an enhanced
    multi-frame object `frames` > 1 and the geometry of single frames is not held here.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    image_type: tuple[str, ...] = ()
    manufacturer: str = ""
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
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instance:
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known
        }
        return cls(**values)
