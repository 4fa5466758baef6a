"""The SEG: every frame lies on its own source slice, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.domain.errors import PermanentError
from node.outputs import segmentation
from node.outputs.catalogue import build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "mirrored columns": (-1, 0, 0, 0, 1, 0),
    "mirrored rows": (1, 0, 0, 0, -1, 0),
    "transposed": (0, 1, 0, 1, 0, 0),
    "tilted": (1, 0, 0, 0, 0.9510565, -0.3090170),
}


def build_seg(series: list[Dataset], masks: np.ndarray) -> Dataset:
    findings = analysed(series, {"any": 0.9}, masks=masks)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks)
    (seg,) = build_all(context)["seg"]
    return seg


def frames_by_source(seg: Dataset) -> dict[str, np.ndarray]:
    pixels = np.atleast_3d(seg.pixel_array).astype(bool)
    groups = seg.PerFrameFunctionalGroupsSequence
    return {
        str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID): frame
        for group, frame in zip(groups, pixels, strict=True)
    }


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_frame_is_the_mask_of_the_slice_it_refers_to(orientation: str) -> None:
    series = ct_series(7, 48, 40, iop=ORIENTATIONS[orientation])
    masks = bleed(7, 48, 40)
    frames = frames_by_source(build_seg(series, masks))
    assert len(frames) == 7
    for ds, mask in zip(series, masks, strict=True):
        assert (frames[str(ds.SOPInstanceUID)] == mask).all()


def test_frames_carry_the_position_of_their_slice() -> None:
    series = ct_series(5, 32)
    seg = build_seg(series, bleed(5, 32))
    positions = {str(ds.SOPInstanceUID): list(ds.ImagePositionPatient) for ds in series}
    for group in seg.PerFrameFunctionalGroupsSequence:
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == positions[str(uid)]


def test_empty_frames_of_a_long_series_are_left_out() -> None:
    masks = bleed(120, 16)
    frames = frames_by_source(build_seg(ct_series(120, 16, step_mm=1), masks))
    assert len(frames) == masks.any(axis=(1, 2)).sum()


def test_irregular_gaps_are_kept() -> None:
    series = ct_series(6, 32)
    series[5].ImagePositionPatient = [-100, -110, 61.5]
    assert len(frames_by_source(build_seg(series, bleed(6, 32)))) == 6


def test_the_segment_says_what_it_is_and_who_made_it() -> None:
    (segment,) = build_seg(ct_series(), bleed(6, 64)).SegmentSequence
    assert segment.SegmentLabel == "Intracranial hemorrhage (AI)"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2.3"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "50960005"
    assert len(segment.RecommendedDisplayCIELabValue) == 3


@pytest.mark.parametrize(
    ("masks", "attributes"),
    [
        (None, {}),
        (np.zeros((6, 64, 64), bool), {}),
        (bleed(6, 64), {"FrameOfReferenceUID": None}),
        (bleed(6, 64), {"ImagePositionPatient": None}),
    ],
)
def test_there_is_no_seg_without_a_mask_or_a_place_for_it(
    masks: np.ndarray | None, attributes: dict[str, Any]
) -> None:
    series = ct_series(**attributes)
    findings = analysed(series, masks=masks)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks)
    assert segmentation.build(context) == []


def test_a_mask_of_another_size_is_refused() -> None:
    series = ct_series()
    findings = analysed(series)
    source = Source.ordered(series, findings, hu_of)
    with pytest.raises(PermanentError, match="does not fit"):
        segmentation.build(Context(findings, source, MADE_AT, "0.1.0", np.ones((6, 32, 32), bool)))
