"""FHIR R4: the announcement as DiagnosticReport, Observations and a Task. Reads nothing from the server.

Report and observations are conditional updates, one of each a study and channel, so that a final word
takes the place of the preliminary one; the Task, which people move on, is a conditional create. Both make
a resend harmless. Names no patient: the report refers to the Patient ID. Nothing stays under one that turned
out to be wrong: what is not said anew is entered in error, and the Task begins again.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

import requests
from pydicom.sr.coding import Code

from node import https
from node.channels.contract import Receipt, Rejected
from node.channels.http import CONFLICT, TRY_LATER, Answer, exchange
from node.channels.words import sentences
from node.credentials import secret
from node.domain.announcing import Announcement, Stage
from node.domain.errors import SettingsError, TransientError
from node.domain.findings import Priority
from node.outputs import codes, wording
from node.settings import Fhir

Resource = dict[str, Any]
OWN = "urn:ichnode"
"""The system of the identifiers that the node gives."""
SYSTEMS = {"SCT": "http://snomed.info/sct", "LN": "http://loinc.org"}
UCUM, DICOM_UID = "http://unitsofmeasure.org", "urn:dicom:uid"
CATEGORY = "http://terminology.hl7.org/CodeSystem/v2-0074"
OBSERVATION_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
IDENTIFIER_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
ABSENT_REASON = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
TEST_DATA = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}
TASK_PRIORITY = {Priority.STAT: "stat", Priority.HIGH: "urgent", Priority.ROUTINE: "routine"}
CONTENT = "application/fhir+json"
_NOTICE = {"text": f"{wording.RESEARCH_USE}."}
LATER = (*TRY_LATER, CONFLICT)
"""A conditional update that meets another one is a conflict (R4 3.1.0.4.3), and harmless to repeat."""


class FhirChannel:
    def __init__(self, settings: Fhir) -> None:
        self._settings = settings
        self._name = f"FHIR server {settings.name} ({settings.url})"

    def check(self) -> None:
        self._session().close()

    def probe(self) -> str:
        """By its CapabilityStatement."""
        try:
            with self._session() as session:
                request = requests.Request(
                    "GET", f"{self._settings.url}/metadata", headers={"Accept": CONTENT}
                )
                said = _json(exchange(session, request, self._settings.timeout_s, self._name))
        except (Rejected, SettingsError) as error:
            raise TransientError(str(error)) from error
        if said.get("resourceType") != "CapabilityStatement":
            raise TransientError(f"{self._name}: what it says of itself is no CapabilityStatement; check url")
        return f"{self._name} speaks FHIR {said.get('fhirVersion', 'of no version')}"

    def send(self, told: Announcement) -> Receipt:
        parts = entries(told, self._settings)
        try:
            session = self._session()
        except SettingsError as error:  # it was there at the start; an admin may put it back
            raise TransientError(str(error)) from error
        with session:
            if self._settings.transaction:
                return self._transact(session, parts)
            for part in parts:
                answer = self._ask(session, part)
            return Receipt(True, f"HTTP {answer.status}", f"{len(parts)} resources")

    def _transact(self, session: requests.Session, parts: list[Resource]) -> Receipt:
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": parts}
        request = requests.Request("POST", self._settings.url, data=_bytes(bundle), headers=_headers())
        answer = exchange(session, request, self._settings.timeout_s, self._name, LATER)
        done = [entry.get("response", {}).get("status", "") for entry in _json(answer).get("entry") or []]
        failed = [status for status in done if not status.startswith("2")]
        if failed or len(done) != len(parts):
            what = f"{len(done)} of {len(parts)} entries: {', '.join(failed) or 'too few'}"
            step = "its log says why; or set transaction = false"
            raise TransientError(f"{self._name} answered {what}; {step}")
        return Receipt(True, f"HTTP {answer.status}", f"{len(done)} resources")

    def _ask(self, session: requests.Session, part: Resource) -> Answer:
        """One entry of the transaction as a request of its own; references to others become logical ones."""
        how = part["request"]
        headers = _headers() | ({"If-None-Exist": how["ifNoneExist"]} if "ifNoneExist" in how else {})
        data = _bytes(_without_links(part["resource"]))
        request = requests.Request(
            how["method"], f"{self._settings.url}/{how['url']}", data=data, headers=headers
        )
        return exchange(session, request, self._settings.timeout_s, self._name, LATER)

    def _session(self) -> requests.Session:
        session = https.session(self._settings.tls, f"alert {self._settings.name}")
        if self._settings.token:
            session.auth = https.Bearer(secret(self._settings.token))
        return session


def entries(told: Announcement, settings: Fhir) -> list[Resource]:
    """The entries of the transaction: Observations, the DiagnosticReport that holds them, the Task."""
    observations = _observations(told, settings)
    report = _report(told, settings, observations)
    found = [_put(resource) for resource in (*observations, report, *_in_error(told, settings, observations))]
    if told.urgent:
        task = _task(told, settings, report)
        found.append(_put(task) if told.withdraws else _create(task))
    return found


def _in_error(told: Announcement, settings: Fhir, observations: list[Resource]) -> list[Resource]:
    """What was said of a patient whose study it is not, and is said of nobody now."""
    said_anew = {_full_url(one) for one in observations}
    found: dict[str, Resource] = {}
    for wrong in told.withdraws:
        before = replace(told, subject=wrong.subject, findings=wrong.findings)
        for one in _observations(before, settings):
            found[_full_url(one)] = one | {"status": "entered-in-error"}
    return [one for url, one in found.items() if url not in said_anew]


def _report(told: Announcement, settings: Fhir, observations: list[Resource]) -> Resource:
    return _of_study(told, settings, "DiagnosticReport", "report") | {
        "status": _status(told),
        "category": [_concept({"system": CATEGORY, "code": "CT", "display": "CAT Scan"})],
        "code": _concept(_coding(codes.HEAD_CT)),
        "issued": _instant(told.made_at),
        "imagingStudy": [
            {
                "type": "ImagingStudy",
                "identifier": {"system": DICOM_UID, "value": f"urn:oid:{told.study_instance_uid}"},
            }
        ],
        "result": [_reference(one) for one in observations],
        "conclusion": "\n".join(sentences(told)),
        "conclusionCode": [
            _concept(_coding(codes.FINDINGS[name]), wording.CLASS_WORDS[name])
            for name, one in told.findings.classes.items()
            if one.present
        ],
    }


def _observations(told: Announcement, settings: Fhir) -> list[Resource]:
    found = [
        _observation(told, settings, name, _concept(_coding(codes.FINDINGS[name]), wording.CLASS_WORDS[name]))
        | {
            "valueCodeableConcept": _concept(_coding(codes.PRESENT if one.present else codes.ABSENT)),
            "component": [
                {
                    "code": {"text": "Probability"},
                    "valueQuantity": {"value": round(one.probability, 4), "system": UCUM, "code": "1"},
                }
            ],
        }
        for name, one in told.findings.classes.items()
    ]
    mask = told.findings.segmentation
    if mask is not None:
        volume = {"value": round(mask.volume_ml, 1), "unit": "mL", "system": UCUM, "code": "mL"}
        code = _concept(_coding(codes.VOLUME), "Volume of haemorrhage")
        found.append(_observation(told, settings, "volume", code) | {"valueQuantity": volume})
    priority = _observation(told, settings, "priority", _concept(_coding(codes.PRIORITY), "Reading priority"))
    if told.reading_priority:
        return [*found, priority | {"valueString": told.reading_priority}]
    reason = {"system": ABSENT_REASON, "code": "error", "display": "Error"}
    return [*found, priority | {"dataAbsentReason": _concept(reason, wording.reason_words(told.findings))}]


def _observation(told: Announcement, settings: Fhir, name: str, code: Resource) -> Resource:
    imaging = {"system": OBSERVATION_CATEGORY, "code": "imaging", "display": "Imaging"}
    return _of_study(told, settings, "Observation", name) | {
        "status": _status(told),
        "category": [_concept(imaging)],
        "code": code,
        "issued": _instant(told.made_at),
        "note": [_NOTICE],
    }


def _task(told: Announcement, settings: Fhir, report: Resource) -> Resource:
    """Somebody should read the study; created once, then theirs."""
    made = {**_of_study(told, settings, "Task", "read"), "for": _patient(told, settings)}
    del made["subject"]
    return made | {
        "status": "requested",
        "intent": "proposal",
        "priority": TASK_PRIORITY[told.reading_priority] if told.reading_priority else "routine",
        "code": {"text": "Read the study first"},
        "description": sentences(told)[0],
        "focus": _reference(report),
        "authoredOn": _instant(told.made_at),
        "note": [_NOTICE],
    }


def _of_study(told: Announcement, settings: Fhir, kind: str, name: str) -> Resource:
    """What every resource has; its identifier is the same in every word about the study to this channel."""
    made: Resource = {
        "resourceType": kind,
        "identifier": [{"system": OWN, "value": f"{settings.name}/{told.study_instance_uid}/{name}"}],
        "subject": _patient(told, settings),
    }
    if told.subject.accession_number:
        kept = {"system": settings.accession_system} if settings.accession_system else {}
        number = {"type": _identifier_type("ACSN"), **kept, "value": told.subject.accession_number}
        made["basedOn"] = [{"type": "ServiceRequest", "identifier": number}]
    if told.test:
        made["meta"] = {"security": [TEST_DATA]}
    return made


def _patient(told: Announcement, settings: Fhir) -> Resource:
    """A logical reference: the server knows the patient, or does not, by the Patient ID."""
    if not told.subject.patient_id:
        return {"type": "Patient", "display": "no Patient ID"}
    kept = {"system": settings.patient_system} if settings.patient_system else {}
    number = {"type": _identifier_type("MR"), **kept, "value": told.subject.patient_id}
    return {"type": "Patient", "identifier": number}


def _status(told: Announcement) -> str:
    """http://hl7.org/fhir/R4/valueset-diagnostic-report-status.html; the same words suit Observations."""
    if told.stage is Stage.NOT_ANALYSED:
        return "cancelled"
    if told.corrects:
        return "corrected"
    return "preliminary" if told.stage is Stage.PRELIMINARY else "final"


