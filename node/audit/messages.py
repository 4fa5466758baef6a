"""An event of the node → a DICOM Audit Message (PS3.15 A.5). Builds XML; sends nothing, and asks no database.

Patients' names are part of these messages by the standard (A.5.2.4) and stand in them alone. What an event of
a kind unknown here is about is told as Use of Restricted Function: nothing is left out because it is new.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from xml.etree import ElementTree as ET

from node.store.audit_queue import Event

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2
SUCCESS, MINOR_FAILURE = "0", "4"  # PS3.15 A.5.1: EventOutcomeIndicator
CREATE, READ, EXECUTE = "C", "R", "E"
APPLICATION_SERVER = "4"  # AuditSourceTypeCode
MACHINE_NAME, IP_ADDRESS = "1", "2"  # NetworkAccessPointTypeCode
PERSON, SYSTEM_OBJECT = "1", "2"  # ParticipantObjectTypeCode
PATIENT, REPORT, SECURITY_RESOURCE, QUERY = "1", "3", "13", "24"  # ParticipantObjectTypeCodeRole


@dataclass(frozen=True)
class Code:
    """A code of PS3.16 Annex D, unless another system is named."""

    value: str
    meaning: str
    system: str = "DCM"


APPLICATION_ACTIVITY = Code("110100", "Application Activity")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
QUERIED = Code("110112", "Query")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
USER_SECURITY_CHANGED = Code("110137", "User Security Attributes Changed")
LOGIN, LOGOUT = Code("110122", "Login"), Code("110123", "Logout")
STARTED, STOPPED = Code("110120", "Application Start"), Code("110121", "Application Stop")
APPLICATION = Code("110150", "Application")
DESTINATION, SOURCE = Code("110152", "Destination Role ID"), Code("110153", "Source Role ID")
STUDY_UID, NODE_ID = Code("110180", "Study Instance UID"), Code("110182", "Node ID")
PATIENT_NUMBER, URI = Code("2", "Patient Number", "RFC-3881"), Code("12", "URI", "RFC-3881")

TYPES = {
    "start": STARTED,
    "stop": STOPPED,
    "login": LOGIN,
    "login-failed": LOGIN,
    "logout": LOGOUT,
    "refused-peer": NODE_AUTHENTICATION,
    "refused-visitor": NODE_AUTHENTICATION,
    **dict.fromkeys(("add-user", "remove-user", "new-password", "add-token", "revoke-token"),
                    USER_SECURITY_CHANGED),
}  # fmt: skip
"""EventTypeCode of an action; RESTRICTED_FUNCTION for alerts that are not here."""
FAILURES = ("login-failed", "refused-peer", "refused-visitor", "alert-given-up")
ALERTED = ("alert-sent", "alert-acknowledged", "alert-given-up")
"""A channel was told of a result, and so used the study."""
LOOKS = ("study", "series", "header", "picture", "download", "api-study")
ACCESSES = (*ALERTED, *LOOKS, "acknowledge", "agree", "disagree", "mark-unread")
PAGES = ("worklist", "queue", "missing", "routing", "quality", "shadow", "export")
LISTINGS = ("studies", "jobs", "deliveries", "alerts", "workitems", "missing", "routing")
QUERIES = (*PAGES, *(f"api-{name}" for name in LISTINGS))


@dataclass(frozen=True)
class Reporter:
    """The node itself, as it names itself in its messages."""

    source: str
    ae_title: str
    host: str
    site: str = ""


@dataclass(frozen=True)
class About:
    """What the records know of the study of an event; empty where its records are gone."""

    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""


@dataclass(frozen=True)
class Peer:
    """The other side of a transfer."""

    ae_title: str
    address: str


@dataclass(frozen=True)
class _Draft:
    """A message under way: elements are added in the order of the schema."""

    root: ET.Element = field(default_factory=lambda: ET.Element("AuditMessage"))

    def event(self, event: Event, kind: Code, action: str, kind_of: Code | None = None) -> None:
        at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds")
        outcome = MINOR_FAILURE if event.action in FAILURES else SUCCESS
        identified = _add(self.root, "EventIdentification", EventActionCode=action,
                          EventDateTime=at.replace("+00:00", "Z"), EventOutcomeIndicator=outcome)  # fmt: skip
        _code(identified, "EventID", kind)
        if kind_of:
            _code(identified, "EventTypeCode", kind_of)

    def participant(self, user_id: str, requestor: bool, address: str = "", role: Code | None = None,
                    ae_title: str = "") -> None:  # fmt: skip
        taking_part = _add(self.root, "ActiveParticipant", UserID=user_id or "unknown",
                           UserIsRequestor=str(requestor).lower())  # fmt: skip
        if ae_title:
            taking_part.set("AlternativeUserID", clean(f"AETITLES={ae_title}"))
        if address:
            taking_part.set("NetworkAccessPointID", clean(address))
            taking_part.set("NetworkAccessPointTypeCode", IP_ADDRESS if _is_ip(address) else MACHINE_NAME)
        if role:
            _code(taking_part, "RoleIDCode", role)

    def source(self, reporter: Reporter) -> None:
        named = _add(self.root, "AuditSourceIdentification", AuditSourceID=reporter.source)
        if reporter.site:
            named.set("AuditEnterpriseSiteID", clean(reporter.site))
        _add(named, "AuditSourceTypeCode", **{"csd-code": APPLICATION_SERVER})

    def thing(self, uid: str, code: Code, name: str, kind: str, role: str) -> ET.Element:
        thing = self._object(uid, kind, role)
        _code(thing, "ParticipantObjectIDTypeCode", code)
        _add(thing, "ParticipantObjectName").text = clean(name or uid or "unknown")
        return thing

    def _object(self, uid: str, kind: str, role: str) -> ET.Element:
        attributes = {"ParticipantObjectTypeCode": kind, "ParticipantObjectTypeCodeRole": role}
        identified = {"ParticipantObjectID": uid or "unknown", **attributes}
        return _add(self.root, "ParticipantObjectIdentification", **identified)

    def study(self, event: Event, about: About) -> None:
        thing = self.thing(event.study_instance_uid or "", STUDY_UID, "", SYSTEM_OBJECT, REPORT)
        if event.detail:
            _detail(thing, event.action, event.detail)
        if about.accession_number or event.objects:
            described = _add(thing, "ParticipantObjectDescription")
            if about.accession_number:
                _add(described, "Accession", Number=about.accession_number)
            for sop_class, count in sorted(event.objects.items()):
                _add(described, "SOPClass", UID=sop_class, NumberOfInstances=str(count))
        self.thing(about.patient_id, PATIENT_NUMBER, about.patient_name, PERSON, PATIENT)

    def query(self, event: Event) -> None:
        thing = self._object(event.action, SYSTEM_OBJECT, QUERY)
        _code(thing, "ParticipantObjectIDTypeCode", URI)
        _add(thing, "ParticipantObjectQuery").text = _base64(event.detail)

    def subject(self, event: Event) -> None:
        """What an alert is about, in words (A.5.3.11: the detail is of type "Alert Description")."""
        uid = event.address or event.who
        thing = self.thing(uid, NODE_ID, event.who, SYSTEM_OBJECT, SECURITY_RESOURCE)
        _detail(thing, "Alert Description", f"{event.action}: {event.detail}")


def build(event: Event, reporter: Reporter, about: About = About(), peer: Peer | None = None) -> bytes:
    """The message as UTF-8 XML without a declaration. `peer` is the other side of a transfer."""
    draft = _Draft()
    _FAMILIES.get(event.action, _alert)(draft, event, reporter, peer or Peer(event.who, event.address))
    draft.source(reporter)
    if event.action in ACCESSES or event.action in TRANSFERS:
        draft.study(event, about)
    elif event.action in QUERIES:
        draft.query(event)
    elif event.action not in ("start", "stop", "login", "login-failed", "logout"):
        draft.subject(event)
    return ET.tostring(draft.root, encoding="utf-8", xml_declaration=False)


TRANSFERS = ("received", "sent")


def _activity(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, APPLICATION_ACTIVITY, EXECUTE, TYPES[event.action])
    draft.participant(event.who, False, reporter.host, APPLICATION, reporter.ae_title)


def _authentication(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, USER_AUTHENTICATION, EXECUTE, TYPES[event.action])
    draft.participant(event.who, True, event.address or reporter.host)
    draft.participant(reporter.source, False, reporter.host)


def _access(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, INSTANCES_ACCESSED, READ)
    draft.participant(event.who, True, event.address)
    draft.participant(reporter.source, False, reporter.host, None, reporter.ae_title)


def _query(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, QUERIED, EXECUTE)
    draft.participant(event.who, True, event.address, SOURCE)
    draft.participant(reporter.source, False, reporter.host, DESTINATION, reporter.ae_title)


def _received(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, INSTANCES_TRANSFERRED, CREATE)
    draft.participant(peer.ae_title, True, peer.address, SOURCE, peer.ae_title)
    draft.participant(reporter.source, False, reporter.host, DESTINATION, reporter.ae_title)


def _sent(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, INSTANCES_TRANSFERRED, READ)
    draft.participant(reporter.source, True, reporter.host, SOURCE, reporter.ae_title)
    draft.participant(peer.ae_title, False, peer.address, DESTINATION, peer.ae_title)


def _alert(draft: _Draft, event: Event, reporter: Reporter, peer: Peer) -> None:
    draft.event(event, SECURITY_ALERT, EXECUTE, TYPES.get(event.action, RESTRICTED_FUNCTION))
    draft.participant(reporter.source, False, reporter.host, None, reporter.ae_title)
    draft.participant(event.who, False, event.address)


_FAMILIES = {
    **dict.fromkeys(("start", "stop"), _activity),
    **dict.fromkeys(("login", "login-failed", "logout"), _authentication),
    **dict.fromkeys(ACCESSES, _access),
    **dict.fromkeys(QUERIES, _query),
    "received": _received,
    "sent": _sent,
}


def clean(text: str) -> str:
    """Without the characters that no XML may hold: peers put what they like into an AE title."""
    return NOT_XML.sub("�", text)


def _add(parent: ET.Element, name: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, name, {key: clean(value) for key, value in attributes.items()})


def _code(parent: ET.Element, name: str, code: Code) -> None:
    """`originalText` is the Code Meaning in today's schema; displayName is what older receivers read."""
    words: Mapping[str, str] = {"csd-code": code.value, "codeSystemName": code.system}
    _add(parent, name, **words, displayName=code.meaning, originalText=code.meaning)


def _detail(parent: ET.Element, kind: str, text: str) -> None:
    _add(parent, "ParticipantObjectDetail", type=kind, value=_base64(text))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode()


def _is_ip(address: str) -> bool:
    try:
        ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return True
