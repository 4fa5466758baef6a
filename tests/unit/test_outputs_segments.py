"""The mask by subtype: each segment holds its own pixels, and the report refers to the right one."""

from __future__ import annotations

from collections.abc import Collection

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.outputs.catalogue import build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of

SLICES, ROWS = 6, 48
MASKS = bleed(SLICES, ROWS)
_, _, X = np.indices(MASKS.shape)
PARTS = {
    "intraparenchymal": MASKS & (X >= 31),
    "epidural": MASKS & (X < 31),
    "subdural": np.zeros_like(MASKS),
}


def build(
    names: Collection[str], parts: dict[str, np.ndarray] | None = None, masks: np.ndarray = MASKS
) -> dict[str, list[Dataset]]:
    series = ct_series(SLICES, ROWS)
    findings = analysed(series, {"any": 0.9}, masks=masks)
    source = Source.ordered(series, findings, hu_of)
    divided = PARTS if parts is None else parts
    return build_all(Context(findings, source, MADE_AT, "0.1.0", masks, subtypes=divided), names)


def by_label(seg: Dataset) -> dict[str, np.ndarray]:
    """Boolean (z, y, x) of each segment, as highdicom reads it."""
    read = hd.seg.Segmentation.from_dataset(seg)
    numbers = [n for n in read.segment_numbers if n]
    volume = np.stack([read.get_volume(segment_numbers=[n]).array[..., 0] for n in numbers])
    labels = [read.get_segment_description(n).SegmentLabel for n in numbers]
    return dict(zip(labels, volume.astype(bool), strict=True))


@pytest.mark.parametrize("output", ["seg-subtypes", "labelmap"])
def test_each_part_has_a_segment_of_its_own_pixels(output: str) -> None:
    (seg,) = build([output])[output]
    found = by_label(seg)
    assert list(found) == ["Epidural hemorrhage (AI)", "Intraparenchymal hemorrhage (AI)"]
    for name, mask in zip(("epidural", "intraparenchymal"), found.values(), strict=True):
        in_order = mask if (mask == PARTS[name]).all() else mask[::-1]  # highdicom sorts by position
        assert (in_order == PARTS[name]).all()


def test_they_are_told_apart_by_site_colour_and_tracking() -> None:
    (seg,) = build(["seg-subtypes"])["seg-subtypes"]
    sites = [s.AnatomicRegionSequence[0].CodeValue for s in seg.SegmentSequence]
    assert sites == ["128319008", "12738006"]
    assert len({tuple(s.RecommendedDisplayCIELabValue) for s in seg.SegmentSequence}) == 2
    assert len({s.TrackingUID for s in seg.SegmentSequence}) == 2
    assert seg.SegmentationType == "BINARY"


def test_where_parts_overlap_a_label_map_takes_the_first() -> None:
    overlapping = {"epidural": MASKS, "subdural": MASKS & (X < 31)}
    (seg,) = build(["labelmap"], overlapping)["labelmap"]
    found = by_label(seg)
    assert found["Epidural hemorrhage (AI)"].sum() == MASKS.sum()
    assert found["Subdural hemorrhage (AI)"].sum() == 0


def test_an_undivided_mask_has_one_label_and_no_subtypes() -> None:
    built = build(["seg-subtypes", "labelmap"], {})
    assert built["seg-subtypes"] == []
    assert list(by_label(built["labelmap"][0])) == ["Intracranial hemorrhage (AI)"]


def test_no_blood_no_segments() -> None:
    built = build(["seg-subtypes", "labelmap"], {}, np.zeros_like(MASKS))
    assert built == {"seg-subtypes": [], "labelmap": []}


def referred(sr: Dataset) -> dict[str, tuple[str, int]]:
    """By tracking UID: which instance and segment the group's measurements were taken on."""
    found = {}
    for group in sr.ContentSequence[-1].ContentSequence:
        names = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group.ContentSequence}
        if "Referenced Segment" in names:
            reference = names["Referenced Segment"].ReferencedSOPSequence[0]
            segment = int(np.atleast_1d(reference.ReferencedSegmentNumber)[0])
            uid = str(names["Tracking Unique Identifier"].UID)
            found[uid] = (str(reference.ReferencedSOPInstanceUID), segment)
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("seg",),
        ("seg", "seg-subtypes"),
        ("seg-subtypes",),
        ("labelmap",),
        ("seg", "seg-subtypes", "labelmap"),
    ],
)
def test_the_report_refers_to_the_segment_with_its_tracking_uid(names: tuple[str, ...]) -> None:
    built = build(("sr", *names))
    segments = {
        str(item.TrackingUID): (str(ds.SOPInstanceUID), int(item.SegmentNumber))
        for name in names
        if name != "labelmap" or "seg-subtypes" not in names
        for ds in built[name]
        for item in ds.SegmentSequence
        if item.SegmentNumber
    }
    assert referred(built["sr"][0]) == segments


def test_an_undivided_label_map_bears_the_whole() -> None:
    built = build(("sr", "labelmap"), {})
    assert list(referred(built["sr"][0]).values()) == [(str(built["labelmap"][0].SOPInstanceUID), 1)]
