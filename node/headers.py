"""Turn a DICOM header into an Instance, whatever a modality wrote into it. Opens no pixels, decides nothing.

Only an object that does not say which instance, series and study it is gets refused, since nothing could be
recorded of it. How single elements are read, and junk with them: node.elements.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.dataset import Dataset

from node.domain.acquisition import Acquisition
from node.domain.errors import PermanentError
from node.domain.instance import Frame, Instance, Vector
from node.elements import HEADER_TAGS, TAGS, Elements, Header, Raw, raw_elements
from node.frames import UNREADABLE, frame_headers, is_multiframe
from node.headerfile import TooLong, read_bounded

_PER_FRAME = [field.name for field in fields(Frame)]

OF_A_SLICE = frozenset(
    TAGS[name] for name in ("SOPInstanceUID", "InstanceNumber", "AcquisitionNumber", "ImagePositionPatient")
)
"""Elements in which slices of a series differ nearly always."""


def read_instance(source: str | Path | BinaryIO) -> Instance:
    """The instance in a Part 10 file. Raises PermanentError HEADER_UNREADABLE or HEADER_INCOMPLETE.

    A stream stands at the pixels afterwards, or at its end where there are none.
    """
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as stream:
            return read_instance(stream)
    name = getattr(source, "name", source)
    try:
        ds = read_bounded(source, HEADER_TAGS)
    except UNREADABLE as error:
        raise PermanentError("HEADER_UNREADABLE", f"{name} cannot be read as DICOM: {error}") from error
    except TooLong as error:
        text = f"{name} is no header that anybody writes: {error}; nothing of it is kept"
        raise PermanentError("HEADER_TOO_LONG", text) from error
    meta = getattr(ds, "file_meta", None)
    return instance_of(ds, str(meta.get("TransferSyntaxUID", "")) if meta else "")


def instance_of(ds: Dataset, transfer_syntax_uid: str) -> Instance:
    """The facts the node decides by. Raises PermanentError HEADER_INCOMPLETE without the four UIDs."""
    own = _instance_of(ds, transfer_syntax_uid)
    if not is_multiframe(ds):
        return own
    return _with_frames(own, [_instance_of(header, transfer_syntax_uid) for header in frame_headers(ds)])


def instance_of_elements(elements: Elements, transfer_syntax_uid: str) -> Instance:
    """What `instance_of` gives, of a plain image. Raises PermanentError HEADER_INCOMPLETE."""
    return _instance_of(Raw(raw_elements(elements)), transfer_syntax_uid)


def slice_like(latest: Instance, own: Elements, elements: Elements) -> Instance:
    """An instance that says what `latest` said in `elements`, but for those of OF_A_SLICE, which are `own`.

    Raises PermanentError HEADER_INCOMPLETE without its UID.
    """
    tag = TAGS["SpecificCharacterSet"]
    charset = {tag: elements[tag]} if tag in elements else {}
    return latest.slice_alike(**_of_a_slice(Header(Raw(raw_elements(own | charset)))))


def _with_frames(own: Instance, frames: list[Instance]) -> Instance:
    """The object with what all its frames have in common, and each frame with the rest."""
    if not frames:
        return own
    values = {name: [getattr(frame, name) for frame in frames] for name in _PER_FRAME}
    common: dict[str, Any] = {
        name: found[0] for name, found in values.items() if all(v == found[0] for v in found)
    }
    blank: dict[str, Any] = {f.name: f.default for f in fields(Instance) if f.name in values.keys() - common}
    rest = [{n: found[index] for n, found in values.items() if n in blank} for index in range(len(frames))]
    return replace(own, **blank, **common, per_frame=tuple(Frame(**own_rest) for own_rest in rest))


def _of_a_slice(header: Header) -> dict[str, Any]:
    """What differs from slice to slice of a series (`OF_A_SLICE`)."""
    return {
        "sop_instance_uid": header.required("SOPInstanceUID"),
        "instance_number": header.integer("InstanceNumber"),
        "acquisition_number": header.integer("AcquisitionNumber"),
        "position": header.vector("ImagePositionPatient", 3),
    }


def _instance_of(ds: Dataset | Raw, transfer_syntax_uid: str) -> Instance:
    header = Header(ds)
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    return Instance(
        **_of_a_slice(header),
        sop_class_uid=header.required("SOPClassUID"),
        series_instance_uid=header.required("SeriesInstanceUID"),
        study_instance_uid=header.required("StudyInstanceUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=header.text("Modality").upper(),
        image_type=tuple(value.upper() for value in header.texts("ImageType") + header.technique()),
        manufacturer=header.text("Manufacturer"),
        station_name=header.text("StationName"),
        body_part=header.text("BodyPartExamined") or header.meaning("AnatomicRegionSequence"),
        study_description=header.text("StudyDescription"),
        series_description=header.text("SeriesDescription"),
        protocol_name=header.text("ProtocolName"),
        kernel=header.text("ConvolutionKernel"),
        contrast_agent=header.text("ContrastBolusAgent") or header.meaning("ContrastBolusAgentSequence"),
        series_number=header.integer("SeriesNumber"),
        rows=header.integer("Rows"),
        columns=header.integer("Columns"),
        frames=max(header.integer("NumberOfFrames") or 1, 1),
        orientation=_orientation(header.vector("ImageOrientationPatient", 6)),
        pixel_spacing=_positive(header.vector("PixelSpacing", 2)),
        slice_thickness=header.number("SliceThickness"),
        rescaled=intercept is not None and slope is not None and slope != 0,
        frame_of_reference_uid=header.text("FrameOfReferenceUID"),
        patient_id=header.text("PatientID"),
        issuer_of_patient_id=header.text("IssuerOfPatientID"),
        patient_name=header.text("PatientName"),
        patient_birth_date=header.text("PatientBirthDate"),
        accession_number=header.text("AccessionNumber"),
        study_date=header.text("StudyDate"),
        study_time=header.text("StudyTime"),
        requested_priority=header.text("RequestedProcedurePriority") or header.text("StudyPriorityID"),
        stack=header.stack(),
    )


def acquisition_of(ds: Dataset) -> Acquisition:
    """How a plain image, or the first frame of a multi-frame one, was acquired."""
    frames = frame_headers(ds) if is_multiframe(ds) else []
    own, header = Header(ds), Header(next(iter(frames), ds))
    spacing = _positive(header.vector("PixelSpacing", 2))
    return Acquisition(
        manufacturer=own.text("Manufacturer"),
        model=own.text("ManufacturerModelName"),
        station=own.text("StationName"),
        kernel=header.text("ConvolutionKernel"),
        kvp=header.number("KVP"),
        slice_thickness_mm=header.number("SliceThickness"),
        pixel_mm=spacing[0] if spacing else None,
    )


def _orientation(vector: Vector | None) -> Vector | None:
    """ImageOrientationPatient only if its two directions are unit vectors at right angles (within 2 %)."""
    if vector is None:
        return None
    row, column = vector[:3], vector[3:]
    lengths = (math.hypot(*row), math.hypot(*column))
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    return vector if all(abs(length - 1) < 0.02 for length in lengths) and abs(dot) < 0.02 else None


def _positive(vector: Vector | None) -> Vector | None:
    return vector if vector is not None and min(vector) > 0 else None
