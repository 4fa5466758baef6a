"""Who subscribes to workitems is told what becomes of them: UPS Watch and Event, pynetdicom as the peer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepEvent,
    UnifiedProcedureStepPull,
    UnifiedProcedureStepPush,
    UnifiedProcedureStepWatch,
)
from sqlalchemy import text, update

from node.admin.roles import serving_workitems
from node.domain.workitems import FILTERED, GLOBAL
from node.scu import leave_responses
from node.settings import Settings, Ups, Watcher
from node.store.audit import Actor
from node.store.records import Records, open_records
from node.store.tables import ups_events
from node.ups.events import GIVE_UP_S, Reporter
from node.ups.scp import UpsScp
from node.ups.service import Service
from tests.integration.test_ups import Reader, performed
from tests.peers import eventually
from tests.ports import free_port
from tests.site import SUBDURAL, Site


@dataclass
class Board:
    """A reading-room board: subscribes over one association, and hears events on a port of its own."""

    port: int
    node: int
    heard: list[tuple[int, str, Dataset]] = field(default_factory=list)
    status: int = 0x0000
    dislikes: int = 0
    """An event type that it cannot cope with…"""
    saying: int = 0x0110
    """…and how it says so."""

    def __post_init__(self) -> None:
        ae = AE("BOARD")
        ae.add_requested_context(UnifiedProcedureStepWatch)
        self.assoc = ae.associate("127.0.0.1", self.node, ae_title="ICHNODE")
        assert self.assoc.is_established
        leave_responses(self.assoc)

    def listen(self) -> None:
        ae = AE("BOARD")
        ae.add_supported_context(UnifiedProcedureStepEvent, scu_role=False, scp_role=True)
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._hear)]
        )

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        assert event.request.AffectedSOPClassUID == UnifiedProcedureStepPush
        if event.event_type == self.dislikes:
            return self.saying, None
        if self.status == 0x0000:
            uid = str(event.request.AffectedSOPInstanceUID)
            self.heard.append((event.event_type, uid, event.event_information))
        return self.status, None

    def close(self) -> None:
        if hasattr(self, "_server"):
            self._server.shutdown()
        self.assoc.release()

    def act(self, action: int, uid: str, **attributes: Any) -> int:
        asked = Dataset()
        for keyword, value in attributes.items():
            setattr(asked, keyword, value)
        status, _ = self.assoc.send_n_action(
            asked if attributes else None, action, UnifiedProcedureStepPush, uid,
            meta_uid=UnifiedProcedureStepWatch,
        )  # fmt: skip
        return int(status.Status)

    def subscribe(self, uid: str, who: str = "BOARD", lock: str = "FALSE") -> int:
        return self.act(3, uid, ReceivingAE=who, DeletionLock=lock)

    def states(self) -> list[str]:
        return [said.ProcedureStepState for kind, _, said in self.heard if kind == 1]


@dataclass
class Place:
    records: Records
    site: Site
    service: Service
    reporter: Reporter
    port: int

    def workitem(self, study: str) -> str:
        self.site.composed(study, SUBDURAL)
        self.service.make(time.time())
        (uid,) = [item.uid for item in self.records.workitems.listed(0) if item.study_instance_uid == study]
        return uid

    def take(self, uid: str) -> str:
        reader = Actor("READER1", "reader", "127.0.0.1")
        asked = Dataset()
        asked.ProcedureStepState, asked.TransactionUID = "IN PROGRESS", generate_uid()
        assert self.service.act(uid, 1, asked, reader) == 0x0000
        return str(asked.TransactionUID)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    port, board = free_port(), free_port()
    settings = Settings(
        data_dir=tmp_path, ups=Ups(port=port, watcher=(Watcher(ae_title="BOARD", port=board),))
    )
    records = open_records(settings)
    service = Service(settings, records)
    scp = UpsScp(settings, service)
    scp.start()
    watcher = settings.ups.watcher[0]
    yield Place(records, Site(records), service, Reporter(watcher, settings, records), port)
    scp.stop()
    records.close()


@pytest.fixture
def board(place: Place) -> Iterator[Board]:
    made = Board(place.reporter._peer.destination.port, place.port)
    made.listen()
    yield made
    made.close()


def test_a_subscriber_hears_the_present_state_and_every_change(place: Place, board: Board) -> None:
    uid, other = place.workitem("1.1"), place.workitem("1.2")
    assert board.subscribe(uid) == 0x0000
    assert place.reporter.round(time.time()) == 1
    ((kind, about, said),) = board.heard
    assert (kind, about, said.ProcedureStepState, said.InputReadinessState) == (1, uid, "SCHEDULED", "READY")
    reader = Reader(place.port)
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    progress = Dataset()
    progress.ProcedureStepProgress = "50"
    assert reader.set(uid, ProcedureStepProgressInformationSequence=[progress]) == 0x0000
    assert reader.set(uid, UnifiedProcedureStepPerformedProcedureSequence=[performed()]) == 0x0000
    assert reader.act(uid, "COMPLETED") == 0x0000
    reader.assoc.release()
    place.take(other)
    assert place.reporter.round(time.time()) == 3
    assert board.states() == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]
    kind, _, said = board.heard[2]
    assert kind == 3 and said.ProcedureStepProgressInformationSequence[0].ProcedureStepProgress == 50
    assert {uid for _, uid, _ in board.heard} == {uid} and place.reporter.round(time.time()) == 0


def test_who_subscribes_to_all_hears_of_those_to_come(place: Place, board: Board) -> None:
    old = place.workitem("1.1")
    assert board.subscribe(GLOBAL, lock="TRUE") == 0x0000
    new = place.workitem("1.2")
    place.reporter.round(time.time())
    assert [(uid, said.ProcedureStepState) for _, uid, said in board.heard] == [
        (old, "SCHEDULED"), (new, "SCHEDULED")
    ]  # fmt: skip
    assert board.act(5, GLOBAL, ReceivingAE="BOARD") == 0x0000
    place.workitem("1.3")
    place.take(new)
    place.reporter.round(time.time())
    assert [(uid, said.ProcedureStepState) for _, uid, said in board.heard[2:]] == [(new, "IN PROGRESS")]
    assert board.act(4, GLOBAL, ReceivingAE="BOARD") == 0x0000
    place.take(old)
    assert place.reporter.round(time.time()) == 0


def test_one_workitem_is_left_and_the_others_stay(place: Place, board: Board) -> None:
    first, second = place.workitem("1.1"), place.workitem("1.2")
    assert board.subscribe(GLOBAL) == 0x0000
    assert board.act(4, first, ReceivingAE="BOARD") == 0x0000
    place.take(first)
    place.take(second)
    place.reporter.round(time.time())
    assert [(uid, said.ProcedureStepState) for _, uid, said in board.heard] == [
        (second, "SCHEDULED"), (second, "IN PROGRESS")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "uid", "more", "status"),
    [
        (3, "1.2.3.4", {"ReceivingAE": "BOARD", "DeletionLock": "FALSE"}, 0xC307),
        (4, "1.2.3.4", {"ReceivingAE": "BOARD"}, 0xC307),
        (3, FILTERED, {"ReceivingAE": "BOARD", "DeletionLock": "FALSE"}, 0x0115),
        (3, FILTERED, {"ReceivingAE": "BOARD", "PatientID": "x" * 17_000}, 0x0213),
        (3, FILTERED, {"ReceivingAE": "STRANGER", "PatientID": "x"}, 0xC308),
        (3, GLOBAL, {"ReceivingAE": "STRANGER", "DeletionLock": "FALSE"}, 0xC308),
        (3, GLOBAL, {"DeletionLock": "FALSE"}, 0x0115),
        (5, "1.2.3.4", {"ReceivingAE": "BOARD"}, 0x0115),
        (2, "1.2.3.4", {}, 0xC307),
        (9, GLOBAL, {"ReceivingAE": "BOARD"}, 0x0123),
    ],
)
def test_what_is_refused(board: Board, action: int, uid: str, more: dict[str, str], status: int) -> None:
    assert board.act(action, uid, **more) == status


def test_what_nobody_took_is_cancelled_on_request(place: Place, board: Board) -> None:
    uid = place.workitem("1.1")
    board.subscribe(uid)
    assert board.act(2, uid, ReasonForCancellation="read elsewhere") == 0x0000
    place.reporter.round(time.time())
    assert board.states() == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    status, ds = place.service.get(uid, [])
    assert status == 0x0000 and ds and ds.ProcedureStepState == "CANCELED"
    (progress,) = ds.ProcedureStepProgressInformationSequence
    assert progress.ReasonForCancellation == "read elsewhere" and progress.ProcedureStepCancellationDateTime
    assert board.act(2, uid) == 0xB304
    row = place.records.worklist.study("1.1")
    assert row and row["review"] is None, "the study stays unread"
    entry = place.records.audit.entries(1)[0]
    assert entry["who"] == "BOARD" and "on request" in entry["detail"]


def test_who_took_it_is_asked(place: Place, board: Board) -> None:
    uid = place.workitem("1.1")
    place.take(uid)
    assert board.act(2, uid, ReasonForCancellation="scanned twice") == 0xC312, "nobody listens"
    board.subscribe(uid)
    assert board.act(2, uid, ReasonForCancellation="scanned twice") == 0x0000
    place.reporter.round(time.time())
    kind, _, said = board.heard[-1]
    assert (kind, said.RequestingAE, said.ReasonForCancellation) == (2, "BOARD", "scanned twice")
    status, ds = place.service.get(uid, [])
    assert status == 0x0000 and ds and ds.ProcedureStepState == "IN PROGRESS", "its performer decides"


def test_words_beyond_ascii_arrive_as_they_were_said(place: Place, board: Board) -> None:
    uid = place.workitem("1.1")
    reader = Reader(place.port)
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    board.subscribe(uid)
    progress = Dataset()
    progress.ProcedureStepProgressDescription = "読影中 – Grüße"
    said_so = {"SpecificCharacterSet": "ISO_IR 192", "ProcedureStepProgressInformationSequence": [progress]}
    assert reader.set(uid, **said_so) == 0x0000
    reader.assoc.release()
    assert board.act(2, uid, SpecificCharacterSet="ISO_IR 192", ReasonForCancellation="読影済み") == 0x0000
    place.reporter.round(time.time())
    (_, _, told), (_, _, asked) = board.heard[1:]
    (heard,) = told.ProcedureStepProgressInformationSequence
    assert heard.ProcedureStepProgressDescription == "読影中 – Grüße"
    assert asked.ReasonForCancellation == "読影済み"


def test_what_was_not_heard_is_told_later_in_order(place: Place, tmp_path: Path) -> None:
    board = Board(place.reporter._peer.destination.port, place.port)
    uid = place.workitem("1.1")
    board.subscribe(GLOBAL)
    place.take(uid)
    now = time.time()
    assert place.reporter.round(now) == 0 and place.reporter.round(now + 1) == 0
    board.listen()
    board.status = 0x0110
    assert place.reporter.round(now + 60) == 0 and board.heard == []
    board.status = 0x0000
    assert place.reporter.round(now + 600) == 2
    assert board.states() == ["SCHEDULED", "IN PROGRESS"]
    board.close()


def taken_and_cancelled(place: Place, uid: str) -> None:
    """By a reader who got half way."""
    reader = Reader(place.port)
    assert reader.act(uid, "IN PROGRESS") == 0x0000
    progress = Dataset()
    progress.ProcedureStepProgress = "50"
    assert reader.set(uid, ProcedureStepProgressInformationSequence=[progress]) == 0x0000
    assert reader.act(uid, "CANCELED") == 0x0000
    reader.assoc.release()


def tried_for_a_day(place: Place) -> None:
    """Whatever waits, at ever longer intervals."""
    with place.records.engine.begin() as connection:
        connection.execute(update(ups_events).values(attempts=160))


def test_an_event_that_is_refused_holds_up_no_other_workitem(place: Place, board: Board) -> None:
    board.dislikes = 3
    first, second = place.workitem("1.1"), place.workitem("1.2")
    board.subscribe(GLOBAL)
    taken_and_cancelled(place, first)
    place.take(second)
    now = time.time()
    place.reporter.round(now)
    told = [(uid, said.ProcedureStepState) for _, uid, said in board.heard]
    assert told == [(u, "SCHEDULED") for u in (first, second)] + [(u, "IN PROGRESS") for u in (first, second)]
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert standing.waiting == 2 and standing.told_at == now and "0x0110" in standing.last_error
    assert place.reporter.round(now + 1) == 0, "what follows on the refused one waits for it"
    tried_for_a_day(place)
    assert place.reporter.round(now + GIVE_UP_S + 10) == 0
    assert place.reporter.round(now + GIVE_UP_S + 20) == 1 and board.states()[-1] == "CANCELED"


def test_an_event_that_is_refused_for_good_is_not_tried_again(place: Place, board: Board) -> None:
    """No such event type: what follows of the same workitem need not wait a day for that."""
    board.dislikes, board.saying = 3, 0x0113
    uid = place.workitem("1.1")
    board.subscribe(uid)
    taken_and_cancelled(place, uid)
    assert place.reporter.round(time.time()) == 3
    assert board.states() == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert (standing.waiting, standing.given_up, standing.failing_since) == (0, 1, None)
    board.dislikes = 1
    board.subscribe(uid)
    assert place.reporter.round(time.time()) == 0
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert standing.given_up == 2 and "0x0113" in standing.last_error, "it takes none at all"


BROKEN = {
    "no DICOM JSON": {"00741000": "SCHEDULED"},
    "a value that no VR takes": {"00280010": {"vr": "US", "Value": ["many"]}},
    "a value that cannot be encoded": {"00280010": {"vr": "US", "Value": [99999999]}},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_event_that_cannot_be_built_is_told_once_and_holds_up_no_other(
    content: dict[str, Any], place: Place, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = place.workitem("1.1"), place.workitem("1.2")
    board.subscribe(GLOBAL)
    with place.records.engine.begin() as connection:
        mine = update(ups_events).where(ups_events.c.sop_instance_uid == first)
        connection.execute(mine.values(content=content))
    place.take(first)
    now = time.time()
    assert place.reporter.round(now) == 2
    told = [(uid, said.ProcedureStepState) for _, uid, said in board.heard]
    assert told == [(second, "SCHEDULED"), (first, "IN PROGRESS")]
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert (standing.waiting, standing.given_up, standing.failing_since) == (0, 1, None)
    assert place.reporter.round(now + 1) == 0
    assert caplog.text.count("given up") == 1 and first in caplog.text


@pytest.mark.parametrize("broken", ["event = 9", "content = 'no JSON'"])
def test_an_event_that_cannot_be_read_is_told_once_and_holds_up_no_other(
    broken: str, place: Place, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    """As a newer version wrote it, say, or a damaged database has it."""
    first, second = place.workitem("1.1"), place.workitem("1.2")
    board.subscribe(GLOBAL)
    with place.records.engine.begin() as connection:
        mine = text(f"UPDATE ups_events SET {broken} WHERE sop_instance_uid = :uid")
        connection.execute(mine, {"uid": first})
    now = time.time()
    assert place.reporter.round(now) == 1
    assert [uid for _, uid, _ in board.heard] == [second]
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert (standing.waiting, standing.given_up, standing.failing_since) == (0, 1, None)
    assert place.reporter.round(now + 1) == 0
    assert caplog.text.count("given up") == 1 and first in caplog.text and "N-GET" in caplog.text


def test_an_event_that_breaks_its_telling_waits_and_holds_up_no_other(
    place: Place, board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = place.workitem("1.1"), place.workitem("1.2")
    board.subscribe(GLOBAL)
    tell = Reporter._tell

    def breaks(self: Reporter, assoc: Any, one: Any, information: Dataset) -> Dataset:
        if one.sop_instance_uid == first:
            raise KeyError("nobody thought of it")
        return tell(self, assoc, one, information)

    monkeypatch.setattr(Reporter, "_tell", breaks)
    now = time.time()
    assert place.reporter.round(now) == 1
    assert [uid for _, uid, _ in board.heard] == [second]
    assert place.reporter.round(now + 1) == 0
    assert place.reporter.round(now + 3) == 0
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert standing.waiting == 1 and first in standing.last_error and "KeyError" in standing.last_error
    assert caplog.text.count("Traceback") == 1
    monkeypatch.setattr(Reporter, "_tell", tell)
    assert place.reporter.round(now + 30) == 1


def test_a_subscriber_is_not_blamed_for_an_event_that_cannot_be_built(place: Place, board: Board) -> None:
    board.subscribe(place.workitem("1.1"))
    with place.records.engine.begin() as connection:
        connection.execute(update(ups_events).values(content={"00741000": "SCHEDULED"}))
    assert place.reporter.round(time.time()) == 0
    (standing,) = place.records.subscriptions.standing(["BOARD"])
    assert (standing.given_up, standing.failing_since) == (1, None)


def test_what_nobody_hears_for_a_day_is_given_up(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    board = Board(place.reporter._peer.destination.port, place.port)
    uid = place.workitem("1.1")
    board.subscribe(uid)
    board.close()
    tried_for_a_day(place)
    assert place.reporter.round(time.time() + GIVE_UP_S + 10) == 0
    assert place.records.subscriptions.due("BOARD", 1e12, 9) == []
    assert "given up" in caplog.text and "subscriber BOARD" in caplog.text


def test_what_could_not_be_told_for_days_is_not_given_up_at_the_first_try(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The node was off, or its clock leapt, and the subscriber comes a minute after it."""
    board = Board(place.reporter._peer.destination.port, place.port)
    uid = place.workitem("1.1")
    board.subscribe(uid)
    board.close()
    now = time.time() + 3 * GIVE_UP_S
    assert place.reporter.round(now) == 0
    assert "given up" not in caplog.text
    back = Board(board.port, place.port)
    back.listen()
    assert place.reporter.round(now + 60) == 1 and back.states() == ["SCHEDULED"]
    back.close()


