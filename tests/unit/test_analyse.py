"""One patient scanned, stored and sent in many ways: the lesion must come out at the same place and size.

The patient is a function of place in LPS mm, sampled by each scan, so mirrored, transposed or tilted
slices show the same head. The pipeline is a threshold on HU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from node.domain.completeness import find_gaps
from node.domain.eligibility import choose
from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, Consistency, ModelIdentity, Priority, Status
from node.headers import read_instance
from workers.analyse import Analysis, analyse
from workers.load import load_volume
from workers.models.contract import MAP_SIZE, Classification
from workers.models.picture import without_specks
from workers.volume import Volume, build_volume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SHAPE = (96, 80)
SPACING_MM = (2.4, 2.2)
LESION_MM = np.array([24.0, -18.0, 22.0])
RADII_MM = np.array([14.0, 20.0, 16.0])
LESION_ML = 4 / 3 * math.pi * float(RADII_MM.prod()) / 1000
LESION_HU, BRAIN_HU, AIR_HU = 65, 32, -1000
HEIGHTS_MM = tuple(float(z) for z in range(-70, 75, 5))


def patient_hu(places_mm: np.ndarray) -> np.ndarray:
    """HU at places (…, 3) in LPS: a brain with a lesion left, in front and above the middle."""
    brain = ((places_mm / np.array([70.0, 90.0, 66.0])) ** 2).sum(-1) < 1
    lesion = (((places_mm - LESION_MM) / RADII_MM) ** 2).sum(-1) < 1
    return np.where(lesion, LESION_HU, np.where(brain, BRAIN_HU, AIR_HU)).astype(np.int32)


def image(
    centre_mm: Sequence[float], number: int, orientation: Sequence[float] = AXIAL, thickness_mm: float = 5.0
) -> Dataset:
    """One CT image of the patient, its middle at `centre_mm`; signed, HU + 1024."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    rows, columns = SHAPE
    across = (np.arange(columns) * SPACING_MM[1])[None, :, None] * along_row
    down = (np.arange(rows) * SPACING_MM[0])[:, None, None] * along_column
    origin = np.array(centre_mm) - (across + down)[-1, -1] / 2
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.2.3"
    ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], number
    ds.ImagePositionPatient = [round(float(v), 6) for v in origin]
    ds.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
    ds.PixelSpacing, ds.SliceThickness = list(SPACING_MM), thickness_mm
    ds.Rows, ds.Columns = SHAPE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    store(ds, patient_hu(origin + across + down) + 1024, RescaleIntercept=-1024, RescaleSlope=1)
    return ds


def store(ds: Dataset, values: np.ndarray, bits: int = 16, signed: bool = True, **changes: Any) -> None:
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    ds.add_new("PixelData", "OW", values.astype(np.int32).astype("<u2").tobytes())
    for keyword, value in changes.items():
        setattr(ds, keyword, value)


def scan(orientation: Sequence[float] = AXIAL) -> list[Dataset]:
    return [image((0, 0, z), k + 1, orientation) for k, z in enumerate(HEIGHTS_MM)]


def restored(change: Callable[[Dataset, np.ndarray], None]) -> list[Dataset]:
    """The reference scan with its HU stored in another way."""
    series = scan()
    for ds in series:
        change(ds, np.frombuffer(ds.PixelData, "<i2").reshape(SHAPE).astype(np.int32) - 1024)
    return series


def renumbered() -> list[Dataset]:
    series = scan()
    for ds in series:
        ds.InstanceNumber = 100 - ds.InstanceNumber
    return series[::-1]


def labelled(**changes: Any) -> list[Dataset]:
    series = scan()
    for ds in series:
        ds.update(changes)
    return series


def duplicated() -> list[Dataset]:
    series = scan()
    return [*series, series[3], *(image((0, 0, HEIGHTS_MM[k]), 100 + k) for k in (18, 19, 20))]


def mixed(orientation: Sequence[float], count: int, kind: str) -> list[Dataset]:
    """Images of another plane in front of the scan."""
    others = [image((0, 5.0 * k, 0), 200 + k, orientation) for k in range(count)]
    for ds in others:
        ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
    return others + scan()


