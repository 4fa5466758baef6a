"""The measurement groups of the report: TID 1501 for each class, TID 1411 for the mask. Writes no header.

A class that was not looked at never gets a number: its value is empty and qualified (CID 42).
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from node.domain.findings import CLASSES, SUBTYPES, ClassFinding
from node.domain.instance import SliceRef
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER
from node.outputs.segmentation import SEGMENT_NUMBER, TRACKING_ID
from node.outputs.source import source_refs
from node.outputs.wording import (
    CONSISTENCY_WORDS,
    EXPLANATIONS,
    HEADLINES,
    RESEARCH_USE,
    Verdict,
    key_slices,
    long_string,
    plain,
    reason_words,
    segmentation_words,
    verdict,
)

Group = hd.sr.MeasurementsAndQualitativeEvaluations | hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations


def groups(context: Context) -> list[Group]:
    """In reading order: the overall finding, the subtypes, the segmented volume."""
    overall = _overall(context)
    if verdict(context.findings) is Verdict.NOT_ANALYSED:
        return [overall]
    subtypes = [_subtype(context, name) for name in SUBTYPES if name in context.findings.classes]
    return [overall, *subtypes, *_segmented(context)]


def empty_unmeasured(item: Dataset) -> None:
    """Take the value out of every number that a qualifier says was not measured (PS3.3 C.18.1).

    Done to the finished tree, since highdicom cannot hold a number without a value.
    """
    if "NumericValueQualifierCodeSequence" in item:
        item.MeasuredValueSequence = []
    for child in item.get("ContentSequence") or []:
        empty_unmeasured(child)


def comments(context: Context) -> list[str]:
    """What a person should read, most important first."""
    findings = context.findings
    outcome = verdict(findings)
    lines = [f"{HEADLINES[outcome]}. {EXPLANATIONS[outcome]}"]
    if outcome is Verdict.NOT_ANALYSED:
        code = findings.reason.code if findings.reason else "UNKNOWN"
        lines.append(f"NOT ANALYSED because: {reason_words(findings)} [{code}]")
    else:
        lines.append(segmentation_words(findings))
        if findings.consistency:
            lines.append(f"{CONSISTENCY_WORDS[findings.consistency]} [{findings.consistency}]")
        if findings.priority:
            lines.append(f"Proposed reading priority: {findings.priority}")
    lines += [f"Note: {warning}" for warning in findings.warnings]
    return [*map(plain, lines), f"{RESEARCH_USE}."]


def _overall(context: Context) -> Group:
    """TID 1501 for "any", with everything that is about the whole series."""
    findings, source = context.findings, context.source
    known = [ref for ref in key_slices(findings) if source.holds(ref)]
    images = [
        hd.sr.SourceImageForMeasurementGroup.from_source_image(source.headers[source.index(ref)])
        for ref in known
    ]
    measurements = [_probability(context, findings.classes.get("any"))]
    if findings.segmentation and not context.built.get("seg"):
        measurements.append(_volume(findings.segmentation.volume_ml))
    group = _class_group(context, "any", measurements, _evaluations(context), images)
    items = group[0].ContentSequence
    items.extend(_visual_explanations(context, known))
    items.extend(_text(line) for line in comments(context))
    return group


def _subtype(context: Context, name: str) -> Group:
    finding = context.findings.classes[name]
    presence = codes.PRESENT if finding.present else codes.ABSENT
    return _class_group(context, name, [_probability(context, finding)], [_evaluation(presence)], [])


def _class_group(
    context: Context,
    name: str,
    measurements: list[hd.sr.Measurement],
    evaluations: list[hd.sr.QualitativeEvaluation],
    images: list[hd.sr.SourceImageForMeasurementGroup],
) -> Group:
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=context.uid("tracking", CLASSES.index(name)), identifier=f"AI {name} hemorrhage"
        ),
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_type=codes.FINDINGS[name],
        finding_sites=[hd.sr.FindingSite(codes.SITES[name])],
        algorithm_id=_algorithm(context),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=images or None,
    )


def _segmented(context: Context) -> list[Group]:
    """TID 1411: the volume together with the segment it was measured on."""
    segmentation, built = context.findings.segmentation, context.built.get("seg")
    if not built or segmentation is None:
        return []
    return [
        hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=context.uid("tracking-mask"), identifier=TRACKING_ID
            ),
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=built[0].SOPClassUID,
                sop_instance_uid=built[0].SOPInstanceUID,
                segment_number=SEGMENT_NUMBER,
                source_series=hd.sr.SourceSeriesForSegmentation(context.source.headers[0].SeriesInstanceUID),
            ),
            finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
            finding_type=codes.FINDINGS["any"],
            finding_sites=[hd.sr.FindingSite(codes.BRAIN)],
            algorithm_id=_algorithm(context),
            measurements=[_volume(segmentation.volume_ml)],
        )
    ]


def _evaluations(context: Context) -> list[hd.sr.QualitativeEvaluation]:
    """Presence, and the urgency. CID 7035 knows only actionable findings: none found, none claimed."""
    outcome = verdict(context.findings)
    presence = {
        Verdict.SUSPECTED: codes.PRESENT,
        Verdict.INDETERMINATE: codes.INDETERMINATE,
        Verdict.NOT_DETECTED: codes.ABSENT,
        Verdict.NOT_ANALYSED: codes.NOT_EVALUATED,
    }[outcome]
    evaluations = [_evaluation(presence)]
    if outcome in (Verdict.SUSPECTED, Verdict.INDETERMINATE) and context.findings.priority:
        category = codes.PRIORITIES[context.findings.priority]
        evaluations.append(hd.sr.QualitativeEvaluation(codes.PRIORITY, category))
    return evaluations


def _evaluation(presence: Code) -> hd.sr.QualitativeEvaluation:
    return hd.sr.QualitativeEvaluation(codes.PRESENCE, presence)


def _probability(context: Context, finding: ClassFinding | None) -> hd.sr.Measurement:
    if finding is not None and verdict(context.findings) is not Verdict.NOT_ANALYSED:
        return hd.sr.Measurement(codes.PROBABILITY, round(float(finding.probability), 4), codes.NO_UNITS)
    return hd.sr.Measurement(  # `empty_unmeasured` takes the zero out
        codes.PROBABILITY, 0.0, codes.NO_UNITS, qualifier=codes.qualifier(context.findings)
    )


def _volume(volume_ml: float) -> hd.sr.Measurement:
    return hd.sr.Measurement(codes.VOLUME, round(float(volume_ml), 2), codes.MILLILITER)


def _algorithm(context: Context) -> hd.sr.AlgorithmIdentification:
    """TID 4019."""
    model = context.findings.model
    return hd.sr.AlgorithmIdentification(
        name=long_string(model.name),
        version=long_string(model.version),
        parameters=[f"weights sha256:{model.sha256 or 'none'}"],
        family=codes.AI_FAMILY,
        manufacturer=MANUFACTURER,
    )


def _visual_explanations(context: Context, keys: list[SliceRef]) -> list[Dataset]:
    """A parametric map where one was built, else the overlays of the key slices."""
    overlays = [ds for ds in context.built.get("sc", ()) if _shows(ds, keys)]
    return [
        hd.sr.ImageContentItem(
            codes.VISUAL_EXPLANATION, ds.SOPClassUID, ds.SOPInstanceUID, relationship_type="CONTAINS"
        )
        for ds in context.built.get("pm") or overlays
    ]


def _shows(overlay: Dataset, keys: list[SliceRef]) -> bool:
    return "ImagePositionPatient" in overlay and not source_refs(overlay).isdisjoint(keys)


def _text(words: str) -> Dataset:
    return hd.sr.TextContentItem(codes.COMMENT, words, relationship_type="CONTAINS")
