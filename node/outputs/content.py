"""The measurement groups of the report: TID 1501 for each class, TID 1411 for the mask. Writes no header.

A class that was not looked at never gets a number: its value is empty and qualified (CID 42).
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from node.domain.findings import CLASSES, SUBTYPES
from node.domain.instance import SliceRef
from node.domain.priority import MIN_MASK_ML
from node.outputs import codes, numbers
from node.outputs.context import Context, PriorReport
from node.outputs.identity import MANUFACTURER
from node.outputs.segments import WHOLE, segment_of, tracking
from node.outputs.source import source_refs
from node.outputs.wording import (
    CONSISTENCY_WORDS,
    EXPLANATIONS,
    HEADLINES,
    RESEARCH_USE,
    Verdict,
    comparison_words,
    key_slices,
    long_string,
    measurement_words,
    not_evaluated_words,
    plain,
    priority_words,
    reason_words,
    segmentation_words,
    verdict,
)

Group = hd.sr.MeasurementsAndQualitativeEvaluations | hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations


def groups(context: Context, prior: PriorReport | None = None) -> list[Group]:
    """In reading order: the overall finding, the change since `prior`, the subtypes, the segmented volume."""
    overall = _overall(context)
    if verdict(context.findings) is Verdict.NOT_ANALYSED:
        return [overall]
    findings = context.findings
    subtypes = [_subtype(context, name) for name in SUBTYPES if name in findings.classes]
    unknown = [_not_evaluated(context, name) for name in findings.not_evaluated if name in SUBTYPES]
    return [overall, *_change(context, prior), *subtypes, *unknown, *_segmented(context)]


def finish(item: Dataset) -> None:
    """Do to the finished tree what highdicom cannot.

    A number that a qualifier says was not measured loses its value (PS3.3 C.18.1), and items are rendered
    apart, each under its name (PS3.3 C.18.8): run together, a number would stand there without its meaning.
    """
    if "NumericValueQualifierCodeSequence" in item:
        item.MeasuredValueSequence = []
    if item.get("ValueType") == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence") or []:
        finish(child)


def comments(context: Context) -> list[str]:
    """What a person should read, most important first."""
    findings = context.findings
    outcome = verdict(findings)
    lines = [f"{HEADLINES[outcome]}. {EXPLANATIONS[outcome]}"]
    if outcome is Verdict.NOT_ANALYSED:
        code = findings.reason.code if findings.reason else "UNKNOWN"
        lines.append(f"NOT ANALYSED because: {reason_words(findings)} [{code}]")
    else:
        lines += [segmentation_words(findings), *measurement_words(findings), *comparison_words(findings)]
        if findings.segmentation and findings.segmentation.side_method:
            lines.append(f"Side of the patient, judged by: {findings.segmentation.side_method}.")
        if findings.consistency:
            lines.append(f"{CONSISTENCY_WORDS[findings.consistency]} [{findings.consistency}]")
        lines += [words for words in (not_evaluated_words(findings), priority_words(findings)) if words]
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
    measurements = [numbers.probability(findings, findings.classes.get("any"))]
    if findings.segmentation and WHOLE not in segment_of(context):
        measurements += numbers.of_mask(findings.segmentation)
    group = _class_group(context, "any", measurements, _evaluations(context), images)
    items = group[0].ContentSequence
    items.extend(_visual_explanations(context, known))
    items.extend(_text(line) for line in comments(context))
    return group


def _subtype(context: Context, name: str) -> Group:
    """TID 1501; with the volume of its part of the mask where no segment of its own bears that."""
    findings = context.findings
    presence = codes.PRESENT if findings.classes[name].present else codes.ABSENT
    measurements = [numbers.probability(findings, findings.classes[name])]
    parts_ml = findings.segmentation.subtypes_ml if findings.segmentation else {}
    if name in parts_ml and name not in segment_of(context):
        measurements.append(numbers.volume(parts_ml[name]))
    return _class_group(context, name, measurements, [_evaluation(presence)], [])


def _not_evaluated(context: Context, name: str) -> Group:
    """TID 1501 for a subtype that this model cannot tell: no number, and no "absent"."""
    nothing = [numbers.probability(context.findings, None)]
    return _class_group(context, name, nothing, [_evaluation(codes.NOT_EVALUATED)], [])


def _change(context: Context, prior: PriorReport | None) -> list[Group]:
    """TID 1501 for the change since an earlier CT, with a reference to the report on that."""
    comparison = context.findings.comparison
    if comparison is None:
        return []
    grown = codes.INCREASED if comparison.change_ml >= MIN_MASK_ML else codes.UNCHANGED
    difference = codes.DECREASED if comparison.change_ml <= -MIN_MASK_ML else grown
    expansion = codes.PRESENT if comparison.expansion else codes.ABSENT
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=context.uid("tracking-change"), identifier="AI change since prior CT"
        ),
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_type=codes.FINDINGS["any"],
        finding_sites=[hd.sr.FindingSite(codes.BRAIN)],
        algorithm_id=_algorithm(context),
        measurements=numbers.of_change(comparison),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(codes.SIZE_DIFFERENCE, difference),
            hd.sr.QualitativeEvaluation(codes.EXPANSION, expansion),
        ],
    )
    items = group[0].ContentSequence
    if prior:
        items.append(
            hd.sr.CompositeContentItem(
                codes.PRIOR_REPORT, prior.sop_class_uid, prior.sop_instance_uid, relationship_type="CONTAINS"
            )
        )
    items.extend(_text(plain(words)) for words in comparison_words(context.findings))
    return [group]


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
        finding_sites=[hd.sr.FindingSite(codes.SITES[name], _side(context, name))],
        algorithm_id=_algorithm(context),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=images or None,
    )


def _segmented(context: Context) -> list[Group]:
    """TID 1411: the measurements together with the segments they were taken on."""
    found = context.findings.segmentation
    if found is None:
        return []
    made = []
    for name, (output, number) in segment_of(context).items():
        if name == WHOLE:
            taken = numbers.of_mask(found)
        else:
            taken = [numbers.volume(found.subtypes_ml[name])] if name in found.subtypes_ml else []
        made.append(_segment(context, name, output, number, taken))
    return made


def _segment(
    context: Context, name: str, output: str, number: int, measurements: list[hd.sr.Measurement]
) -> Group:
    """TID 1411 for segment `number` of the SEG `output`."""
    (seg,) = context.built[output]
    uid, identifier = tracking(context, name)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(context.source.headers[0].SeriesInstanceUID),
        ),
        finding_category=codes.MORPHOLOGICALLY_ABNORMAL,
        finding_type=codes.FINDINGS[name],
        finding_sites=[hd.sr.FindingSite(codes.SITES[name], _side(context, name))],
        algorithm_id=_algorithm(context),
        measurements=measurements,
    )


def _side(context: Context, name: str) -> Code | None:
    """The side of all blood; that of a single subtype is not measured."""
    found = context.findings.segmentation
    return codes.SIDES[found.side] if name == WHOLE and found and found.side else None


def _evaluations(context: Context) -> list[hd.sr.QualitativeEvaluation]:
    """Presence, and the urgency. CID 7035 knows only actionable findings: none found, none claimed."""
    outcome = verdict(context.findings)
    presence = {
        Verdict.SUSPECTED: codes.PRESENT,
        Verdict.INDETERMINATE: codes.UNDETERMINED,
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