def tilted(degrees: float) -> list[Dataset]:
    """The gantry leans, the table moves along z in steps of 5.26 mm: 5 mm perpendicular at 18 degrees."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    heights = [5.0 / cos * k for k in range(-22, 23)]
    return [image((0, 0, z), k, (1, 0, 0, 0, cos, sin)) for k, z in enumerate(heights)]


def uneven() -> list[Dataset]:
    """4 mm slices below, 7 mm ones above that begin 1 mm over the last."""
    low = [image((0, 0, -70 + 4.0 * k), k, thickness_mm=4.0) for k in range(23)]
    high = [image((0, 0, 19 + 7.0 * k), 50 + k, thickness_mm=7.0) for k in range(8)]
    return low + high


def thin_below_and_thick_above() -> list[Dataset]:
    """Slices of 1.25 mm up to the middle of the lesion, then of 5 mm, side by side."""
    thin = [image((0, 0, -69.375 + 1.25 * k), k, thickness_mm=1.25) for k in range(72)]
    thick = [image((0, 0, 22.5 + 5.0 * k), 100 + k) for k in range(10)]
    return thin + thick


def wrap(ds: Dataset, hu: np.ndarray) -> None:
    store(ds, np.where(hu < 0, hu + 4096, hu), bits=12, signed=False, RescaleIntercept=0)


VARIANTS: dict[str, Callable[[], list[Dataset]]] = {
    "reference": scan,
    "reversed numbering": renumbered,
    "FFS label only": lambda: labelled(PatientPosition="FFS"),
    "mirrored columns": lambda: scan((-1, 0, 0, 0, 1, 0)),
    "mirrored rows": lambda: scan((1, 0, 0, 0, -1, 0)),
    "turned by 180 degrees": lambda: scan((-1, 0, 0, 0, -1, 0)),
    "transposed": lambda: scan((0, 1, 0, 1, 0, 0)),
    "turned by 90 degrees": lambda: scan((0, -1, 0, 1, 0, 0)),
    "duplicates": duplicated,
    "two slices missing": lambda: scan()[:19] + scan()[21:],
    "localizer mixed in": lambda: mixed((0, 1, 0, 0, 0, -1), 2, "LOCALIZER"),
    "coronal mixed in": lambda: mixed((1, 0, 0, 0, 0, -1), 20, "MPR"),
    "12 bits unsigned": lambda: restored(lambda ds, hu: store(ds, hu + 1024, bits=12, signed=False)),
    "HU stored directly": lambda: restored(lambda ds, hu: store(ds, hu, RescaleIntercept=0)),
    "slope one half": lambda: restored(lambda ds, hu: store(ds, 2 * (hu + 1024), RescaleSlope=0.5)),
    "MONOCHROME1": lambda: labelled(PhotometricInterpretation="MONOCHROME1"),
    "RSNA wrap": lambda: restored(wrap),
    "tilted by 18 degrees": lambda: tilted(18),
    "tilted by -18 degrees": lambda: tilted(-18),
    "uneven steps": uneven,
}


@dataclass
class ThresholdPipeline:
    """Blood is what has 52 to 80 HU. Remembers what it was given, and in which order it was asked."""

    probability: float = 0.9
    identity: ModelIdentity = ModelIdentity("threshold", "1", "00" * 32)  # noqa: RUF009 (frozen)
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0.5))
    subtypes: tuple[str, ...] = ()
    knows: frozenset[str] = frozenset(CLASSES)
    draws: bool = True
    asked: list[str] = field(default_factory=list)
    hu: np.ndarray | None = None
    broken: Mapping[str, object] = field(default_factory=dict)
    drops_specks: bool = False

    def classify(self, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Classification:
        self.hu = hu
        share = self._blood(hu).mean((1, 2))
        slices = np.full((len(hu), len(CLASSES)), 0.01, np.float32)
        for name in ("any", "subdural"):
            slices[:, CLASSES.index(name)] = self.probability * share / max(share.max(), 1e-9)
        return self._answer("classify", Classification(slices, slices.max(0)))

    def segment(
        self, hu: np.ndarray, spacing_mm: tuple[float, float, float], classification: object
    ) -> np.ndarray:
        blood = self._blood(hu)
        return self._answer("segment", without_specks(blood, spacing_mm) if self.drops_specks else blood)

    def segment_subtypes(self, hu: np.ndarray, spacing_mm: object, classification: object) -> dict[str, Any]:
        return {name: self._blood(hu) for name in self.subtypes}

    def explain(
        self, hu: np.ndarray, spacing_mm: object, classification: object, class_name: str
    ) -> np.ndarray:
        y, x = (np.arange(MAP_SIZE) * size // MAP_SIZE for size in hu.shape[1:])
        self.asked.append(class_name)
        return self._answer("explain", self._blood(hu)[:, y[:, None], x].astype(np.float32))

    def _blood(self, hu: np.ndarray) -> np.ndarray:
        return (hu > 52) & (hu < 80)

    def _answer(self, name: str, answer: Any) -> Any:
        self.asked.append(name)
        return self.broken.get(name, answer)


def analysed(volume: Volume, pipeline: ThresholdPipeline | None = None, **options: Any) -> Analysis:
    return analyse(
        volume, pipeline or ThresholdPipeline(), series_instance_uid="1.2.3", revision=1, **options
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_lesion_is_the_same_however_it_was_scanned(name: str) -> None:
    volume = build_volume(VARIANTS[name]())
    pipeline = ThresholdPipeline()
    analysis = analysed(volume, pipeline)
    gap = name == "two slices missing"

    voxels = np.argwhere(analysis.masks)
    weights = volume.thickness_mm[voxels[:, 0]]
    centroid = np.average(volume.patient_mm(voxels), axis=0, weights=weights)
    np.testing.assert_allclose(centroid, LESION_MM, atol=2.0 if gap else 0.7)
    assert volume.hu[analysis.masks].mean() == LESION_HU
    assert analysis.findings.segmentation is not None
    assert analysis.findings.segmentation.volume_ml == pytest.approx(LESION_ML, rel=0.1 if gap else 0.03)

    assert pipeline.hu is not None
    z, y, x = np.argwhere((pipeline.hu > 52) & (pipeline.hu < 80)).mean(0)
    _, rows, columns = pipeline.hu.shape
    _, dy, dx = volume.spacing_mm
    assert (x - (columns - 1) / 2) * dx == pytest.approx(LESION_MM[0], abs=1.5), "columns grow to the left"
    if "tilted" not in name:
        assert (y - (rows - 1) / 2) * dy == pytest.approx(LESION_MM[1], abs=1.5), "rows grow to the back"
    assert z > (len(pipeline.hu) - 1) / 2, "slices grow to the head"


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_that_leaves_is_in_source_order(name: str) -> None:
    datasets = VARIANTS[name]()
    volume = build_volume(datasets)
    analysis = analysed(volume)
    findings = analysis.findings
    positions = [slice_.position_mm for slice_ in findings.slices]
    assert positions == sorted(positions)
    assert tuple(s.sop_instance_uid for s in findings.slices) == volume.sop_instance_uids
    by_uid = {ds.SOPInstanceUID: ds for ds in datasets}
    for uid, origin in zip(volume.sop_instance_uids, volume.origins_mm, strict=True):
        np.testing.assert_allclose([float(v) for v in by_uid[uid].ImagePositionPatient], origin)
    areas = analysis.masks.sum((1, 2))
    key = findings.classes["any"].key_slice_uid
    assert areas[volume.sop_instance_uids.index(str(key))] == areas.max()
    for uid, area, slice_ in zip(volume.sop_instance_uids, areas, findings.slices, strict=True):
        assert slice_.probabilities["any"] == pytest.approx(0.9 * area / areas.max(), abs=1e-5)
        assert (uid in (findings.segmentation.slices if findings.segmentation else ())) == bool(area)
    heat, mask = np.argwhere(analysis.heat), np.argwhere(analysis.masks)
    scale = np.array([1, *(size / MAP_SIZE for size in volume.hu.shape[1:])])
    np.testing.assert_allclose(heat.mean(0) * scale, mask.mean(0), atol=1.0)


def test_thin_slices_below_thick_ones_are_seen_as_thick_and_answered_each() -> None:
    """72 thin slices would say as much as 72 thick ones, and a speck on one of them count four times."""
    volume = build_volume(thin_below_and_thick_above())
    pipeline = ThresholdPipeline(subtypes=("subdural",))
    analysis = analysed(volume, pipeline)
    assert pipeline.hu is not None and len(pipeline.hu) == 18 + 10
    np.testing.assert_allclose(pipeline.hu[0], volume.hu[:4].mean(0))
    np.testing.assert_array_equal(pipeline.hu[18:], volume.hu[72:])

    findings = analysis.findings
    assert tuple(one.sop_instance_uid for one in findings.slices) == volume.sop_instance_uids
    assert analysis.masks.shape == analysis.subtypes["subdural"].shape == volume.hu.shape
    assert len(analysis.heat) == len(volume.hu)
    assert findings.segmentation is not None
    assert findings.segmentation.volume_ml == pytest.approx(LESION_ML, rel=0.05)
    found = np.array([one.probabilities["any"] for one in findings.slices])
    np.testing.assert_array_equal(found > 0, analysis.masks.any((1, 2)))
    assert (found[:72].reshape(18, 4) == found[:72:4, None]).all(), "four slices, one answer"


def test_a_speck_on_one_thin_slice_of_a_mixed_series_is_noise() -> None:
    """47 square millimetres on a slice of 1.25 mm are 0.06 mL; with the step of the thick ones, 0.24."""
    series = thin_below_and_thick_above()
    spot = np.frombuffer(series[20].PixelData, "<i2").reshape(SHAPE).astype(np.int32)
    spot[50:53, 40:43] = LESION_HU + 1024
    store(series[20], spot, RescaleIntercept=-1024, RescaleSlope=1)
    pipeline = ThresholdPipeline(drops_specks=True)
    analysis = analysed(build_volume(series), pipeline)
    assert not analysis.masks[:40].any()
    assert analysis.masks[60:].any()


def test_a_pipeline_without_masks_claims_neither_volume_nor_agreement() -> None:
    analysis = analysed(build_volume(scan()), ThresholdPipeline(draws=False, subtypes=("subdural",)))
    findings = analysis.findings
    assert (findings.segmentation, findings.consistency) == (None, None)
    assert findings.priority is Priority.STAT
    assert not analysis.masks.any() and analysis.subtypes == {}


@pytest.mark.parametrize("knows", [{"any"}, {"any", "subdural"}, set(CLASSES)])
def test_what_a_pipeline_cannot_tell_is_not_written_down(knows: set[str]) -> None:
    thresholds = {name: 0.5 for name in CLASSES if name in knows}
    analysis = analysed(
        build_volume(scan()), ThresholdPipeline(knows=frozenset(knows), thresholds=thresholds)
    )
    findings = analysis.findings
    assert set(findings.classes) == knows
    assert all(set(finding.probabilities) == knows for finding in findings.slices)
    assert set(findings.not_evaluated) == set(CLASSES) - knows
    assert analysis.explained == ("subdural" if "subdural" in knows else "any")
    assert findings.from_json(findings.to_json()) == findings


def test_a_pipeline_that_cannot_tell_any_haemorrhage_is_refused() -> None:
    with pytest.raises(PermanentError, match="no threshold for any"):
        analysed(build_volume(scan()), ThresholdPipeline(knows=frozenset({"subdural"})))


def test_the_lesion_is_measured_and_its_part_kept() -> None:
    analysis = analysed(build_volume(scan()), ThresholdPipeline(subtypes=("subdural",)))
    found = analysis.findings.segmentation
    assert found and found.diameter_mm and found.abc2
    assert found.diameter_mm == pytest.approx(2 * RADII_MM.max(), abs=3)
    assert (found.components, found.subtypes_ml) == (1, {"subdural": pytest.approx(found.volume_ml)})
    assert (analysis.subtypes["subdural"] == analysis.masks).all()


def test_a_subtype_alone_is_no_haemorrhage() -> None:
    hasty = ThresholdPipeline(thresholds=dict.fromkeys(CLASSES, 0.01) | {"any": 0.99})
    findings = analysed(build_volume(scan()), hasty).findings
    assert findings.classes["subdural"].probability >= 0.01
    assert not any(found.present for found in findings.classes.values())
    assert findings.priority is not Priority.STAT


def test_findings_of_a_clear_case() -> None:
    analysis = analysed(build_volume(scan()))
    findings = analysis.findings
    assert findings.status is Status.ANALYSED
    assert findings.priority is Priority.STAT
    assert findings.consistency is Consistency.AGREE
    assert {name for name, found in findings.classes.items() if found.present} == {"any", "subdural"}
    assert analysis.explained == "subdural"
    assert analysis.masks.dtype == np.bool_
    assert analysis.heat.dtype == np.uint8
    assert analysis.heat.max() == 255
    assert findings.from_json(findings.to_json()) == findings


@pytest.mark.parametrize(
    ("pipeline", "agreement", "urgency", "explained"),
    [
        (ThresholdPipeline(probability=0.2), Consistency.MASK_ONLY, Priority.HIGH, "any"),
        (ThresholdPipeline(subtypes=("subdural",)), Consistency.AGREE, Priority.STAT, "subdural"),
        (
            ThresholdPipeline(subtypes=("epidural",)),
            Consistency.SUBTYPE_DISAGREEMENT,
            Priority.STAT,
            "subdural",
        ),
    ],
)
def test_classifier_and_mask_are_compared(
    pipeline: ThresholdPipeline, agreement: Consistency, urgency: Priority, explained: str
) -> None:
    analysis = analysed(build_volume(scan()), pipeline)
    assert analysis.findings.consistency is agreement
    assert analysis.findings.priority is urgency
    assert analysis.explained == explained


def test_the_alarm_comes_before_the_slow_steps() -> None:
    pipeline = ThresholdPipeline()
    analysed(build_volume(scan()), pipeline, on_classified=lambda f: pipeline.asked.append(f.priority.value))
    assert pipeline.asked == ["classify", "STAT", "segment", "subdural", "explain"]


def test_timings_come_from_the_clock_given() -> None:
    seconds = iter(range(100))
    findings = analysed(build_volume(scan()), clock=lambda: float(next(seconds))).findings
    steps = ("canonical", "prepare", "classify", "segment", "explain", "measure")
    assert findings.timings_s == {**dict.fromkeys(steps, 1.0), "total": 6.0}


COUNT = len(HEIGHTS_MM)
GOOD = np.full((COUNT, 6), 0.1, np.float32)
BROKEN = [
    ("NaN in slices", {"classify": Classification(GOOD * np.nan, GOOD[0])}),
    ("NaN in series", {"classify": Classification(GOOD, GOOD[0] * np.nan)}),
    ("a slice too few", {"classify": Classification(GOOD[1:], GOOD[0])}),
    ("above one", {"classify": Classification(GOOD * 20, GOOD[0])}),
    ("mask of another shape", {"segment": np.zeros((COUNT, *SHAPE[::-1]), bool)}),
    ("mask of numbers", {"segment": np.zeros((COUNT, *SHAPE), np.float32)}),
    ("infinite map", {"explain": np.full((COUNT, 8, 8), np.inf, np.float32)}),
    ("flat map", {"explain": np.zeros((COUNT, 8), np.float32)}),
    ("map of one slice", {"explain": np.zeros((1, 8, 8), np.float32)}),
]


@pytest.mark.parametrize("broken", [row[1] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_nonsense_from_a_model_stops_the_analysis(broken: dict[str, object]) -> None:
    with pytest.raises(PermanentError) as caught:
        analysed(build_volume(scan()), ThresholdPipeline(broken=broken))
    assert caught.value.code == "MODEL_OUTPUT_INVALID"


def test_a_model_without_a_threshold_is_refused() -> None:
    with pytest.raises(PermanentError, match="epidural"):
        analysed(build_volume(scan()), ThresholdPipeline(thresholds={"any": 0.5}))


@pytest.fixture
def ge_head_tilt() -> list[Path]:
    root = os.environ.get("ICHNODE_TEST_DATA")
    if not root:
        pytest.skip("ICHNODE_TEST_DATA is not set: no folder with dicom/ge-head-tilt")
    paths = sorted((Path(root) / "dicom" / "ge-head-tilt").glob("*.dcm"))
    if not paths:
        pytest.skip("ICHNODE_TEST_DATA holds no dicom/ge-head-tilt")
    return paths


def test_a_real_tilted_head_of_4_and_7_mm_slices(ge_head_tilt: list[Path]) -> None:
    instances = [read_instance(path) for path in ge_head_tilt]
    uid = instances[0].series_instance_uid
    choice = choose({uid: instances})
    assert choice.chosen == uid
    assert choice.notes == ()
    assert find_gaps(instances) == ()
    volume = load_volume(reversed(ge_head_tilt))
    assert volume.hu.shape == (28, 512, 512)
    assert volume.sop_instance_uids == tuple(instance.sop_instance_uid for instance in instances)
    assert volume.warnings == ("slices lean by 18.5 degrees (gantry tilt)",)
    assert volume.thickness_mm.sum() == pytest.approx(144.1 + 2.0 + 3.5, abs=0.1)
    assert volume.thickness_mm[0] == pytest.approx(4.0, abs=0.01)
    assert volume.thickness_mm[-1] == pytest.approx(7.0, abs=0.01)
    brain = volume.hu[20:24, 200:300, 200:300]
    assert 15 < np.median(brain) < 45
    assert np.median(volume.hu[:, :20, :20]) < -900
    findings = analysed(volume).findings
    assert len(findings.slices) == 28
