"""Write a phantom head as a DICOM CT Image series, for demo and tests. Every object says it is a phantom.

CT Image IOD: PS3.3 A.3; plane and pixel modules C.7.6.2, C.7.6.3, C.8.2.1. UIDs are a hash of what
the series is made of: writing it twice writes the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from workers.phantom import volume

INTERCEPT = -1024
WINDOWS = ("40", "80")


@dataclass(frozen=True)
class SeriesLabels:
    """What the headers say; empty UIDs are made from a hash of the series' contents."""

    patient_id: str = "PHANTOM-0001"
    patient_name: str = "PHANTOM^HEAD"
    accession_number: str = "PHANTOM0001"
    study_id: str = "1"
    study_date: str = "20260101"
    study_time: str = "120000"
    study_description: str = "CT HEAD W/O CONTRAST"
    series_description: str = "Head 5.0 soft"
    series_number: int = 2
    kernel: str = "H31s"
    body_part: str = "HEAD"
    manufacturer: str = "ichnode phantom"
    study_instance_uid: str = ""
    series_instance_uid: str = ""


def write_series(
    out_dir: Path,
    seed: int,
    bleeds: Sequence[str] | None = (),
    *,
    slices: int = 32,
    size: int = 512,
    step_mm: float = 5.0,
    tilt_deg: float = 0.0,
    signed: bool = False,
    labels: SeriesLabels | None = None,
) -> list[Path]:
    """Write the phantom of `seed` into `out_dir`, one file a slice, feet to head; the paths in that order.

    `tilt_deg` tilts the gantry: planes lean towards the patient's feet at the back while the table
    still moves along z, so positions are no longer along the slice normal. Headers only: the
    pictures are those of untilted planes.
    """
    labels = labels or SeriesLabels()
    head = volume(seed, bleeds, slices=slices, size=size, step_mm=step_mm)
    kind = [str(seed), ",".join(bleeds or ()), str(slices), str(size), str(step_mm), str(tilt_deg)]
    source = [*kind, labels.accession_number, labels.series_description, labels.kernel]
    common = _common(labels, source)
    common.update(_pixel_module(size, signed))
    common.update(_plane_module(head.spacing_mm, tilt_deg))
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (hu, z_mm) in enumerate(zip(head.hu, head.positions, strict=True)):
        path = out_dir / f"{index + 1:03d}.dcm"
        ds = _instance(common, index, [*source, str(common.SeriesInstanceUID)])
        corner = -head.spacing_mm[1] * (size - 1) / 2
        ds.ImagePositionPatient = _plain([corner, *_corner(corner, z_mm, tilt_deg)])
        ds.SliceLocation = _plain([z_mm])[0]
        ds.PixelData = _stored(hu, signed).tobytes()
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_canary(folder: Path) -> list[Path]:
    """A small head that bleeds, always the same: what the node sends to itself to see that all is well."""
    return write_series(folder, 3, ("intraparenchymal", "intraventricular"), slices=32, size=256)


def _corner(corner: float, z_mm: float, tilt_deg: float) -> tuple[float, float]:
    """y and z (mm) of the first pixel of a plane that leans by the tilt about its middle."""
    angle = np.deg2rad(tilt_deg)
    return float(corner * np.cos(angle)), float(z_mm - corner * np.sin(angle))


def _stored(hu: NDArray[np.float32], signed: bool) -> NDArray[np.int16] | NDArray[np.uint16]:
    """Stored values: 16 bits signed, or 12 bits unsigned, both with RescaleIntercept INTERCEPT."""
    values = np.rint(hu) - INTERCEPT
    return values.astype("<i2") if signed else np.clip(values, 0, 4095).astype("<u2")


def _common(labels: SeriesLabels, source: list[str]) -> Dataset:
    """Patient, study, series, equipment and acquisition: the same in every slice."""
    ds = Dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = labels.study_date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = labels.study_time
    ds.AccessionNumber, ds.StudyID = labels.accession_number, labels.study_id
    ds.Modality, ds.Manufacturer = "CT", labels.manufacturer
    ds.ReferringPhysicianName = ds.PatientBirthDate = ds.PatientSex = ""
    ds.StudyDescription, ds.SeriesDescription = labels.study_description, labels.series_description
    ds.ManufacturerModelName, ds.SoftwareVersions, ds.DeviceSerialNumber = "synthetic head", "1", "0"
    ds.PatientName, ds.PatientID = labels.patient_name, labels.patient_id
    ds.PatientComments = "Synthetic phantom, not a person"
    ds.BodyPartExamined, ds.PatientPosition = labels.body_part, "HFS"
    ds.KVP, ds.ConvolutionKernel = "120", labels.kernel
    ds.ProtocolName, ds.SeriesNumber, ds.AcquisitionNumber = "Head phantom", labels.series_number, 1
    study = [labels.patient_id, labels.accession_number, "study"]
    ds.StudyInstanceUID = labels.study_instance_uid or generate_uid(entropy_srcs=study)
    ds.SeriesInstanceUID = labels.series_instance_uid or generate_uid(entropy_srcs=[*source, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*study, "frame"])
    ds.PositionReferenceIndicator = ""
    return ds


def _pixel_module(size: int, signed: bool) -> Dataset:
    ds = Dataset()
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated = 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (16, 15, 1) if signed else (12, 11, 0)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(INTERCEPT), "1", "HU"
    ds.WindowCenter, ds.WindowWidth = WINDOWS
    return ds


def _plane_module(spacing_mm: tuple[float, float, float], tilt_deg: float) -> Dataset:
    angle = np.deg2rad(tilt_deg)
    ds = Dataset()
    ds.PixelSpacing = _plain([spacing_mm[1], spacing_mm[2]])
    ds.SliceThickness = _plain([spacing_mm[0]])[0]
    ds.GantryDetectorTilt = _plain([tilt_deg])[0]
    ds.ImageOrientationPatient = _plain([1, 0, 0, 0, float(np.cos(angle)), -float(np.sin(angle))])
    return ds


def _instance(common: Dataset, index: int, source: list[str]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*source, str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", common, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPInstanceUID, ds.InstanceNumber = meta.MediaStorageSOPInstanceUID, index + 1
    return ds


def _plain(values: Sequence[float]) -> list[str]:
    """Decimal strings of at most 16 characters (VR DS, PS3.5 6.2)."""
    return [f"{value:.6f}".rstrip("0").rstrip(".") if value else "0" for value in values]