def test_who_is_no_longer_in_the_settings_is_forgotten(place: Place, board: Board) -> None:
    uid = place.workitem("1.1")
    board.subscribe(GLOBAL)
    place.records.subscriptions.forget(["OTHER"])
    place.take(uid)
    assert place.records.subscriptions.due("BOARD", 1e12, 9) == []


def test_a_reader_without_watch_may_not_subscribe_by_pull(place: Place) -> None:
    """The action belongs to UPS Watch; over Pull it is answered all the same, to whom the settings name."""
    reader = Reader(place.port)
    asked = Dataset()
    asked.ReceivingAE, asked.DeletionLock = "READER1", "FALSE"
    status, _ = reader.assoc.send_n_action(
        asked, 3, UnifiedProcedureStepPush, GLOBAL, meta_uid=UnifiedProcedureStepPull
    )
    assert status.Status == 0xC308
    reader.assoc.release()


def test_the_role_tells_by_itself(place: Place, board: Board, tmp_path: Path) -> None:
    watcher = Watcher(ae_title="BOARD", port=board.port)
    settings = Settings(data_dir=tmp_path, ups=Ups(port=free_port(), watcher=(watcher,)))
    board.subscribe(GLOBAL)
    with serving_workitems(settings, place.records, lambda: True):
        place.site.composed("1.1", SUBDURAL)
        eventually(lambda: board.states() == ["SCHEDULED"])


