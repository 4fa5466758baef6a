"""Our objects before the validators of others: dciodvfy and dcentvfy (dicom3tools), dsrdump (dcmtk)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from node.domain.findings import (
    SUBTYPES,
    ClassFinding,
    Consistency,
    Findings,
    Priority,
)
from node.outputs.catalogue import ALL_NAMES, NAMES, build_all
from node.outputs.context import Context, PriorReport
from node.outputs.report import REPORTS
from node.outputs.source import Source
from tests.factories import GROWN, MADE_AT, MEASURED, analysed, bleed, ct_series, hu_of, not_analysed
from tests.orthanc import plain_orthanc
from tests.peers import requires

MASKS = bleed(6, 128)
EMPTY = np.zeros_like(MASKS)
_, _, X = np.indices(MASKS.shape)
PRIORS = {
    name: PriorReport(GROWN.study_uid, "2.25.3", sop_class, "2.25.4") for name, sop_class in REPORTS.items()
}
HEAT = np.linspace(0, 1, 6 * 8 * 8, dtype=np.float32).reshape(6, 8, 8)
Analyse = Callable[[list[Dataset]], tuple[Findings, np.ndarray | None]]
CASES: dict[str, Analyse] = {
    "positive": lambda s: (analysed(s, {"any": 0.97, "epidural": 0.9}, masks=MASKS), MASKS),
    "negative": lambda s: (analysed(s), EMPTY),
    "mask only": lambda s: (
        analysed(s, masks=MASKS, consistency=Consistency.MASK_ONLY, priority=Priority.HIGH),
        MASKS,
    ),
    "compared": lambda s: (
        analysed(s, {"any": 0.97}, masks=MASKS, segmentation=MEASURED, comparison=GROWN),
        MASKS,
    ),
    "not evaluated": lambda s: (
        analysed(
            s,
            {"any": 0.9},
            segmentation=None,
            consistency=None,
            classes={"any": ClassFinding(0.9, True, str(s[2].SOPInstanceUID))},
            not_evaluated=SUBTYPES,
        ),
        None,
    ),
    "no segmentation": lambda s: (analysed(s, {"any": 0.9}, segmentation=None, consistency=None), None),
    "not analysed": lambda s: (not_analysed(s), None),
    "failed": lambda s: (not_analysed(s, "MODEL_FAILED", "the model ran out of memory"), None),
}
PARTS = {"intraparenchymal": MASKS & (X >= 83), "epidural": MASKS & (X < 83)}
OF_CONTENT = ("compared", "not evaluated")
"""Cases that differ from others in the tree of the report alone, so that not every source is tried."""
UNKNOWN_TO_DCIODVFY = "labelmap"
"""A SOP class younger than the validator (PS3.3 A.51, Label Map Segmentation)."""
SOURCES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "tilted": {"iop": (1, 0, 0, 0, 0.9510565, -0.3090170)},
    "japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    },
    "utf-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Иванов^Пётр"},
    "no frame of reference": {"FrameOfReferenceUID": None, "PositionReferenceIndicator": None},
    "anonymous": {"PatientID": "", "PatientName": "", "StudyDate": "", "AccessionNumber": ""},
    "lossy": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 8,
        "LossyImageCompressionMethod": "ISO_10918_1",
    },
}


def files_of(
    folder: Path, source: str, case: str, names: Collection[str] = ALL_NAMES
) -> tuple[list[Path], list[Path]]:
    """(source files, our files), written below `folder`."""
    attributes = SOURCES[source]
    latin: dict[str, Any] = (
        {} if "SpecificCharacterSet" not in attributes else {"InstitutionName": None, "Manufacturer": "S"}
    )
    series = ct_series(rows=128, **{**latin, **attributes})
    findings, masks = CASES[case](series)
    heat = HEAT if findings.classes else None
    divided = PARTS if masks is not None and masks.any() else {}
    source = Source.ordered(series, findings, hu_of)
    context = Context(findings, source, MADE_AT, "0.1.0", masks, heat, subtypes=divided, prior_reports=PRIORS)
    made = build_all(context, names)
    ours = {f"{name}-{i}": ds for name, objects in made.items() for i, ds in enumerate(objects)}
    return save(folder, {f"ct-{i}": ds for i, ds in enumerate(series)}), save(folder, ours)


def save(folder: Path, datasets: dict[str, Dataset]) -> list[Path]:
    paths = []
    for name, ds in datasets.items():
        paths.append(folder / f"{name}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def errors(output: str) -> list[str]:
    return sorted({line for line in output.splitlines() if "Error" in line})


@pytest.mark.parametrize(
    ("source", "case"),
    [
        (s, c)
        for s in SOURCES
        for c in CASES
        if c not in OF_CONTENT or s in ("as usual", "no frame of reference")
    ],
)
def test_dciodvfy_and_dcentvfy_find_no_error(tmp_path: Path, source: str, case: str) -> None:
    requires("dciodvfy", "dcentvfy")
    slices, ours = files_of(tmp_path, source, case)
    assert {p.name.split("-")[0] for p in ours} >= {"sc", "sr"}
    skipped = {f"{UNKNOWN_TO_DCIODVFY}-0.dcm", *(f"sc-{i}.dcm" for i in range(2, 7))}
    looked_at = [p for p in ours if p.name not in skipped]
    found = {path.name: errors(run("dciodvfy", "-new", path)) for path in [slices[0], *looked_at]}
    if source == "no frame of reference":
        found.pop(slices[0].name)  # there the source itself is at fault
    assert not any(found.values()), found
    assert errors(run("dcentvfy", *slices, *ours)) == []


@pytest.mark.parametrize("case", CASES)
def test_what_comes_unasked_has_no_error_on_its_own(tmp_path: Path, case: str) -> None:
    requires("dciodvfy", "dcentvfy")
    slices, ours = files_of(tmp_path, "as usual", case, NAMES)
    assert {p.name.split("-")[0] for p in ours} <= set(NAMES)
    assert not any(errors(run("dciodvfy", "-new", path)) for path in ours)
    assert errors(run("dcentvfy", *slices, *ours)) == []


def test_the_validators_would_notice(tmp_path: Path) -> None:
    requires("dciodvfy", "dcentvfy")
    slices, ours = files_of(tmp_path, "as usual", "positive")
    broken = pydicom.dcmread(ours[0])
    del broken.SegmentSequence
    broken.PatientID = "SOMEBODY ELSE"
    broken.save_as(ours[0])
    assert errors(run("dciodvfy", "-new", ours[0]))
    assert any("PatientID" in line for line in errors(run("dcentvfy", *slices, *ours)))


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("positive", ALL_NAMES),
        ("mask only", ALL_NAMES),
        ("compared", ALL_NAMES),
        ("no segmentation", ("pm", "sc", "sr", "csr", "kos")),
        ("not evaluated", ("pm", "sc", "sr", "csr", "kos")),
        ("negative", ("sc", "sr", "csr")),
        ("not analysed", ("sc", "sr", "csr")),
    ],
)
def test_what_is_validated_is_there(tmp_path: Path, case: str, names: tuple[str, ...]) -> None:
    _, ours = files_of(tmp_path, "as usual", case)
    assert {p.name.rsplit("-", 1)[0] for p in ours} == set(names)


def test_dcmp2pgm_shows_the_slice_in_our_window(tmp_path: Path) -> None:
    requires("dcmp2pgm")
    slices, ours = files_of(tmp_path, "as usual", "positive")
    state = next(p for p in ours if p.name.startswith("gsps"))
    said = run("dcmp2pgm", "-v", "-p", state, slices[3], tmp_path / "shown.pgm")
    assert "window center=40 width=80" in said and "type=polyline" in said
    assert not [line for line in said.splitlines() if line.startswith(("E:", "F:"))]
    with Image.open(tmp_path / "shown.pgm") as image:
        shown = np.asarray(image, dtype=float)
    expected = np.clip(hu_of(pydicom.dcmread(slices[3])) / 80, 0, 1) * 255
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= 4


def test_dsrdump_reads_the_key_objects(tmp_path: Path) -> None:
    requires("dsrdump")
    _, ours = files_of(tmp_path, "as usual", "positive")
    dump = run("dsrdump", next(p for p in ours if p.name.startswith("kos")))
    assert "Key Object Selection Document" in dump and "IMAGE:=(CT image" in dump
    assert not [line for line in dump.splitlines() if line.startswith(("E:", "F:"))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["sr", "csr"])
def test_dsrdump_reads_the_report(tmp_path: Path, case: str, kind: str) -> None:
    requires("dsrdump")
    _, ours = files_of(tmp_path, "as usual", case, (kind,))
    dump = run("dsrdump", "+Pl", next(p for p in ours if p.name == f"{kind}-0.dcm"))
    assert "Imaging Measurement Report" in dump and "Research use only" in dump
    assert not [line for line in dump.splitlines() if line.startswith(("E:", "F:", "W:"))]
    assert ("=empty (114007" in dump) == (case in ("not analysed", "not evaluated"))
    assert ("=empty (114006" in dump) == (case == "failed")


@pytest.mark.parametrize("case", ["compared", "not analysed"])
@pytest.mark.parametrize("kind", ["sr", "csr"])
def test_dsr2html_shows_each_number_under_its_name(tmp_path: Path, case: str, kind: str) -> None:
    requires("dsr2html")
    _, ours = files_of(tmp_path, "as usual", case, ("seg", kind))
    page = tmp_path / "report.html"
    said = run("dsr2html", next(p for p in ours if p.name == f"{kind}-0.dcm"), page)
    assert not [line for line in said.splitlines() if line.startswith(("E:", "F:", "W:"))]
    text = page.read_text("latin-1")
    assert "<b>Probability:</b>" in text and "<b>Comment:</b>" in text
    assert ("<b>Volume of ellipsoid:</b>" in text) == (case == "compared")
    assert ("NOT ANALYSED because" in text) == (case == "not analysed")


def test_the_label_map_is_read_back_by_another_library(tmp_path: Path) -> None:
    """dciodvfy finds nothing wrong but that it does not know the class."""
    requires("dcmdump", "dciodvfy")
    _, ours = files_of(tmp_path, "as usual", "positive", (UNKNOWN_TO_DCIODVFY,))
    (path,) = ours
    assert "E:" not in run("dcmdump", "-q", path)
    ds = pydicom.dcmread(path)
    assert (ds.SOPClassUID, ds.SegmentationType) == ("1.2.840.10008.5.1.4.1.1.66.7", "LABELMAP")
    labels = ds.pixel_array
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert {n: int((labels == n).sum()) for n in (1, 2)} == {
        1: int(PARTS["epidural"].sum()),
        2: int(PARTS["intraparenchymal"].sum()),
    }
    unknown = ("Information Object Not found", "SegmentNumber")  # 0 is the background: PS3.3 C.8.20.2.3
    assert not [line for line in errors(run("dciodvfy", "-new", path)) if not any(u in line for u in unknown)]


def test_orthanc_takes_what_comes_on_request_and_gives_it_back(tmp_path: Path) -> None:
    """The label map apart, which Orthanc declines before 1.12.7."""
    requires("storescu")
    names = ("seg-subtypes", "csr", "pm", "gsps", "kos")
    _, ours = files_of(tmp_path, "as usual", "compared", names)
    pacs = plain_orthanc(tmp_path / "pacs")
    try:
        sent = run("storescu", "-v", "-R", "-aec", "ORTHANC", "127.0.0.1", str(pacs.port), *ours)
        assert sent.count("Success") == len(ours) == len(names), sent
        back = pacs.fetch(tmp_path / "back")
        found = {ds.SOPInstanceUID: ds for paths in back.values() for ds in map(pydicom.dcmread, paths)}
        for path in ours:
            ds = pydicom.dcmread(path)
            assert found[ds.SOPInstanceUID] == ds
    finally:
        pacs.close()
