"""A workitem → the dataset of a Unified Procedure Step (PS3.4 Table CC.2.5-3, PS3.3 C.30). Sends nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from node.domain.workitems import STEP_PRIORITY, Input, StepState, Work

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
"""Every UPS has the SOP class UPS Push, by whatever service it is reached (PS3.4 CC.3.1)."""
EMPTY_SEQUENCES = (
    "ScheduledProcessingParametersSequence",
    "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesCodeSequence",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)
LONGEST_LABEL = 64


def scheduled(work: Work, worklist_label: str, retrieve_ae: str = "") -> Dataset:
    """Everything of a SCHEDULED step but its SOP Class and Instance UID, as an N-CREATE has it.

    `retrieve_ae` is where the study lies; empty: unknown, and then no place is given.
    """
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = work.patient_name, work.patient_id
    ds.IssuerOfPatientID, ds.PatientBirthDate = work.issuer_of_patient_id, _date(work.patient_birth_date)
    ds.PatientSex = ds.AdmissionID = ds.AdmittingDiagnosesDescription = ""
    ds.MedicalAlerts = ds.SpecialNeeds = ""
    ds.StudyInstanceUID = UID(work.study_instance_uid)
    ds.TransactionUID = None
    ds.ScheduledProcedureStepPriority = STEP_PRIORITY[work.priority]
    ds.ProcedureStepLabel = work.label[:LONGEST_LABEL]
    ds.WorklistLabel = worklist_label[:LONGEST_LABEL]
    ds.CommentsOnTheScheduledProcedureStep = work.comment
    ds.ScheduledProcedureStepStartDateTime = date_time(work.scheduled_at)
    ds.ScheduledWorkitemCodeSequence = Sequence([_interpretation()])
    ds.InputReadinessState = "READY"
    ds.InputInformationSequence = Sequence(
        [_input(work.study_instance_uid, one, retrieve_ae) for one in work.inputs]
    )
    ds.ReferencedRequestSequence = Sequence([_request(work)])
    for keyword in EMPTY_SEQUENCES:
        setattr(ds, keyword, Sequence())
    if work.replaces:
        replaced = Dataset()
        replaced.ReferencedSOPClassUID, replaced.ReferencedSOPInstanceUID = UID(UPS_PUSH), UID(work.replaces)
        ds.ReplacedProcedureStepSequence = Sequence([replaced])
    ds.ProcedureStepState = StepState.SCHEDULED.value
    return ds


def served(work: Work, worklist_label: str, retrieve_ae: str, performed: Dataset) -> Dataset:
    """A step as it stands, with what its performer said of it. Never its Transaction UID (PS3.4 CC.2.7)."""
    ds = scheduled(work, worklist_label, retrieve_ae)
    del ds.TransactionUID
    ds.SOPClassUID, ds.SOPInstanceUID = UID(UPS_PUSH), UID(work.uid)
    ds.ScheduledProcedureStepModificationDateTime = date_time(work.changed_at or work.scheduled_at)
    ds.update({element.tag: element for element in performed})
    ds.ProcedureStepState = work.state.value
    return ds


def date_time(seconds: float) -> str:
    """DT in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def _date(text: str) -> str:
    return text if len(text) == 8 and text.isdecimal() else ""


def _interpretation() -> Dataset:
    code = codes.DCM.Interpretation
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return ds


def _input(study_uid: str, one: Input, retrieve_ae: str) -> Dataset:
    ds = Dataset()
    ds.TypeOfInstances = "DICOM"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(study_uid), UID(one.series_instance_uid)
    references = []
    for sop_class, sop_instance in one.objects:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(sop_class), UID(sop_instance)
        references.append(item)
    ds.ReferencedSOPSequence = Sequence(references)
    if retrieve_ae:
        place = Dataset()
        place.RetrieveAETitle = retrieve_ae
        ds.DICOMRetrievalSequence = Sequence([place])
    return ds


def _request(work: Work) -> Dataset:
    ds = Dataset()
    ds.StudyInstanceUID = UID(work.study_instance_uid)
    ds.AccessionNumber = work.accession_number[:16]
    ds.RequestedProcedureID = ds.RequestedProcedureDescription = ""
    ds.RequestedProcedureCodeSequence = Sequence()
    return ds
