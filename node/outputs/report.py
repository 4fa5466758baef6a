"""The findings as a Comprehensive 3D SR (TID 1500). Never silent: with no findings it says why.

Preliminary and unverified, since no person has looked at it. The tree is told in `content`.
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset

from node.outputs import codes, content
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, stamp
from node.outputs.uids import DEVICE_UID
from node.outputs.wording import key_slices, verdict

SERIES_NUMBER = 900


def build(context: Context) -> list[Dataset]:
    """Always one report."""
    report = hd.sr.Comprehensive3DSR(
        evidence=_evidence(context),
        content=_content(context),
        series_instance_uid=context.uid("sr-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid("sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        performed_procedure_codes=[codes.HEAD_CT],
        previous_versions=_previous(context),
    )
    content.empty_unmeasured(report)
    return [stamp(report, context, f"AI ICH report: {verdict(context.findings)}")]


def _content(context: Context) -> hd.sr.MeasurementReport:
    source = context.source
    known = [ref for ref in key_slices(context.findings) if source.holds(ref)]
    library = [source.headers[source.index(ref)] for ref in known] if source.has_planes else []
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer(context)),
        procedure_reported=codes.PROCEDURE_REPORTED,
        imaging_measurements=content.groups(context),
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


def _evidence(context: Context) -> list[Dataset]:
    """All source slices, and what was built before (PS3.3 C.17.2)."""
    made = [ds for objects in context.built.values() for ds in objects]
    return [*context.source.headers, *made]


def _previous(context: Context) -> list[Dataset] | None:
    if context.predecessor is None:
        return None
    item = Dataset()
    item.StudyInstanceUID = context.source.headers[0].StudyInstanceUID
    item.SeriesInstanceUID = context.predecessor.series_instance_uid
    item.SOPClassUID = context.predecessor.sop_class_uid
    item.SOPInstanceUID = context.predecessor.sop_instance_uid
    return [item]
