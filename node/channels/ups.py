"""UPS Push (PS3.4 Annex CC): a workitem at somebody's worklist for each thing told. Follows none up.

The UID of a workitem is a function of channel, study and number, so a retry meets its own workitem: 0x0111
says that it is there. A workitem cannot be changed by its creator; what replaces one is a new workitem, and
then the cancellation of the older ones is requested. One that a reader has taken stays his.
"""

from __future__ import annotations

import logging
import time

from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage, CTImageStorage
from pynetdicom import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import UnifiedProcedureStepPush, Verification  # type: ignore[attr-defined]

from node import transcode
from node.channels.contract import Receipt, Rejected
from node.domain.announcing import Announcement, Stage
from node.domain.errors import TransientError
from node.domain.findings import Priority, Status
from node.domain.workitems import Input, Work
from node.outputs import wording
from node.outputs.uids import derived, uid_for
from node.outputs.workitem import scheduled
from node.scu import Peer, leave_responses, let_go, words
from node.settings import Destination, UpsPush

log = logging.getLogger(__name__)

REQUEST_CANCEL = 2  # Action Type ID, PS3.4 CC.2.2
SUCCESS = 0x0000
CREATED = (SUCCESS, 0x0001, 0xB300, 0xB305)
"""Created, perhaps with modifications (PS3.4 Table CC.2.5-2)."""
DUPLICATE = 0x0111
TRY_LATER = (0x0110, 0x0213, 0xA700)
"""Processing failure, resource limitation (PS3.7 C.5), out of resources: may pass."""
OVER = {
    0xC307: "not there",
    0xC311: "completed already",
    0xB304: "cancelled already",
    0xC312: "taken, and its performer cannot be asked",
    0xC313: "taken, and its performer goes on",
}
"""Answers to a request to cancel after which nothing is left to do (PS3.4 Table CC.2.2-2)."""
REPORTS = {"sr": Comprehensive3DSRStorage, "csr": ComprehensiveSRStorage}
MOST_REPLACED = 5
SHORTEST_RELEASE_S = 0.5


