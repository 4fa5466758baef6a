"""Unified Procedure Steps: the state table, attribute matching, and what a workitem says."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from node.domain import workitems
from node.domain.findings import Priority
from node.domain.workitems import Input, Standing, StepState, Work, change_state, set_attributes
from node.outputs.workitem import scheduled, served
from node.ups.matching import answer, matches

S, P, C, X = StepState.SCHEDULED, StepState.IN_PROGRESS, StepState.COMPLETED, StepState.CANCELED
MINE, OTHER = "1.2.3", "9.9"


@pytest.mark.parametrize(
    ("state", "wanted", "uid", "status"),
    [
        (S, P, MINE, 0x0000), (P, P, MINE, 0xC302), (C, P, MINE, 0xC300), (X, P, MINE, 0xC300),
        (S, P, "", 0xC301), (P, P, OTHER, 0xC301), (C, P, OTHER, 0xC301),
        (S, S, MINE, 0xC303), (P, S, MINE, 0xC303), (C, S, "", 0xC303), (X, S, MINE, 0xC303),
        (S, C, MINE, 0xC310), (P, C, MINE, 0x0000), (C, C, MINE, 0xB306), (X, C, MINE, 0xC300),
        (S, C, "", 0xC301), (P, C, OTHER, 0xC301), (C, C, "", 0xC301),
        (S, X, MINE, 0xC310), (P, X, MINE, 0x0000), (C, X, MINE, 0xC300), (X, X, MINE, 0xB304),
        (P, X, OTHER, 0xC301), (X, X, "", 0xC301),
    ],
)  # fmt: skip
def test_a_change_of_state_is_answered_as_the_standard_s_table_says(
    state: StepState, wanted: StepState, uid: str, status: int
) -> None:
    now = Standing(state, "" if state is S else MINE, complete=True)
    assert change_state(now, wanted, uid) == status
    assert status in workitems.MEANINGS


def test_what_is_not_described_cannot_be_completed_but_given_up() -> None:
    now = Standing(P, MINE, complete=False)
    assert change_state(now, C, MINE) == 0xC304
    assert change_state(now, X, MINE) == 0x0000


def test_only_its_performer_sets_attributes_and_only_meanwhile() -> None:
    assert set_attributes(Standing(P, MINE), MINE) == 0x0000
    assert set_attributes(Standing(P, MINE), OTHER) == 0xC301
    assert set_attributes(Standing(P, MINE), "") == 0xC301
    assert set_attributes(Standing(S), MINE) == 0xC310
    assert {set_attributes(Standing(state, MINE), MINE) for state in (C, X)} == {0xC300}


WORK = Work(
    "1.9", "1.2", Priority.STAT, "Suspected intracranial haemorrhage", "12 mL", 1_790_000_000.0,
    patient_name="Müller^Jörg", patient_id="P1", accession_number="A1", replaces="1.8",
    inputs=(Input("1.2.1", (("1.2.840.10008.5.1.4.1.1.2", "1.2.1.1"),)),),
)  # fmt: skip


def test_a_workitem_has_what_a_creator_must_give() -> None:
    """Type 1 and 2 of the N-CREATE column of PS3.4 Table CC.2.5-3, at the top level."""
    ds = scheduled(WORK, "AI triage", "PACS")
    with_value = (
        "ScheduledProcedureStepPriority", "ProcedureStepLabel", "WorklistLabel", "InputReadinessState",
        "ScheduledProcedureStepStartDateTime", "ProcedureStepState", "ScheduledWorkitemCodeSequence",
        "InputInformationSequence", "StudyInstanceUID", "ReferencedRequestSequence",
    )  # fmt: skip
    empty = (
        "TransactionUID", "ScheduledProcessingParametersSequence", "ScheduledStationNameCodeSequence",
        "ScheduledStationClassCodeSequence", "ScheduledStationGeographicLocationCodeSequence", "AdmissionID",
        "IssuerOfAdmissionIDSequence", "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence",
        "ProcedureStepProgressInformationSequence", "UnifiedProcedureStepPerformedProcedureSequence",
    )  # fmt: skip
    assert all(not ds[keyword].is_empty for keyword in with_value)
    assert all(ds[keyword].is_empty for keyword in empty)
    assert (ds.ScheduledProcedureStepPriority, ds.ProcedureStepState) == ("HIGH", "SCHEDULED")
    (code,) = ds.ScheduledWorkitemCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("110005", "DCM")
    (given,) = ds.InputInformationSequence
    assert given.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.1.1"
    assert given.DICOMRetrievalSequence[0].RetrieveAETitle == "PACS"
    assert ds.ReplacedProcedureStepSequence[0].ReferencedSOPInstanceUID == "1.8"
    assert ds.ScheduledProcedureStepStartDateTime == "20260921141320.000000+0000"


def test_what_is_served_tells_no_transaction_uid_and_what_its_performer_said() -> None:
    said = Dataset()
    said.ProcedureStepProgressInformationSequence = Sequence([Dataset()])
    ds = served(WORK, "AI triage", "", said)
    assert "TransactionUID" not in ds and len(ds.ProcedureStepProgressInformationSequence) == 1
    assert "DICOMRetrievalSequence" not in ds.InputInformationSequence[0]


def key(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (key(), True),
        (key(PatientID=""), True), (key(PatientID="P1"), True), (key(PatientID="P2"), False),
        (key(PatientID="P*"), True), (key(PatientID="?1"), True), (key(PatientID="p1"), False),
        (key(PatientName="müller*"), True), (key(PatientName="M*^J*"), True), (key(PatientName="Doe"), False),
        (key(PatientID="[P]1"), False),
        (key(SOPInstanceUID=["1.9", "1.7"]), True), (key(SOPInstanceUID="1.7"), False),
        (key(ProcedureStepState="SCHEDULED", ScheduledProcedureStepPriority="HIGH"), True),
        (key(ProcedureStepState="IN PROGRESS"), False),
        (key(ScheduledProcedureStepStartDateTime="20260921-20260922"), True),
        (key(ScheduledProcedureStepStartDateTime="20260922-"), False),
        (key(ScheduledProcedureStepStartDateTime="-20260920235959"), False),
        (key(ScheduledProcedureStepStartDateTime="-20260921"), True),
        (key(ScheduledProcedureStepStartDateTime="20260921"), True),
        (key(ReferencedRequestSequence=[key(AccessionNumber="A1")]), True),
        (key(ReferencedRequestSequence=[key(AccessionNumber="A2")]), False),
        (key(ReferencedRequestSequence=[key(AccessionNumber="")]), True),
        (key(ScheduledStationNameCodeSequence=[key(CodeValue="CT1")]), False),
        (key(ScheduledStationNameCodeSequence=[key(CodeValue="")]), True),
        (key(ScheduledWorkitemCodeSequence=[key(CodeValue="110005", CodingSchemeDesignator="DCM")]), True),
        (key(AdmissionID="7"), False), (key(AdmissionID="*"), True),
    ],
)  # fmt: skip
def test_keys_match_as_the_standard_says(asked: Dataset, found: bool) -> None:
    assert matches(asked, served(WORK, "AI triage", "", Dataset())) is found


@pytest.mark.parametrize(
    ("asked", "more", "found"),
    [  # of the workitem: 2026-09-21 14:13:20 UTC, 23:13:20 in Tokyo, 02:13:20 of the 22nd in Auckland
        ("20260921", {}, True), ("2026092123", {}, True), ("2026092114", {}, False),
        ("20260921230000-", {}, True), ("-20260921230000", {}, False), ("20260922-", {}, False),
        ("20260921140000+0000-20260921150000+0000", {}, True), ("2026092114+0000", {}, True),
        ("20260922+1200", {}, True), ("20260921+1200", {}, False), ("20260921091320-0500", {}, True),
        ("20260921090000.5-0500-20260921091320.000000-0500", {}, True), ("20260921-0500-", {}, True),
        ("20260922", {"TimezoneOffsetFromUTC": "+1200"}, True),
        ("20260921", {"TimezoneOffsetFromUTC": "+1200"}, False),
        ("2026", {}, True), ("2026-2027", {}, True), ("2025-20260921", {}, True), ("-", {}, True),
        ("yesterday", {}, False), ("20260921-yesterday", {}, False),
    ],
)  # fmt: skip
def test_times_are_compared_in_the_zone_of_who_asks(asked: str, more: dict[str, str], found: bool) -> None:
    """By its offset, else by that of the question, else in the node's own zone."""
    wanted = key(ScheduledProcedureStepStartDateTime=asked, **more)
    assert matches(wanted, served(WORK, "AI triage", "", Dataset()), ZoneInfo("Asia/Tokyo")) is found


def test_an_answer_holds_the_keys_and_no_more() -> None:
    whole = served(WORK, "AI triage", "", Dataset())
    ds = answer(key(PatientID="", ActualHumanPerformersSequence=[], StudyDate=""), whole)
    assert (ds.PatientID, ds.StudyDate, len(ds.ActualHumanPerformersSequence)) == ("P1", None, 0)
    assert "PatientName" not in ds and ds.SOPInstanceUID == "1.9"


def test_a_sequence_is_no_key_for_what_is_text() -> None:
    """Whoever asks says of which kind a key is; a question that makes no sense finds nothing."""
    inner, asked = Dataset(), Dataset()
    inner.PatientID = "P1"
    asked.add_new("PatientID", "SQ", Sequence([inner]))
    assert not matches(asked, scheduled(WORK, "AI", "PACS"))
