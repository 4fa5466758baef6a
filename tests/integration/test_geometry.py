"""The lesion is in the same place, of the same size and on the same side, however the head was scanned.

Each variant goes from files to objects as a folder given to `ichnode analyse` does, and is read back from
what would be sent: SEG, overlays and report. A threshold stands in for the network where geometry is tested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from PIL import ImageDraw
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from node.domain.findings import Findings
from node.outputs.drawing import CONTOUR
from node.settings import Settings
from tests.factories import enhanced, make_uid
from tests.scanned import LESION_ML, LESION_MM, Scan, Threshold, put, scan, stored_as, turned
from workers import offline
from workers.models.runtime import load_pipeline
from workers.phantom_series import write_series

DATA_ELEMENT_VOLUME = "118565006"


def posed(iop: Sequence[float], position: str = "HFS", **changes: Any) -> Callable[[], list[Dataset]]:
    return lambda: scan(Scan(iop=tuple(map(float, iop)), labels={"PatientPosition": position}, **changes))


def numbered_backwards() -> list[Dataset]:
    series = scan()
    for number, ds in enumerate(reversed(series), start=1):
        ds.InstanceNumber, ds.SliceLocation = number, number
    return series


def duplicated() -> list[Dataset]:
    """Some slices twice under new names, as a scanner repeats them; another instance sent twice."""
    again = scan(Scan(name="again", labels={"AcquisitionNumber": 2}))[8:20]
    series = scan()
    for ds in again:
        ds.SeriesInstanceUID, ds.StudyInstanceUID = series[0].SeriesInstanceUID, series[0].StudyInstanceUID
        ds.FrameOfReferenceUID = series[0].FrameOfReferenceUID
    return [*series, *again, series[3]]


def with_others(how: Scan, same_series: bool) -> list[Dataset]:
    """Images of another kind in the same series or the same study."""
    series, others = scan(), scan(how)
    for ds in others:
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = (
            series[0].StudyInstanceUID,
            series[0].FrameOfReferenceUID,
        )
        if same_series:
            ds.SeriesInstanceUID = series[0].SeriesInstanceUID
    return others + series


LOCALIZER = Scan(
    iop=(0, 1, 0, 0, 0, -1), heights_mm=(0.0, 5.0), name="localizer",
    labels={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesDescription": "Topogram"},
)  # fmt: skip
CORONAL = Scan(
    iop=(1, 0, 0, 0, 0, -1), heights_mm=tuple(np.arange(-60.0, 60.0, 4.0)), name="coronal",
    labels={"ImageType": ["DERIVED", "SECONDARY", "MPR"], "SeriesDescription": "Head cor"},
)  # fmt: skip


def with_projections() -> list[Dataset]:
    """Maximum intensity projections, as bright as blood all over, lie between the slices of the series."""
    between = Scan(
        heights_mm=tuple(np.arange(-69.0, 70.0, 6.0)), name="mip",
        labels={"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
    )  # fmt: skip
    series = with_others(between, same_series=True)
    for ds in series:
        if "MIP" in ds.ImageType:
            stored_as([ds], lambda ds, hu: put(ds, np.where(hu == 32, 70, hu) + 1024))
    return series


def overlaid() -> list[Dataset]:
    """12 bits, and above them a drawing, as scanners stored overlays once (PS3.5 8.1.2, retired)."""

    def store(ds: Dataset, hu: np.ndarray) -> None:
        drawn = np.zeros_like(hu)
        drawn[40:60, 20:70] = 1 << 12
        put(ds, (hu + 1024) | drawn, bits=12, signed=False)
        ds.add_new(0x60000010, "US", ds.Rows)
        ds.add_new(0x60000011, "US", ds.Columns)
        ds.add_new(0x60000100, "US", 16)
        ds.add_new(0x60000102, "US", 12)

    return stored_as(scan(), store)


def shuffled() -> list[Dataset]:
    """Frames in no order, and each with a rescale of its own."""
    series = scan()
    random.Random(3).shuffle(series)
    for number, ds in enumerate(series):
        shift = 10 * (number % 5)
        stored_as([ds], lambda ds, hu: put(ds, hu + 1024 + shift, RescaleIntercept=-1024 - shift))  # noqa: B023
    return [enhanced(series, "shuffled")]


def padded() -> list[Dataset]:
    """Everything outside a circle is -2000, as GE writes it."""

    def store(ds: Dataset, hu: np.ndarray) -> None:
        rows, columns = np.indices(hu.shape)
        outside = np.hypot(rows - hu.shape[0] / 2, columns - hu.shape[1] / 2) > hu.shape[1] / 2
        put(ds, np.where(outside, -2000, hu + 1024), PixelPaddingValue=-2000)

    return stored_as(scan(), store)


def wrapped() -> list[Dataset]:
    return stored_as(
        scan(),
        lambda ds, hu: put(ds, np.where(hu < 0, hu + 4096, hu), bits=12, signed=False, RescaleIntercept=0),
    )


def tilted(degrees: float) -> Callable[[], list[Dataset]]:
    return lambda: scan(Scan(iop=turned((1, 0, 0, 0, 1, 0), (degrees, 0, 0)), table=True, rows=128))


def frames(*cuts: slice) -> list[Dataset]:
    series = scan()
    return [enhanced(series[cut], f"enhanced {number}") for number, cut in enumerate(cuts)]


def legacy() -> list[Dataset]:
    series = scan()
    return [
        hd.legacy.LegacyConvertedEnhancedCTImage(
            legacy_datasets=series, series_instance_uid=make_uid("legacy series"), series_number=3,
            sop_instance_uid=make_uid("legacy"), instance_number=1,
        )
    ]  # fmt: skip


def compressed(syntax: str) -> list[Dataset]:
    series = scan()
    for ds in series:
        ds.compress(syntax, generate_instance_uid=False)
    return series


FINE = tuple(np.arange(-112.0, 112.9, 0.75))
VARIANTS: dict[str, Callable[[], list[Dataset]]] = {
    "plain": scan,
    "numbered from the top": numbered_backwards,
    "head to feet": lambda: scan(Scan(heights_mm=tuple(np.arange(72.0, -73.0, -6.0)))),
    "feet first, supine": posed((-1, 0, 0, 0, 1, 0), "FFS"),
    "head first, prone": posed((-1, 0, 0, 0, -1, 0), "HFP"),
    "feet first, prone": posed((1, 0, 0, 0, -1, 0), "FFP"),
    "decubitus right": posed((0, 1, 0, -1, 0, 0), "HFDR"),
    "decubitus left": posed((0, -1, 0, 1, 0, 0), "HFDL"),
    "position says the opposite": posed((1, 0, 0, 0, 1, 0), "FFP"),
    "oblique": posed(turned((1, 0, 0, 0, 1, 0), (14, -9, 11))),
    "mirrored columns": posed((-1, 0, 0, 0, 1, 0)),
    "mirrored rows": posed((1, 0, 0, 0, -1, 0)),
    "transposed": posed((0, 1, 0, 1, 0, 0), rows=100, columns=116),
    "transposed and mirrored": posed((0, -1, 0, -1, 0, 0), rows=100, columns=116),
    "pixels that are not square": posed((1, 0, 0, 0, 1, 0), rows=116, columns=160, spacing_mm=(2.0, 1.25)),
    "duplicates": duplicated,
    "slices missing": lambda: [ds for n, ds in enumerate(scan()) if n not in (4, 5, 16)],
    "localizer in the series": lambda: with_others(LOCALIZER, same_series=True),
    "reformats in the series": lambda: with_others(CORONAL, same_series=True),
    "reformats in the study": lambda: with_others(CORONAL, same_series=False),
    "projections between the slices": with_projections,
    "overlay in the high bits": overlaid,
    "frames in no order, rescaled one by one": shuffled,
    "12 bits unsigned": lambda: stored_as(scan(), lambda ds, hu: put(ds, hu + 1024, bits=12, signed=False)),
    "HU stored directly": lambda: stored_as(scan(), lambda ds, hu: put(ds, hu, RescaleIntercept=0)),
    "slope one half": lambda: stored_as(scan(), lambda ds, hu: put(ds, 2 * (hu + 1024), RescaleSlope=0.5)),
    "MONOCHROME1": lambda: scan(Scan(labels={"PhotometricInterpretation": "MONOCHROME1"})),
    "padding": padded,
    "RSNA wrap": wrapped,
    "tilted by 20 degrees": tilted(20),
    "tilted by -20 degrees": tilted(-20),
    "uneven steps": lambda: scan(Scan(heights_mm=(*np.arange(-72.0, 0.0, 4.0), *np.arange(0.0, 76.0, 7.0)))),
    "300 thin slices": lambda: scan(Scan(heights_mm=FINE[:300], rows=76, columns=66, spacing_mm=(3.0, 3.0))),
    "RLE": lambda: compressed(RLELossless),
    "JPEG 2000": lambda: compressed(JPEG2000Lossless),
    "enhanced": lambda: frames(slice(None)),
    "enhanced, head to feet": lambda: frames(slice(None, None, -1)),
    "enhanced, two objects": lambda: frames(slice(12, None), slice(12)),
    "legacy converted": legacy,
}
LOOSE = {"slices missing": 0.12, "uneven steps": 0.06, "300 thin slices": 0.05}
"""Where the slices themselves say less about the volume; else 4 %."""


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Where L and R belong on the overlays drawn last: (x, y). Nothing is written: contours stay alone."""
    found: dict[str, tuple[float, float]] = {}

    def spy(pen: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        if text in ("L", "R"):
            found[text] = xy

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return found


def analysed(
    datasets: list[Dataset], folder: Path, monkeypatch: pytest.MonkeyPatch, pipeline: object = None
) -> tuple[Findings, dict[str, list[Dataset]]]:
    """Findings and objects as they lie in the output folder; the files are given in no order."""
    (folder / "in").mkdir()
    names = random.Random(11).sample(range(1000), len(datasets))
    for name, ds in zip(names, datasets, strict=True):
        ds.save_as(folder / "in" / f"{name}.dcm", enforce_file_format=True)
    monkeypatch.setattr(offline, "load_pipeline", lambda *_: pipeline or Threshold())
    result = offline.analyse_folder(folder / "in", folder / "out", Settings(), lambda text: None)
    return result.findings, {
        name: [dcmread(path) for path in paths] for name, paths in result.files.items() if name != "findings"
    }


def places_mm(position: Any, iop: Any, spacing: Any, pixels: np.ndarray) -> np.ndarray:
    """Patient LPS of pixels (n, 2) given as (row, column): PS3.3 C.7.6.2.1.1."""
    along_row, along_column = np.array(iop[:3], float), np.array(iop[3:], float)
    across = pixels[:, 1:] * float(spacing[1]) * along_row
    return np.array(position, float) + pixels[:, :1] * float(spacing[0]) * along_column + across


def read_seg(seg: Dataset) -> tuple[np.ndarray, float]:
    """Centroid (LPS, mm) and volume (mL), by the geometry of the SEG alone."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    iop = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(np.array(iop[:3], float), np.array(iop[3:], float))
    origins = np.array(
        [g.PlanePositionSequence[0].ImagePositionPatient for g in seg.PerFrameFunctionalGroupsSequence], float
    )
    order = np.argsort(origins @ normal)
    heights = (origins @ normal)[order]
    edges = np.concatenate([[heights[0]], (heights[1:] + heights[:-1]) / 2, [heights[-1]]])
    total, centroid = 0.0, np.zeros(3)
    for frame, origin, mm in zip(seg.pixel_array[order], origins[order], np.diff(edges), strict=True):
        pixels = np.argwhere(frame)
        if len(pixels):
            weight = len(pixels) * mm
            centroid += places_mm(origin, iop, spacing, pixels).mean(0) * weight
            total += weight
    return centroid / total, total * float(spacing[0]) * float(spacing[1]) / 1000


def contours(captures: Sequence[Dataset]) -> Iterator[tuple[Dataset, np.ndarray]]:
    """Overlays with a contour, and its pixels (n, 2) as (row, column)."""
    for ds in captures:
        marked = (ds.pixel_array == CONTOUR).all(axis=2)
        if marked.any():
            yield ds, np.argwhere(marked)


def numbers(ds: Dataset, code: str) -> list[float]:
    """Values of every NUM item of this concept."""
    found = []
    for item in ds.get("ContentSequence") or ():
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == code:
            found += [float(value.NumericValue) for value in item.MeasuredValueSequence]
        found += numbers(item, code)
    return found


def meanings(ds: Dataset) -> set[str]:
    """Every CodeMeaning in the tree."""
    found = {str(ds.CodeMeaning)} if "CodeMeaning" in ds else set()
    return found.union(*(meanings(item) for e in ds if e.VR == "SQ" for item in e.value))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_lesion_is_where_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: dict[str, tuple[float, float]]
) -> None:
    findings, built = analysed(VARIANTS[name](), tmp_path, monkeypatch)
    loose = LOOSE.get(name, 0.04)
    found = findings.segmentation
    assert found is not None, findings.reason
    assert found.volume_ml == pytest.approx(LESION_ML, rel=loose)
    assert found.side == "left"

    (seg,) = built["seg"]
    centroid, volume_ml = read_seg(seg)
    np.testing.assert_allclose(centroid, LESION_MM, atol=2.0 if name in LOOSE else 0.8)
    assert volume_ml == pytest.approx(found.volume_ml, rel=0.03)

    drawn = [
        (pixels, places_mm(ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing, pixels))
        for ds, pixels in contours(built["sc"][1:])
    ]
    assert drawn
    middle = np.average([mm.mean(0) for _, mm in drawn], axis=0, weights=[len(mm) for _, mm in drawn])
    np.testing.assert_allclose(middle, LESION_MM, atol=3.0)
    for pixels, _ in drawn:
        y, x = pixels.mean(0)
        to_left, to_right = (np.hypot(x - letters[s][0], y - letters[s][1]) for s in ("L", "R"))
        assert to_left < to_right, "the contour is nearer to the letter L"

    (report,) = built["sr"]
    assert "Left" in meanings(report) and "Right" not in meanings(report)
    assert any(v == pytest.approx(found.volume_ml, abs=0.01) for v in numbers(report, DATA_ELEMENT_VOLUME))


@pytest.mark.parametrize("name", ["enhanced", "enhanced, two objects", "legacy converted"])
def test_results_of_frames_name_frames(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = VARIANTS[name]()
    findings, built = analysed(source, tmp_path, monkeypatch)
    places = {
        (str(ds.SOPInstanceUID), number): np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for ds in source
        for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence, start=1)
    }
    for slice_ in findings.slices:
        assert places[slice_.sop_instance_uid, slice_.frame_number or 0][2] == pytest.approx(
            slice_.position_mm
        )
    for group in built["seg"][0].PerFrameFunctionalGroupsSequence:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        expected = places[str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber)]
        np.testing.assert_allclose(
            expected, np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        )
    for ds in built["sc"][1:]:
        item = ds.SourceImageSequence[0]
        expected = places[str(item.ReferencedSOPInstanceUID), int(item.ReferencedFrameNumber)]
        np.testing.assert_allclose(expected, np.array(ds.ImagePositionPatient, float))
    assert findings.segmentation is not None
    assert len(findings.segmentation.frame_numbers) == len(findings.segmentation.slices) > 0


def mirrored(series: list[Dataset]) -> list[Dataset]:
    """The same pixels, each row from the other end."""
    for ds in series:
        pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)[:, ::-1]
        across = float(ds.PixelSpacing[1]) * (ds.Columns - 1)
        ds.PixelData = pixels.tobytes()
        ds.ImagePositionPatient = [float(ds.ImagePositionPatient[0]) + across, *ds.ImagePositionPatient[1:]]
        ds.ImageOrientationPatient = [-1, 0, 0, *ds.ImageOrientationPatient[3:]]
    return series


def transposed(series: list[Dataset]) -> list[Dataset]:
    for ds in series:
        pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).T
        ds.PixelData = pixels.tobytes()
        ds.ImageOrientationPatient = [*ds.ImageOrientationPatient[3:], *ds.ImageOrientationPatient[:3]]
    return series


REAL: dict[str, Callable[[list[Dataset]], list[Dataset]]] = {
    "as it is": lambda series: series,
    "mirrored and transposed": lambda series: transposed(mirrored(series)),
    "enhanced": lambda series: [enhanced(series[::-1])],
}


def test_the_default_pipeline_finds_the_same_in_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline("default", "cpu")
    seen = {}
    for number, (name, vary) in enumerate(REAL.items()):
        folder = tmp_path / str(number)
        paths = write_series(folder / "phantom", 2, ("epidural",), slices=13, size=128, step_mm=10.0)
        findings, built = analysed(vary([dcmread(path) for path in paths]), folder, monkeypatch, pipeline)
        assert findings.segmentation is not None, findings.reason
        seen[name] = (findings, read_seg(built["seg"][0])[0])
    plain, place = seen["as it is"]
    assert plain.segmentation is not None and plain.segmentation.volume_ml > 1
    for findings, centroid in seen.values():
        assert findings.segmentation is not None
        assert findings.segmentation.volume_ml == pytest.approx(plain.segmentation.volume_ml, rel=0.01)
        assert findings.segmentation.side == plain.segmentation.side
        assert findings.priority == plain.priority
        np.testing.assert_allclose(centroid, place, atol=0.3)
        for name in plain.classes:
            assert findings.classes[name].probability == pytest.approx(
                plain.classes[name].probability, abs=1e-3
            )
