"""What was received, instance by instance: lists, headers, files. Names are for people who logged in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from node import frames
from node.admin.web.gate import Gate, Visitor
from node.admin.web.pictures import Pictures
from node.admin.web.site import Site

MOST_LISTED = 2000
MOST_ELEMENTS = 4000
LONGEST = 300
DEFER_BYTES = 64 * 1024
BULK = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
NAMING = (  # besides every PN: who the patient is, and where to find them (PS3.15 E.1)
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientMotherBirthName",
    "OtherPatientIDs",
    "PersonAddress",
    "PersonTelephoneNumbers",
)
UNREADABLE = (OSError, AttributeError, *frames.UNREADABLE)


@dataclass(frozen=True)
class Line:
    """One element; `depth` counts the sequences around it."""

    depth: int
    tag: str
    vr: str
    name: str
    value: str


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    pictures = Pictures(site)

    @router.get("/series/{uid:path}")
    def series(request: Request, uid: str, visitor: Visitor = gate.viewer) -> Response:
        """Every instance of a series, in the order of its slices."""
        found = site.records.worklist.series(uid)
        if found is None:
            raise HTTPException(404, "there is no such series here")
        site.note(visitor, "series", found["study_instance_uid"], uid)
        files = sorted(site.records.worklist.files(uid), key=_number)
        return site.page(
            request,
            "series.html",
            series=found,
            files=files[:MOST_LISTED],
            count=len(files),
            most=MOST_LISTED,
        )

    @router.get("/slice-header/{index}/{uid:path}")
    def of_slice(request: Request, index: int, uid: str, visitor: Visitor = gate.viewer) -> Response:
        """The header of the instance that a slice on the study's page is of."""
        stack = pictures.stack(uid)
        if stack is None or not 0 <= index < len(stack.slices):
            raise HTTPException(404, "no such slice")
        path = stack.slices[index].path
        mine = (f["sop_instance_uid"] for f in site.records.worklist.files(uid) if f["path"] == path)
        return _header(request, next(mine, ""), visitor)

    @router.get("/header/{uid:path}")
    def header(request: Request, uid: str, visitor: Visitor = gate.viewer) -> Response:
        return _header(request, uid, visitor)

    def _header(request: Request, uid: str, visitor: Visitor) -> Response:
        found = _stored(site, uid)
        site.note(visitor, "header", found["study_instance_uid"], uid)
        file = site.file_to_show(found["path"])
        try:
            ds = dcmread(file, stop_before_pixels=True, defer_size=DEFER_BYTES)
            lines = [*elements(ds.file_meta, True), *elements(ds, visitor.sees_names)]
        except UNREADABLE as error:
            raise HTTPException(404, f"its header cannot be read: {type(error).__name__}") from error
        return site.page(
            request, "header.html", lines=lines[:MOST_ELEMENTS], cut=len(lines) > MOST_ELEMENTS, one=found
        )

    @router.get("/instance/{uid:path}")
    def download(uid: str, visitor: Visitor = gate.viewer) -> Response:
        """A received instance, as it is stored."""
        found = _stored(site, uid)
        file = site.file_to_show(found["path"])
        if not file.is_file():
            raise HTTPException(404, "its file is no longer stored")
        site.note(visitor, "download", found["study_instance_uid"], uid)
        return FileResponse(file, media_type="application/dicom", filename=f"{uid}.dcm")

    return router


def _stored(site: Site, uid: str) -> dict[str, Any]:
    """A received instance, else an object of our own."""
    found = site.records.worklist.instance(uid) or site.records.worklist.object(uid)
    if found is None:
        raise HTTPException(404, "there is no such instance here, or its files were removed")
    return found


def _number(row: dict[str, Any]) -> tuple[int, str]:
    return int(row["header"].get("instance_number") or 0), row["sop_instance_uid"]


def elements(ds: Dataset, sees_names: bool, depth: int = 0) -> Iterator[Line]:
    """Every element in order, those of sequences behind theirs; long values are cut, bulk data is counted."""
    for tag in sorted(ds.keys()):
        raw = ds.get_item(tag)
        try:
            element = ds[tag]
        except (*UNREADABLE, TypeError, RecursionError) as error:
            vr = str(getattr(raw, "VR", "") or "")
            yield Line(depth, str(tag), vr, "", f"cannot be read: {type(error).__name__}")
            continue
        if element.VR == "SQ":
            yield Line(depth, str(element.tag), "SQ", element.name, f"{len(element.value)} items")
            for item in element.value:
                yield from elements(item, sees_names, depth + 1)
        else:
            value = text_of(element) if sees_names or not _names_somebody(element) else "not shown"
            yield Line(depth, str(element.tag), str(element.VR), element.name, value)


def _names_somebody(element: DataElement) -> bool:
    return element.VR == "PN" or element.keyword in NAMING


def _named(value: Any) -> str:
    """A UID, with what the standard calls it (PS3.6 Table A-1) where it does."""
    name = UID(value).name
    return value if name == value else f"{value} ({name})"


def text_of(element: DataElement) -> str:
    if element.VR in BULK:
        return f"{len(element.value or b'')} bytes"
    if element.value is None:
        return ""
    value = element.value
    said = _named if element.VR == "UI" else str
    text = "\\".join(map(said, value)) if element.VM > 1 else said(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
