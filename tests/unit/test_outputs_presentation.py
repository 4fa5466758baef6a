"""The presentation state: contours that enclose exactly the mask, on slices in the brain window."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path
from pydicom.dataset import Dataset

from node.domain.errors import PermanentError
from node.outputs import presentation
from node.outputs.catalogue import build_all
from node.outputs.context import Context
from node.outputs.outlines import outlines
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of, not_analysed


def context_for(series: list[Dataset], masks: np.ndarray | None) -> Context:
    findings = analysed(series, {"any": 0.9}, masks=masks)
    return Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks)


def build_gsps(series: list[Dataset], masks: np.ndarray) -> Dataset:
    (state,) = build_all(context_for(series, masks), ("gsps",))["gsps"]
    return state


def filled(polylines: list[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Boolean (rows, columns): the pixels whose centres an odd number of closed polylines goes around."""
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = np.zeros(rows * columns, bool)
    for points in polylines:
        inside ^= Path(points).contains_points(centres)
    return inside.reshape(rows, columns)


def drawn(state: Dataset, uid: str, rows: int, columns: int) -> np.ndarray:
    """What the state's polylines enclose on the image of this UID."""
    polylines = [
        np.array(item.GraphicData, float).reshape(-1, 2)
        for annotation in state.GraphicAnnotationSequence
        if annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == uid
        for item in annotation.get("GraphicObjectSequence") or ()
    ]
    return filled(polylines, rows, columns)


def two_regions_and_a_hole(rows: int = 64, columns: int = 48) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    mask = np.hypot(y - 20, x - 18) < 12
    mask &= np.hypot(y - 21, x - 17) > 4
    mask |= np.hypot((y - 48) / 2, x - 34) < 6
    return np.asarray(mask)


@pytest.mark.parametrize("seed", range(20))
def test_outlines_of_any_mask_enclose_it_and_nothing_else(seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < 0.2 + 0.03 * seed
    found = outlines(mask)
    assert (filled(found, 17, 23) == mask).all()
    assert all((points[0] == points[-1]).all() for points in found)


def test_outlines_of_small_and_full_masks() -> None:
    pixel = np.zeros((3, 4), bool)
    pixel[1, 2] = True
    (diamond,) = outlines(pixel)
    assert sorted(map(tuple, diamond[:-1])) == [(2.0, 1.5), (2.5, 1.0), (2.5, 2.0), (3.0, 1.5)]
    (frame,) = outlines(np.ones((3, 4), bool))
    assert (frame.min(axis=0).tolist(), frame.max(axis=0).tolist()) == ([0, 0], [4, 3])
    corner_to_corner = np.eye(2, dtype=bool)
    assert len(outlines(corner_to_corner)) == 2
    assert outlines(np.zeros((3, 3), bool)) == []


def test_contours_are_the_mask_with_two_regions_and_a_hole() -> None:
    series = ct_series(4, 64, 48)
    masks = np.zeros((4, 64, 48), bool)
    masks[1], masks[2] = two_regions_and_a_hole(), np.roll(two_regions_and_a_hole(), 2, axis=0)
    masks[3, :10, 40:] = True  # at the border of the image
    state = build_gsps(series, masks)
    for ds, mask in zip(series, masks, strict=True):
        shown = drawn(state, str(ds.SOPInstanceUID), 64, 48)
        assert (shown & mask).sum() == (shown | mask).sum()  # intersection over union is 1
    objects = [len(a.get("GraphicObjectSequence") or ()) for a in state.GraphicAnnotationSequence]
    assert objects == [3, 3, 1]


def test_a_long_contour_is_drawn_in_pieces_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((192, 192), bool)
    mask[::3], mask[1::3, ::2], mask[:, 0] = True, True, True  # a comb with teeth on its teeth
    longest = max(outlines(mask), key=len)
    assert len(longest) > 8192, "does not try what it should"
    masks = np.zeros((2, 192, 192), bool)
    masks[1] = mask
    stream = io.BytesIO()
    build_gsps(ct_series(2, 192), masks).save_as(stream, enforce_file_format=True)
    read = pydicom.dcmread(io.BytesIO(stream.getvalue()))
    stretches = [
        np.array(item.GraphicData).reshape(-1, 2)
        for annotation in read.GraphicAnnotationSequence
        for item in annotation.GraphicObjectSequence
    ]
    ends = [tuple(points[-1]) for points in stretches]
    assert sum(ends.count(tuple(points[0])) for points in stretches) == len(stretches) > 1
    monkeypatch.setattr(presentation, "MOST_POINTS", 10)
    parts = presentation.pieces(longest)
    assert max(map(len, parts)) == 10
    assert (np.vstack([parts[0], *(part[1:] for part in parts[1:])]) == longest).all()


def test_the_key_slice_is_labelled_within_the_image() -> None:
    series = ct_series(rows=64, columns=48)
    state = build_gsps(series, bleed(6, 64, 48))
    labelled = [a for a in state.GraphicAnnotationSequence if "TextObjectSequence" in a]
    (annotation,) = labelled
    assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == series[3].SOPInstanceUID
    (text,) = annotation.TextObjectSequence
    assert text.UnformattedTextValue.startswith("AI key slice: haemorrhage suspected. Research use only")
    right, bottom = text.BoundingBoxBottomRightHandCorner
    assert right < 48 and bottom < 64


def test_all_slices_are_shown_in_the_brain_window_after_their_own_rescale() -> None:
    series = ct_series()
    for ds in series:
        ds.PixelSpacing = [0.5, 0.7]
    state = build_gsps(series, bleed(6, 64))
    (images,) = state.ReferencedSeriesSequence
    shown = [i.ReferencedSOPInstanceUID for i in images.ReferencedImageSequence]
    assert shown == [ds.SOPInstanceUID for ds in series]
    assert (state.RescaleSlope, state.RescaleIntercept, state.RescaleType) == (1, -1024, "HU")
    (voi,) = state.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (40, 80)
    assert voi.WindowCenterWidthExplanation == "BRAIN"
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelSpacing) == [0.5, 0.7]
    (layer,) = state.GraphicLayerSequence
    assert len(layer.GraphicLayerRecommendedDisplayCIELabValue) == 3


