"""What the page of one study shows, gathered from records and stored headers. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from node.admin.web import plots, words
from node.admin.web.pictures import Pictures, Stack
from node.admin.web.site import Site
from node.domain.errors import IchnodeError
from node.domain.findings import CLASSES
from node.domain.lifecycle import JOBS, JobEvent, JobState
from node.frames import UNREADABLE
from node.outputs import wording
from node.outputs.source import value
from node.scheduling import SENDING_ORDER

Row = dict[str, Any]
HEADER = (  # keyword, words; patient's name and birth date come apart
    ("StudyDate", "Study date"),
    ("StudyTime", "Study time"),
    ("PatientSex", "Sex"),
    ("PatientAge", "Age"),
    ("InstitutionName", "Institution"),
    ("StationName", "Station"),
    ("Manufacturer", "Manufacturer"),
    ("ManufacturerModelName", "Model"),
    ("ProtocolName", "Protocol"),
    ("ConvolutionKernel", "Kernel"),
    ("KVP", "kV"),
    ("SliceThickness", "Slice thickness (mm)"),
    ("PixelSpacing", "Pixel spacing (mm)"),
    ("Rows", "Rows"),
    ("Columns", "Columns"),
    ("GantryDetectorTilt", "Gantry tilt (°)"),
    ("PatientPosition", "Patient position"),
    ("ImageType", "Image type"),
)
BUTTONS = {  # which event of the job table each button of an admin brings about
    "retry": JobEvent.RETRIED_BY_ADMIN,
    "reanalyse": JobEvent.REANALYSED_BY_ADMIN,
    "cancel": JobEvent.CANCELLED_BY_ADMIN,
}


def gather(site: Site, pictures: Pictures, uid: str, series_uid: str, sees_names: bool) -> Row | None:
    """None for a study nobody received; `series_uid` chooses another series than the analysed one."""
    row = site.records.worklist.study(uid)
    if row is None:
        return None
    word, current = row["word"], row["current"]
    chosen = _chosen_series(row, series_uid)
    stack = pictures.stack(chosen) if chosen else None
    made = site.records.worklist.objects([job["id"] for job in row["jobs"]])
    mine = next(
        (s for s in row["series"] if current and s["series_instance_uid"] == current["series_instance_uid"]),
        None,
    )
    return {
        "study": {**row, "taken": site.records.workitems.of_studies([uid]).get(uid)},
        "orders": site.records.orders.of_study(uid),
        "inquiry": site.records.orders.inquiry(uid),
        "result": words.result(row["status"], word),
        "revisions": {job["id"]: job["revision"] for job in row["jobs"]},
        "revised": len({job["revision"] for job in row["jobs"]}) > 1,
        "outdated": bool(word and current and word["id"] != current["id"]),
        "classes": classes(stack, word),
        "bars": plots.waterfall(stages(mine, current, made)),
        "outputs": [
            (name, group) for name in SENDING_ORDER if (group := [o for o in made if o["output"] == name])
        ],
        "routing": (current or {}).get("routing") or {},
        "forwarded": site.records.worklist.forwarded([job["id"] for job in row["jobs"]]),
        "alerts": site.records.alerts.of_study(uid),
        "stack": stack if stack and stack.slices else None,
        "chosen": chosen,
        "pictured": f"{chosen} {stack.analysed_at if stack else 0}",
        "lines": plots.along_slices([s.probabilities for s in stack.slices], wording.CLASS_WORDS)
        if stack
        else [],
        "header": _header(site, stack, sees_names),
        "buttons": [
            name for name, event in BUTTONS.items() if current and (JobState(current["state"]), event) in JOBS
        ],
        "x_of": plots.x_of,
        "y_of": plots.y_of,
        "plot": plots,
    }


def _chosen_series(row: Row, wanted: str) -> str:
    """The series asked for, else the one whose word counts, else the first with images."""
    uids = [s["series_instance_uid"] for s in row["series"]]
    if wanted in uids:
        return wanted
    if row["word"] and row["word"]["series_instance_uid"] in uids:
        return str(row["word"]["series_instance_uid"])
    return uids[0] if uids else ""


def classes(stack: Stack | None, word: Row | None) -> list[Row]:
    """Each class with its probability, if the model tells it; none of a job that was cancelled."""
    if word is None or word["state"] == JobState.CANCELLED:
        return []
    findings = words.read_findings(word["findings"])
    if findings is None or not findings.classes:
        return []
    rows = []
    for name in CLASSES:
        found = findings.classes.get(name)
        rows.append(
            {
                "name": name,
                "words": wording.CLASS_WORDS.get(name, name),
                "probability": words.probability(found.probability) if found else "",
                "share": found.probability if found else 0.0,
                "present": bool(found and found.present),
                "evaluated": found is not None,
            }
        )
    return rows


def stages(series: Row | None, job: Row | None, made: Sequence[Row]) -> list[tuple[str, Any, Any]]:
    """From the first slice to the promise of the PACS to keep the results; what has not happened is None."""
    if series is None:
        return []
    job = job or {}
    mine = [d for item in made if item["job_id"] == job.get("id") for d in item["deliveries"]]
    sent = [d["sent_at"] for d in mine if d["sent_at"]]
    committed = [d["committed_at"] for d in mine if d.get("committed_at")]
    started = job.get("started_at")
    steps = [
        ("received", series["first_received_at"], series["last_received_at"]),
        ("complete", series["last_received_at"], series["completed_at"]),
        ("decided", series["completed_at"], job.get("created_at")),
        ("queued", job.get("created_at"), started),
        ("analysed", started, job.get("analysed_at")),
        ("composed", job.get("analysed_at"), job.get("reported_at")),
        ("first sent", job.get("reported_at"), min(sent, default=None)),
        ("all sent", min(sent, default=None), max(sent, default=None) if len(sent) == len(mine) else None),
    ]
    if committed:
        steps.append(("committed", max(sent, default=None), max(committed)))
    return steps


def _header(site: Site, stack: Stack | None, sees_names: bool) -> list[tuple[str, str]]:
    """What the header of the key slice says; empty where its file is gone."""
    if stack is None or not stack.slices:
        return []
    try:
        ds = dcmread(site.file(stack.slices[stack.key].path), stop_before_pixels=True)
    except (OSError, IchnodeError, *UNREADABLE):
        return []
    listed = (("PatientName", "Name"), ("PatientBirthDate", "Born")) if sees_names else ()
    return [(label, text) for keyword, label in (*listed, *HEADER) if (text := _text(ds, keyword))]


def _text(ds: Dataset, keyword: str) -> str:
    found = value(ds, keyword)
    if found is None:
        return ""
    text = "\\".join(map(str, found)) if isinstance(found, MultiValue) else str(found)
    match keyword:
        case "PatientName":
            text = text.replace("^", " ").strip()
        case "StudyDate" | "PatientBirthDate":
            text = words.dicom_date(text)
        case "StudyTime":
            text = words.dicom_time(text)
    return text[:200]
