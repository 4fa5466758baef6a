"""Multi-frame CT: every frame is a slice of its own, from the header to the references in the results."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.domain.completeness import Complete, Evidence, completeness, find_gaps
from node.domain.eligibility import choose
from node.domain.errors import PermanentError
from node.domain.instance import Instance, SliceRef
from node.frames import frame_headers
from node.gathering import read_source
from node.headers import read_instance
from node.outputs.catalogue import ALL_NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, enhanced, hu_of, make_uid, not_analysed
from tests.peers import requires
from workers.volume import build_volume

SLICES = 30


def plain(**changes: Any) -> list[Dataset]:
    return ct_series(SLICES, 32, step_mm=4.0, **changes)


def legacy(series: list[Dataset]) -> Dataset:
    """What highdicom makes of it: Legacy Converted Enhanced CT."""
    return hd.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=series,
        series_instance_uid=series[0].SeriesInstanceUID,
        series_number=2,
        sop_instance_uid=make_uid("legacy"),
        instance_number=1,
    )


def halves(series: list[Dataset]) -> list[Dataset]:
    """Two instances of one series, the upper half first and each from head to feet."""
    return [
        enhanced(series[: SLICES // 2 - 1 : -1], "upper"),
        enhanced(series[SLICES // 2 - 1 :: -1], "lower"),
    ]


MADE: dict[str, Callable[[list[Dataset]], list[Dataset]]] = {
    "one object": lambda series: [enhanced(series)],
    "from head to feet": lambda series: [enhanced(series[::-1])],
    "two objects": halves,
    "legacy converted": lambda series: [legacy(series)],
}


def stored(datasets: list[Dataset]) -> list[Dataset]:
    """As they come back from disk."""
    made = []
    for ds in datasets:
        stream = io.BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        stream.seek(0)
        made.append(dcmread(stream))
    return made


def instances(datasets: list[Dataset]) -> list[Instance]:
    """As the database holds them."""
    made = []
    for ds in datasets:
        stream = io.BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        stream.seek(0)
        made.append(Instance.from_json(json.loads(json.dumps(read_instance(stream).to_json()))))
    return made


@pytest.mark.parametrize("kind", MADE)
def test_frames_are_judged_and_read_like_the_slices_they_were_made_of(kind: str) -> None:
    series = plain()
    made = MADE[kind](series)
    found = instances(made)
    assert choose({"1": found}).chosen == "1"
    assert find_gaps(found) == ()
    volume, expected = build_volume(stored(made)), build_volume(plain())
    np.testing.assert_array_equal(volume.hu, expected.hu)
    np.testing.assert_allclose(volume.origins_mm, expected.origins_mm)
    np.testing.assert_allclose(volume.thickness_mm, expected.thickness_mm)
    assert volume.spacing_mm == expected.spacing_mm
    assert volume.warnings == ()


@pytest.mark.parametrize("option", ["+te", "+ti", "+tb", "+td"])
def test_the_same_in_every_encoding_of_the_header(option: str, tmp_path: Path) -> None:
    """dcmconv writes sequences with their lengths, which are long enough here to be left on disk."""
    requires("dcmconv")
    ds = in_time(enhanced(plain()[:15] * 20), 20)
    plain_path, made_path = tmp_path / "plain.dcm", tmp_path / "made.dcm"
    ds.save_as(plain_path, enforce_file_format=True)
    subprocess.run(["dcmconv", option, "+e", str(plain_path), str(made_path)], check=True)
    made = read_instance(made_path)
    assert replace(made, transfer_syntax_uid=ExplicitVRLittleEndian) == read_instance(plain_path)
    assert {frame.stack for frame in made.per_frame} == {f"{n:06d} 1" for n in range(1, 21)}
    assert made.acquisition_number == 1
    (source,) = read_source([made_path])
    assert frame_headers(source)[7].ImagePositionPatient == plain()[7].ImagePositionPatient


def test_each_slice_names_its_frame() -> None:
    upper, lower = halves(plain())
    slices = build_volume([upper, lower]).slices
    last = SLICES // 2
    assert slices[0] == SliceRef(str(lower.SOPInstanceUID), last)
    assert slices[-1] == SliceRef(str(upper.SOPInstanceUID), 1)
    assert len(set(slices)) == SLICES


def test_gaps_and_numbers_count_frames() -> None:
    series = plain()
    (found,) = instances([enhanced(series[:9] + series[11:])])
    assert [(gap.from_mm, gap.to_mm) for gap in find_gaps([found])] == [(52.0, 64.0)]
    verdict = completeness(Evidence(0.0, 0, [found]), 500.0, 10.0, 120.0)
    assert isinstance(verdict, Complete)
    assert [note.code for note in verdict.notes] == ["GAPS"]
    (few,) = instances([enhanced(series[:5])])
    assert choose({"1": [few]}).skipped["1"].text == "5 slices, at least 12 needed"


def test_stacks_of_one_object_are_never_mixed() -> None:
    native, later = plain(), plain(name="later", with_bleed=False)
    frames = [slice_ for pair in zip(native, later, strict=True) for slice_ in pair]
    ds = enhanced(frames, stacks=["1", "2"] * SLICES)
    (found,) = instances([ds])
    choice = choose({"1": [found]})
    assert choice.chosen == "1"
    assert [note.code for note in choice.notes] == ["SEVERAL_VOLUMES"]
    volume = build_volume([ds])
    assert [ref.frame_number for ref in volume.slices] == list(range(1, 2 * SLICES, 2))
    assert any("30 slices of another volume" in warning for warning in volume.warnings)


def in_time(ds: Dataset, points: int) -> Dataset:
    for index, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = index % points + 1
    return ds


def test_the_earliest_of_two_points_in_time_is_read() -> None:
    frames = [slice_ for slice_ in plain() for _ in range(2)]
    ds = in_time(enhanced(frames), 2)
    assert [ref.frame_number for ref in build_volume([ds]).slices] == list(range(1, 2 * SLICES, 2))


def test_many_points_in_time_are_a_perfusion_scan() -> None:
    frames = [slice_ for slice_ in plain() for _ in range(4)]
    (found,) = instances([in_time(enhanced(frames), 4)])
    assert choose({"1": [found]}).skipped["1"].code == "PERFUSION"


def test_of_two_reconstructions_the_soft_one_is_read() -> None:
    frames = [slice_ for slice_ in plain() for _ in range(2)]
    ds = enhanced(frames, Manufacturer="SIEMENS", stacks=["1", "2"] * SLICES)
    del ds.SharedFunctionalGroupsSequence[0].CTReconstructionSequence
    for index, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.ConvolutionKernel = ("H60s", "H31s")[index % 2]
        groups.CTReconstructionSequence = [item]
    assert choose({"1": instances([ds])}).chosen == "1"
    assert [ref.frame_number for ref in build_volume([ds]).slices] == list(range(2, 2 * SLICES + 1, 2))


def test_a_localizer_among_the_frames_is_left_out() -> None:
    ds = enhanced(plain())
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    ds.PerFrameFunctionalGroupsSequence[3].CTImageFrameTypeSequence = [kind]
    assert len(build_volume([ds]).slices) == SLICES - 1
    assert choose({"1": instances([ds])}).notes[0].code == "INSTANCES_IGNORED"


def test_a_projection_in_an_enhanced_object_is_no_scan() -> None:
    ds = enhanced(plain())
    ds.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[
        0
    ].VolumeBasedCalculationTechnique = "MAX_IP"
    assert choose({"1": instances([ds])}).skipped["1"].code == "RENDERED"


def test_each_frame_has_its_own_rescale() -> None:
    series = plain()
    for ds in series[::2]:
        pixels = np.frombuffer(ds.PixelData, "<i2") * 2
        ds.PixelData, ds.RescaleSlope = pixels.astype("<i2").tobytes(), 0.5
    np.testing.assert_array_equal(build_volume([enhanced(series)]).hu, build_volume(plain()).hu)


def no_groups(ds: Dataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence


def one_group_short(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[1:]


def no_places(ds: Dataset) -> None:
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence


@pytest.mark.parametrize("damage", [no_groups, one_group_short, no_places])
def test_frames_without_a_place_are_refused(damage: Callable[[Dataset], None]) -> None:
    ds = enhanced(plain())
    damage(ds)
    assert choose({"1": instances([ds])}).skipped["1"].code == "NO_GEOMETRY"
    with pytest.raises(PermanentError) as caught:
        build_volume([ds])
    assert caught.value.code == "NO_GEOMETRY"


def test_no_rescale_is_refused() -> None:
    ds = enhanced(plain())
    for groups in ds.PerFrameFunctionalGroupsSequence:
        del groups.PixelValueTransformationSequence
    assert choose({"1": instances([ds])}).skipped["1"].code == "NO_RESCALE"


@pytest.mark.parametrize(("answers", "enhanced_"), [(["YES"], True), (["NO"], False), (["NO", "YES"], True)])
def test_contrast_counts_where_it_was_given(answers: list[str], enhanced_: bool) -> None:
    agent = Dataset()
    agent.CodeMeaning = "Iohexol"
    ds = enhanced(plain(), ContrastBolusAgentSequence=[agent])
    for groups in ds.PerFrameFunctionalGroupsSequence:
        groups.ContrastBolusUsageSequence = [Dataset() for _ in answers]
        for use, answer in zip(groups.ContrastBolusUsageSequence, answers, strict=True):
            use.ContrastBolusAgentAdministered = answer
    choice = choose({"1": instances([ds])})
    assert (choice.chosen is None) is enhanced_


def test_the_header_of_a_frame_is_that_of_the_plain_slice() -> None:
    series = plain()
    headers = frame_headers(stored([enhanced(series)])[0])
    for header, slice_ in zip(headers, series, strict=True):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                        "RescaleSlope", "PatientName", "StudyInstanceUID", "Rows"):  # fmt: skip
            assert header[keyword].value == slice_[keyword].value
        assert "PixelData" not in header and "PerFrameFunctionalGroupsSequence" not in header


def results(source: list[Dataset], masks: np.ndarray) -> tuple[Context, dict[str, list[Dataset]]]:
    """All objects of an analysis of these instances; the slices from feet to head."""
    volume = build_volume(source)
    findings = analysed(plain(), {"any": 0.97, "epidural": 0.9}, masks=masks, refs=volume.slices)
    heat = np.linspace(0, 1, len(masks) * 64, dtype=np.float32).reshape(len(masks), 8, 8)
    context = Context(findings, Source.ordered(source, findings, hu_of), MADE_AT, "0.1.0", masks, heat)
    return context, build_all(context, ALL_NAMES)


def walk(ds: Dataset) -> Iterator[Dataset]:
    yield ds
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from walk(item)


@pytest.mark.parametrize("kind", ["one object", "two objects"])
def test_every_reference_names_what_was_received(kind: str) -> None:
    made = MADE[kind](plain())
    known = {str(ds.SOPInstanceUID): str(ds.SOPClassUID) for ds in made}
    _, built = results(made, bleed(SLICES, 32))
    known |= {str(ds.SOPInstanceUID): str(ds.SOPClassUID) for objects in built.values() for ds in objects}
    for ds in (ds for objects in built.values() for ds in objects):
        named = [item for item in walk(ds) if "ReferencedSOPInstanceUID" in item]
        assert named or ds.get("ImageType", [""])[-1] == "AI_SUMMARY"
        for item in named:
            assert known[str(item.ReferencedSOPInstanceUID)] == item.ReferencedSOPClassUID


def test_seg_frames_lie_on_their_own_source_frames() -> None:
    made = halves(plain())
    masks = bleed(SLICES, 32)
    context, built = results(made, masks)
    (seg,) = built["seg"]
    place = {ref: index for index, ref in enumerate(context.source.refs)}
    pixels = seg.pixel_array.astype(bool)
    seen = []
    for groups, frame in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        (item,) = groups.DerivationImageSequence[0].SourceImageSequence
        index = place[SliceRef(str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber))]
        np.testing.assert_array_equal(frame, masks[index])
        position = context.source.datasets[index].ImagePositionPatient
        assert groups.PlanePositionSequence[0].ImagePositionPatient == position
        seen.append(index)
    assert sorted(seen) == list(range(SLICES))
    (series,) = seg.ReferencedSeriesSequence
    uids = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedInstanceSequence]
    assert sorted(uids) == sorted(str(ds.SOPInstanceUID) for ds in made)


def test_overlays_name_their_frame_and_lie_where_it_lies() -> None:
    made = [enhanced(plain()[::-1])]
    _, built = results(made, bleed(SLICES, 32))
    for index, ds in enumerate(built["sc"][1:]):
        assert ds.SourceImageSequence[0].ReferencedFrameNumber == SLICES - index
        assert float(ds.ImagePositionPatient[2]) == 20 + 4 * index


def test_key_slices_of_the_report_are_frames() -> None:
    made = [enhanced(plain())]
    context, built = results(made, bleed(SLICES, 32))
    key = context.findings.classes["any"].key_slice
    assert key is not None
    frames = {
        int(item.ReferencedFrameNumber)
        for item in walk(built["sr"][0])
        if item.get("ReferencedSOPInstanceUID") == key.sop_instance_uid and "ReferencedFrameNumber" in item
    }
    assert frames == {key.frame_number}


def test_evidence_lists_each_instance_once() -> None:
    made = halves(plain())
    _, built = results(made, bleed(SLICES, 32))
    (study,) = built["sr"][0].CurrentRequestedProcedureEvidenceSequence
    uids = [
        str(i.ReferencedSOPInstanceUID)
        for s in study.ReferencedSeriesSequence
        for i in s.ReferencedSOPSequence
    ]
    assert len(uids) == len(set(uids))
    assert {str(ds.SOPInstanceUID) for ds in made} < set(uids)


def test_the_report_that_nothing_was_analysed_names_the_object_once() -> None:
    (ds,) = made = [enhanced(plain())]
    findings = not_analysed(plain())
    context = Context(findings, Source.ordered(made, findings, hu_of), MADE_AT, "0.1.0")
    built = build_all(context)
    (study,) = built["sr"][0].CurrentRequestedProcedureEvidenceSequence
    uids = [
        str(i.ReferencedSOPInstanceUID)
        for s in study.ReferencedSeriesSequence
        for i in s.ReferencedSOPSequence
    ]
    assert uids.count(str(ds.SOPInstanceUID)) == 1
    assert set(uids) <= {str(ds.SOPInstanceUID), *(str(made.SOPInstanceUID) for made in built["sc"])}


def test_contours_are_drawn_on_frames() -> None:
    masks = bleed(SLICES, 32)
    _, built = results([enhanced(plain())], masks)
    (state,) = built["gsps"]
    drawn = [
        int(item.ReferencedImageSequence[0].ReferencedFrameNumber) for item in state.GraphicAnnotationSequence
    ]
    assert set(np.flatnonzero(masks.any(axis=(1, 2))) + 1) <= set(drawn)
    (series,) = state.ReferencedSeriesSequence
    assert len(series.ReferencedImageSequence) == 1


def encapsulated(ds: Dataset, syntax: str) -> Dataset:
    if syntax == RLELossless:
        ds.compress(syntax, generate_instance_uid=False)
        return ds
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(-1, ds.Rows, ds.Columns)
    encode = imagecodecs.jpegls_encode if syntax == JPEGLSLossless else imagecodecs.jpeg2k_encode
    ds.PixelData = encapsulate([encode(frame) for frame in pixels])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_frames_are_those_of_the_plain_slices(syntax: str) -> None:
    made = stored([encapsulated(enhanced(plain()), syntax)])
    np.testing.assert_array_equal(build_volume(made).hu, build_volume(plain()).hu)


def test_a_file_of_frames_that_was_damaged_says_so(tmp_path: Path) -> None:
    ds = enhanced(plain(), PixelData=b"\0\0")
    with pytest.raises(PermanentError) as caught:
        build_volume([ds])
    assert caught.value.code == "PIXELS_UNDECODABLE"
