"""Storage commitment against peers that promise, refuse, keep silent or forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from sqlalchemy import select

from node import commitment
from node.domain.errors import TransientError
from node.domain.lifecycle import DeliveryState
from node.intake import Intake
from node.scp import listener_of, open_socket
from node.settings import Destination, Scp, Settings
from node.spool import Spool
from node.store.commitments import Asked
from node.store.records import open_records
from node.store.tables import commitments
from tests.delivering import FAILED, PENDING, SENT, T0, Pacs, Place, pacs_at
from tests.orthanc import plain_orthanc
from tests.peers import eventually
from tests.ports import free_port
from tests.receivers import RECEIVERS
from workers.demo import Orthanc

COMMITTED = DeliveryState.COMMITTED.value
NO_SUCH_OBJECT = 0x0112


@dataclass
class Promising(Pacs):
    """…and that answers requests for storage commitment, over either association; `lost` is what it lost."""

    listener_port: int = 0
    """Where to report; 0: over the association of the request."""
    lost: set[str] = field(default_factory=set)
    silent: bool = False
    hasty: bool = False
    """It reports before it answers the request, as PS3.4 J.3.3 lets it."""
    reason: int = NO_SUCH_OBJECT
    asked_for: list[list[str]] = field(default_factory=list)
    answers_got: list[int] = field(default_factory=list)

    def supported(self, ae: AE) -> list[Any]:
        ae.add_supported_context(StorageCommitmentPushModel)
        return [(evt.EVT_N_ACTION, self._asked)]

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        request = event.action_information
        uids = [str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence]
        self.asked_for.append(uids)
        if not self.silent:
            report = self.report(request)
            target = self._second if self.listener_port else self._same
            if self.hasty:
                (target if self.listener_port else self._in_front)(event.assoc, report)
                return 0x0000, None
            Thread(target=target, args=(event.assoc, report), daemon=True).start()
        return 0x0000, None

    def report(self, request: Dataset) -> Dataset:
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        held, lost = [], []
        for item in request.ReferencedSOPSequence:
            if str(item.ReferencedSOPInstanceUID) in self.lost:
                item.FailureReason = self.reason
                lost.append(item)
            else:
                held.append(item)
        if held:
            report.ReferencedSOPSequence = held
        if lost:
            report.FailedSOPSequence = lost
        return report

    def _same(self, assoc: Any, report: Dataset) -> None:
        self._tell(assoc, report)

    def _in_front(self, assoc: Any, report: Dataset) -> None:
        """The report goes out, and right behind it the response to the request; the answer comes later."""
        request = N_EVENT_REPORT()
        request.MessageID, request.EventTypeID = 7, 2 if "FailedSOPSequence" in report else 1
        request.AffectedSOPClassUID = StorageCommitmentPushModel
        request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        request.EventInformation = BytesIO(encode(report, False, True) or b"")
        offered = [c for c in assoc.accepted_contexts if c.abstract_syntax == StorageCommitmentPushModel]
        (context,) = (c for c in offered if c.transfer_syntax[0] == ExplicitVRLittleEndian)
        assoc.dimse.send_msg(request, context.context_id)
        assoc._reactor_checkpoint.clear()  # else the reactor may take the answer, as unexpected
        Thread(target=self._hear, args=(assoc,), daemon=True).start()

    def _hear(self, assoc: Any) -> None:
        _, answer = assoc.dimse.get_msg(block=True)
        assoc._reactor_checkpoint.set()
        if answer is not None:  # None: the association ended without one
            self.answers_got.append(int(answer.Status))

    def _second(self, _: Any, report: Dataset) -> None:
        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate("127.0.0.1", self.listener_port, ae_title="ICHNODE", ext_neg=[role])
        assert assoc.is_established
        self._tell(assoc, report)
        assoc.release()

    def _tell(self, assoc: Any, report: Dataset) -> None:
        kind = 2 if "FailedSOPSequence" in report else 1
        time.sleep(0.05)
        status, _ = assoc.send_n_event_report(
            report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.answers_got.append(int(status.Status))


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    monkeypatch.setattr(commitment, "LINGER_S", 0.5)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    destination = Destination(name="pacs", ae_title="PACS", commitment=True)
    return Settings(data_dir=tmp_path, scp=Scp(port=free_port(), processes=1), destination=(destination,))


@pytest.fixture
def place(settings: Settings) -> Iterator[Place]:
    records = open_records(settings)
    yield Place(records, Spool(settings.data_dir / "spool"))
    records.close()


@pytest.fixture(params=RECEIVERS)
def listener(request: pytest.FixtureRequest, settings: Settings, place: Place) -> Iterator[int]:
    """The node's own listener; the port."""
    scp = settings.scp.model_copy(update={"receiver": request.param})
    settings = settings.model_copy(update={"scp": scp})
    listening = open_socket(settings.scp)
    running = listener_of(
        settings, place.records, Intake(place.spool, place.records, time.time, settings.scp)
    )
    running.start(listening)
    yield settings.scp.port
    running.stop()
    listening.close()


