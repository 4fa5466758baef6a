"""Each kind of DICOM Audit Message against our schema after PS3.15 A.5.1 and the tables of A.5.3."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from node.audit.messages import About, Peer, Reporter, build
from node.audit.syslog import Line, frame
from node.store.audit_queue import Event

ROOT = Path(__file__).parents[2]
SCHEMA = etree.RelaxNG(etree.parse(ROOT / "tests" / "audit.rng"))
NODE = Reporter("ichnode-1", "ICHNODE", "host-1", "St. Elsewhere")
CT = "1.2.840.10008.5.1.4.1.1.2"
ABOUT = About("P-1", "Müller^Jörg", "A-7")


def message(event: Event, about: About = ABOUT, peer: Peer | None = None) -> etree._Element:
    root = etree.fromstring(build(event, NODE, about, peer))
    SCHEMA.assertValid(root)
    return root


def code(root: etree._Element, name: str) -> str:
    (found,) = root.findall(f".//{name}")
    assert found.get("codeSystemName") == "DCM" and found.get("originalText")
    return str(found.get("csd-code"))


def event(action: str, study: str | None = None, detail: str = "", **more: object) -> Event:
    return Event(action, 1.5e9, "anna", "10.0.0.9", study, detail, **more)  # type: ignore[arg-type]


def noted_actions() -> set[str]:
    """Every action that the code writes into the trail, read from the code."""
    text = "\n".join(path.read_text() for path in (ROOT / "node").rglob("*.py"))
    literal = re.findall(r'(?:\b(?:note|look)\(visitor|_note\(visitor|audit\.write\(.*?), "([\w-]+)"', text)
    return {*literal, "agree", "disagree", "refused-peer", "refused-visitor"}


def test_the_actions_are_found() -> None:
    assert {"login", "study", "add-user", "pause", "worklist", "echo", "cancel-job"} <= noted_actions()


@pytest.mark.parametrize(
    "action", sorted(noted_actions() | {"start", "stop", "received", "sent", "new-deed"})
)
@pytest.mark.parametrize("study", [None, "1.2.3"])
def test_whatever_the_trail_holds_becomes_a_valid_message(action: str, study: str | None) -> None:
    root = message(event(action, study, "words", objects={CT: 3}))
    assert root.find("AuditSourceIdentification").get("AuditSourceID") == "ichnode-1"
    assert root.find("EventIdentification").get("EventDateTime") == "2017-07-14T02:40:00.000Z"


def test_what_was_received_names_both_sides_the_study_and_the_patient() -> None:
    root = message(event("received", "1.2.3", objects={CT: 24}), peer=Peer("CT1", "10.0.0.5"))
    assert code(root, "EventID") == "110104" and root[0].get("EventActionCode") == "C"
    roles = {p.find("RoleIDCode").get("csd-code"): p for p in root.findall("ActiveParticipant")}
    assert (
        roles["110153"].get("UserID") == "CT1" and roles["110153"].get("NetworkAccessPointID") == "10.0.0.5"
    )
    assert roles["110152"].get("AlternativeUserID") == "AETITLES=ICHNODE"
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    assert study.find(".//Accession").get("Number") == "A-7"
    assert study.find(".//SOPClass").attrib == {"UID": CT, "NumberOfInstances": "24"}
    assert patient.get("ParticipantObjectID") == "P-1"
    assert patient.findtext("ParticipantObjectName") == "Müller^Jörg"


def test_what_was_sent_goes_the_other_way() -> None:
    root = message(event("sent", "1.2.3"), peer=Peer("PACS", "pacs.example.org"))
    source, destination = root.findall("ActiveParticipant")
    assert source.get("AlternativeUserID") == "AETITLES=ICHNODE" and source.get("UserIsRequestor") == "true"
    assert destination.get("UserID") == "PACS" and destination.get("NetworkAccessPointTypeCode") == "1"


@pytest.mark.parametrize(
    ("action", "family", "kind", "outcome"),
    [
        ("start", "110100", "110120", "0"),
        ("stop", "110100", "110121", "0"),
        ("login", "110114", "110122", "0"),
        ("login-failed", "110114", "110122", "4"),
        ("logout", "110114", "110123", "0"),
        ("refused-peer", "110113", "110126", "4"),
        ("add-user", "110113", "110137", "0"),
        ("pause", "110113", "110132", "0"),
    ],
)
def test_families_types_and_outcomes(action: str, family: str, kind: str, outcome: str) -> None:
    root = message(event(action))
    assert (code(root, "EventID"), code(root, "EventTypeCode")) == (family, kind)
    assert root[0].get("EventOutcomeIndicator") == outcome and root[0].get("EventActionCode") == "E"


@pytest.mark.parametrize(
    ("action", "family"), [("picture", "110103"), ("header", "110103"), ("queue", "110112")]
)
def test_a_look_at_patients_is_no_security_alert(action: str, family: str) -> None:
    assert code(message(event(action, "1.2.3")), "EventID") == family


def test_who_looked_at_a_study() -> None:
    root = message(event("study", "1.2.3"))
    assert code(root, "EventID") == "110103" and root[0].get("EventActionCode") == "R"
    person = root.find("ActiveParticipant")
    assert (person.get("UserID"), person.get("UserIsRequestor")) == ("anna", "true")
    assert person.get("NetworkAccessPointID") == "10.0.0.9"


def test_an_alert_says_in_words_what_happened() -> None:
    root = message(event("refused-peer", detail="CALLING_AE_NOT_ALLOWED: …"))
    (detail,) = root.findall(".//ParticipantObjectDetail")
    assert detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value")).decode() == "refused-peer: CALLING_AE_NOT_ALLOWED: …"


def test_a_study_whose_records_are_gone_is_told_all_the_same() -> None:
    root = message(event("study", "1.2.3"), About())
    patient = root.findall("ParticipantObjectIdentification")[1]
    assert patient.get("ParticipantObjectID") == "unknown"


@given(st.text(), st.text(), st.text(), st.sampled_from(["received", "refused-peer", "login", "worklist"]))
def test_whatever_peers_call_themselves_the_message_is_valid(
    who: str, name: str, detail: str, kind: str
) -> None:
    made = Event(kind, 0.0, who, name, "1.2.3", detail)
    root = etree.fromstring(build(made, NODE, About(name, who, name), Peer(who, name)))
    assert SCHEMA.validate(root) or not name.strip() or not who.strip(), SCHEMA.error_log


def test_a_line_of_syslog_is_rfc_5424() -> None:
    line = frame(Line(1.5e9, b"<AuditMessage/>"), "höst 1").decode()
    assert re.fullmatch(
        r"<85>1 2017-07-14T02:40:00\.000Z hst1 ichnode \d+ DICOM\+RFC3881 - \ufeff<AuditMessage/>", line
    )
    assert frame(Line(0, b"", is_warning=True), "").startswith(b"<84>1 1970-01-01T00:00:00.000Z - ")
