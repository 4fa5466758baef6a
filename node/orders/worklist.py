"""Modality Worklist SCU (PS3.4 Annex K): asks one worklist how urgent a study was ordered. Records nothing.

Which keys a worklist matches on differs from maker to maker, so what comes back is compared with the study
here, and a worklist that answers with everything it has is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import ModalityWorklistInformationFind  # type: ignore[attr-defined]

from node import transcode
from node.domain.errors import TransientError
from node.domain.orders import MOST_URGENT_FIRST, OrderPriority, Subject, concerns, read_priority
from node.scu import Peer, leave_responses, let_go, words
from node.settings import Destination, WorklistPeer

log = logging.getLogger(__name__)

MOST_ITEMS = 200
"""A worklist that matches none of our keys answers with everything."""
PENDING = (0xFF00, 0xFF01)  # PS3.4 Table K.4-1


class Worklist:
    """The worklist of the settings, as seen from the node's own AE title."""

    def __init__(self, peer: WorklistPeer, calling_ae: str) -> None:
        self._settings = peer
        where = Destination(
            name="worklist", ae_title=peer.ae_title, host=peer.host, port=peer.port, tls=peer.tls
        )
        self._peer = Peer(where, calling_ae, "modality")

    @property
    def name(self) -> str:
        return f"worklist {self._settings.ae_title} at {self._settings.host}:{self._settings.port}"

    def check(self) -> None:
        """Raises SettingsError for unusable certificates."""
        self._peer.check()

    def echo(self) -> None:
        """Raises TransientError when it does not answer a C-ECHO."""
        self._peer.echo()

    def priority_of(self, study: Subject, study_date: str) -> tuple[OrderPriority | None, str]:
        """The most urgent priority ordered for a study, and in words what was found.

        `study_date` as in DA. Raises TransientError when the worklist does not answer.
        """
        assoc = self._associate()
        try:
            found: list[OrderPriority] = []
            count = 0
            for query, by in _queries(study):
                for item in self._find(assoc, query):
                    count += 1
                    if _is_of(item, study, study_date, by) and (said := _priority(item)):
                        found.append(said)
                if found or not assoc.is_established:
                    break
        finally:
            let_go(assoc)
        if not found:
            return None, f"no priority for this study among {count} items of {self.name}"
        most = min(found, key=MOST_URGENT_FIRST.index)
        return most, f"{most.value} by {self.name}"

    def _associate(self) -> Association:
        contexts = [build_context(ModalityWorklistInformationFind, [s]) for s in transcode.FALL_BACK]
        assoc = self._peer.associate(contexts)
        assoc.dimse_timeout = self._settings.timeout_s
        leave_responses(assoc)
        return assoc

    def _find(self, assoc: Association, query: Dataset) -> Iterator[Dataset]:
        """The items that match. Raises TransientError when the query fails."""
        count = 0
        for status, item in assoc.send_c_find(query, ModalityWorklistInformationFind):
            if "Status" not in status:
                text = f"{self.name} did not answer within {self._settings.timeout_s:g} s"
                raise TransientError(f"{text}; is it busy? It is asked again, or raise timeout_s")
            if status.Status in PENDING:
                if item is not None:
                    yield item
                count += 1
                if count >= MOST_ITEMS:
                    log.warning("%s answers with more than %d items; it is stopped", self.name, MOST_ITEMS)
                    assoc.abort()
                    return
            elif status.Status != 0x0000:
                raise TransientError(f"{self.name} answered with {words(status)}; its log says why")


def _queries(study: Subject) -> Iterator[tuple[Dataset, str]]:
    """By accession number, then by patient; each with what it asks by."""
    if study.accession_number:
        yield _query(accession=study.accession_number), "accession number"
    if study.patient_ids:
        yield _query(patient=study.patient_ids[0]), "patient"


def _query(accession: str = "", patient: str = "") -> Dataset:
    """Identifier of the C-FIND (PS3.4 Table K.6-1): one matching key, the rest to be returned."""
    step = Dataset()
    step.Modality = ""
    step.ScheduledProcedureStepStartDate = ""
    ds = Dataset()
    if not (accession + patient).isascii():
        ds.SpecificCharacterSet = "ISO_IR 192"
    ds.AccessionNumber = accession
    ds.PatientID = patient
    ds.StudyInstanceUID = None
    ds.RequestedProcedureID = ""
    ds.RequestedProcedurePriority = ""
    ds.ScheduledProcedureStepSequence = [step]
    return ds


def _is_of(item: Dataset, study: Subject, study_date: str, by: str) -> bool:
    """Whether a worklist item is the order of a study; found by patient alone, a CT of the same day."""
    patient = str(item.get("PatientID") or "")
    about = Subject(
        str(item.get("StudyInstanceUID") or ""),
        str(item.get("AccessionNumber") or ""),
        (patient,) if patient else (),
    )
    if concerns(about, study):
        return True
    if (
        by != "patient"
        or patient not in study.patient_ids
        or (about.accession_number and study.accession_number)
    ):
        return False
    return any(
        str(step.get("Modality") or "") == "CT"
        and str(step.get("ScheduledProcedureStepStartDate") or "") == study_date
        for step in item.get("ScheduledProcedureStepSequence") or []
    )


def _priority(item: Dataset) -> OrderPriority | None:
    return read_priority(str(item.get("RequestedProcedurePriority") or ""))
