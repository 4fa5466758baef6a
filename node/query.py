"""C-FIND, C-MOVE and C-GET SCU of Study Root (PS3.4 Annex C). Asks and fetches; records nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import Association, build_role, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from node.domain.errors import TransientError
from node.domain.reconciliation import ArchivedSeries, ArchivedStudy
from node.scu import Peer, leave_responses, let_go, words
from node.transcode import FALL_BACK

FIND = StudyRootQueryRetrieveInformationModelFind
MOVE = StudyRootQueryRetrieveInformationModelMove
GET = StudyRootQueryRetrieveInformationModelGet
FETCHED = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""What is taken over a C-GET: the images that are analysed."""
SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4
MOST_ANSWERS, FIND_WITHIN_S = 20_000, 600.0
"""More, or longer, is no answer to one question: a day's studies, the series of one, the images of one."""
RETRIEVE_TIMEOUT_S = 600
"""An archive that answers only at the end may first read from a tape."""
FAILURES = {  # PS3.4 Table C.4-2
    0xA801: "it knows no such move destination: add our AE title there, with this node's host and port",
    0xA702: "it cannot send to us: do host and port of our AE title there lead to this node's listener?",
    0xA701: "it is out of resources",
    0xA900: "it does not understand the request",
}


@dataclass(frozen=True)
class Retrieved:
    """What came of a C-MOVE or C-GET: sub-operations that succeeded and failed, and what is wrong, if any."""

    completed: int
    failed: int
    trouble: str = ""


