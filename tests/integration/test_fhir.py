"""FHIR R4 against a small server that keeps resources by the rules of the standard, and checks each one."""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from node.channels.contract import Rejected
from node.channels.fhir import FhirChannel, entries
from node.channels.trial import trial
from node.domain.announcing import Stage, Withdrawal
from node.domain.errors import SettingsError, TransientError
from node.domain.findings import CLASSES, Findings, ModelIdentity, Reason, Status
from node.domain.lifecycle import AlertState
from node.outputs.wording import RESEARCH_USE
from node.settings import Fhir, Settings
from node.store.records import open_records
from tests.alerting import Receiver, Request, alert_of, house, told
from tests.ports import free_port
from tests.site import SUBDURAL, findings

EARLY = replace(SUBDURAL, segmentation=None, consistency=None)
FAILED = Findings(
    ModelIdentity("ichnode", "1", ""), "s", 1, Status.NOT_ANALYSED, Reason("NO_VOLUME", "no volume")
)
Resource = dict[str, Any]


class Refusal(Exception):
    """An answer that is an OperationOutcome."""

    def __init__(self, status: int, code: str, words: str) -> None:
        super().__init__(words)
        self.status, self.code = status, code

    def outcome(self) -> Resource:
        issue = {"severity": "error", "code": self.code, "diagnostics": str(self)}
        made = {"resourceType": "OperationOutcome", "issue": [issue]}
        get_fhir_model_class("OperationOutcome").model_validate(made)
        return made


def _valid(resource: Resource) -> None:
    try:
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    except ValidationError as error:
        raise Refusal(422, "invalid", str(error)[:200]) from error


