"""The findings as a structured report (TID 1500). Never silent: with no findings it says why.

Preliminary and unverified, since no person has looked at it. The tree is told in `content`; it is the same
as Comprehensive 3D SR and as Comprehensive SR, since it holds no 3D coordinates.
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from node.domain.findings import Findings
from node.outputs import codes, content
from node.outputs.context import Context, Predecessor, PriorReport
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, stamp
from node.outputs.uids import DEVICE_UID, uid_for
from node.outputs.wording import key_slices, verdict

SERIES_NUMBER = 900
REPORTS = {"sr": Comprehensive3DSRStorage, "csr": ComprehensiveSRStorage}
"""The outputs that are reports, and the SOP class of each."""


def build(context: Context) -> list[Dataset]:
    """Always one report, as Comprehensive 3D SR."""
    return [_built(context, "sr", hd.sr.Comprehensive3DSR)]


def build_comprehensive(context: Context) -> list[Dataset]:
    """The same, as Comprehensive SR, for archives that decline the other."""
    return [_built(context, "csr", hd.sr.ComprehensiveSR)]


def expected(study_uid: str, findings: Findings, name: str) -> PriorReport:
    """What the report `name` on these findings is called, composed already or not."""
    series, instance = uid_for(findings, f"{name}-series"), uid_for(findings, name)
    return PriorReport(study_uid, series, REPORTS[name], instance)


def _built(
    context: Context, name: str, sop_class: type[hd.sr.Comprehensive3DSR | hd.sr.ComprehensiveSR]
) -> Dataset:
    prior = context.prior_reports.get(name)
    report = sop_class(
        evidence=_evidence(context, prior),
        content=_content(context, prior),
        series_instance_uid=context.uid(f"{name}-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid(name),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        performed_procedure_codes=[codes.HEAD_CT],
        previous_versions=_previous(context, name),
    )
    content.finish(report)
    _name_own_scheme(report)
    return stamp(report, context, f"AI ICH report: {verdict(context.findings)}")


def _content(context: Context, prior: PriorReport | None) -> hd.sr.MeasurementReport:
    source = context.source
    known = [ref for ref in key_slices(context.findings) if source.holds(ref)]
    library = [source.headers[source.index(ref)] for ref in known] if source.has_planes else []
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer(context)),
        procedure_reported=codes.PROCEDURE_REPORTED,
        imaging_measurements=content.groups(context, prior),
        title=codes.IMAGING_MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(
            hd.sr.CodedConcept.from_code(codes.ENGLISH)
        ),
        referenced_images=library or None,
    )


def observer(context: Context) -> hd.sr.ObserverContext:
    """This node, as the observer of what a document says: TID 1002, TID 1004."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=DEVICE_UID,
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=serial_number(context),
    )
    return hd.sr.ObserverContext(hd.sr.CodedConcept.from_code(codes.DEVICE), device)


def _evidence(context: Context, prior: PriorReport | None) -> list[Dataset]:
    """All source slices, what was built before, and the report on the earlier CT (PS3.3 C.17.2)."""
    made = [ds for name, objects in context.built.items() for ds in objects if name not in REPORTS]
    earlier = [_reference(prior, prior.study_instance_uid)] if prior else []
    return [*context.source.headers, *made, *earlier]


def _previous(context: Context, name: str) -> list[Dataset] | None:
    before = context.predecessors.get(name)
    return [_reference(before, context.source.headers[0].StudyInstanceUID)] if before else None


def _reference(document: Predecessor | PriorReport, study_uid: str) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = study_uid
    item.SeriesInstanceUID = document.series_instance_uid
    item.SOPClassUID = document.sop_class_uid
    item.SOPInstanceUID = document.sop_instance_uid
    return item


def _name_own_scheme(report: Dataset) -> None:
    """Say whose the codes are that no standard holds (PS3.3 C.12.1, CodingSchemeIdentificationSequence)."""
    item = Dataset()
    item.CodingSchemeDesignator = codes.OWN_SCHEME
    item.CodingSchemeName = codes.OWN_SCHEME_NAME
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    report.CodingSchemeIdentificationSequence = [item]
