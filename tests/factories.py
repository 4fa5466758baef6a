"""Small synthetic head CT series for tests: valid CT images of a skull, a brain and, on request, a bleed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from node.domain.findings import (
    CLASSES,
    Abc2,
    ClassFinding,
    Comparison,
    Consistency,
    Findings,
    ModelIdentity,
    Priority,
    Reason,
    SegmentationFinding,
    Side,
    SliceFinding,
    Status,
)
from node.domain.instance import SliceRef

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
INTERCEPT = -1024
MODEL = ModelIdentity("test-model", "1.2.3", "ab" * 32)
MADE_AT = datetime(2026, 11, 20, 10, 20, 30, tzinfo=UTC)


def make_uid(*parts: object) -> str:
    """A UID that is a function of its parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(map(str, parts))).int}"


MEASURED = SegmentationFinding(
    12.34, ("1", "2", "3"), (), Abc2(10.5, 40.2, 22.1, 23.6), 41.4, Side.LEFT, "the skull", 12.0, 0.34, 2,
    {"subdural": 9.1, "subarachnoid": 3.24},
)  # fmt: skip
"""A mask with everything measured on it."""
GROWN = Comparison(
    make_uid("old study"), make_uid("old series"), 1, "20261119", "2215", MODEL, 8.0, 4.34, 54.25, True
)
"""…and what it was on an earlier CT."""


def bleed(slices: int, rows: int, columns: int | None = None) -> np.ndarray:
    """Boolean (z, y, x): an ellipsoid in the viewer's right half, off the middle in every axis."""
    columns = columns or rows
    z, y, x = np.ogrid[0:slices, 0:rows, 0:columns]
    in_plane = ((y - 0.4 * rows) / (0.08 * rows)) ** 2 + ((x - 0.65 * columns) / (0.1 * columns)) ** 2
    return in_plane < 1 - ((z - 0.6 * slices) / (0.2 * slices)) ** 2


def ct_series(
    slices: int = 6,
    rows: int = 64,
    columns: int | None = None,
    *,
    iop: Sequence[float] = AXIAL,
    origin_mm: Sequence[float] = (-100.0, -110.0, 20.0),
    spacing_mm: float = 3.0,
    step_mm: float = 5.0,
    with_bleed: bool = True,
    name: str = "series",
    **attributes: Any,
) -> list[Dataset]:
    """Slices along the normal of `iop`, feet to head for an axial one, valid under dciodvfy.

    `attributes` replace elements by keyword; None removes the element. `name` tells series apart.
    """
    columns = columns or rows
    volume = head_hu(slices, rows, columns, bleed(slices, rows, columns) if with_bleed else None)
    normal = np.cross(iop[:3], iop[3:])
    made = []
    for index, hu in enumerate(volume):
        ds = _header(name, index, rows, columns)
        ds.ImageOrientationPatient = list(iop)
        ds.ImagePositionPatient = [round(float(v), 6) for v in origin_mm + index * step_mm * normal]
        ds.PixelSpacing, ds.SliceThickness = [spacing_mm, spacing_mm], step_mm
        ds.add_new("PixelData", "OW", (hu - INTERCEPT).astype("<i2").tobytes())
        made.append(_changed(ds, attributes))
    return made