@dataclass
class Server:
    """Keeps resources by the rules of R4 3.1.0: conditional create and update, versions, whole transactions.

    What is no valid resource of R4B (Observation, DiagnosticReport, Task and Bundle are as in R4), or breaks
    a rule, is refused by an OperationOutcome. `refuse` is the status of the next answers, one each.
    """

    resources: dict[str, list[Resource]] = field(default_factory=dict)
    refuse: list[int] = field(default_factory=list)

    def respond(self, request: Request) -> tuple[int, bytes]:
        path = urlsplit(request.path)
        if path.path.endswith("/metadata"):
            return 200, json.dumps({"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}).encode()
        before = copy.deepcopy(self.resources)
        try:
            if self.refuse:
                raise Refusal(self.refuse.pop(0), "throttled", "come back later")
            if request.headers["Content-Type"] != "application/fhir+json":
                raise Refusal(415, "not-supported", "no FHIR")
            body = json.loads(request.body)
            if body["resourceType"] == "Bundle":
                return 200, json.dumps(self._transaction(body)).encode()
            kind = path.path.rpartition("/")[2]
            query = path.query or request.headers.get("If-None-Exist", "")
            status, kept = self._one(request.method, kind, query, body)
            return status, json.dumps(kept).encode()
        except Refusal as refusal:
            self.resources = before
            return refusal.status, json.dumps(refusal.outcome()).encode()

    def _transaction(self, bundle: Resource) -> Resource:
        _valid(bundle)
        names = [entry["fullUrl"] for entry in bundle["entry"]]
        links = {v for v in _values(bundle, "reference") if v.startswith("urn:uuid:")}
        if links - set(names) or len(names) != len(set(names)):
            raise Refusal(400, "invalid", f"links to nothing, or a name twice: {links - set(names)}")
        entries = []
        for entry in bundle["entry"]:
            how = entry["request"]
            kind, _, query = how["url"].partition("?")
            status, kept = self._one(
                how["method"], kind, query or how.get("ifNoneExist", ""), entry["resource"]
            )
            version = kept["meta"]["versionId"]
            where = f"{kind}/{kept['id']}/_history/{version}"
            entries.append(
                {"response": {"status": f"{status} ok", "location": where, "etag": f'W/"{version}"'}}
            )
        answer = {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}
        _valid(answer)
        return answer

    def _one(self, method: str, kind: str, query: str, resource: Resource) -> tuple[int, Resource]:
        """The HTTP status of one interaction, and the resource as it is kept."""
        if resource["resourceType"] != kind:
            raise Refusal(400, "invalid", f"{resource['resourceType']} sent to {kind}")
        _valid(resource)
        (asked,) = parse_qs(query)["identifier"]
        system, _, value = asked.partition("|")
        if "," in value.replace("\\,", "") or "|" in value.replace("\\|", ""):
            raise Refusal(400, "invalid", f"several values (R4 3.1.1.4.3): {asked}")
        value = re.sub(r"\\([$,|\\])", r"\1", value)
        kept = self.resources.setdefault(kind, [])
        same = [r for r in kept if any((i["system"], i["value"]) == (system, value) for i in r["identifier"])]
        if len(same) > 1:
            raise Refusal(412, "multiple-matches", f"{len(same)} of {kind} match {value}")
        if same and method == "POST":
            return 200, same[0]
        version = int(same[0]["meta"]["versionId"]) + 1 if same else 1
        number = same[0]["id"] if same else str(sum(map(len, self.resources.values())) + 1)
        meta = {**resource.get("meta", {}), "versionId": str(version)}
        for old in same:
            kept.remove(old)
        kept.append({**resource, "id": number, "meta": meta})
        return (200 if same else 201), kept[-1]

    def the(self, kind: str) -> Resource:
        (one,) = self.resources[kind]
        return one

    def observation(self, name: str) -> Resource:
        (one,) = [
            o for o in self.resources["Observation"] if o["identifier"][0]["value"].endswith(f"/{name}")
        ]
        return one


def _values(part: Any, key: str) -> list[str]:
    if isinstance(part, list):
        return [found for item in part for found in _values(item, key)]
    if not isinstance(part, dict):
        return []
    own = [part[key]] if isinstance(part.get(key), str) else []
    return own + [found for value in part.values() for found in _values(value, key)]


def channel(url: str, **changes: Any) -> FhirChannel:
    return FhirChannel(alert_of(Fhir, url=url, **changes))


@pytest.mark.parametrize("transaction", [True, False])
def test_a_resend_makes_nothing_twice(transaction: bool) -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        there = channel(receiver.url, transaction=transaction)
        for _ in range(2):
            assert there.send(told()).acknowledged
    assert {kind: len(kept) for kind, kept in server.resources.items()} == {
        "Observation": 8,
        "DiagnosticReport": 1,
        "Task": 1,
    }
    assert len(receiver.got) == (2 if transaction else 20)


@pytest.mark.parametrize("name", ["ward 3, stat", "a|b", "c\\", "d$", "ß & + %2C"])
def test_a_name_is_one_value_whatever_it_holds(name: str) -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        for _ in range(2):
            assert channel(receiver.url, name=name).send(told()).acknowledged
    assert len(server.resources["Task"]) == 1
    assert server.the("Task")["identifier"][0]["value"].startswith(f"{name}/")


def test_what_the_server_holds() -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        channel(receiver.url, patient_system="urn:oid:1.2.3.4", accession_system="urn:oid:5.6").send(told())
    report, task = server.the("DiagnosticReport"), server.the("Task")
    assert (report["status"], report["code"]["coding"][0]["code"]) == ("final", "24725-4")
    assert report["subject"]["identifier"]["value"] == "PID-7"
    assert report["subject"]["identifier"]["system"] == "urn:oid:1.2.3.4"
    assert report["basedOn"][0]["identifier"]["value"] == "ACC-7"
    assert report["imagingStudy"][0]["identifier"] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}
    assert report["conclusion"].startswith("HAEMORRHAGE SUSPECTED")
    assert [c["text"] for c in report["conclusionCode"]] == ["Any haemorrhage", "Subdural"]
    subdural, epidural = server.observation("subdural"), server.observation("epidural")
    assert subdural["valueCodeableConcept"]["coding"][0]["display"] == "Present"
    assert subdural["component"][0]["valueQuantity"]["value"] == 0.914
    assert epidural["valueCodeableConcept"]["coding"][0]["display"] == "Absent"
    assert server.observation("volume")["valueQuantity"]["value"] == 23.4
    assert server.observation("priority")["valueString"] == "STAT"
    assert (task["priority"], task["status"], task["for"]) == ("stat", "requested", report["subject"])
    assert "Müller" not in json.dumps(server.resources, ensure_ascii=False)


def test_a_final_word_takes_the_place_of_the_preliminary_and_leaves_the_task_to_people() -> None:
    server = Server()
    first = told(EARLY, Stage.PRELIMINARY)
    with Receiver(server.respond) as receiver:
        there = channel(receiver.url)
        there.send(first)
        assert server.the("DiagnosticReport")["status"] == "preliminary"
        server.the("Task")["status"] = "accepted"
        there.send(told(last=first))
    assert server.the("DiagnosticReport")["status"] == server.observation("any")["status"] == "final"
    assert server.the("Task")["status"] == "accepted"


def test_a_correction_keeps_the_priority() -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        channel(receiver.url).send(told(replace(findings(), revision=2), last=told()))
    report = server.the("DiagnosticReport")
    assert report["status"] == "corrected" and "said STAT" in report["conclusion"]
    assert server.observation("priority")["valueString"] == "STAT"


def test_what_was_not_analysed_is_never_negative() -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        channel(receiver.url).send(told(FAILED, Stage.NOT_ANALYSED))
    assert server.the("DiagnosticReport")["status"] == "cancelled"
    assert "NOT a negative result" in server.the("DiagnosticReport")["conclusion"]
    assert "Task" not in server.resources
    assert server.observation("priority")["dataAbsentReason"]["text"] == "no volume"


@pytest.mark.parametrize(("findings_", "stage"), [(SUBDURAL, Stage.FINAL), (FAILED, Stage.NOT_ANALYSED)])
def test_every_resource_says_research_use_only(findings_: Findings, stage: Stage) -> None:
    """Each may be shown without the others."""
    made = entries(told(findings_, stage), Fhir(url="http://127.0.0.1/"))
    assert all(RESEARCH_USE in json.dumps(entry["resource"]) for entry in made)


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize(("findings_", "stage"), [(FAILED, Stage.NOT_ANALYSED), (EARLY, Stage.FINAL)])
def test_nothing_stands_under_a_patient_whose_study_it_turned_out_not_to_be(
    findings_: Findings, stage: Stage, transaction: bool
) -> None:
    """What is said anew moves with its identifier, the rest is entered in error, the task begins again."""
    server = Server()
    with Receiver(server.respond) as receiver:
        there = channel(receiver.url, transaction=transaction)
        there.send(first := told())
        server.the("Task")["status"] = "accepted"
        news = told(findings_, stage, last=first)
        right = replace(news.subject, patient_id="PID-8")
        there.send(replace(news, subject=right, withdraws=(Withdrawal(first.subject, first.findings),)))
    kept = [*server.resources["Observation"], server.the("DiagnosticReport")]
    wrong = [one for one in kept if one["subject"]["identifier"]["value"] == "PID-7"]
    assert wrong and {one["status"] for one in wrong} == {"entered-in-error"}
    said = {one["identifier"][0]["value"].rpartition("/")[2] for one in wrong}
    assert said == ({*CLASSES, "volume"} if stage is Stage.NOT_ANALYSED else {"volume"})
    task = server.the("Task")
    assert (task["for"]["identifier"]["value"], task["status"]) == ("PID-8", "requested")


def test_a_test_is_marked_as_one() -> None:
    for entry in entries(trial("fhir", 1000.0), Fhir(url="http://127.0.0.1/")):
        assert entry["resource"]["meta"]["security"][0]["code"] == "HTEST"


def test_without_a_patient_id_or_a_number_it_is_valid_still() -> None:
    server = Server()
    nobody = replace(told().subject, patient_id="", accession_number="")
    with Receiver(server.respond) as receiver:
        assert channel(receiver.url).send(replace(told(), subject=nobody)).acknowledged


def test_the_token_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FHIR_TOKEN", "t0k3n")
    with Receiver(Server().respond) as receiver:
        there = channel(receiver.url, token="env:FHIR_TOKEN")
        there.check()
        there.send(told())
    assert receiver.got[0].headers["Authorization"] == "Bearer t0k3n"
    monkeypatch.delenv("FHIR_TOKEN")
    with pytest.raises(SettingsError, match="FHIR_TOKEN"):
        there.check()
    with pytest.raises(TransientError, match="FHIR_TOKEN"):
        there.send(told())


@pytest.mark.parametrize("transaction", [True, False])
def test_versions_tell_what_a_resend_and_a_newer_word_change(transaction: bool) -> None:
    server = Server()
    with Receiver(server.respond) as receiver:
        there = channel(receiver.url, transaction=transaction)
        there.send(told())
        first = server.the("DiagnosticReport")
        there.send(told(last=told()))
    report, task = server.the("DiagnosticReport"), server.the("Task")
    assert report["id"] == first["id"] and report["meta"]["versionId"] == "2"
    assert task["meta"]["versionId"] == "1", "a conditional create leaves it alone"


def test_a_transaction_is_whole_or_nothing() -> None:
    """One of its resources is there twice already, so the server cannot tell which one is meant."""
    server = Server()
    with Receiver(server.respond) as receiver:
        there = channel(receiver.url)
        there.send(told())
        report = server.the("DiagnosticReport")
        server.resources["DiagnosticReport"].append({**report, "id": "999"})
        with pytest.raises(Rejected, match=r"412.*delete all but one.*2 of DiagnosticReport match"):
            there.send(told(last=told()))
    assert {o["meta"]["versionId"] for o in server.resources["Observation"]} == {"1"}, "rolled back"


@pytest.mark.parametrize("status", [409, 429, 503])
def test_what_passes_is_tried_again_when_the_server_says(status: int) -> None:
    server = Server(refuse=[status])
    with Receiver(server.respond, headers={"Retry-After": "120"}) as receiver:
        there = channel(receiver.url)
        with pytest.raises(TransientError, match=f"HTTP {status}.*come back later") as caught:
            there.send(told())
        assert caught.value.after_s == 120
        assert there.send(told()).acknowledged
    assert len(server.resources["DiagnosticReport"]) == 1


def test_a_server_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    records, server = open_records(Settings(data_dir=tmp_path)), Server(refuse=[429])
    with Receiver(server.respond, headers={"Retry-After": "50"}) as receiver:
        of, began = house(records, alert_of(Fhir, url=receiver.url)), time.time()
        of.alarmed()
        of.herald().round()
        (waiting,) = records.alerts.unsent(AlertState.PENDING, 5)
    assert waiting["next_try_at"] >= began + 50, "not sooner, whatever the back-off says"
    records.close()


def test_what_is_wrong_is_refused_in_words() -> None:
    """The server of these tests looks at what it gets."""
    server = Server()
    with Receiver(server.respond) as receiver:
        for part in entries(told(), Fhir(url=receiver.url)):
            wrong = {**part["resource"], "status": ["final"]}
            answer = requests.put(
                f"{receiver.url}/{part['resource']['resourceType']}?identifier=a|b",
                json.dumps(wrong),
                headers={"Content-Type": "application/fhir+json"},
                timeout=10,
            )
            assert (answer.status_code, answer.json()["resourceType"]) == (422, "OperationOutcome")
    assert not any(server.resources.values())


def test_what_the_server_says_of_a_refusal_is_shown() -> None:
    def refuse(_: Request) -> tuple[int, bytes]:
        return 422, b'{"resourceType":"OperationOutcome","issue":[{"diagnostics":"no such code"}]}'

    with Receiver(refuse) as receiver, pytest.raises(Rejected, match="no such code"):
        channel(receiver.url).send(told())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"entry": [{"response": {"status": "201"}}]}'])
def test_a_transaction_without_a_word_on_each_entry_is_tried_again(body: bytes) -> None:
    with Receiver(lambda _: (200, body)) as receiver, pytest.raises(TransientError, match="of 10 entries"):
        channel(receiver.url).send(told())


def test_probing_asks_what_it_is() -> None:
    with Receiver(Server().respond) as receiver:
        assert "speaks FHIR 4.0.1" in channel(receiver.url).probe()
    with (
        Receiver(lambda _: (200, b"{}")) as receiver,
        pytest.raises(TransientError, match="no CapabilityStatement"),
    ):
        channel(receiver.url).probe()
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(f"http://127.0.0.1:{free_port()}").probe()


def test_from_the_early_word_to_the_server(tmp_path: Path) -> None:
    records, server = open_records(Settings(data_dir=tmp_path)), Server()
    with Receiver(server.respond) as receiver:
        of = house(records, alert_of(Fhir, url=receiver.url))
        job = of.alarmed()
        of.herald().round()
        assert of.word(job, SUBDURAL, Stage.FINAL)
        of.herald().round()
    assert of.states() == ["ACKNOWLEDGED"] * 2
    assert server.the("DiagnosticReport")["status"] == "final"
    records.close()