def _put(resource: Resource) -> Resource:
    """Conditional update (http://hl7.org/fhir/R4/http.html#cond-update)."""
    how = {"method": "PUT", "url": f"{resource['resourceType']}?identifier={_query(resource)}"}
    return {"fullUrl": _full_url(resource), "resource": resource, "request": how}


def _create(resource: Resource) -> Resource:
    """Conditional create (http://hl7.org/fhir/R4/http.html#ccreate)."""
    how = {"method": "POST", "url": resource["resourceType"], "ifNoneExist": f"identifier={_query(resource)}"}
    return {"fullUrl": _full_url(resource), "resource": resource, "request": how}


def _query(resource: Resource) -> str:
    """A token of one value: what separates values is escaped (http://hl7.org/fhir/R4/search.html#escaping)."""
    (one,) = resource["identifier"]
    value = re.sub(r"[$,|\\]", r"\\\g<0>", one["value"])
    return quote(f"{one['system']}|{value}", safe="")


def _full_url(resource: Resource) -> str:
    """A name within the Bundle that is a function of the identifier."""
    return f"urn:uuid:{uuid5(NAMESPACE_URL, resource['identifier'][0]['value'])}"


def _reference(resource: Resource) -> Resource:
    (one,) = resource["identifier"]
    return {"reference": _full_url(resource), "type": resource["resourceType"], "identifier": one}


def _without_links(part: Any) -> Any:
    """Names that mean something within a Bundle alone are left out; the identifiers beside them stay."""
    if isinstance(part, dict):
        kept = {k: v for k, v in part.items() if k != "reference" or not str(v).startswith("urn:uuid:")}
        return {key: _without_links(value) for key, value in kept.items()}
    return [_without_links(item) for item in part] if isinstance(part, list) else part


def _identifier_type(code: str) -> Resource:
    return _concept({"system": IDENTIFIER_TYPE, "code": code})


def _concept(coding: Resource, text: str = "") -> Resource:
    return {"coding": [coding]} | ({"text": text} if text else {})


def _coding(code: Code) -> Resource:
    return {"system": SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _headers() -> dict[str, str]:
    return {"Content-Type": CONTENT, "Accept": CONTENT}


def _bytes(resource: Resource) -> bytes:
    return json.dumps(resource, ensure_ascii=False, separators=(",", ":")).encode()


def _json(answer: Answer) -> Resource:
    """Empty where it is none: the status counts, and a server may answer without a word."""
    try:
        said = json.loads(answer.body or b"{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