class Archivist(Peer):
    """An archive, as seen from the node's own AE title."""

    @property
    def name(self) -> str:
        d = self.destination
        return f"archive {d.name} ({d.ae_title} at {d.host}:{d.port})"

    def studies(self, **keys: str) -> Iterator[ArchivedStudy]:
        """CT studies that match, without their series. Raises TransientError."""
        asked = Dataset()
        asked.QueryRetrieveLevel = "STUDY"
        asked.ModalitiesInStudy = "CT"
        if not "".join(keys.values()).isascii():
            asked.SpecificCharacterSet = "ISO_IR 192"
        for keyword in ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "StudyTime",
                        "StudyDescription"):  # fmt: skip
            setattr(asked, keyword, keys.pop(keyword, ""))
        for found in self._find(asked):
            yield ArchivedStudy(
                _text(found, "StudyInstanceUID"),
                _text(found, "PatientID"),
                _text(found, "AccessionNumber"),
                _text(found, "StudyDate"),
                _text(found, "StudyTime"),
                _text(found, "StudyDescription"),
            )

    def with_series(self, study: ArchivedStudy) -> ArchivedStudy:
        """The study with its series; where the archive counts no instances, they are counted here."""
        asked = Dataset()
        asked.QueryRetrieveLevel = "SERIES"
        asked.StudyInstanceUID = study.study_instance_uid
        for keyword in ("SeriesInstanceUID", "Modality", "SeriesDescription", "BodyPartExamined",
                        "ProtocolName", "NumberOfSeriesRelatedInstances"):  # fmt: skip
            setattr(asked, keyword, None)
        series = []
        for found in self._find(asked):
            series.append(
                ArchivedSeries(
                    _text(found, "SeriesInstanceUID"),
                    _text(found, "Modality").upper(),
                    _text(found, "SeriesDescription"),
                    _text(found, "BodyPartExamined"),
                    _text(found, "ProtocolName"),
                    _number(found, "NumberOfSeriesRelatedInstances"),
                )
            )
        counted = [
            replace(s, instances=self._count(study, s)) if s.instances is None and s.modality == "CT" else s
            for s in series
        ]
        return replace(study, series=tuple(counted))

    def _count(self, study: ArchivedStudy, series: ArchivedSeries) -> int:
        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID = study.study_instance_uid
        asked.SeriesInstanceUID = series.series_instance_uid
        asked.SOPInstanceUID = ""
        return sum(1 for _ in self._find(asked))

    def _find(self, asked: Dataset) -> Iterator[Dataset]:
        """Every identifier that is answered. Raises TransientError for any end but Success, and for none."""
        assoc = self._open()
        answers, until = 0, time.monotonic() + FIND_WITHIN_S
        for status, found in assoc.send_c_find(asked, FIND):
            code = int(status.get("Status", -1))
            if code in PENDING and answers < MOST_ANSWERS and time.monotonic() < until:
                answers += 1
                if found is not None:
                    yield found
            elif code in PENDING:
                assoc.abort()
                text = f"{self.name}: a C-FIND at {asked.QueryRetrieveLevel} level came to no end"
                raise TransientError(
                    f"{text}: {answers} answers so far; ask for fewer days, or look at its log"
                )
            elif code not in (SUCCESS, *PENDING):
                text = f"{self.name}: the C-FIND was answered with {words(status)}"
                raise TransientError(f"{text}; its log says why")

    def __enter__(self) -> Archivist:
        """One association for all questions that follow."""
        self._assoc: Association | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._assoc is not None:
            let_go(self._assoc)

    def _open(self) -> Association:
        if self._assoc is None or not self._assoc.is_established:
            self._assoc = self.associate([build_context(FIND, [syntax]) for syntax in FALL_BACK])
            leave_responses(self._assoc)
        return self._assoc

    def move(self, study_uid: str, series_uid: str, to_ae: str) -> Retrieved:
        """Have it send a study, or one series, to an AE title that it knows. Raises TransientError."""
        assoc = self.associate([build_context(MOVE, [syntax]) for syntax in FALL_BACK])
        leave_responses(assoc)
        assoc.dimse_timeout = RETRIEVE_TIMEOUT_S
        try:
            return self._outcome(assoc.send_c_move(_retrieval(study_uid, series_uid), to_ae, MOVE))
        finally:
            let_go(assoc)

    def get(
        self, study_uid: str, series_uid: str, store: Callable[[evt.Event], int], syntaxes: Any
    ) -> Retrieved:
        """Take CT images of a study, or of one series, over this association; `store` gives each status."""
        contexts = [build_context(GET, [syntax]) for syntax in FALL_BACK]
        contexts += [build_context(sop_class, list(syntaxes)) for sop_class in FETCHED]
        roles = [build_role(UID(sop_class), scp_role=True) for sop_class in FETCHED]
        assoc = self.associate(contexts, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, store)])
        leave_responses(assoc)
        assoc.dimse_timeout = RETRIEVE_TIMEOUT_S
        try:
            if not any(context.abstract_syntax == GET for context in assoc.accepted_contexts):
                raise TransientError(f'{self.name} takes no C-GET; set retrieve = "move" for it')
            return self._outcome(assoc.send_c_get(_retrieval(study_uid, series_uid), GET))
        finally:
            let_go(assoc)

    def _outcome(self, answers: Iterator[tuple[Dataset, Dataset | None]]) -> Retrieved:
        completed = failed = 0
        code = -1
        status = Dataset()
        for status, _ in answers:
            code = int(status.get("Status", -1))
            came = [status.get(f"NumberOf{kind}Suboperations") for kind in ("Completed", "Warning")]
            completed = max(completed, sum(int(count or 0) for count in came))
            failed = int(status.get("NumberOfFailedSuboperations") or failed)
        if code == -1:
            text = f"{self.name} broke off, or did not answer for {RETRIEVE_TIMEOUT_S} s"
            raise TransientError(f"{text}; does it know AE title {self._calling_ae}, with host and port?")
        if code != SUCCESS:
            hint = FAILURES.get(code, f"{failed} instances failed" if failed else "")
            return Retrieved(completed, failed, f"{self.name}: {words(status)}{'; ' if hint else ''}{hint}")
        return Retrieved(completed, failed, f"{failed} instances failed" if failed else "")


def _retrieval(study_uid: str, series_uid: str) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = "SERIES" if series_uid else "STUDY"
    asked.StudyInstanceUID = study_uid
    if series_uid:
        asked.SeriesInstanceUID = series_uid
    return asked


def _text(ds: Dataset, keyword: str) -> str:
    """Whatever the archive wrote; junk becomes empty."""
    try:
        found = ds.get(keyword)
    except (ValueError, TypeError, LookupError, UnicodeError):
        return ""
    return str(found).replace("\0", "").strip() if found is not None else ""


def _number(ds: Dataset, keyword: str) -> int | None:
    text = _text(ds, keyword)
    return int(text) if text.isdecimal() else None
