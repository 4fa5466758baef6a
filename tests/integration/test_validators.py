"""Our objects before the validators of others: dciodvfy and dcentvfy (dicom3tools), dsrdump (dcmtk)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from node.domain.findings import Consistency, Findings, Priority
from node.outputs.catalogue import ALL_NAMES, NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of, not_analysed
from tests.peers import requires

MASKS = bleed(6, 128)
EMPTY = np.zeros_like(MASKS)
HEAT = np.linspace(0, 1, 6 * 8 * 8, dtype=np.float32).reshape(6, 8, 8)
Analyse = Callable[[list[Dataset]], tuple[Findings, np.ndarray | None]]
CASES: dict[str, Analyse] = {
    "positive": lambda s: (analysed(s, {"any": 0.97, "epidural": 0.9}, masks=MASKS), MASKS),
    "negative": lambda s: (analysed(s), EMPTY),
    "mask only": lambda s: (
        analysed(s, masks=MASKS, consistency=Consistency.MASK_ONLY, priority=Priority.HIGH),
        MASKS,
    ),
    "no segmentation": lambda s: (analysed(s, {"any": 0.9}, segmentation=None, consistency=None), None),
    "not analysed": lambda s: (not_analysed(s), None),
    "failed": lambda s: (not_analysed(s, "MODEL_FAILED", "the model ran out of memory"), None),
}
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
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks, heat)
    made = build_all(replace(context), names)
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_and_dcentvfy_find_no_error(tmp_path: Path, source: str, case: str) -> None:
    requires("dciodvfy", "dcentvfy")
    slices, ours = files_of(tmp_path, source, case)
    assert {p.name.split("-")[0] for p in ours} >= {"sc", "sr"}
    looked_at = [p for p in ours if p.name not in {f"sc-{i}.dcm" for i in range(2, 7)}]
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
        ("no segmentation", ("pm", "sc", "sr", "kos")),
        ("negative", ("sc", "sr")),
        ("not analysed", ("sc", "sr")),
    ],
)
def test_what_is_validated_is_there(tmp_path: Path, case: str, names: tuple[str, ...]) -> None:
    _, ours = files_of(tmp_path, "as usual", case)
    assert {p.name.split("-")[0] for p in ours} == set(names)


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
def test_dsrdump_reads_the_report(tmp_path: Path, case: str) -> None:
    requires("dsrdump")
    _, ours = files_of(tmp_path, "as usual", case)
    dump = run("dsrdump", "+Pl", next(p for p in ours if p.name == "sr-0.dcm"))
    assert "Imaging Measurement Report" in dump and "Research use only" in dump
    assert not [line for line in dump.splitlines() if line.startswith(("E:", "F:", "W:"))]
    assert ("=empty (114007" in dump) == (case == "not analysed")
    assert ("=empty (114006" in dump) == (case == "failed")
