"""The key objects: what is pointed at, and that nothing is where nothing is suspected."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.domain.findings import ClassFinding, Consistency, Findings, Priority
from node.outputs import keyobjects
from node.outputs.catalogue import ALL_NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of, make_uid, not_analysed

MASKS = bleed(6, 64)


def context_for(series: list[Dataset], findings: Findings | None = None) -> Context:
    found = findings or analysed(series, {"any": 0.9}, masks=MASKS)
    masks = MASKS if found.classes else None
    return Context(found, Source.ordered(series, found, hu_of), MADE_AT, "0.1.0", masks)


def referenced(kos: Dataset) -> list[tuple[str, str]]:
    """(value type, SOP Instance UID) of what is pointed at, in order."""
    return [
        (item.ValueType, str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID))
        for item in kos.ContentSequence
        if "ReferencedSOPSequence" in item
    ]


def test_key_slice_report_segmentation_and_its_overlay_are_pointed_at() -> None:
    series = ct_series()
    made = build_all(context_for(series), ALL_NAMES)
    (kos,) = made["kos"]
    overlay = made["sc"][4]  # the page in words comes first
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID == series[3].SOPInstanceUID
    assert referenced(kos) == [
        ("IMAGE", series[3].SOPInstanceUID),
        ("COMPOSITE", made["sr"][0].SOPInstanceUID),
        ("IMAGE", made["seg"][0].SOPInstanceUID),
        ("IMAGE", overlay.SOPInstanceUID),
    ]
    evidence = {
        str(instance.ReferencedSOPInstanceUID)
        for study in kos.CurrentRequestedProcedureEvidenceSequence
        for item in study.ReferencedSeriesSequence
        for instance in item.ReferencedSOPSequence
    }
    assert evidence == {uid for _, uid in referenced(kos)}


def test_every_key_slice_is_pointed_at_once() -> None:
    series = ct_series()
    uids = [str(ds.SOPInstanceUID) for ds in series]
    findings = analysed(series, {"any": 0.9}, masks=MASKS)
    classes = {**findings.classes, "subdural": ClassFinding(0.8, True, uids[1])}
    (kos,) = build_all(context_for(series, analysed(series, masks=MASKS, classes=classes)), ("kos",))["kos"]
    assert referenced(kos) == [("IMAGE", uids[3]), ("IMAGE", uids[1])]


def test_it_says_what_it_is_and_names_no_image() -> None:
    (kos,) = build_all(context_for(ct_series()), ("kos",))["kos"]
    assert kos.ConceptNameCodeSequence[0].CodeValue == "113000"
    assert kos.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    assert not [i for i in kos.ContentSequence if i.ValueType == "IMAGE" and "ConceptNameCodeSequence" in i]
    (words,) = [
        i.TextValue for i in kos.ContentSequence if i.ValueType == "TEXT" and "suspects" in i.TextValue
    ]
    assert words.endswith("Research use only - not for diagnosis.")
    assert (kos.SeriesNumber, kos.Modality, str(kos.PatientName)) == (905, "KO", "Müller^Jörg")
    assert kos.SeriesDescription == "AI ICH key images: SUSPECTED - research use only"


def test_a_contradiction_is_pointed_at_too() -> None:
    series = ct_series()
    findings = analysed(series, masks=MASKS, consistency=Consistency.MASK_ONLY, priority=Priority.HIGH)
    (kos,) = keyobjects.build(context_for(series, findings))
    assert "INDETERMINATE" in kos.SeriesDescription


def test_a_second_build_has_the_same_bytes() -> None:
    series, files = ct_series(), []
    for _ in range(2):
        files.append(io.BytesIO())
        build_all(context_for(series), ALL_NAMES)["kos"][0].save_as(files[-1], enforce_file_format=True)
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    "classes", [{}, {"any": ClassFinding(0.9, True, "")}, {"any": ClassFinding(0.9, True, make_uid("other"))}]
)
def test_there_is_none_without_a_key_slice_of_the_source(classes: dict[str, Any]) -> None:
    series = ct_series()
    assert keyobjects.build(context_for(series, analysed(series, {"any": 0.9}, classes=classes))) == []


def test_there_is_none_for_a_negative_or_for_what_was_not_analysed() -> None:
    series = ct_series()
    empty = np.zeros_like(MASKS)
    negative = analysed(series, masks=empty)
    source = Source.ordered(series, negative, hu_of)
    assert keyobjects.build(Context(negative, source, MADE_AT, "0.1.0", empty)) == []
    assert keyobjects.build(context_for(series, not_analysed(series))) == []
