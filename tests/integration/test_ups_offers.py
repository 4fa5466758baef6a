"""What is offered to readers and for how long: read elsewhere, taken back, kept by a lock, filtered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import delete, insert, select, update

from node.domain.errors import IllegalTransition
from node.domain.findings import Consistency, Priority, Reason
from node.domain.workitems import FILTERED, GLOBAL
from node.settings import Settings, Ups, Watcher, Web
from node.store import workitems as changing
from node.store.audit import Actor
from node.store.records import Records, open_records
from node.store.tables import instances, studies, ups_subscriptions, workitems
from node.ups.service import SERVED_FOR_S, Service
from tests.site import SUBDURAL, Site, findings

HIGH = findings({}, 0.6, Consistency.MASK_ONLY, Priority.HIGH)
DAY_S = 86400.0
READER = Actor("READER1", "reader", "127.0.0.1")
HOUR_S = 3600.0


class Desk:
    """Workitems of a node with one subscriber; `now` is what the service takes for the time."""

    def __init__(self, records: Records, **ups: Any) -> None:
        self.records = records
        self.site = Site(records)
        settings = Settings(ups=Ups(watcher=(Watcher(ae_title="BOARD"), Watcher(ae_title="WALL")), **ups))
        self.service = Service(settings, records)

    def offered(self, at: float = 0.0) -> dict[str, str]:
        """State by workitem, after what is due then was done."""
        self.service.make(time.time() + at)
        return {item.uid: item.state.value for item in self.records.workitems.listed(0)}

    def act(self, action: int, uid: str, ae: str = "BOARD", **keys: Any) -> int:
        asked = Dataset()
        asked.ReceivingAE = ae
        for keyword, value in keys.items():
            setattr(asked, keyword, value)
        return self.service.act(uid, action, asked, READER)

    def take(self, uid: str) -> str:
        asked = Dataset()
        asked.ProcedureStepState, asked.TransactionUID = "IN PROGRESS", generate_uid()
        assert self.service.act(uid, 1, asked, READER) == 0x0000
        return str(asked.TransactionUID)

    def whole(self, uid: str) -> Dataset:
        status, ds = self.service.get(uid, [])
        assert status == 0x0000 and ds is not None
        return ds

    def told(self, ae: str = "BOARD") -> list[tuple[str, str]]:
        due = self.records.subscriptions.due(ae, 1e12, 99)
        return [(one.sop_instance_uid, one.content["00741000"]["Value"][0]) for one in due]


@pytest.fixture
def desk(records: Records) -> Desk:
    return Desk(records)


def test_what_was_read_in_the_console_is_offered_to_nobody(desk: Desk) -> None:
    desk.act(3, GLOBAL, DeletionLock="FALSE")
    job = desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    desk.records.reviews.acknowledge(job, "anna", time.time() + 1)
    assert desk.offered() == {uid: "CANCELED"}
    (progress,) = desk.whole(uid).ProcedureStepProgressInformationSequence
    assert progress.ReasonForCancellation == "read in the console of the node"
    assert progress.ProcedureStepCancellationDateTime
    assert [state for _, state in desk.told()] == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    assert desk.offered(at=60) == {uid: "CANCELED"}, "and not again"
    desk.records.reviews.withdraw(job)
    again = {u: state for u, state in desk.offered().items() if u != uid}
    assert list(again.values()) == ["SCHEDULED"], "marked unread, it is offered again"
    (replaced,) = desk.whole(*again).ReplacedProcedureStepSequence
    assert replaced.ReferencedSOPInstanceUID == uid


def test_what_was_read_before_it_could_be_offered_never_is(desk: Desk) -> None:
    job = desk.site.composed("1.1", SUBDURAL)
    desk.records.reviews.acknowledge(job, "anna", time.time() + 1)
    assert desk.offered() == {}


def revised(desk: Desk, study: str) -> int:
    """One more image came: the series is analysed again."""
    desk.site.receive(study, f"{study}.1", images=1)
    job = desk.site.decide(study, f"{study}.1")
    assert job is not None and desk.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    return job


def test_an_alarm_is_offered_though_more_images_came_at_once(desk: Desk) -> None:
    """The console shows it until a later word; so do readers hear of it, whatever comes of the later job."""
    first = desk.site.running("1.1")
    assert desk.records.jobs.store_priority(first, "worker", Priority.STAT)
    second = revised(desk, "1.1")
    (uid,) = desk.offered()
    assert desk.records.jobs.fail(second, Reason("X", "y"))
    assert desk.offered() == {uid: "SCHEDULED"}
    third = revised(desk, "1.1")
    assert desk.records.jobs.store_analysis(third, "worker", SUBDURAL, "maps", time.time())
    assert sorted(desk.offered().values()) == ["CANCELED", "SCHEDULED"]


def test_what_said_less_later_was_never_offered_for_its_earlier_word(desk: Desk) -> None:
    first = desk.site.running("1.1")
    assert desk.records.jobs.store_priority(first, "worker", Priority.STAT)
    second = revised(desk, "1.1")
    assert desk.records.jobs.store_analysis(second, "worker", findings(), "maps", time.time())
    assert desk.offered() == {}


def test_an_alarm_is_offered_again_when_what_replaced_it_is_cancelled(desk: Desk) -> None:
    """The console shows it again, and so must the reading worklist."""
    desk.site.composed("1.1", SUBDURAL)
    (first,) = desk.offered()
    later = revised(desk, "1.1")
    assert desk.records.jobs.store_priority(later, "worker", Priority.STAT)
    desk.offered()
    states = desk.offered()
    (second,) = set(states) - {first}
    assert states == {first: "CANCELED", second: "SCHEDULED"}
    desk.records.jobs.cancel(later)
    desk.offered()
    states = desk.offered()
    (third,) = set(states) - {first, second}
    assert states == {first: "CANCELED", second: "CANCELED", third: "SCHEDULED"}
    assert desk.offered(at=60) == states, "and then all is quiet"


def test_an_alarm_of_a_cancelled_job_is_offered_again_when_that_is_tried_again(desk: Desk) -> None:
    job = desk.site.running("1.1")
    assert desk.records.jobs.store_priority(job, "worker", Priority.STAT)
    (first,) = desk.offered()
    desk.records.jobs.cancel(job)
    assert desk.offered() == {first: "CANCELED"}
    desk.records.jobs.retry(job)
    assert desk.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    assert desk.records.jobs.store_analysis(job, "worker", SUBDURAL, "maps", time.time())
    states = desk.offered()
    assert states.pop(first) == "CANCELED" and list(states.values()) == ["SCHEDULED"]


@pytest.mark.parametrize("ended_by", [None, "CANCELED"])
def test_what_a_reader_took_of_a_job_that_is_cancelled_brings_nothing_back(
    ended_by: str | None, desk: Desk
) -> None:
    desk.site.composed("1.1", SUBDURAL)
    (first,) = desk.offered()
    later = revised(desk, "1.1")
    assert desk.records.jobs.store_priority(later, "worker", Priority.STAT)
    desk.offered()
    (second,) = set(desk.offered()) - {first}
    transaction = desk.take(second)
    if ended_by:
        asked = Dataset()
        asked.ProcedureStepState, asked.TransactionUID = ended_by, transaction
        assert desk.service.act(second, 1, asked, READER) == 0x0000
    desk.records.jobs.cancel(later)
    desk.offered()
    assert desk.offered() == {first: "CANCELED", second: ended_by or "IN PROGRESS"}


def test_a_later_result_that_alarms_less_takes_nothing_back(records: Records) -> None:
    desk = Desk(records, items="all")
    desk.site.composed("1.1", SUBDURAL)
    (alarm,) = desk.offered()
    job = revised(desk, "1.1")
    assert desk.records.jobs.store_analysis(job, "worker", findings(), "maps", time.time())
    offered = desk.offered()
    assert offered[alarm] == "SCHEDULED" and len(offered) == 2
    desk.records.reviews.acknowledge(job, "anna", time.time() + 1)
    assert set(desk.offered().values()) == {"CANCELED"}, "who read the later result read it all"


def test_what_a_reader_has_stays_his_when_it_is_read_in_the_console(desk: Desk) -> None:
    job = desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    desk.take(uid)
    desk.records.reviews.acknowledge(job, "anna", time.time() + 1)
    assert desk.offered() == {uid: "IN PROGRESS"}


def test_what_an_admin_takes_back_is_offered_again(desk: Desk) -> None:
    desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    transaction = desk.take(uid)
    desk.records.workitems.take_back(uid, "taken back from AE READER1 by anna", time.time())
    states = desk.offered()
    assert states.pop(uid) == "CANCELED" and list(states.values()) == ["SCHEDULED"]
    finish = Dataset()
    finish.ProcedureStepState, finish.TransactionUID = "COMPLETED", transaction
    assert desk.service.act(uid, 1, finish, READER) == 0xC300, "too late"
    with pytest.raises(IllegalTransition, match="nobody has workitem"):
        desk.records.workitems.take_back(uid, "again", time.time())
    (other,) = states
    desk.take(other)
    assert desk.records.workitems.of_studies(["1.1"])["1.1"]["sop_instance_uid"] == other
    desk.records.workitems.take_back(other, "once more", time.time())
    assert sorted(desk.offered().values()) == ["CANCELED", "CANCELED", "SCHEDULED"]


def test_a_claim_ends_when_nothing_is_heard_of_it(records: Records) -> None:
    desk = Desk(records, claim_h=2.0)
    desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    desk.take(uid)
    assert desk.offered(at=1.9 * HOUR_S) == {uid: "IN PROGRESS"}
    assert desk.offered(at=2.1 * HOUR_S)[uid] == "CANCELED"
    (progress,) = desk.whole(uid).ProcedureStepProgressInformationSequence
    assert progress.ReasonForCancellation == "taken back from AE READER1: nothing was heard of it for 2 h"
    assert sorted(desk.offered(at=2.2 * HOUR_S).values()) == ["CANCELED", "SCHEDULED"]
    assert desk.records.audit.entries(1)[0]["who"] == "ichnode"


def test_a_workitem_that_breaks_what_is_done_with_it_holds_up_no_other(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(records, claim_h=2.0)
    desk.site.composed("1.1", SUBDURAL)
    (broken,) = desk.offered()
    desk.take(broken)
    with records.engine.begin() as connection:
        connection.execute(update(workitems).values(performed=["no", "data set"]))
    desk.site.composed("1.2", SUBDURAL)
    for hours in (2.1, 2.2, 2.3):
        states = desk.offered(at=hours * HOUR_S)
        assert states[broken] == "IN PROGRESS" and sorted(states.values()) == ["IN PROGRESS", "SCHEDULED"]
    assert caplog.text.count("Traceback") == 1
    (incident,) = records.incidents.latest()
    assert (incident["code"], incident["study_instance_uid"]) == ("WORKITEM_STUCK", "1.1")
    assert broken in incident["text"] and "the log" in incident["text"]
    identifier = Dataset()
    identifier.StudyInstanceUID, identifier.ProcedureStepState = "", ""
    assert {ds.StudyInstanceUID for _, ds in desk.service.find(identifier)} == {"1.1", "1.2"}


def test_keys_that_cannot_be_read_keep_nothing_from_their_subscriber_nor_from_others(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    assert desk.act(3, FILTERED, ScheduledProcedureStepPriority="HIGH") == 0x0000
    assert desk.act(3, GLOBAL, ae="WALL") == 0x0000
    with desk.records.engine.begin() as connection:
        mine = update(ups_subscriptions).where(ups_subscriptions.c.receiving_ae == "BOARD")
        connection.execute(mine.values(matching={"00741200": "HIGH"}))
    for study in ("1.1", "1.2"):
        desk.site.composed(study, SUBDURAL)
    uids = set(desk.offered())
    assert len(uids) == 2
    for ae in ("BOARD", "WALL"):
        assert {uid for uid, _ in desk.told(ae)} == uids
    assert caplog.text.count("BOARD") == 1 and "subscribe" in caplog.text


def test_a_claim_may_be_without_end(records: Records) -> None:
    desk = Desk(records, claim_h=0.0)
    desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    desk.take(uid)
    assert desk.offered(at=20 * DAY_S) == {uid: "IN PROGRESS"}


def test_a_filter_chooses_among_those_that_are_there_and_those_to_come(desk: Desk) -> None:
    desk.site.composed("1.1", SUBDURAL, patient_id="P1")
    desk.site.composed("1.2", HIGH, patient_id="P2")
    desk.offered()
    assert desk.act(3, FILTERED, ScheduledProcedureStepPriority="HIGH", DeletionLock="FALSE") == 0x0000
    assert len(desk.told()) == 1, "STAT alone"
    desk.site.composed("1.3", HIGH, patient_id="P3")
    desk.site.composed("1.4", SUBDURAL, patient_id="P4")
    desk.offered()
    heard = {desk.whole(uid).PatientID for uid, _ in desk.told()}
    assert heard == {"P1", "P4"}
    (board, wall) = desk.records.subscriptions.standing(["BOARD", "WALL"])
    assert board.matching == {"00741200": {"vr": "CS", "Value": ["HIGH"]}} and not board.to_all
    assert (board.workitems, board.waiting, wall.workitems, wall.waiting) == (2, 2, 0, 0)


def test_one_wish_about_all_takes_the_place_of_another(desk: Desk) -> None:
    """A word about one workitem stays."""
    desk.site.composed("1.1", SUBDURAL, patient_id="P1")
    (first,) = desk.offered()
    assert desk.act(3, FILTERED, PatientID="P*") == 0x0000
    assert desk.act(3, FILTERED, PatientID="Q*") == 0x0000
    desk.site.composed("1.2", SUBDURAL, patient_id="P2")
    desk.offered()
    assert desk.told() == [(first, "SCHEDULED")], "P2 is nobody's"
    assert desk.act(5, FILTERED) == 0x0000
    desk.site.composed("1.3", SUBDURAL, patient_id="Q3")
    desk.offered()
    desk.take(first)
    assert desk.told() == [(first, "SCHEDULED"), (first, "IN PROGRESS")]
    assert desk.act(4, FILTERED) == 0x0000 and desk.told() == []


def test_a_lock_keeps_a_workitem_and_its_records(desk: Desk) -> None:
    desk.site.composed("1.1", SUBDURAL)
    desk.site.composed("1.2", SUBDURAL)
    kept, other = sorted(desk.offered(), key=lambda uid: desk.whole(uid).StudyInstanceUID)
    assert desk.act(3, kept, DeletionLock="TRUE") == 0x0000
    assert desk.act(3, other, DeletionLock="FALSE") == 0x0000
    with desk.records.engine.begin() as connection:
        connection.execute(delete(instances))
        connection.execute(update(studies).values(files_removed_at=1.0))
    later = time.time() + SERVED_FOR_S + DAY_S
    assert {i.uid for i in desk.records.workitems.listed(later - SERVED_FOR_S)} == {kept}
    assert desk.records.keeping.forget(later) == 1
    assert desk.service.get(other, [])[0] == 0xC307 and desk.whole(kept).StudyInstanceUID == "1.1"
    (board,) = desk.records.subscriptions.standing(["BOARD"])
    assert (board.locks, board.workitems) == (1, 1), "nobody is subscribed to what is gone"
    assert desk.act(4, kept) == 0x0000
    assert desk.records.keeping.forget(later) == 1


def test_a_workitem_says_who_it_is_though_retention_took_the_images(desk: Desk) -> None:
    job = desk.site.composed("1.1", SUBDURAL, patient_birth_date="19700101", issuer_of_patient_id="HOUSE")
    (uid,) = desk.offered()
    desk.records.deliveries.sent(desk.site.delivery_of(job), "0x0000", time.time())
    (study,) = desk.records.keeping.removable(time.time() + 1, ())
    assert desk.records.keeping.begin(study, (), "watermark", (), time.time())
    ds = desk.whole(uid)
    assert (ds.PatientBirthDate, ds.IssuerOfPatientID) == ("19700101", "HOUSE")
    (report,) = ds.InputInformationSequence
    assert len(report.ReferencedSOPSequence) == 1, "and names no series without an object"


def test_a_workitem_takes_nothing_from_the_images_of_another_patient(desk: Desk) -> None:
    """They came later, under the same UIDs; theirs is the first in the order of SOP Instance UIDs."""
    desk.site._received = 1
    desk.site.composed("1.1", SUBDURAL, patient_id="P1", patient_birth_date="19700101")
    desk.site._received = 9
    other = {"patient_id": "P2", "patient_birth_date": "20000101", "issuer_of_patient_id": "ELSE"}
    desk.site.receive("1.1", "1.1.1", **other)
    (uid,) = desk.offered()
    ds = desk.whole(uid)
    assert (ds.PatientID, ds.PatientBirthDate, ds.IssuerOfPatientID) == ("P1", "", "")


def test_a_lock_on_all_is_one_on_those_to_come(desk: Desk) -> None:
    """What was said of one workitem stands, whatever is said of all (PS3.4 CC.2.3)."""
    desk.site.composed("1.1", SUBDURAL)
    (first,) = desk.offered()
    desk.act(3, first, DeletionLock="FALSE")
    assert desk.act(3, GLOBAL, DeletionLock="TRUE") == 0x0000
    desk.site.composed("1.2", SUBDURAL)
    desk.offered()
    (board,) = desk.records.subscriptions.standing(["BOARD"])
    assert (board.to_all, board.workitems, board.locks) == (True, 2, 1)
    desk.act(3, first, DeletionLock="TRUE")
    assert desk.records.subscriptions.standing(["BOARD"])[0].locks == 2


def test_how_telling_a_subscriber_goes(desk: Desk, tmp_path: Path) -> None:
    subscriptions = desk.records.subscriptions
    desk.act(3, GLOBAL)
    desk.site.composed("1.1", SUBDURAL)
    desk.offered()
    subscriptions.went_wrong("BOARD", "subscriber BOARD cannot be reached", 10.0)
    subscriptions.went_wrong("BOARD", "subscriber BOARD cannot be reached at all", 20.0)
    (board,) = subscriptions.standing(["BOARD"])
    assert (board.failing_since, board.last_error) == (10.0, "subscriber BOARD cannot be reached at all")
    (due,) = subscriptions.due("BOARD", 1e12, 9)
    subscriptions.give_up(due, "BOARD")
    subscriptions.went_well("BOARD", 30.0)
    (board,) = subscriptions.standing(["BOARD"])
    assert (board.failing_since, board.told_at, board.waiting, board.given_up) == (None, 30.0, 0, 1)
    subscriptions.forget([])
    assert subscriptions.standing(["BOARD"])[0].given_up == 0


def test_today_is_the_day_of_who_asks(tmp_path: Path) -> None:
    """Somewhere it is another day than in UTC, at any time."""
    utc = datetime.now(UTC)
    name = "Etc/GMT-14" if utc.hour >= 11 else "Etc/GMT+12"
    settings = Settings(data_dir=tmp_path, ups=Ups(), web=Web(time_zone=name))
    with closing(open_records(settings)) as records:
        Site(records).composed("1.1", SUBDURAL)
        asked = Dataset()
        asked.ScheduledProcedureStepStartDateTime = utc.astimezone(ZoneInfo(name)).strftime("%Y%m%d")
        assert len(list(Service(settings, records).find(asked))) == 1


def test_what_was_done_long_ago_crowds_out_nothing_new(desk: Desk) -> None:
    """As many as 30 days bring to a large house: the newest is the one that matters."""
    job = desk.site.composed("1.1", SUBDURAL)
    (old,) = desk.offered()
    desk.take(old)
    with desk.records.engine.begin() as connection:
        row = connection.execute(select(workitems)).one()._asdict()
        done = {**row, "state": "COMPLETED", "job_id": job, "created_at": row["created_at"] - 9}
        rows = [{**done, "sop_instance_uid": f"1.9.{n}", "offer": n} for n in range(2, 1203)]
        connection.execute(insert(workitems), rows)
    desk.site.composed("1.2", SUBDURAL, patient_id="P2")
    (new,) = {uid for uid in desk.offered() if uid != old and not uid.startswith("1.9.")}
    asked = Dataset()
    asked.ProcedureStepState = "SCHEDULED"
    assert [found.SOPInstanceUID for _, found in desk.service.find(asked)] == [new]
    asked.ProcedureStepState = ""
    everything = [found.SOPInstanceUID for _, found in desk.service.find(asked)]
    assert len(everything) == len(set(everything)) == 1203 and everything[-2:] == [old, new]
    assert desk.act(3, FILTERED, PatientID="P2", DeletionLock="FALSE") == 0x0000
    assert desk.told() == [(new, "SCHEDULED")]


class Meanwhile:
    """A reader takes a workitem, and his transaction is open until something else has begun."""

    def __init__(self, desk: Desk, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
        taking, self._go_on = threading.Event(), threading.Event()
        write = changing.add_entry

        def slowly(*args: Any, **more: Any) -> None:
            taking.set()
            assert self._go_on.wait(20)
            write(*args, **more)

        monkeypatch.setattr(changing, "add_entry", slowly)
        self._reader = threading.Thread(target=desk.take, args=(uid,))
        self._reader.start()
        assert taking.wait(20)

    def does(self, what: Callable[[], object]) -> None:
        other = threading.Thread(target=what)
        other.start()
        time.sleep(0.7)  # it waits for the reader, or does not look
        self._go_on.set()
        for thread in (self._reader, other):
            thread.join(20)
            assert not thread.is_alive()


def test_what_a_reader_takes_at_that_moment_stays_his(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.site.composed("1.1", SUBDURAL)
    (uid,) = desk.offered()
    desk.site.receive("1.1", "1.1.1", images=1)
    job = desk.site.decide("1.1", "1.1.1")
    assert job is not None and desk.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    assert desk.records.jobs.store_analysis(job, "worker", SUBDURAL, "maps", time.time())
    Meanwhile(desk, uid, monkeypatch).does(lambda: desk.service.make(time.time()))
    assert desk.offered()[uid] == "IN PROGRESS", "he was told that it is his"


def test_who_subscribes_to_all_misses_no_change(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for study, uid, keys in (("1.1", GLOBAL, {}), ("1.2", FILTERED, {"ScheduledProcedureStepPriority": "*"})):
        desk.site.composed(study, SUBDURAL)
        (one,) = [u for u, state in desk.offered().items() if state == "SCHEDULED"]
        with monkeypatch.context() as patch:
            Meanwhile(desk, one, patch).does(lambda uid=uid, keys=keys: desk.act(3, uid, **keys))
        assert desk.told()[-1] == (one, "IN PROGRESS")
        assert desk.act(4, GLOBAL) == 0x0000