def enhanced(
    series: Sequence[Dataset], name: str = "enhanced", stacks: Sequence[str] = (), **attributes: Any
) -> Dataset:
    """The slices of a plain series as one Enhanced CT object, in their order (PS3.3 A.38).

    `stacks` names the stack of each frame; `attributes` replace elements at the top, None removes them.
    """
    first = series[0]
    ds = Dataset()
    ds.update(
        {e.tag: e for e in first if e.tag.group not in (0x0018, 0x0020, 0x7FE0) and e.keyword not in _OWN}
    )
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "StudyID",
                    "PositionReferenceIndicator", "BodyPartExamined", "PatientPosition"):  # fmt: skip
        if keyword in first:
            setattr(ds, keyword, first[keyword].value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(make_uid(name, "enhanced"))
    ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1
    ds.DeviceSerialNumber, ds.SoftwareVersions, ds.ContentQualification = "1", "1", "PRODUCT"
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique, ds.MultienergyCTAcquisition = "NONE", "NO"
    ds.AcquisitionDateTime, ds.AcquisitionDuration = "20261120101500", 1.0
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.PresentationLUTShape = "NO", "00", "IDENTITY"
    ds.AcquisitionContextSequence, ds.NumberOfFrames = [], len(series)
    index, organisation = Dataset(), Dataset()
    organisation.DimensionOrganizationUID = index.DimensionOrganizationUID = make_uid(name, "dimension")
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00200032, 0x00209113
    ds.DimensionOrganizationSequence, ds.DimensionIndexSequence = [organisation], [index]
    ds.SharedFunctionalGroupsSequence = [_shared_groups(first)]
    names = stacks or ["1"] * len(series)
    ds.PerFrameFunctionalGroupsSequence = [
        _frame_groups(slice_, number, stack)
        for number, (slice_, stack) in enumerate(zip(series, names, strict=True), start=1)
    ]
    ds.add_new("PixelData", "OW", b"".join(slice_.PixelData for slice_ in series))
    return _changed(ds, attributes)


_OWN = (
    "ImageType",
    "PixelSpacing",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
)


def _shared_groups(first: Dataset) -> Dataset:
    groups, kind, measures, plane, anatomy = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    kind.FrameType, kind.PixelPresentation = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "MONOCHROME"
    kind.VolumetricProperties, kind.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    region, reconstruction = Dataset(), Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "69536005", "SCT", "Head"
    anatomy.FrameLaterality, anatomy.AnatomicRegionSequence = "U", [region]
    reconstruction.ConvolutionKernel = first.get("ConvolutionKernel") or "H31s"
    groups.CTImageFrameTypeSequence, groups.PixelMeasuresSequence = [kind], [measures]
    groups.PlaneOrientationSequence, groups.FrameAnatomySequence = [plane], [anatomy]
    groups.CTReconstructionSequence = [reconstruction]
    return groups


def _frame_groups(slice_: Dataset, number: int, stack: str) -> Dataset:
    groups, content, place, values = Dataset(), Dataset(), Dataset(), Dataset()
    content.FrameReferenceDateTime = content.FrameAcquisitionDateTime = "20261120101500"
    content.FrameAcquisitionDuration, content.FrameAcquisitionNumber = 0.1, 1
    content.DimensionIndexValues, content.StackID, content.InStackPositionNumber = [number], stack, number
    place.ImagePositionPatient = slice_.ImagePositionPatient
    values.RescaleIntercept, values.RescaleSlope = slice_.RescaleIntercept, slice_.RescaleSlope
    values.RescaleType = "HU"
    groups.FrameContentSequence, groups.PlanePositionSequence = [content], [place]
    groups.PixelValueTransformationSequence = [values]
    return groups


def _changed(ds: Dataset, attributes: Mapping[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def head_hu(slices: int, rows: int, columns: int, blood: np.ndarray | None = None) -> np.ndarray:
    """int16 HU (z, y, x): air, a skull, brain at 35 HU, blood at 68 HU."""
    y, x = np.mgrid[0:rows, 0:columns]
    radius = np.hypot((y - rows / 2) / (0.45 * rows), (x - columns / 2) / (0.38 * columns))
    plane = np.where(radius < 0.9, 35, np.where(radius < 1, 900, -1000)).astype(np.int16)
    volume = np.repeat(plane[None], slices, axis=0)
    if blood is not None:
        volume[blood] = 68
    return volume


def hu_of(ds: Dataset, frame: int = 0) -> np.ndarray:
    """HU of one factory slice, or of one frame of an `enhanced` object."""
    if "NumberOfFrames" in ds:
        frames = np.frombuffer(ds.PixelData, "<i2").reshape(-1, ds.Rows, ds.Columns)
        return frames[frame].astype(np.int16) + INTERCEPT
    stored = np.frombuffer(ds.PixelData, "<i2").reshape(ds.Rows, ds.Columns)
    return stored.astype(np.int16) + int(ds.RescaleIntercept)


def analysed(
    series: Sequence[Dataset],
    probabilities: dict[str, float] | None = None,
    *,
    masks: np.ndarray | None = None,
    refs: Sequence[SliceRef] = (),
    **changes: Any,
) -> Findings:
    """Findings over the series in its order; a class from 0.5 on is present. `changes` replace fields.

    `refs` name the slices where they are frames.
    """
    scores = {**dict.fromkeys(CLASSES, 0.03), **(probabilities or {})}
    refs = refs or [SliceRef(str(ds.SOPInstanceUID)) for ds in series]
    key = refs[int(0.6 * len(refs))]
    blood = masks if masks is not None else np.zeros((len(refs), 1, 1), bool)
    held = [ref for ref, mask in zip(refs, blood, strict=True) if mask.any()]
    suspected = scores["any"] >= 0.5
    fields: dict[str, Any] = {
        "classes": {c: ClassFinding(scores[c], scores[c] >= 0.5, *key) for c in CLASSES},
        "slices": tuple(
            SliceFinding(ref.sop_instance_uid, 5.0 * i, scores, ref.frame_number)
            for i, ref in enumerate(refs)
        ),
        "segmentation": SegmentationFinding(
            round(0.045 * int(blood.sum()), 2),
            tuple(ref.sop_instance_uid for ref in held),
            tuple(ref.frame_number for ref in held if ref.frame_number is not None),
        ),
        "consistency": Consistency.AGREE,
        "priority": Priority.STAT if suspected else Priority.ROUTINE,
        "model": MODEL,
        "series_instance_uid": str(series[0].SeriesInstanceUID),
        "revision": 1,
        "status": Status.ANALYSED,
    }
    return Findings(**{**fields, **changes})


def not_analysed(
    series: Sequence[Dataset], code: str = "NOT_A_HEAD", text: str = "no head was found"
) -> Findings:
    """Findings that say why there are none."""
    return Findings(MODEL, str(series[0].SeriesInstanceUID), 1, Status.NOT_ANALYSED, Reason(code, text))


def _header(name: str, index: int, rows: int, columns: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(make_uid(name, "instance", index))
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = make_uid(name, "study"), make_uid(name, "series")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = make_uid(name, "frame"), None
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Müller^Jörg", "PID123", "HOSPITAL"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19600101", "M", "066Y"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20261120"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "ACC001", "Refer^Ring"
    ds.StudyDescription, ds.SeriesDescription = "CT HEAD W/O CONTRAST", "Head 5.0 H31s"
    ds.Modality, ds.BodyPartExamined, ds.PatientPosition = "CT", "HEAD", "HFS"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer, ds.ManufacturerModelName = "Scanner & Söhne", "Model 1"
    ds.InstitutionName, ds.StationName = "Klinik Süd", "CT1"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 2, index + 1, 1
    ds.KVP, ds.ConvolutionKernel = "120", "H31s"
    ds.Rows, ds.Columns = rows, columns
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = INTERCEPT, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 80
    return ds
