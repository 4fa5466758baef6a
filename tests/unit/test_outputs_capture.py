"""The overlay series: what is burned in, where, and which slices are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw
from pydicom.dataset import Dataset

from node.domain.findings import Findings
from node.outputs import capture, drawing, overlay, summary
from node.outputs.context import Context
from node.outputs.drawing import CONTOUR, direction, patient_orientation, sides
from node.outputs.overlay import Legend
from node.outputs.source import Source
from node.outputs.wording import Verdict, verdict
from tests.factories import MADE_AT, analysed, bleed, ct_series, head_hu, hu_of, not_analysed

LEGEND = Legend("", "", "")


def build_sc(
    series: list[Dataset], findings: Findings, masks: np.ndarray | None = None, **changes: Any
) -> list[Dataset]:
    source = Source.ordered(series, findings, hu_of)
    return capture.build(Context(findings, source, MADE_AT, "0.1.0", masks, **changes))


def rgb_of(ds: Dataset) -> np.ndarray:
    count = ds.Rows * ds.Columns * 3
    return np.frombuffer(ds.PixelData, np.uint8)[:count].reshape(ds.Rows, ds.Columns, 3)


def written_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is drawn from here on."""
    said: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def spy(pen: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        said.append(text)
        draw(pen, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return said


@pytest.mark.parametrize(
    ("iop", "letters", "orientation"),
    [
        ((1, 0, 0, 0, 1, 0), "RLAP", ["L", "P"]),
        ((-1, 0, 0, 0, 1, 0), "LRAP", ["R", "P"]),
        ((1, 0, 0, 0, -1, 0), "RLPA", ["L", "A"]),
        ((0, 1, 0, 1, 0, 0), "APRL", ["P", "L"]),
        ((1, 0, 0, 0, 0.951, -0.309), "RLAP", ["L", "PF"]),
        ((1, 0, 0, 0, 0, -1), "RLHF", ["L", "F"]),
        ((0, 1, 0, 0, 0, -1), "APHF", ["P", "F"]),
    ],
)
def test_sides_follow_the_orientation(iop: tuple[float, ...], letters: str, orientation: list[str]) -> None:
    assert "".join(sides(iop)) == letters
    assert patient_orientation(iop) == orientation


def test_small_components_are_left_out_of_a_direction() -> None:
    assert direction((0.999, 0.05, 0.0)) == "L"


def test_sides_are_written_where_they_belong() -> None:
    hu = np.full((128, 128), -1000)
    drawn = overlay.render(hu, None, None, Legend("", "", "", letters=("R", " ", " ", " ")))
    left, right = drawn[40:88, :30], drawn[40:88, -30:]
    assert left.max() > 200 and right.max() == 0


def test_the_window_is_0_to_80_hu() -> None:
    hu = np.tile(np.array([-50, 0, 40, 80, 300]), (64, 13))[:, :64]
    row = overlay.render(hu, None, None, LEGEND)[32, :5, 0]
    assert row.tolist() == [0, 0, 127, 255, 255]


def test_the_contour_runs_around_the_mask_and_covers_none_of_it() -> None:
    hu = head_hu(1, 128, 128)[0]
    mask = np.zeros((128, 128), bool)
    mask[50:60, 60:75] = True
    plain = overlay.render(hu, None, None, LEGEND)
    drawn = overlay.render(hu, mask, np.ones((8, 8), np.float32), LEGEND)
    assert (drawn[mask] == plain[mask]).all()
    ring = np.all(drawn == CONTOUR, axis=2)
    assert ring[49, 60:75].all() and ring[60, 60:75].all() and ring[50:60, 59].all() and ring[50:60, 75].all()
    assert ring[:90].sum() == 12 * 17 - 10 * 15


def test_heat_tints_what_is_strong_and_leaves_the_rest_alone() -> None:
    hu = np.full((256, 256), 40)
    hu[:, 160:] = -1000
    heat = np.zeros((4, 4), np.float32)
    heat[1:3, :] = [1.0, 0.3, 0.0, 1.0]
    drawn = overlay.render(hu, None, heat, LEGEND).astype(int)
    grey = overlay.render(hu, None, None, LEGEND).astype(int)
    assert drawn[128, 16, 0] - drawn[128, 16, 2] > 60, "warm colour where the activation is strong"
    assert (drawn[80:160, 100:] == grey[80:160, 100:]).all(), "below the threshold and in air nothing changes"


@pytest.mark.parametrize(("strength", "shown"), [(0.1, False), (0.9, True)])
def test_the_key_to_the_tint_stands_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, strength: float, shown: bool
) -> None:
    said = written_words(monkeypatch)
    overlay.render(np.full((64, 64), 35), None, np.full((8, 8), strength), LEGEND)
    assert ("tint: AI activation" in said) is shown
    assert "L 40  W 80" in said


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_heat_may_be_bytes_or_floats(dtype: type) -> None:
    full = 255 if dtype is np.uint8 else 1
    assert overlay.heat_bytes(np.array([[0, full]], dtype)).tolist() == [[0, 255]]


def test_heat_that_is_not_finite_is_survived() -> None:
    assert overlay.heat_bytes(np.array([[np.nan, np.inf, -np.inf, 2.0]])).tolist() == [[0, 255, 0, 255]]


def test_mirrored_pixels_give_mirrored_overlays_with_their_own_sides() -> None:
    masks = bleed(6, 128)
    series, mirrored = ct_series(rows=128), ct_series(rows=128, iop=(-1, 0, 0, 0, 1, 0))
    for ds in mirrored:
        ds.PixelData = np.frombuffer(ds.PixelData, "<i2").reshape(128, 128)[:, ::-1].tobytes()
    one = build_sc(series, analysed(series, {"any": 0.9}, masks=masks), masks)
    other = build_sc(mirrored, analysed(mirrored, {"any": 0.9}, masks=masks), masks[:, :, ::-1])
    middle = slice(45, 56)  # rows without letters
    for a, b in zip(one[1:], other[1:], strict=True):
        assert (rgb_of(a)[middle, 20:-20] == rgb_of(b)[middle, 20:-20][:, ::-1]).all()
        assert (a.PatientOrientation, b.PatientOrientation) == (["L", "P"], ["R", "P"])


def test_slices_keep_their_geometry_and_refer_to_their_source() -> None:
    series = ct_series()
    page, *slices = build_sc(series, analysed(series))
    assert [ds.InstanceNumber for ds in (page, *slices)] == list(range(1, 8))
    assert "ImagePositionPatient" not in page
    for ds, source in zip(slices, series, strict=True):
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "FrameOfReferenceUID",
        ):
            assert ds[keyword].value == source[keyword].value
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert (ds.Rows, ds.Columns) == (source.Rows, source.Columns)