class UpsChannel:
    """`report` is the kind of report that the readers' PACS gets, empty where it gets none."""

    def __init__(self, settings: UpsPush, calling_ae: str, retrieve_ae: str, report: str) -> None:
        self._settings = settings
        self._retrieve_ae = settings.retrieve_ae_title or retrieve_ae
        self._report = report
        where = Destination(
            name=settings.name,
            ae_title=settings.ae_title,
            host=settings.host,
            port=settings.port,
            tls=settings.tls,
        )
        self._peer = Peer(where, calling_ae, "UPS")
        self._name = self._peer.name

    def check(self) -> None:
        self._peer.check()

    def probe(self) -> str:
        """By C-ECHO, over an association that offers UPS Push too."""
        assoc = self._associate(Verification)
        try:
            taken = {context.abstract_syntax for context in assoc.accepted_contexts}
            if UnifiedProcedureStepPush not in taken:
                text = f"{self._name} answers, and does not take UPS Push; is this a worklist manager?"
                raise TransientError(text)
        finally:
            let_go(assoc)
        return f"{self._name} takes UPS Push"

    def send(self, told: Announcement) -> Receipt:
        uid = self._uid(told, told.number)
        deadline = time.monotonic() + self._settings.timeout_s
        assoc = self._associate()
        try:
            self._bound(assoc, deadline)
            status = self._create(assoc, uid, self._dataset(told))
            if told.test:
                self._bound(assoc, deadline)
                self._cancel(assoc, uid, "a test")
            for number in range(max(told.number - MOST_REPLACED, 1), told.number):
                self._bound(assoc, deadline)
                self._cancel(assoc, self._uid(told, number), "replaced by a newer result")
        finally:
            if assoc.is_established:
                assoc.acse_timeout = max(deadline - time.monotonic(), SHORTEST_RELEASE_S)
                let_go(assoc)
        return Receipt(True, f"0x{status:04X}", "it was there already" if status == DUPLICATE else "")

    def _uid(self, told: Announcement, number: int) -> str:
        if told.test:
            return derived("test workitem", told.identifier)
        return derived("pushed workitem", self._settings.name, told.study_instance_uid, number)

    def _associate(self, *more: UID) -> Association:
        contexts = [
            build_context(sop_class, [syntax])
            for sop_class in (UnifiedProcedureStepPush, *more)
            for syntax in transcode.FALL_BACK
        ]
        assoc = self._peer.associate(contexts, within_s=self._settings.timeout_s)
        leave_responses(assoc)
        return assoc

    def _bound(self, assoc: Association, deadline: float) -> None:
        """What is left until then is for the next answer. Raises TransientError where nothing is."""
        assoc.dimse_timeout = deadline - time.monotonic()
        if assoc.dimse_timeout <= 0:
            raise TransientError(self._silent())

    def _create(self, assoc: Association, uid: str, ds: Dataset) -> int:
        """The status. Raises TransientError without one, Rejected for a refusal."""
        try:
            status, _ = assoc.send_n_create(ds, UnifiedProcedureStepPush, UID(uid))
        except (ValueError, RuntimeError) as error:
            text = f"{self._name}: the workitem cannot be sent ({error}); its log says why"
            raise TransientError(text) from error
        if "Status" not in status:
            raise TransientError(self._silent())
        code = int(status.Status)
        if code in CREATED or code == DUPLICATE:
            return code
        text = f"{self._name} answers the workitem with {words(status)}; its log says why"
        if code in TRY_LATER:
            raise TransientError(text)
        raise Rejected(f"0x{code:04X}", text)

    def _cancel(self, assoc: Association, uid: str, reason: str) -> None:
        """Request that a workitem be cancelled; what is over or taken stays as it is."""
        asked = Dataset()
        asked.ReasonForCancellation = reason
        try:
            status, _ = assoc.send_n_action(asked, REQUEST_CANCEL, UnifiedProcedureStepPush, UID(uid))
        except (ValueError, RuntimeError) as error:
            text = f"{self._name}: cannot ask to cancel a workitem ({error}); its log says why"
            raise TransientError(text) from error
        if "Status" not in status:
            raise TransientError(self._silent())
        code = int(status.Status)
        if code in TRY_LATER:
            text = f"{self._name} answers a request to cancel with {words(status)}; its log says why"
            raise TransientError(text)
        if code != SUCCESS:
            log.log(
                logging.INFO if code in OVER else logging.WARNING,
                "%s: workitem %s is not cancelled: %s",
                *(self._name, uid, OVER.get(code) or words(status)),
            )

    def _silent(self) -> str:
        return f"{self._name} does not answer within {self._settings.timeout_s:g} s; is it busy or stuck?"

    def _dataset(self, told: Announcement) -> Dataset:
        subject = told.subject
        headline = wording.HEADLINES[wording.verdict(told.findings)]
        work = Work(
            uid=self._uid(told, told.number),
            study_instance_uid=told.study_instance_uid,
            priority=told.reading_priority or Priority.ROUTINE,
            label=f"TEST, no patient: {headline}" if told.test else headline,
            comment=comment(told),
            scheduled_at=told.made_at,
            patient_name=subject.patient_name,
            patient_id=subject.patient_id,
            issuer_of_patient_id=subject.issuer_of_patient_id,
            patient_birth_date=subject.patient_birth_date,
            accession_number=subject.accession_number,
            replaces=self._uid(told, told.number - 1) if told.number > 1 and not told.test else "",
            inputs=inputs(told, self._report),
        )
        return scheduled(work, self._settings.worklist_label, self._retrieve_ae)


def comment(told: Announcement) -> str:
    """What was found in a line or two; a correction says so first."""
    found = told.findings
    if found.status is not Status.ANALYSED:
        said = wording.reason_words(found)
    elif told.stage is Stage.PRELIMINARY:
        said = "First word of the classifier; the analysis goes on."
    else:
        said = wording.segmentation_words(found)
    then = told.corrects.priority or "not analysed" if told.corrects else ""
    before = f"Correction of what was told as {then}. " if then else ""
    return f"{before}{said} {wording.RESEARCH_USE}"


def inputs(told: Announcement, report: str) -> tuple[Input, ...]:
    """Key slices of plain series, and the report once its UID is known: when the analysis is whole."""
    found = told.findings
    keys = sorted(
        {
            one.key_slice_uid
            for one in found.classes.values()
            if one.present and one.key_slice_uid and one.key_frame_number is None
        }
    )
    source = Input(found.series_instance_uid, tuple((str(CTImageStorage), uid) for uid in keys))
    if told.stage is Stage.PRELIMINARY or report not in REPORTS:
        return (source,)
    made = (str(REPORTS[report]), uid_for(found, report))
    return (source, Input(uid_for(found, f"{report}-series"), (made,)))
