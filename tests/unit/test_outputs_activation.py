"""The parametric map: the heat map's values, each frame on the field of view of its slice."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.domain.findings import Consistency, Priority
from node.outputs import activation
from node.outputs.catalogue import ALL_NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of, not_analysed
from tests.unit.test_outputs_segmentation import ORIENTATIONS

SUSPECTED = {"any": 0.9}


def heat_map(slices: int, rows: int = 7, columns: int = 5) -> np.ndarray:
    """float32 0…1 (z, h, w), every value another."""
    return np.linspace(0, 1, slices * rows * columns, dtype=np.float32).reshape(slices, rows, columns)


def context_for(series: list[Dataset], heat: np.ndarray | None, **changes: Any) -> Context:
    findings = analysed(series, changes.pop("scores", SUSPECTED), **changes)
    return Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", None, heat)


def build_pm(context: Context) -> Dataset:
    (pm,) = build_all(context, ("pm",))["pm"]
    return pm


def activations(pm: Dataset) -> np.ndarray:
    mapping = pm.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.RealWorldValueIntercept == 0
    return pm.pixel_array * float(mapping.RealWorldValueSlope)


def corners(plane: Dataset, position: Any, orientation: Any, spacing: Any) -> np.ndarray:
    """The four corners of the field of view in patient LPS, mm (PS3.3 C.7.6.2.1.1)."""
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    edges = [(r, c) for r in (-0.5, plane.Rows - 0.5) for c in (-0.5, plane.Columns - 0.5)]
    first = np.array(position, float)
    return np.array([first + right * c * float(spacing[1]) + down * r * float(spacing[0]) for r, c in edges])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_frames_cover_the_field_of_view_of_the_slice_they_explain(orientation: str) -> None:
    series = ct_series(6, 48, 40, iop=ORIENTATIONS[orientation])
    for ds in series:
        ds.PixelSpacing = [0.488281, 0.7]
    pm = build_pm(context_for(series, heat_map(6)))
    by_uid = {str(ds.SOPInstanceUID): ds for ds in series}
    shared = pm.SharedFunctionalGroupsSequence[0]
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    iop = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert len(pm.PerFrameFunctionalGroupsSequence) == 6
    for frame in pm.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        ct = by_uid.pop(image.ReferencedSOPInstanceUID)
        ours = corners(pm, frame.PlanePositionSequence[0].ImagePositionPatient, iop, spacing)
        theirs = corners(ct, ct.ImagePositionPatient, ct.ImageOrientationPatient, ct.PixelSpacing)
        assert np.abs(ours - theirs).max() < 1e-4
        assert image.SpatialLocationsPreserved == "NO"
    assert pm.FrameOfReferenceUID == series[0].FrameOfReferenceUID


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_values_are_those_of_the_heat_map_on_its_own_grid(orientation: str) -> None:
    series, heat = ct_series(6, 48, 40, iop=ORIENTATIONS[orientation]), heat_map(6)
    pm = build_pm(context_for(series, heat))
    index = {str(ds.SOPInstanceUID): i for i, ds in enumerate(series)}
    for frame, values in zip(pm.PerFrameFunctionalGroupsSequence, activations(pm), strict=True):
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert np.abs(values - heat[index[image.ReferencedSOPInstanceUID]]).max() <= 1 / 65535


def test_bytes_and_values_out_of_range_are_understood() -> None:
    whole = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert (activation.stored_values(whole) / 65535 == whole / 255).all()
    wild = np.array([[[np.nan, np.inf, -np.inf, 1.5, -1]]], np.float32)
    assert activation.stored_values(wild).tolist() == [[[0, 65535, 0, 65535, 0]]]


def test_a_long_series_keeps_the_slices_that_are_activated() -> None:
    heat = np.zeros((120, 7, 5), np.float32)
    heat[40:43], heat[80] = 0.8, 0.1
    pm = build_pm(context_for(ct_series(120, 16, step_mm=1), heat))
    assert pm.NumberOfFrames == 3
    assert np.allclose(activations(pm), 0.8, atol=1e-4)


def test_a_single_frame_and_irregular_gaps_are_kept() -> None:
    series = ct_series(6, 32)
    series[5].ImagePositionPatient = [-100, -110, 61.5]
    assert build_pm(context_for(series, heat_map(6))).NumberOfFrames == 6
    heat = np.zeros((101, 4, 4), np.float32)
    heat[7] = 1
    assert build_pm(context_for(ct_series(101, 16, step_mm=1), heat)).NumberOfFrames == 1


def test_it_says_what_it_is() -> None:
    pm = build_pm(context_for(ct_series(), heat_map(6)))
    mapping = pm.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    (quantity,) = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeValue == "130403"
    assert (pm.SeriesNumber, pm.BitsAllocated, pm.ContentQualification) == (902, 16, "RESEARCH")
    assert str(pm.PatientName) == "Müller^Jörg"
    assert pm.SeriesDescription == "AI ICH activation map - research use only"


def test_the_report_shows_it_as_the_visual_explanation() -> None:
    made = build_all(context_for(ct_series(), heat_map(6)), ALL_NAMES)
    assert str(made["pm"][0].SOPInstanceUID) in str(made["sr"][0].ContentSequence)


def test_the_source_stays_and_a_second_build_has_the_same_bytes() -> None:
    files = []
    context = context_for(ct_series(), heat_map(6))
    before = [str(ds) for ds in (*context.source.datasets, *context.source.headers)]
    for _ in range(2):
        files.append(io.BytesIO())
        build_pm(context).save_as(files[-1], enforce_file_format=True)
    assert files[0].getvalue() == files[1].getvalue()
    assert [str(ds) for ds in (*context.source.datasets, *context.source.headers)] == before


def test_a_mask_that_speaks_alone_gets_a_map() -> None:
    changes = {"consistency": Consistency.MASK_ONLY, "priority": Priority.HIGH}
    assert build_pm(context_for(ct_series(), heat_map(6), scores={}, **changes))


@pytest.mark.parametrize(
    ("heat", "scores", "attributes"),
    [
        (None, SUSPECTED, {}),
        (np.zeros((6, 7, 5), np.float32), SUSPECTED, {}),
        (heat_map(6), {}, {}),
        (heat_map(6), SUSPECTED, {"FrameOfReferenceUID": None}),
        (heat_map(6), SUSPECTED, {"ImagePositionPatient": None}),
        (heat_map(6), SUSPECTED, {"PixelSpacing": None}),
    ],
)
def test_there_is_no_map_without_something_to_explain_or_a_place_for_it(
    heat: np.ndarray | None, scores: dict[str, float], attributes: dict[str, Any]
) -> None:
    assert activation.build(context_for(ct_series(**attributes), heat, scores=scores)) == []


def test_there_is_no_map_of_what_was_not_analysed() -> None:
    series = ct_series()
    findings = not_analysed(series)
    source = Source.ordered(series, findings, hu_of)
    assert activation.build(Context(findings, source, MADE_AT, "0.1.0", bleed(6, 64), heat_map(6))) == []