def promised(port: int, **changes: Any) -> Destination:
    return pacs_at(port, commitment=True, commitment_wait_s=300, **changes)


def transactions(place: Place) -> list[Any]:
    with place.records.engine.connect() as connection:
        return list(connection.execute(select(commitments).order_by(commitments.c.asked_at)).all())


def test_what_the_destination_promises_over_the_same_association_is_committed(place: Place) -> None:
    uids = place.compose("pacs")
    with Promising() as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round(lambda: T0) and courier.round(lambda: T0)
        eventually(lambda: place.states() == [COMMITTED] * 3)
        assert courier.round(lambda: T0 + 1e5)
        assert (pacs.asked_for, pacs.answers_got) == ([uids], [0x0000])
    assert all(row.committed_at == T0 and row.last_error is None for row in place.rows())
    assert [t.answered_at for t in transactions(place)] == [T0]


def test_and_over_an_association_of_its_own(place: Place, listener: int) -> None:
    place.compose("pacs")
    with Promising(listener_port=listener) as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round() and courier.round()
        eventually(lambda: place.states() == [COMMITTED] * 3)
        eventually(lambda: pacs.answers_got == [0x0000])


def test_a_promise_may_come_before_the_request_is_answered(place: Place) -> None:
    place.compose("pacs")
    with Promising(hasty=True) as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round(lambda: T0) and courier.round(lambda: T0)
        eventually(lambda: place.states() == [COMMITTED] * 3)
        eventually(lambda: pacs.answers_got == [0x0000])


def test_and_so_over_an_association_of_its_own(place: Place, listener: int) -> None:
    place.compose("pacs")
    with Promising(listener_port=listener, hasty=True) as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round() and courier.round()
        assert place.states() == [COMMITTED] * 3 and pacs.answers_got == [0x0000]


def test_nobody_is_asked_unless_that_is_wanted(place: Place) -> None:
    place.compose("pacs")
    with Promising() as pacs:
        courier = place.courier(pacs_at(pacs.port))
        assert courier.round(lambda: T0) and courier.round(lambda: T0 + 1)
        assert pacs.asked_for == []
    assert place.states() == [SENT] * 3


def test_what_the_destination_lost_is_sent_again_as_it_was(place: Place) -> None:
    uids = place.compose("pacs")
    with Promising(lost={uids[1]}) as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round(lambda: T0) and courier.round(lambda: T0)
        eventually(lambda: place.states() == [COMMITTED, PENDING, COMMITTED])
        refused = place.rows()[1]
        assert (refused.last_status, refused.next_try_at) == ("0x0112", T0 + 10)
        assert "no such object instance" in refused.last_error
        pacs.lost = set()
        for later in (9, 10, 10):
            courier.round(lambda later=later: T0 + later)  # type: ignore[misc]
        eventually(lambda: place.states() == [COMMITTED] * 3)
        assert pacs.uids() == [*uids, uids[1]]
        assert pacs.kept[3] == pacs.kept[1]
        assert pacs.asked_for == [uids, [uids[1]]]


def test_a_promise_that_never_comes_is_asked_for_again(place: Place) -> None:
    uids = place.compose("pacs")
    with Promising(silent=True) as pacs:
        courier = place.courier(promised(pacs.port))
        for later in (0, 0, 299, 300.5):
            assert courier.round(lambda later=later: T0 + later)  # type: ignore[misc]
        assert pacs.asked_for == [uids, uids]
        assert place.states() == [SENT] * 3 and len(pacs.kept) == 3
        assert len({t.transaction_uid for t in transactions(place)}) == 2
        assert "no answer yet" in place.rows()[0].last_error