def test_slices_of_another_rescale_get_a_state_of_their_own() -> None:
    series = ct_series()
    for ds in series[4:]:
        ds.RescaleIntercept = -1000
    states = build_all(context_for(series, bleed(6, 64)), ("gsps",))["gsps"]
    assert [int(s.RescaleIntercept) for s in states] == [-1024, -1000]
    assert [s.InstanceNumber for s in states] == [1, 2]
    assert len({s.SOPInstanceUID for s in states}) == 2
    assert len({s.SeriesInstanceUID for s in states}) == 1


def test_it_is_made_when_the_job_says_and_twice_the_same() -> None:
    series, files = ct_series(), []
    for _ in range(2):
        state = build_gsps(series, bleed(6, 64))
        files.append(io.BytesIO())
        state.save_as(files[-1], enforce_file_format=True)
    assert files[0].getvalue() == files[1].getvalue()
    assert (state.PresentationCreationDate, state.PresentationCreationTime) == ("20261120", "102030")
    assert (state.SeriesNumber, str(state.PatientName)) == (904, "Müller^Jörg")
    assert state.SeriesDescription == "AI ICH contours - research use only"


def test_pixels_suffice_where_the_source_has_no_place_in_space() -> None:
    bare: dict[str, Any] = {"FrameOfReferenceUID": None, "ImagePositionPatient": None, "PixelSpacing": None}
    state = build_gsps(ct_series(**bare), bleed(6, 64))
    assert list(state.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio) == [1, 1]


def test_a_spacing_of_as_many_digits_as_fit_still_fits() -> None:
    """A Decimal String has 16 characters, and need not begin with a 0."""
    series, masks = ct_series(6, 64), bleed(6, 64)
    for ds in series:
        ds.PixelSpacing = [".488281251234567", ".488281251234567"]
    area = build_gsps(series, masks).DisplayedAreaSelectionSequence[0]
    assert [len(str(value)) <= 16 for value in area.PresentationPixelSpacing] == [True, True]
    assert area.PresentationPixelSpacing == pytest.approx([0.488281251234567] * 2)


@pytest.mark.parametrize("masks", [None, np.zeros((6, 64, 64), bool)])
def test_there_is_no_state_without_a_mask(masks: np.ndarray | None) -> None:
    assert presentation.build(context_for(ct_series(), masks)) == []


def test_there_is_no_state_of_what_was_not_analysed() -> None:
    series = ct_series()
    findings = not_analysed(series)
    source = Source.ordered(series, findings, hu_of)
    assert presentation.build(Context(findings, source, MADE_AT, "0.1.0", bleed(6, 64))) == []


def test_a_mask_of_another_size_is_refused() -> None:
    series = ct_series()
    with pytest.raises(PermanentError, match="does not fit"):
        presentation.build(context_for(series, np.ones((6, 32, 32), bool)))
