"""Workitems pushed to a worklist: created once, replaced when something else is found, refused in words."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import UnifiedProcedureStepPush, Verification  # type: ignore[attr-defined]

from node.channels.catalogue import channel_of
from node.channels.contract import Rejected
from node.channels.ups import UpsChannel, comment, inputs
from node.domain.announcing import Stage
from node.domain.errors import TransientError
from node.domain.findings import Priority, Status
from node.outputs.uids import uid_for
from node.settings import Destination, Settings, UpsPush
from node.store.records import open_records
from tests.alerting import HEADER, House, told
from tests.ports import free_port
from tests.site import SUBDURAL, findings

PACS = Destination(name="pacs", ae_title="PACS")


@dataclass
class WorklistScp:
    """Keeps the workitems that are created; `before_answer` may do something else than answer."""

    takes_ups: bool = True
    create_status: int | None = None
    cancel_status: int | None = None
    breaks_after_create: bool = False
    slow_s: float = 0.0
    port: int = field(default_factory=free_port)
    items: dict[str, Dataset] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> WorklistScp:
        ae = AE("WORKLIST")
        ae.add_supported_context(Verification)
        if self.takes_ups:
            ae.add_supported_context(UnifiedProcedureStepPush)
        handlers: Any = [(evt.EVT_N_CREATE, self._create), (evt.EVT_N_ACTION, self._action)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _create(self, event: evt.Event) -> tuple[int, Dataset | None]:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.log.append(("create", uid))
        time.sleep(self.slow_s)
        if self.create_status is not None:
            return self.create_status, None
        if uid in self.items:
            return 0x0111, None
        self.items[uid] = event.attribute_list
        if self.breaks_after_create:
            event.assoc.abort()
        return 0x0000, event.attribute_list

    def _action(self, event: evt.Event) -> tuple[int, None]:
        uid = str(event.request.RequestedSOPInstanceUID)
        self.log.append(("cancel", uid))
        time.sleep(self.slow_s)
        assert event.action_type == 2 and event.action_information.ReasonForCancellation
        if self.cancel_status is not None:
            return self.cancel_status, None
        if uid not in self.items:
            return 0xC307, None
        self.items[uid].ProcedureStepState = "CANCELED"
        return 0x0000, None

    def alert(self, **changes: Any) -> UpsPush:
        return UpsPush(ae_title="WORKLIST", port=self.port, timeout_s=10, **changes)

    def channel(self, **changes: Any) -> UpsChannel:
        made = channel_of(self.alert(**changes), Settings(destination=(PACS,)))
        assert isinstance(made, UpsChannel)
        return made


@pytest.fixture
def worklist() -> Iterator[WorklistScp]:
    with WorklistScp() as running:
        yield running


def test_an_alarm_becomes_a_workitem_once(worklist: WorklistScp, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, alert=(worklist.alert(),), destination=(PACS,))
    house = House(open_records(settings), settings)
    house.alarmed("1.1")
    herald = house.herald()
    herald.round()
    assert house.states() == ["ACKNOWLEDGED"]
    ((uid, ds),) = worklist.items.items()
    assert uid.startswith("2.25.")
    assert (ds.ScheduledProcedureStepPriority, ds.ProcedureStepState) == ("HIGH", "SCHEDULED")
    assert (ds.PatientID, str(ds.PatientName)) == (HEADER["patient_id"], HEADER["patient_name"])
    assert ds.ReferencedRequestSequence[0].AccessionNumber == HEADER["accession_number"]
    assert (ds.ProcedureStepLabel, ds.WorklistLabel) == ("HAEMORRHAGE SUSPECTED", "AI triage")
    assert ds.ScheduledWorkitemCodeSequence[0].CodeValue == "110005"
    assert ds.InputInformationSequence[0].DICOMRetrievalSequence[0].RetrieveAETitle == "PACS"
    assert ds.TransactionUID in (None, "")
    house.records.close()


def test_a_workitem_whose_answer_was_lost_is_not_made_twice(worklist: WorklistScp) -> None:
    worklist.breaks_after_create = True
    with pytest.raises(TransientError):
        worklist.channel().send(told())
    worklist.breaks_after_create = False
    receipt = worklist.channel().send(told())
    assert (receipt.acknowledged, receipt.status, len(worklist.items)) == (True, "0x0111", 1)


def test_what_replaces_a_workitem_is_there_before_the_old_one_is_cancelled(worklist: WorklistScp) -> None:
    first = told()
    second = told(findings(), Stage.FINAL, first)
    channel = worklist.channel()
    channel.send(first)
    channel.send(second)
    old, new = worklist.items
    assert worklist.log == [("create", old), ("create", new), ("cancel", old)]
    assert worklist.items[old].ProcedureStepState == "CANCELED"
    made = worklist.items[new]
    assert made.ReplacedProcedureStepSequence[0].ReferencedSOPInstanceUID == old
    assert made.ScheduledProcedureStepPriority == "HIGH", "a priority is never lowered"
    assert "Correction of what was told as STAT" in made.CommentsOnTheScheduledProcedureStep
    channel.send(second)
    assert len(worklist.items) == 2, "a resend cancels again and makes nothing"


@pytest.mark.parametrize("status", [0xC307, 0xC311, 0xB304, 0xC313])
def test_a_workitem_that_is_over_or_taken_stays_as_it_is(worklist: WorklistScp, status: int) -> None:
    worklist.cancel_status = status
    first = told()
    assert worklist.channel().send(told(findings(), Stage.FINAL, first)).status == "0x0000"


def test_what_the_worklist_refuses_is_shown_and_what_may_pass_is_tried_again(worklist: WorklistScp) -> None:
    worklist.create_status = 0xC309
    with pytest.raises(Rejected, match=r"UPS ups \(WORKLIST at .*0xC309") as caught:
        worklist.channel().send(told())
    assert caught.value.status == "0xC309"
    for status in (0xA700, 0x0110):
        worklist.create_status = status
        with pytest.raises(TransientError, match=f"0x{status:04X}"):
            worklist.channel().send(told())
    worklist.create_status, worklist.cancel_status = None, 0x0110
    with pytest.raises(TransientError, match="cancel"):
        worklist.channel().send(told(findings(), Stage.FINAL, told()))
    worklist.create_status = 0xB300
    assert worklist.channel().send(told()).status == "0xB300"


def test_a_peer_without_ups_is_told_apart_from_one_that_is_away() -> None:
    with WorklistScp(takes_ups=False) as peer:
        with pytest.raises(TransientError, match="does not take UPS Push"):
            peer.channel().probe()
        with pytest.raises(
            TransientError, match=r"does not accept SOP class 1\.2\.840\.10008\.5\.1\.4\.34\.6\.1"
        ):
            peer.channel().send(told())
    with pytest.raises(TransientError, match="cannot be reached"):
        peer.channel().probe()


def test_a_whole_call_is_bounded_by_its_time_out(worklist: WorklistScp) -> None:
    """Each answer comes in time, and together they do not: what was made is met again at the next try."""
    worklist.slow_s = 0.7
    there = channel_of(
        UpsPush(ae_title="WORKLIST", port=worklist.port, timeout_s=1.2), Settings(destination=(PACS,))
    )
    third = replace(told(last=told()), number=3)
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"does not answer within 1.2 s"):
        there.send(third)
    assert time.monotonic() - began < 30, "not the minute of a usual association"
    assert len(worklist.items) == 1, "the workitem is there"


def test_a_peer_that_accepts_no_association_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        alert = UpsPush(ae_title="WORKLIST", port=mute.getsockname()[1], timeout_s=1)
        began = time.monotonic()
        with pytest.raises(TransientError, match="WORKLIST"):
            channel_of(alert, Settings(destination=(PACS,))).send(told())
        assert time.monotonic() - began < 30


def test_it_is_told_that_ups_is_taken(worklist: WorklistScp) -> None:
    assert worklist.channel().probe().endswith("takes UPS Push")
    with pytest.raises(ValidationError, match="ae_title"):
        UpsPush.model_validate({"type": "ups"})


def test_a_test_message_says_so_and_is_cancelled_at_once(worklist: WorklistScp) -> None:
    worklist.channel().send(replace(told(), test=True))
    (made,) = worklist.items.values()
    assert made.ProcedureStepLabel.startswith("TEST, no patient")
    assert made.ProcedureStepState == "CANCELED"


def test_the_final_word_names_the_report_by_the_uid_it_will_have() -> None:
    final = told(SUBDURAL, Stage.FINAL)
    _, report = inputs(final, "sr")
    assert report.objects == ((str(Comprehensive3DSRStorage), uid_for(SUBDURAL, "sr")),)
    assert len(inputs(told(SUBDURAL, Stage.PRELIMINARY), "sr")) == 1
    assert len(inputs(final, "")) == 1


def test_each_stage_has_its_words() -> None:
    assert comment(told(SUBDURAL, Stage.PRELIMINARY)).startswith("First word of the classifier")
    assert "23.4 mL" in comment(told(SUBDURAL, Stage.FINAL))
    assert told().reading_priority is Priority.STAT
    unread = told(replace(findings(), status=Status.NOT_ANALYSED, priority=None), Stage.NOT_ANALYSED)
    after = comment(told(SUBDURAL, Stage.FINAL, unread))
    assert after.startswith("Correction of what was told as not analysed. Segmented")