def test_a_promise_that_nobody_makes_is_not_asked_for_for_ever(place: Place) -> None:
    uids = place.compose("pacs", count=1)
    with Promising(silent=True) as pacs:
        courier = place.courier(promised(pacs.port, give_up_h=0.25))
        for later in (0, 0, 301, 602, 903, 1204):
            assert courier.round(lambda later=later: T0 + later)  # type: ignore[misc]
        assert pacs.asked_for == [uids] * 3


@pytest.mark.parametrize("before", ["not asked yet", "asked in vain"])
def test_after_a_leap_of_the_clock_what_was_sent_is_asked_for_as_long_as_ever(
    before: str, place: Place
) -> None:
    """Or after days on which the node was off, or the destination paused."""
    uids = place.compose("pacs", count=1)
    with Promising(silent=True) as pacs:
        courier = place.courier(promised(pacs.port, give_up_h=0.25))
        for _ in range(1 if before == "not asked yet" else 2):
            assert courier.round(lambda: T0)
        asked, leapt = len(pacs.asked_for), T0 + 1e8
        for later in (0, 301, 602, 903, 1204):
            assert courier.round(lambda later=later: leapt + later)  # type: ignore[misc]
        assert pacs.asked_for == [uids] * 3
        assert asked == (before == "asked in vain")


def test_a_late_answer_to_an_earlier_question_counts(place: Place, settings: Settings) -> None:
    uids = place.compose("pacs")
    with Promising(silent=True) as pacs:
        courier = place.courier(promised(pacs.port))
        for later in (0, 0, 301):
            courier.round(lambda later=later: T0 + later)  # type: ignore[misc]
    first = transactions(place)[0].transaction_uid
    assert take_in(place, settings, report(first, uids)) == 0x0000
    assert place.states() == [COMMITTED] * 3


def test_an_old_no_does_not_take_back_what_was_sent_since(place: Place, settings: Settings) -> None:
    uids = place.compose("pacs", count=1)
    (row,) = place.rows()
    place.records.commitments.asked(Asked("1.2.3", "pacs", T0 + 1))
    place.records.deliveries.sent(row.id, "0x0000", T0 + 2)
    assert take_in(place, settings, report("1.2.3", [], {uids[0]: 0x0112})) == 0x0000
    assert place.states() == [SENT]


def test_a_destination_that_makes_no_promises_says_so_and_keeps_what_it_has(place: Place) -> None:
    place.compose("pacs")
    with Pacs() as pacs:
        courier = place.courier(promised(pacs.port))
        assert courier.round(lambda: T0)
        assert courier.round(lambda: T0), "it is there, and new results need not wait"
        assert len(pacs.kept) == 3
    assert place.states() == [SENT] * 3
    assert "does not accept SOP class 1.2.840.10008.1.20.1" in place.rows()[0].last_error
    assert place.rows()[0].next_try_at == T0 + 60


def test_a_destination_that_is_away_is_asked_later(place: Place) -> None:
    place.compose("pacs")
    with Promising() as pacs:
        assert place.courier(promised(pacs.port)).round(lambda: T0)
    assert not place.courier(promised(pacs.port)).round(lambda: T0 + 1)
    assert place.states() == [SENT] * 3
    with Promising(port=pacs.port) as back:
        assert place.courier(promised(back.port)).round(lambda: T0 + 62)
        eventually(lambda: place.states() == [COMMITTED] * 3)


def test_a_name_already_in_use_is_changed_and_nothing_sent_again(place: Place) -> None:
    uids = place.compose("pacs", count=1)
    with Promising(lost=set(uids), reason=0x0131) as pacs:
        courier = place.courier(promised(pacs.port))
        courier.round(lambda: T0)
        courier.round(lambda: T0)
        eventually(lambda: pacs.answers_got == [0x0000])
        assert place.states() == [SENT]
        pacs.lost = set()
        courier.round(lambda: T0 + 301)
        eventually(lambda: place.states() == [COMMITTED])
        assert len(pacs.kept) == 1