def test_on_each_database(records: Records) -> None:
    site, subscriptions = Site(records), records.subscriptions
    service = Service(Settings(), records)

    def told(ae: str) -> list[tuple[str, int]]:
        return [(due.sop_instance_uid, due.event) for due in subscriptions.due(ae, 1e12, 99)]

    subscriptions.subscribe_to_all("A", False, 0.0, 1.0)
    subscriptions.subscribe_to_all("A", False, 0.0, 2.0)
    site.composed("1.1", SUBDURAL)
    assert service.make(time.time()) == 1
    (item,) = records.workitems.listed(0)
    assert subscriptions.subscribe("B", item.uid, False, 3.0)
    assert not subscriptions.subscribe("B", "1.2.3", False, 3.0)
    assert told("A") == told("B") == [(item.uid, 1)]
    watcher = Actor("A", "reader", "")
    assert records.workitems.request_cancel(item.uid, {}, {"vr": "SQ", "Value": [{}]}, watcher, 4.0) == 0
    assert told("A") == told("B") == [(item.uid, 1)] * 3
    (first, *_) = subscriptions.due("A", 1e12, 1)
    subscriptions.wait([(first, 1e11)])
    assert subscriptions.due("A", 5.0, 9) == [], "nothing overtakes"
    subscriptions.told(first)
    assert len(told("A")) == 2
    assert subscriptions.unsubscribe("A", GLOBAL) and told("A") == []
    subscriptions.forget(["A"])
    assert told("B") == []


def test_an_event_that_takes_the_number_of_one_that_was_withdrawn_is_told(records: Records) -> None:
    """The first is on its way while its subscriber leaves; SQLite gives its number to the next."""
    site, subscriptions = Site(records), records.subscriptions
    site.composed("1.1", SUBDURAL)
    assert Service(Settings(), records).make(time.time()) == 1
    (item,) = records.workitems.listed(0)
    assert subscriptions.subscribe("A", item.uid, False, 3.0)
    (under_way,) = subscriptions.due("A", 1e12, 9)
    for settled in (
        lambda: subscriptions.told(under_way),
        lambda: subscriptions.wait([(under_way, 1e11)]),
        lambda: subscriptions.give_up(under_way, "A"),
    ):
        assert subscriptions.unsubscribe("A", item.uid)
        assert subscriptions.subscribe("B", item.uid, False, 4.0)
        settled()
        assert subscriptions.due("B", 5.0, 9), "B was never told"
        assert subscriptions.unsubscribe("B", item.uid)
