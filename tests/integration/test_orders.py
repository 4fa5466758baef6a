"""The order desk against real peers: worklists that answer and that do not, HL7 senders good and bad."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hl7.client import MLLPClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import ModalityWorklistInformationFind  # type: ignore[attr-defined]

from node.domain.errors import SettingsError, TransientError
from node.domain.orders import OrderPriority, Said, Source, Subject
from node.orders import desk
from node.orders.desk import ASK_AGAIN_S, MOST_ATTEMPTS, Desk
from node.orders.listener import Hl7Listener
from node.orders.worklist import MOST_ITEMS, Worklist
from node.settings import Hl7Orders, Orders, Settings, WorklistPeer
from node.store.records import Records, open_records
from tests.peers import eventually, requires
from tests.ports import free_port
from tests.site import Site

STUDY = Subject("1.2.3", "ACC1", ("P1",))


def item(**changes: Any) -> Dataset:
    """A worklist item as a RIS has it (PS3.4 Table K.6-1)."""
    step = Dataset()
    step.ScheduledStationAETitle, step.Modality = "CT1", "CT"
    step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = "20261120", "1000"
    step.ScheduledPerformingPhysicianName, step.ScheduledProcedureStepID = "", "S1"
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName, ds.PatientID, ds.AccessionNumber = "Doe^Jane", "P1", "ACC1"
    ds.StudyInstanceUID, ds.RequestedProcedureID = "1.2.3", "R1"
    ds.RequestedProcedurePriority = "STAT"
    ds.ScheduledProcedureStepSequence = [step]
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


@dataclass
class Ris:
    """A worklist SCP that answers with its items whatever it is asked, or as it is told."""

    items: list[Dataset] = field(default_factory=list)
    status: int = 0x0000
    silent_s: float = 0
    port: int = field(default_factory=free_port)
    queries: list[Dataset] = field(default_factory=list)

    def __enter__(self) -> Ris:
        ae = AE("RIS")
        ae.add_supported_context(ModalityWorklistInformationFind)
        ae.add_supported_context("1.2.840.10008.1.1")
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.queries.append(event.identifier)
        time.sleep(self.silent_s)
        for found in self.items:
            yield 0xFF00, found
        yield self.status, None

    def asked(self, **changes: Any) -> Worklist:
        return Worklist(WorklistPeer(ae_title="RIS", port=self.port, **changes), "ICHNODE")


def test_the_priority_of_the_study_is_found_by_its_accession_number() -> None:
    with Ris([item(PatientID="P2", StudyInstanceUID="9", AccessionNumber="X"), item()]) as ris:
        assert ris.asked().priority_of(STUDY, "20261120")[0] is OrderPriority.STAT
    (query,) = ris.queries
    assert (query.AccessionNumber, query.PatientID, query.RequestedProcedurePriority) == ("ACC1", "", "")
    assert query.ScheduledProcedureStepSequence[0].Modality == ""


def test_a_study_without_number_is_found_by_patient_modality_and_day() -> None:
    bare = Subject("1.9", "", ("P1",))
    other_day = item()
    other_day.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate = "20261101"
    with Ris([other_day]) as ris:
        assert ris.asked().priority_of(bare, "20261120")[0] is None
        ris.items = [item(RequestedProcedurePriority="HIGH"), item(PatientID="P2")]
        assert ris.asked().priority_of(bare, "20261120")[0] is OrderPriority.HIGH
    assert {query.PatientID for query in ris.queries} == {"P1"}


@pytest.mark.parametrize("patient", ["П123", "Ä1", "王1"])
def test_a_patient_id_in_any_script_is_asked_for_as_it_is(patient: str) -> None:
    """A question mark in its place would ask for other patients (PS3.4 C.2.2.2.4)."""
    found = item(SpecificCharacterSet="ISO_IR 192", PatientID=patient, AccessionNumber="")
    with Ris([found]) as ris:
        assert ris.asked().priority_of(Subject("1.9", "", (patient,)), "20261120")[0] is OrderPriority.STAT
    assert [query.PatientID for query in ris.queries] == [patient]


def test_the_order_of_another_patient_or_number_is_not_taken() -> None:
    with Ris(
        [item(PatientID="P2", StudyInstanceUID="9"), item(AccessionNumber="A2", StudyInstanceUID="8")]
    ) as ris:
        priority, text = ris.asked().priority_of(STUDY, "20261120")
    assert priority is None and "no priority for this study among 4 items" in text
    assert [query.PatientID for query in ris.queries] == ["", "P1"]


def test_a_worklist_that_answers_with_everything_is_stopped() -> None:
    with Ris([item(PatientID="P2", StudyInstanceUID="9")] * (MOST_ITEMS + 50)) as ris:
        assert "among 200 items" in ris.asked().priority_of(STUDY, "20261120")[1]
        assert len(ris.queries) == 1


def test_a_worklist_that_fails_refuses_or_keeps_silent_is_transient_and_named() -> None:
    with Ris(status=0xA700) as ris:
        with pytest.raises(TransientError, match=r"worklist RIS at .* 0xA700"):
            ris.asked().priority_of(STUDY, "")
        ris.silent_s = 3
        with pytest.raises(TransientError, match=r"did not answer within 0\.3 s"):
            ris.asked(timeout_s=0.3).priority_of(STUDY, "")
    with pytest.raises(TransientError, match="cannot be reached"):
        ris.asked().priority_of(STUDY, "")


def test_dcmtk_s_worklist_is_understood(tmp_path: Path) -> None:
    requires("wlmscpfs")
    folder = tmp_path / "RIS"
    folder.mkdir()
    (folder / "lockfile").touch()
    ds = item()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(folder / "one.wl", enforce_file_format=False)
    port = free_port()
    server = subprocess.Popen(
        ["wlmscpfs", "-dfr", "-dfp", str(tmp_path), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        worklist = Worklist(WorklistPeer(ae_title="RIS", port=port), "ICHNODE")

        def answers() -> bool:
            try:
                worklist.echo()
            except TransientError:
                return False
            return True

        eventually(answers)
        assert worklist.priority_of(STUDY, "20261120")[0] is OrderPriority.STAT
        assert worklist.priority_of(Subject("1.7", "NONE", ("P7",)), "20261120")[0] is None
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Records]:
    made = open_records(Settings(data_dir=tmp_path))
    yield made
    made.close()


def desk_of(records: Records, ris: Ris) -> Desk:
    return Desk(Settings(), records, ris.asked())


def test_each_study_is_asked_about_once(here: Records) -> None:
    Site(here).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    now = time.time()
    with Ris([item()]) as ris:
        order_desk = desk_of(here, ris)
        assert [order_desk.round(now + n) for n in range(3)] == [1, 0, 0]
        assert len(ris.queries) == 1
    row, asked = here.worklist.study("1.2.3"), here.orders.inquiry("1.2.3")
    assert row and (row["order_priority"], row["order_source"]) == ("STAT", "WORKLIST")
    assert asked and asked["answered"] and "STAT by worklist RIS" in asked["text"]


def asked_but_one(here: Records, trouble: str) -> None:
    """Of two studies the first breaks with that trouble, which is told; the second is asked about."""
    site = Site(here)
    for study in ("1.1", "1.2"):
        site.receive(study, f"{study}.1", accession_number="ACC1", patient_id="P1")
    with Ris([item()]) as ris:
        assert desk_of(here, ris).round(time.time()) == 2
    broken, asked = here.orders.inquiry("1.1"), here.orders.inquiry("1.2")
    assert broken and not broken["answered"] and trouble in broken["text"]
    assert asked and asked["answered"]


def test_a_study_that_breaks_the_asking_keeps_nobody_else_from_being_asked(
    here: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worklist.priority_of

    def priority_of(self: Worklist, study: Subject, day: str) -> Any:
        if study.study_instance_uid == "1.1":
            raise RuntimeError("The association with a peer SCP must be established")
        return real(self, study, day)

    monkeypatch.setattr(Worklist, "priority_of", priority_of)
    asked_but_one(here, "RuntimeError")


def test_a_study_whose_order_cannot_be_written_down_keeps_nobody_else_from_being_asked(
    here: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = here.orders.say

    def breaks(said: Said, **more: Any) -> Any:
        if said.about.study_instance_uid == "1.1":
            raise ValueError("'WHENEVER' is not a valid OrderPriority")
        return say(said, **more)

    monkeypatch.setattr(here.orders, "say", breaks)
    asked_but_one(here, "ValueError")


def test_a_worklist_that_is_away_is_asked_a_few_times_and_shown(here: Records) -> None:
    Site(here).receive("1.2.3", "1.2.3.1", accession_number="ACC1")
    ris, now = Ris(), time.time()
    order_desk = desk_of(here, ris)
    rounds = [order_desk.round(now + n * (ASK_AGAIN_S + 1)) for n in range(5)]
    assert rounds == [1] * MOST_ATTEMPTS + [0, 0]
    asked = here.orders.inquiry("1.2.3")
    assert asked and not asked["answered"] and "cannot be reached" in asked["text"]
    assert here.orders.last_inquiry() == asked


def orm(*orders: str, kind: str = "ORM^O01", control: str = "M1") -> str:
    head = f"MSH|^~\\&|RIS|HOSP|ICHNODE|AI|20261121120000||{kind}|{control}|P|2.3.1"
    return "\r".join([head, "PID|1||P1^^^HOSP", *orders]) + "\r"


STAT_ORDER = ("ORC|NW|PL1|ACC1||||1^^^^^S", "OBR|1|PL1|ACC1")


@dataclass
class Hl7Place:
    records: Records
    port: int

    def send(self, *messages: str) -> list[list[list[str]]]:
        """Over one connection; the segments of each answer, split into fields."""
        with MLLPClient("127.0.0.1", self.port) as client:
            client.socket.settimeout(20)
            answers = [client.send_message(text).decode() for text in messages]
        return [[s.split("|") for s in a.strip("\x0b\x1c\r").split("\r")] for a in answers]


@pytest.fixture
def hl7_place(here: Records) -> Iterator[Hl7Place]:
    port, over = free_port(), threading.Event()
    settings = Settings(orders=Orders(hl7=Hl7Orders(port=port)))
    thread = threading.Thread(target=desk.run, args=(settings, here, over.wait))
    thread.start()
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield Hl7Place(here, port)
    over.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_an_order_is_recorded_before_it_is_acknowledged(hl7_place: Hl7Place) -> None:
    Site(hl7_place.records).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    (msh, msa), second = hl7_place.send(orm(*STAT_ORDER), orm("ORC|XO||ACC1||||1^^^^^R", control="M2"))
    assert (msa[:3], msh[8].split("^")[0], msh[2:6]) == (
        ["MSA", "AA", "M1"],
        "ACK",
        ["ICHNODE", "AI", "RIS", "HOSP"],
    )
    assert second[1][1:3] == ["AA", "M2"]
    (said,) = hl7_place.records.orders.of_study("1.2.3")
    assert (said.priority, said.source, said.reference) == (OrderPriority.ROUTINE, Source.HL7, "M2")
    hl7_place.send(orm(*STAT_ORDER, control="M3"))
    row = hl7_place.records.worklist.study("1.2.3")
    assert row and row["order_priority"] == "STAT"


@pytest.mark.parametrize("silent", ["ORC|SC||ACC1||IP", "ORC|XO||ACC1"])
def test_a_message_without_a_priority_takes_none_back(silent: str, hl7_place: Hl7Place) -> None:
    """An empty field changes nothing (HL7 v2.5.1, 2.5.3); an order that never had one is routine."""
    Site(hl7_place.records).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    hl7_place.send(orm("ORC|NW||ACC1"))
    assert hl7_place.records.orders.of_study("1.2.3")[0].priority is OrderPriority.ROUTINE
    hl7_place.send(orm(*STAT_ORDER), orm(silent, "OBR|1||ACC1", control="M2"))
    (said,) = hl7_place.records.orders.of_study("1.2.3")
    assert (said.priority, said.reference) == (OrderPriority.STAT, "M2")
    hl7_place.send(orm("ORC|CA||ACC1"), orm(silent, control="M4"))
    assert hl7_place.records.orders.of_study("1.2.3")[0].priority is OrderPriority.ROUTINE


@pytest.mark.parametrize("control", ["NW", "CA"])
def test_the_order_of_another_study_of_the_same_number_takes_no_priority_back(
    control: str, hl7_place: Hl7Place
) -> None:
    """Head and neck under one accession number, each a study of its own (IHE RAD TF-1 3.4)."""
    site = Site(hl7_place.records)
    site.receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    site.receive("1.2.4", "1.2.4.1", accession_number="ACC1", patient_id="P1")
    neck = (f"ORC|{control}|PL2|ACC1||||1^^^^^R", "OBR|2|PL2|ACC1", "ZDS|1.2.4^HOSP^Application^DICOM")
    hl7_place.send(orm(*STAT_ORDER, "ZDS|1.2.3^HOSP^Application^DICOM"), orm(*neck, control="M2"))
    assert hl7_place.records.orders.of_study("1.2.3")[0].priority is OrderPriority.STAT
    hl7_place.send(orm(*neck, control="M3"), orm("ORC|XO||ACC1||||1^^^^^R", "ZDS|1.2.3", control="M4"))
    assert hl7_place.records.orders.of_study("1.2.3")[0].priority is OrderPriority.ROUTINE


def test_what_the_worklist_says_of_another_study_of_the_same_number_takes_no_priority_back(
    here: Records,
) -> None:
    site = Site(here)
    for study, priority in (("1.2.3", OrderPriority.STAT), ("1.2.4", OrderPriority.ROUTINE)):
        site.receive(study, f"{study}.1", accession_number="ACC1", patient_id="P1")
        here.orders.say(Said(Source.WORKLIST, priority, Subject(study, "ACC1", ("P1",)), 1.0))
    assert here.orders.of_study("1.2.3")[0].priority is OrderPriority.STAT


@pytest.mark.parametrize("stat_first", [True, False])
def test_of_several_orders_of_a_study_in_one_message_the_most_urgent_counts(
    stat_first: bool, hl7_place: Hl7Place
) -> None:
    """Head and neck under one accession number, say, and a third that was cancelled."""
    Site(hl7_place.records).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    neck = ("ORC|NW|PL2|ACC1||||1^^^^^R", "OBR|2|PL2|ACC1")
    gone = ("ORC|CA|PL3|ACC1", "OBR|3|PL3|ACC1")
    hl7_place.send(orm(*STAT_ORDER, *neck, *gone) if stat_first else orm(*gone, *neck, *STAT_ORDER))
    assert hl7_place.records.orders.of_study("1.2.3")[0].priority is OrderPriority.STAT


def test_another_order_of_the_same_number_takes_no_priority_back(hl7_place: Hl7Place) -> None:
    """Head and neck under one accession number, a message each, and neither names a study."""
    Site(hl7_place.records).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")

    def counts() -> OrderPriority:
        return hl7_place.records.orders.of_study("1.2.3")[0].priority

    hl7_place.send(orm(*STAT_ORDER), orm("ORC|NW|PL2|ACC1||||1^^^^^R", "OBR|1|PL2|ACC1", control="M2"))
    assert counts() is OrderPriority.STAT
    hl7_place.send(orm("ORC|CA|PL2|ACC1", control="M3"))
    assert counts() is OrderPriority.STAT
    hl7_place.send(orm("ORC|XO|PL1^RIS|ACC1||||1^^^^^R", control="M4"))
    assert counts() is OrderPriority.ROUTINE, "its own order takes it back"
    hl7_place.send(orm(*STAT_ORDER, control="M5"), orm("ORC|XO||ACC1||||1^^^^^R", control="M6"))
    assert counts() is OrderPriority.ROUTINE, "so does one that does not say which it is"


def test_what_cannot_be_used_is_rejected_with_its_reason_and_the_rest_goes_on(
    hl7_place: Hl7Place,
) -> None:
    answers = hl7_place.send("hello\r", orm(kind="ADT^A01"), orm("ORC|NW", "OBR|1"), orm(*STAT_ORDER))
    said = [next(s for s in answer if s[0] == "MSA") for answer in answers]
    assert [msa[1] for msa in said] == ["AR", "AR", "AR", "AA"]
    assert "does not begin with MSH" in said[0][3] and "ADT A01 is not taken" in said[1][3]
    assert "without accession number" in said[2][3]


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ("RIS|HOSP|||2026||ORM^O01|M7|P", "AA"),
        ("RIS|HOSP|||2026||ORM^O01|M7", "AA"),
        ("RIS|HOSP|||2026||ORM|M7|P|2.3", "AR"),  # without its trigger event
        ("RIS", "AR"),
    ],
)
def test_a_short_header_is_answered_too(head: str, code: str, hl7_place: Hl7Place) -> None:
    """A sender without an answer sends the same again, and nothing behind it."""
    ((msh, msa),) = hl7_place.send(f"MSH|^~\\&|{head}\rORC|NW||ACC1\r")
    assert msh[8].split("^")[0] == "ACK"
    assert msa[:3] == ["MSA", code, "M7" if "M7" in head else ""]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r\r", "\r\n\r\n"])
@pytest.mark.parametrize("charset", ["", "UNICODE UTF-8"])
def test_segments_may_end_as_lines_of_a_file_do(end: str, charset: str, here: Records) -> None:
    head = f"MSH|^~\\&|RIS|HOSP|||2026||ORM^O01|M7|P|2.5||||||{charset}"
    text = end.join(["", head, "PID|1||P1", *STAT_ORDER, ""])
    answer = Hl7Listener(Hl7Orders(), here).take(text.encode(), "127.0.0.1")
    assert "MSA|AA|M7" in answer
    Site(here).receive("1.2.3", "1.2.3.1", accession_number="ACC1", patient_id="P1")
    assert here.orders.weigh("1.2.3", (), 1.0)[0] is OrderPriority.STAT


def test_a_sender_that_breaks_off_leaves_the_next_one_undisturbed(hl7_place: Hl7Place) -> None:
    for half in (b"\x0bMSH|^~\\&|RIS", b"no start block\x1c\r", b"\x0b" + b"x" * 1100000):
        with socket.create_connection(("127.0.0.1", hl7_place.port)) as rude:
            rude.sendall(half)
    assert hl7_place.send(orm(*STAT_ORDER))[0][1][1] == "AA"


def test_a_database_that_is_away_means_send_again(here: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> list[str]:
        raise TransientError("database: locked")

    monkeypatch.setattr(here.orders, "say", away)
    answer = Hl7Listener(Hl7Orders(), here).take(orm(*STAT_ORDER).encode(), "127.0.0.1")
    assert "MSA|AE|M1|the database is away: send the message again" in answer


def test_what_nobody_thought_of_is_answered_too(
    here: Records, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> list[str]:
        raise RuntimeError("never seen before")

    monkeypatch.setattr(here.orders, "say", broken)
    answer = Hl7Listener(Hl7Orders(), here).take(orm(*STAT_ORDER).encode(), "127.0.0.1")
    assert "MSA|AE|M1|it cannot be recorded; see the log of the order desk" in answer
    assert "never seen before" in caplog.text


@pytest.mark.parametrize(
    ("addresses", "address", "welcome"),
    [((), "127.0.0.1", True), ((), "::1", True), ((), "10.1.2.3", False),
     (("10.1.0.0/16",), "10.1.2.3", True),
     (("10.1.0.0/16",), "::ffff:10.1.2.3", True), (("10.1.0.0/16",), "127.0.0.1", False), ((), "?", False)],
)  # fmt: skip
def test_who_may_connect(here: Records, addresses: tuple[str, ...], address: str, welcome: bool) -> None:
    assert Hl7Listener(Hl7Orders(addresses=addresses), here)._may_connect(address) is welcome


def test_a_stranger_is_closed_before_a_word_is_read(here: Records) -> None:
    port, over = free_port(), threading.Event()
    settings = Settings(orders=Orders(hl7=Hl7Orders(port=port, addresses=("10.0.0.0/8",))))
    thread = threading.Thread(target=desk.run, args=(settings, here, over.wait))
    thread.start()
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(20)
        assert stranger.recv(10) == b""
    over.set()
    thread.join(timeout=20)


@pytest.mark.parametrize("trouble", [ValueError("never seen before"), KeyError("nor this")])
def test_a_listener_that_ends_before_its_time_ends_the_desk(
    trouble: Exception, here: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process went on without it, alive on every page, and no order came in any more."""

    async def breaks(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr("node.orders.listener.start_hl7_server", breaks)
    ends = time.monotonic() + 5
    settings = Settings(orders=Orders(hl7=Hl7Orders(port=free_port())))
    with pytest.raises(type(trouble)):
        desk.run(settings, here, lambda s: time.sleep(min(s, 0.05)) or time.monotonic() > ends)


def test_a_port_that_is_taken_is_told_by_name(here: Records) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(orders=Orders(hl7=Hl7Orders(port=other.getsockname()[1])))
        with pytest.raises(SettingsError, match=r"orders\.hl7\.host"):
            desk.run(settings, here, threading.Event().wait)