def test_what_is_refused_for_days_is_given_up_unless_it_is_positive(place: Place, settings: Settings) -> None:
    uids = [*place.compose("pacs", count=1), *place.compose("pacs", count=1, urgent=True)]
    for row in place.rows():
        place.records.deliveries.sent(row.id, "0x0000", T0 + 80 * 3600)
    place.records.commitments.asked(Asked("1.2.3", "pacs", T0 + 80 * 3600))
    answer = report("1.2.3", [], dict.fromkeys(uids, 0x0112))
    take_in(place, settings, answer, T0 + 81 * 3600)
    assert {row.urgent: row.state for row in place.rows()} == {0: FAILED, 1: PENDING}


UNREADABLE = {
    "no such VR": (0x00081197, "XX", b"ab"),
    "half a number": (0x00081197, "US", b"a"),
    "half an item": (0x00081199, "SQ", b"\x01\x02\x03"),
}


@pytest.mark.parametrize("broken", UNREADABLE.values(), ids=UNREADABLE)
def test_an_answer_that_cannot_be_read_is_refused(
    broken: tuple[int, str, bytes], place: Place, settings: Settings
) -> None:
    uids = place.compose("pacs", count=2)
    tag, vr, value = broken
    answer = report("1.2.3", uids[:1], {uids[1]: 0x0112})
    place.records.commitments.asked(Asked("1.2.3", "pacs", T0 + 1))
    where = answer if tag == 0x00081199 else answer.FailedSOPSequence[0]
    where[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    assert take_in(place, settings, answer) == 0x0115
    assert place.states() == [PENDING] * 2


@pytest.mark.parametrize("broken", ["unknown", "no transaction", "no uid"])
def test_an_answer_to_nothing_is_refused(broken: str, place: Place, settings: Settings) -> None:
    uids = place.compose("pacs", count=1)
    answer = report(generate_uid(), uids)
    if broken == "no transaction":
        del answer.TransactionUID
    if broken == "no uid":
        del answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert take_in(place, settings, answer) == 0x0115
    assert place.states() == [PENDING]


def test_an_answer_that_cannot_be_recorded_is_asked_to_be_repeated(
    place: Place, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise TransientError("database: gone")

    monkeypatch.setattr(place.records.commitments, "find", away)
    assert take_in(place, settings, report("1.2.3", [])) == 0x0110


def test_orthanc_commits_to_what_it_holds_and_gets_again_what_it_lost(
    place: Place, listener: int, tmp_path: Path
) -> None:
    place.compose("pacs", urgent=True)
    modalities = {"DicomModalities": {"node": ["ICHNODE", "127.0.0.1", listener]}}
    orthanc = plain_orthanc(tmp_path / "pacs", **modalities)
    try:
        peer = Destination(name="pacs", ae_title="ORTHANC", port=orthanc.port, commitment=True)
        courier = place.courier(peer)
        assert courier.round()
        forget(orthanc, str(place.rows()[0].sop_instance_uid))
        rounds_until(courier.round, lambda: sorted(set(place.states())) == [COMMITTED, PENDING])
        place.records.deliveries.retry(place.rows()[0].id, time.time())
        rounds_until(courier.round, lambda: place.states() == [COMMITTED] * 3)
        assert len(orthanc.get("/instances")) == 3
    finally:
        orthanc.close()


def rounds_until(step: Callable[[], bool], what: Callable[[], bool]) -> None:
    def stepped() -> bool:
        step()
        return what()

    eventually(stepped, 20)


def forget(orthanc: Orthanc, sop_instance_uid: str) -> None:
    import urllib.request

    for instance in orthanc.get("/instances?expand"):
        if instance["MainDicomTags"]["SOPInstanceUID"] == sop_instance_uid:
            url = f"http://127.0.0.1:{orthanc.http_port}/instances/{instance['ID']}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


def report(transaction_uid: str, held: list[str], failed: dict[str, int] | None = None) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    for keyword, uids in (("ReferencedSOPSequence", held), ("FailedSOPSequence", list(failed or {}))):
        items = []
        for uid in uids:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
            if failed and uid in failed:
                item.FailureReason = failed[uid]
            items.append(item)
        if items:
            setattr(ds, keyword, items)
    return ds


def take_in(place: Place, settings: Settings, answer: Dataset, now: float = T0 + 400) -> int:
    return commitment.take_in(answer, place.records, settings.destination, now)