def test_no_frame_of_reference_means_no_geometry() -> None:
    series = ct_series(FrameOfReferenceUID=None)
    for ds in build_sc(series, analysed(series)):
        assert "ImagePositionPatient" not in ds and "FrameOfReferenceUID" not in ds


def test_odd_sized_slices_are_padded_to_even_length() -> None:
    series = ct_series(rows=33, columns=35)
    assert all(len(ds.PixelData) % 2 == 0 for ds in build_sc(series, analysed(series)))


def test_of_a_thin_series_only_slices_near_a_finding_are_shown() -> None:
    series = ct_series(100, 16, step_mm=1)
    masks = np.zeros((100, 16, 16), bool)
    masks[[20, 21]] = True
    findings = analysed(series, {"any": 0.9}, masks=masks)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks)
    assert capture.slices_shown(context) == [18, 19, 20, 21, 22, 23, 58, 59, 60, 61, 62]


def test_not_analysed_is_one_page_that_cannot_be_read_as_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    said = written_words(monkeypatch)
    series = ct_series()
    (page,) = build_sc(series, not_analysed(series, "KERNEL", "the kernel is for bone"))
    assert (page.Rows, page.Columns) == (512, 512)
    text = " ".join(said)
    assert "NOT ANALYSED" in text and "NOT a negative result" in text and "the kernel is for bone" in text
    assert "NO HAEMORRHAGE" not in text and "not detected" not in text
    assert "NOT ANALYSED" in page.SeriesDescription


@pytest.mark.parametrize(
    ("probability", "headline"), [(0.9, "HAEMORRHAGE SUSPECTED"), (0.1, "NO HAEMORRHAGE DETECTED")]
)
def test_the_page_says_the_result(monkeypatch: pytest.MonkeyPatch, probability: float, headline: str) -> None:
    said = written_words(monkeypatch)
    series = ct_series()
    findings = analysed(series, {"any": probability})
    summary.render(findings, MADE_AT, "0.1.0", "Series 2", 512)
    assert headline in said and f"{probability:.2f}" in said
    assert any("RESEARCH USE ONLY" in words for words in said)
    assert any("test-model 1.2.3" in words for words in said)


def test_no_name_is_burned_in_and_every_slice_carries_the_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    said = written_words(monkeypatch)
    series = ct_series(PatientName="Secret^Person", PatientID="PID987", AccessionNumber="ACC987")
    build_sc(series, analysed(series))
    text = " ".join(said)
    assert not any(word in text for word in ("Secret", "Person", "987"))
    assert said.count(overlay.BANNER) == len(series)


def test_any_script_can_be_burned_in() -> None:
    series = ct_series()
    words = "Причина: 山 한국 ‏عربي\u0000 🙂 " * 60
    for side in (256, 512, 768):
        rgb = summary.render(not_analysed(series, "X", words), MADE_AT, "0.1.0", "Series 2", side)
        assert rgb.shape == (side, side, 3)


def test_a_source_without_geometry_or_size_still_gets_its_page() -> None:
    series = ct_series(Rows=None, Columns=None, ImageOrientationPatient=None, PixelSpacing=None)
    assert len(build_sc(series, not_analysed(series))) == 1


@pytest.mark.parametrize("rows", [256, 512, 768])
def test_letters_grow_with_the_image(rows: int) -> None:
    assert 1 / 45 < drawing.text_px(rows, rows) / rows < 1 / 25


def test_a_class_that_is_present_alone_is_suspected() -> None:
    findings = analysed(ct_series(), {"any": 0.4, "subdural": 0.7})
    assert verdict(findings) is Verdict.SUSPECTED
