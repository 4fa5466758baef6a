"""The SR: what it says for a positive, negative, contradictory and refused series."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from node.domain.findings import (
    SUBTYPES,
    Consistency,
    Findings,
    Priority,
    Side,
)
from node.outputs.catalogue import build_all
from node.outputs.context import Context, Predecessor, PriorReport
from node.outputs.report import expected
from node.outputs.source import Source
from node.outputs.uids import uid_for
from tests.factories import (
    GROWN,
    MADE_AT,
    MEASURED,
    analysed,
    bleed,
    ct_series,
    hu_of,
    make_uid,
    not_analysed,
)

MASKS = bleed(6, 64)


def build_sr(findings: Findings, series: list[Dataset], masks: np.ndarray | None, **changes: Any) -> Dataset:
    source = Source.ordered(series, findings, hu_of)
    (sr,) = build_all(Context(findings, source, MADE_AT, "0.1.0", masks, **changes))["sr"]
    return sr


def children(item: Dataset, name: str) -> list[Dataset]:
    """Direct children whose concept name has this meaning."""
    return [
        child
        for child in item.get("ContentSequence", [])
        if child.ConceptNameCodeSequence[0].CodeMeaning == name
    ]


def walk(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", []):
        yield from walk(child)


def groups(sr: Dataset) -> dict[str, Dataset]:
    """Measurement groups by tracking identifier."""
    (measurements,) = children(sr, "Imaging Measurements")
    return {children(g, "Tracking Identifier")[0].TextValue: g for g in measurements.ContentSequence}


def number(group: Dataset, name: str) -> float:
    (item,) = children(group, name)
    return float(item.MeasuredValueSequence[0].NumericValue)


def code(group: Dataset, name: str) -> str:
    (item,) = children(group, name)
    return str(item.ConceptCodeSequence[0].CodeValue)


def words(sr: Dataset) -> str:
    return "\n".join(item.TextValue for item in walk(sr) if item.ValueType == "TEXT")


@pytest.fixture
def series() -> list[Dataset]:
    return ct_series()


@pytest.fixture
def positive(series: list[Dataset]) -> Dataset:
    findings = analysed(series, {"any": 0.97, "subdural": 0.81}, masks=MASKS)
    return build_sr(findings, series, MASKS)


def test_the_overall_group_comes_first_and_says_everything(positive: Dataset, series: list[Dataset]) -> None:
    name, group = next(iter(groups(positive).items()))
    assert name == "AI any hemorrhage"
    assert number(group, "Probability") == 0.97
    assert code(group, "Presence") == "52101004"
    assert code(group, "Priority") == "RID49480"
    assert children(group, "Algorithm Version")[0].TextValue == "1.2.3"
    assert "ab" * 32 in children(group, "Algorithm Parameters")[0].TextValue
    (key,) = children(group, "Source of Measurement")
    assert key.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == series[3].SOPInstanceUID


def test_each_subtype_has_its_finding_site_and_presence(positive: Dataset) -> None:
    found = {name: groups(positive)[f"AI {name} hemorrhage"] for name in SUBTYPES}
    codes = {name: (code(g, "Finding"), code(g, "Finding Site")) for name, g in found.items()}
    assert codes == {
        "epidural": ("82999001", "128319008"),
        "intraparenchymal": ("274100004", "12738006"),
        "intraventricular": ("1386000", "35764002"),
        "subarachnoid": ("21454007", "35951006"),
        "subdural": ("35486000", "128319008"),
    }
    assert [code(found[n], "Presence") == "52101004" for n in SUBTYPES] == [False, False, False, False, True]


def test_the_volume_refers_to_the_segment(series: list[Dataset]) -> None:
    findings = analysed(series, {"any": 0.97}, masks=MASKS)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", MASKS)
    made = build_all(context)
    group = groups(made["sr"][0])["AI intracranial hemorrhage"]
    assert findings.segmentation is not None
    assert number(group, "Volume") == findings.segmentation.volume_ml > 0
    (segment,) = children(group, "Referenced Segment")
    assert segment.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == made["seg"][0].SOPInstanceUID
    tracking = children(group, "Tracking Unique Identifier")[0].UID
    assert tracking == made["seg"][0].SegmentSequence[0].TrackingUID


def test_evidence_is_every_source_slice_and_what_was_built(positive: Dataset, series: list[Dataset]) -> None:
    (study,) = positive.CurrentRequestedProcedureEvidenceSequence
    uids = {
        str(instance.ReferencedSOPInstanceUID)
        for item in study.ReferencedSeriesSequence
        for instance in item.ReferencedSOPSequence
    }
    assert {str(ds.SOPInstanceUID) for ds in series} < uids
    assert len(study.ReferencedSeriesSequence) == 3


def test_the_key_slice_is_explained_by_its_overlay(positive: Dataset) -> None:
    (explanation,) = children(groups(positive)["AI any hemorrhage"], "Visual explanation")
    assert explanation.ReferencedSOPSequence[0].ReferencedSOPClassUID.name.startswith("Secondary Capture")


def test_an_empty_mask_is_a_volume_of_zero_without_a_segment(series: list[Dataset]) -> None:
    sr = build_sr(analysed(series), series, np.zeros_like(MASKS))
    assert number(groups(sr)["AI any hemorrhage"], "Volume") == 0
    assert "AI intracranial hemorrhage" not in groups(sr)


def test_a_negative_claims_no_actionable_finding(series: list[Dataset]) -> None:
    sr = build_sr(analysed(series), series, np.zeros_like(MASKS))
    group = groups(sr)["AI any hemorrhage"]
    assert code(group, "Presence") == "272519000"
    assert children(group, "Priority") == []
    assert "does not exclude" in words(sr)
    assert "Proposed reading priority: ROUTINE" in words(sr)


@pytest.mark.parametrize(
    "changes",
    [
        {"consistency": Consistency.MASK_ONLY, "priority": Priority.HIGH},
        {"consistency": Consistency.AGREE, "priority": Priority.HIGH},
    ],
)
def test_a_contradiction_is_indeterminate(series: list[Dataset], changes: dict[str, Any]) -> None:
    sr = build_sr(analysed(series, masks=MASKS, **changes), series, MASKS)
    group = groups(sr)["AI any hemorrhage"]
    assert (code(group, "Presence"), code(group, "Priority")) == ("373068000", "RID49481")
    assert "INDETERMINATE" in sr.SeriesDescription


@pytest.mark.parametrize(
    ("reason", "qualifier"),
    [("NOT_A_HEAD", "114007"), ("MODEL_FAILED", "114006"), ("VOLUME_NOT_FINITE", "114008")],
)
def test_not_analysed_has_no_number_and_says_why(series: list[Dataset], reason: str, qualifier: str) -> None:
    sr = build_sr(not_analysed(series, reason, "the kernel – sharp – is for bone"), series, None)
    ((_, group),) = groups(sr).items()
    (probability,) = children(group, "Probability")
    assert len(probability.MeasuredValueSequence) == 0
    assert probability.NumericValueQualifierCodeSequence[0].CodeValue == qualifier
    assert code(group, "Presence") == "373121007"
    assert f"NOT ANALYSED because: the kernel - sharp - is for bone [{reason}]" in words(sr)
    assert "NOT a negative result" in words(sr)
    assert not any(item.get("MeasuredValueSequence") for item in walk(sr))
    assert sr.SeriesDescription == "AI ICH report: NOT ANALYSED - research use only"


def test_every_report_says_research_use_only(series: list[Dataset], positive: Dataset) -> None:
    for sr in (positive, build_sr(not_analysed(series), series, None)):
        assert "Research use only - not for diagnosis" in words(sr)
        assert (sr.CompletionFlag, sr.PreliminaryFlag, sr.VerificationFlag) == (
            "COMPLETE",
            "PRELIMINARY",
            "UNVERIFIED",
        )


def test_consistency_and_warnings_are_told(series: list[Dataset]) -> None:
    findings = analysed(
        series,
        {"any": 0.9},
        consistency=Consistency.CLASSIFIER_ONLY,
        warnings=("contrast agent in the header",),
    )
    said = words(build_sr(findings, series, np.zeros_like(MASKS)))
    assert "[classifier_only]" in said
    assert "Note: contrast agent in the header" in said


def test_a_later_revision_refers_to_its_predecessor(series: list[Dataset]) -> None:
    before = Predecessor("1.2.840.10008.5.1.4.1.1.88.34", make_uid("old"), make_uid("old series"))
    sr = build_sr(analysed(series, revision=2), series, None, predecessors={"sr": before})
    (study,) = sr.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == series[0].StudyInstanceUID
    (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == before.sop_instance_uid


def test_no_frame_of_reference_leaves_a_report_with_the_volume(series: list[Dataset]) -> None:
    bare = ct_series(FrameOfReferenceUID=None)
    sr = build_sr(analysed(bare, {"any": 0.9}, masks=MASKS), bare, MASKS)
    assert number(groups(sr)["AI any hemorrhage"], "Volume") > 0


PRIOR = PriorReport(GROWN.study_uid, make_uid("old reports"), ComprehensiveSRStorage, make_uid("old report"))


def test_the_measurements_stand_with_the_segment_each_with_its_method(series: list[Dataset]) -> None:
    sr = build_sr(analysed(series, {"any": 0.97}, segmentation=MEASURED), series, MASKS)
    group = groups(sr)["AI intracranial hemorrhage"]
    names = ("Volume", "Long axis", "Volume of ellipsoid", "Number of lesions", "Number of slices involved")
    assert [number(group, name) for name in names] == [12.34, 41.4, 10.5, 2, 3]
    methods = [
        code(children(group, name)[0], "Measurement Method") for name in ("Volume", "Volume of ellipsoid")
    ]
    assert methods == ["126030", "ABC2"]
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99ICHNODE"
    (site,) = children(group, "Finding Site")
    assert code(site, "Laterality") == "7771000"
    text = words(sr)
    assert "12.3 mL on 3 slices, left" in text and "judged by: the skull" in text
    assert "Largest axial diameter 41 mm; 2 separate parts." in text
    assert "ABC/2 (largest part) 10.5 mL (40 x 22 x 24 mm)." in text
    assert "By subtype: subdural 9.1 mL, subarachnoid 3.2 mL." in text


@pytest.mark.parametrize(
    ("side", "laterality"),
    [(Side.RIGHT, "24028007"), (Side.BILATERAL, "51440002"), (Side.MIDLINE, "130290")],
)
def test_the_side_is_a_laterality(series: list[Dataset], side: Side, laterality: str) -> None:
    found = analysed(series, {"any": 0.97}, segmentation=replace(MEASURED, side=side))
    (site,) = children(groups(build_sr(found, series, None))["AI any hemorrhage"], "Finding Site")
    assert code(site, "Laterality") == laterality


def test_without_segments_the_volumes_stand_with_their_classes(series: list[Dataset]) -> None:
    sr = build_sr(analysed(series, {"any": 0.97}, segmentation=MEASURED), series, None)
    assert number(groups(sr)["AI any hemorrhage"], "Volume") == 12.34
    assert number(groups(sr)["AI subdural hemorrhage"], "Volume") == 9.1
    assert children(groups(sr)["AI epidural hemorrhage"], "Volume") == []


def test_the_change_is_told_with_a_reference_to_the_earlier_report(series: list[Dataset]) -> None:
    found = analysed(series, {"any": 0.97}, segmentation=MEASURED, comparison=GROWN)
    sr = build_sr(found, series, MASKS, prior_reports={"sr": PRIOR})
    group = groups(sr)["AI change since prior CT"]
    assert number(group, "Volume on the prior CT") == 8.0
    assert number(group, "Change in volume since the prior CT") == 4.34
    assert number(group, "Relative change in volume since the prior CT") == 54.2
    assert code(group, "Difference in size") == "15454001"
    assert code(group, "Hematoma expansion: over 33 % or 6 mL") == "52101004"
    (reference,) = children(group, "Prior report for current patient")
    assert reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == PRIOR.sop_instance_uid
    (study,) = sr.PertinentOtherEvidenceSequence
    assert study.StudyInstanceUID == GROWN.study_uid
    (evidence,) = study.ReferencedSeriesSequence
    assert evidence.SeriesInstanceUID == PRIOR.series_instance_uid
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPClassUID == PRIOR.sop_class_uid
    assert (
        "HAEMATOMA EXPANSION since the CT of 2026-11-19 22:15: 8.0 mL before, change +4.3 mL, +54 %."
        in words(sr)
    )
    assert "reading priority: STAT - haematoma expansion since the CT of 2026-11-19 22:15" in words(sr)


@pytest.mark.parametrize(
    ("change_ml", "value"), [(-4.0, "19776001"), (0.05, "129723006"), (-0.05, "129723006"), (2.0, "15454001")]
)
def test_the_size_grows_shrinks_or_stays(series: list[Dataset], change_ml: float, value: str) -> None:
    change = replace(
        GROWN, change_ml=change_ml, change_percent=None, expansion=False, remarks=("no mask then",)
    )
    sr = build_sr(analysed(series, {"any": 0.97}, comparison=change), series, None)
    group = groups(sr)["AI change since prior CT"]
    assert code(group, "Difference in size") == value
    assert code(group, "Hematoma expansion: over 33 % or 6 mL") == "272519000"
    assert children(group, "Relative change in volume since the prior CT") == []
    assert children(group, "Prior report for current patient") == []
    assert "Comparison unreliable: no mask then." in words(sr)
    assert "EXPANSION" not in words(sr)


def test_what_the_model_cannot_tell_is_not_evaluated_and_not_absent(series: list[Dataset]) -> None:
    known = analysed(series, {"any": 0.97})
    only = {"any": known.classes["any"]}
    sr = build_sr(replace(known, classes=only, not_evaluated=SUBTYPES, segmentation=None), series, None)
    for name in SUBTYPES:
        group = groups(sr)[f"AI {name} hemorrhage"]
        assert code(group, "Presence") == "373121007"
        (probability,) = children(group, "Probability")
        assert len(probability.MeasuredValueSequence) == 0
    assert "Not evaluated by this model: epidural, intraparenchymal, intraventricular" in words(sr)
    assert "Segmentation: not part of this model" in words(sr)


def test_comprehensive_sr_says_the_same_under_a_name_of_its_own(series: list[Dataset]) -> None:
    findings = analysed(series, {"any": 0.97, "subdural": 0.81}, segmentation=MEASURED, comparison=GROWN)
    source = Source.ordered(series, findings, hu_of)
    context = Context(findings, source, MADE_AT, "0.1.0", MASKS, prior_reports={"sr": PRIOR, "csr": PRIOR})
    made = build_all(context, ("seg", "sc", "sr", "csr"))
    (sr,), (csr,) = made["sr"], made["csr"]
    assert (sr.SOPClassUID, csr.SOPClassUID) == (Comprehensive3DSRStorage, ComprehensiveSRStorage)
    assert sr.SOPInstanceUID != csr.SOPInstanceUID and sr.SeriesInstanceUID != csr.SeriesInstanceUID
    assert sr.ContentSequence == csr.ContentSequence
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        assert sr[keyword] == csr[keyword]


def test_every_container_shows_its_items_apart(positive: Dataset) -> None:
    assert {i.ContinuityOfContent for i in walk(positive) if i.ValueType == "CONTAINER"} == {"SEPARATE"}


def test_an_analysis_compared_with_another_ct_has_other_uids(series: list[Dataset]) -> None:
    alone = analysed(series, {"any": 0.97})
    uids = {uid_for(found, "sr") for found in (alone, replace(alone, comparison=GROWN))}
    assert len(uids) == 2
    assert expected("1.2", alone, "sr") == PriorReport(
        "1.2", uid_for(alone, "sr-series"), Comprehensive3DSRStorage, uid_for(alone, "sr")
    )
