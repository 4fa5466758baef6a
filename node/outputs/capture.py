"""The overlay series as RGB Secondary Captures, which every PACS shows: a page in words, then slices.

Copies the source's geometry and invents none; burns in no name. Of a thin series only slices near a
finding are drawn, and a series that was not analysed gets the page in words alone.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from node.domain.findings import Status
from node.outputs import codes, drawing, overlay, summary
from node.outputs.context import Context
from node.outputs.encoding import another, frozen
from node.outputs.identity import MANUFACTURER, MODEL_NAME, code_item, copy_elements, stamp
from node.outputs.overlay import Legend
from node.outputs.source import lossy_compression, numbers, value
from node.outputs.wording import HEADLINES, RESEARCH_USE, Verdict, key_slices, probability_words, verdict

SERIES_NUMBER = 903
WHOLE_SERIES = 60
"""Up to this many slices all are drawn."""
NEIGHBOURS = 2
"""Slices drawn on each side of a slice of interest in a longer series."""
_GEOMETRY = (
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SliceLocation",
)


def build(context: Context) -> list[Dataset]:
    """The page in words first, then the chosen slices in the order of the source, along its normal."""
    chosen = slices_shown(context)
    common = _common(context, chosen[0]) if chosen else Dataset()
    return [_page(context), *(_slice(context, number, i, common) for number, i in enumerate(chosen, 2))]


def slices_shown(context: Context) -> list[int]:
    """All of a short series; else every slice with a mask and every key slice, with their neighbours."""
    findings, source = context.findings, context.source
    count = len(source.datasets)
    if findings.status is not Status.ANALYSED:
        return []
    if count <= WHOLE_SERIES:
        return list(range(count))
    wanted = {source.index(ref) for ref in key_slices(findings) if source.holds(ref)}
    if context.masks is not None:
        wanted.update(np.flatnonzero(context.masks.any(axis=(1, 2))).tolist())
    near = {i + step for i in wanted for step in range(-NEIGHBOURS, NEIGHBOURS + 1)}
    return sorted(i for i in near if 0 <= i < count)


def _page(context: Context) -> Dataset:
    first, findings = context.source.first, context.findings
    number, count = value(first, "SeriesNumber"), len(context.source.datasets)
    origin = (
        f"Series {number if number is not None else '?'}  ·  {count} slices  ·  revision {findings.revision}"
    )
    sides = [found[0] for keyword in ("Rows", "Columns") if (found := numbers(first, keyword, 1))]
    side = int(min(1024, max([512, *sides])))
    rgb = summary.render(findings, context.made_at, context.software_version, origin, side)
    ds = _capture(context, context.uid("sc"))
    ds.InstanceNumber = 1
    _set_pixels(ds, rgb)
    ds.DerivationDescription = f"AI result in words. {RESEARCH_USE}"
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER", "AI_SUMMARY"]
    ds.PatientOrientation = None
    return _finished(ds, context)


def _slice(context: Context, number: int, index: int, common: Dataset) -> Dataset:
    """What all slices have in `common`, and what is this one's own."""
    source = context.source.datasets[index]
    mask = context.masks[index] if context.masks is not None else None
    heat = context.heat[index] if context.heat is not None else None
    rgb = overlay.render(context.source.hu(index), mask, heat, _legend(context, index))
    ds = another(common, context.uid("sc", index + 1))
    ds.InstanceNumber = number
    _set_pixels(ds, rgb)
    _place(ds, context, source)
    ds.update(_references(context, index))
    return ds


def _common(context: Context, index: int) -> Dataset:
    """A finished object as all slices will be, encoded once for them; without pixels and references."""
    ds = _capture(context, context.uid("sc", index + 1))
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER", "AI_OVERLAY"]
    ds.DerivationDescription = f"AI contour and activation burned into the CT slice. {RESEARCH_USE}"
    _place(ds, context, context.source.datasets[index])
    return frozen(_finished(ds, context))


def _place(ds: Dataset, context: Context, source: Dataset) -> None:
    """Where the slice lies, and which way it looks."""
    for keyword in _GEOMETRY:
        ds.pop(keyword, None)
    orientation = numbers(source, "ImageOrientationPatient", 6)
    ds.PatientOrientation = drawing.patient_orientation(orientation) if orientation else None
    if orientation and context.source.has_planes and context.source.frame_of_reference_uid:
        copy_elements(ds, source, _GEOMETRY)
        for keyword in _GEOMETRY:
            ds.get(keyword)  # decoded here, so that it is encoded as we do


def _legend(context: Context, index: int) -> Legend:
    source, findings = context.source.datasets[index], context.findings
    orientation = numbers(source, "ImageOrientationPatient", 6)
    spacing = numbers(source, "PixelSpacing", 2)
    title = f"AI overlay\nSlice {index + 1}/{len(context.source.datasets)}"
    result = "this slice: no score"
    if index < len(findings.slices):
        finding = findings.slices[index]
        title += f"\n{finding.position_mm:+.1f} mm"
        if "any" in finding.probabilities:
            result = f"this slice: probability {probability_words(finding.probabilities['any'])}"
    return Legend(
        title=title,
        result=f"AI: {HEADLINES[verdict(findings)].lower()}\n{result}",
        footer=f"{findings.model.name} {findings.model.version}",
        letters=drawing.sides(orientation) if orientation else (),
        column_spacing_mm=spacing[1] if spacing else None,
        alarming=verdict(findings) is not Verdict.NOT_DETECTED,
    )


def _capture(context: Context, sop_instance_uid: str) -> Dataset:
    """Secondary Capture Image IOD, PS3.3 A.8.1; number and pixels are not in it yet."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, sop_instance_uid
    ds.SeriesInstanceUID, ds.SeriesNumber = context.uid("sc-series"), SERIES_NUMBER
    ds.Modality, ds.BodyPartExamined = "CT", "HEAD"
    ds.ConversionType = "WSD"
    ds.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    ds.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    ds.BurnedInAnnotation, ds.RecognizableVisualFeatures = "YES", "NO"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    return ds


def _set_pixels(ds: Dataset, rgb: np.ndarray) -> None:
    ds.Rows, ds.Columns = rgb.shape[:2]
    ds.add_new("PixelData", "OB", _even(rgb.tobytes()))


def _references(context: Context, index: int) -> Dataset:
    """Which slice this was made of: PS3.3 C.7.6.1 and C.12.2."""
    source, frame_number = context.source.datasets[index], context.source.refs[index].frame_number
    image = Dataset()
    image.ReferencedSOPClassUID = value(source, "SOPClassUID") or CTImageStorage
    image.ReferencedSOPInstanceUID = source.SOPInstanceUID
    instance = Dataset()
    instance.update(image)
    if frame_number is not None:
        image.ReferencedFrameNumber = frame_number
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [code_item(codes.SOURCE_IMAGE)]
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [instance]
    ds = Dataset()
    ds.SourceImageSequence, ds.ReferencedSeriesSequence = [image], [series]
    context.source.name_sources(ds)
    return ds


def _finished(ds: Dataset, context: Context) -> Dataset:
    first = context.source.first
    ds.LossyImageCompression = lossy_compression(first)
    if ds.LossyImageCompression == "01":
        copy_elements(ds, first, ("LossyImageCompressionRatio", "LossyImageCompressionMethod"))
    return stamp(ds, context, f"AI ICH overlay: {verdict(context.findings)}")


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
