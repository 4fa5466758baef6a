"""Stamps a built object with whose it is, who made it and when. Alters no source, translates no name.

Patient and study are copied element by element, undecoded where possible, together with the character
set they are written in; our own words are ASCII, which every character set holds.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta, timezone

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.frames import UNREADABLE
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.source import TYPE_2, value
from node.outputs.uids import derived
from node.outputs.wording import RESEARCH_USE, long_string

MANUFACTURER = "ichnode"
MODEL_NAME = "ichnode head CT triage"
_PATIENT_GROUPS = (0x0010, 0x0012)  # Patient, Patient Study, Clinical Trial: PS3.3 C.7.1, C.7.2.2
_STUDY = (  # PS3.3 C.7.2.1
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "ProcedureCodeSequence",
)
_EQUIPMENT = (  # PS3.3 C.12.1, ContributingEquipmentSequence
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
    "StationName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
_TEXT_VRS = (
    "AE",
    "AS",
    "CS",
    "DA",
    "DS",
    "DT",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "ST",
    "TM",
    "UC",
    "UI",
    "UR",
    "UT",
)


def stamp(ds: Dataset, context: Context, description: str) -> Dataset:
    """Make `ds` a finished object of this study; `description` names the series. Returns `ds`."""
    context.source.name_sources(ds)
    _copy_patient_and_study(ds, context.source.first)
    _set_times(ds, context)
    _set_equipment(ds, context)
    _freeze_dimensions(ds)
    ds.SeriesDescription = long_string(f"{description} - research use only")
    ds.file_meta = _file_meta(ds)
    ds.preamble = b"\0" * 128
    return ds


def copied(ds: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    """A copy of the element that shares nothing with `ds`; text stays as the bytes that were read."""
    raw = ds.get_item(tag)
    if isinstance(raw, RawDataElement):
        vr = raw.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else None)
        if vr in _TEXT_VRS:
            return raw._replace(VR=vr)
    return copy.deepcopy(ds[tag])


def copy_elements(target: Dataset, source: Dataset, keywords: tuple[str, ...]) -> None:
    """Copy those of `keywords` that the source has."""
    _copy_tags(target, source, [Tag(keyword) for keyword in keywords if keyword in source])


def _copy_tags(target: Dataset, source: Dataset, tags: Iterable[BaseTag]) -> None:
    """What cannot be read is left out, so that no result is lost for it."""
    for tag in tags:
        with suppress(OSError, *UNREADABLE):  # pydicom's word for a sequence cut off
            target[tag] = copied(source, tag)


def software_versions(context: Context) -> tuple[str, str, str]:
    """Ours, the model's, and the digest of its weights (64 hex digits, just a Long String)."""
    model = context.findings.model
    ours = long_string(f"ichnode {context.software_version}")
    return ours, long_string(f"{model.name} {model.version}"), long_string(model.sha256 or "no weights")


def serial_number(context: Context) -> str:
    """Tells devices with different weights apart, as a serial number would."""
    return long_string(f"ichnode-{context.findings.model.sha256[:12] or '0'}")


def code_item(code: Code) -> Dataset:
    """A code sequence item (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _copy_patient_and_study(ds: Dataset, source: Dataset) -> None:
    for tag in _patient_tags(ds):
        del ds[tag]
    _copy_tags(ds, source, _patient_tags(source))
    copy_elements(ds, source, _STUDY)
    if "FrameOfReferenceUID" in ds:
        ds.PositionReferenceIndicator = None
        copy_elements(ds, source, ("PositionReferenceIndicator",))
    for keyword in TYPE_2:
        if keyword not in source:
            setattr(ds, keyword, None)
    ds.pop("SpecificCharacterSet", None)
    if value(source, "SpecificCharacterSet"):  # type 1C: an empty one is none
        copy_elements(ds, source, ("SpecificCharacterSet",))


def _patient_tags(ds: Dataset) -> list[BaseTag]:
    """Without iterating over elements, since that would decode them; no group lengths (PS3.5 7.2)."""
    return [tag for tag in tuple(ds.keys()) if tag.group in _PATIENT_GROUPS and tag.element]


def _set_times(ds: Dataset, context: Context) -> None:
    """All times of an object share one offset, so ours follow the source's where it states one."""
    offset = _offset(str(context.source.first.get("TimezoneOffsetFromUTC") or ""))
    made_at = context.made_at.astimezone(offset) if offset else context.made_at
    ds.TimezoneOffsetFromUTC = made_at.strftime("%z")[:5]
    date, time = made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    for keyword in ("InstanceCreation", "Series", "Content"):
        setattr(ds, f"{keyword}Date", date)
        setattr(ds, f"{keyword}Time", time)


def _offset(text: str) -> timezone | None:
    match = re.fullmatch(r"([+-])(\d\d)(\d\d)", text.strip())
    if not match:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes)) if minutes < 1440 else None


def _set_equipment(ds: Dataset, context: Context) -> None:
    ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    ds.DeviceSerialNumber = serial_number(context)
    ds.SoftwareVersions = list(software_versions(context))
    items = []
    if context.source.first.get("Manufacturer"):
        scanner = Dataset()
        copy_elements(scanner, context.source.first, _EQUIPMENT)
        scanner.PurposeOfReferenceCodeSequence = [code_item(codes.ACQUISITION_EQUIPMENT)]
        items.append(scanner)
    items.append(_ours(context))
    ds.ContributingEquipmentSequence = items


def _ours(context: Context) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    item.DeviceSerialNumber = serial_number(context)
    item.SoftwareVersions = list(software_versions(context))
    item.ContributionDateTime = _contribution_time(context.made_at)
    item.ContributionDescription = f"AI analysis for intracranial hemorrhage. {RESEARCH_USE}"
    return item


def _contribution_time(made_at: datetime) -> str:
    return made_at.strftime("%Y%m%d%H%M%S%z")[:19]


def _freeze_dimensions(ds: Dataset) -> None:
    """highdicom draws the DimensionOrganizationUID at random; derive it from the object's own UID."""
    organisations = ds.get("DimensionOrganizationSequence") or []
    if not organisations:
        return
    uid = derived(str(ds.SOPInstanceUID), "dimension-organization")
    for item in [*organisations, *ds.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid


def _file_meta(ds: Dataset) -> FileMetaDataset:
    """File Meta Information (PS3.10 7.1); pydicom adds the group length when it writes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(str(ds.SOPClassUID))
    meta.MediaStorageSOPInstanceUID = UID(str(ds.SOPInstanceUID))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
