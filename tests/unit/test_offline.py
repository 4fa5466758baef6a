"""`ichnode analyse`: what a folder holds, before anything is analysed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.errors import PermanentError
from node.domain.findings import Status
from node.settings import Settings
from tests.factories import ct_series
from tests.scanned import Threshold, scan
from workers import offline
from workers.offline import read_folder

SLICES = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, ds in enumerate(ct_series(SLICES, rows=16)):
        ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    return tmp_path


def test_copies_of_a_file_count_once(folder: Path) -> None:
    """As exports leave them: a folder beside its own copy."""
    (folder / "copy").mkdir()
    for file in folder.glob("*.dcm"):
        shutil.copy(file, folder / "copy" / file.name)
    read = read_folder(folder)
    ((uid, paths),) = read.paths.items()
    assert len(paths) == len(read.instances[uid]) == SLICES
    assert read.strangers == ()


@pytest.mark.parametrize("same_series", [True, False])
def test_two_patients_in_one_study_are_named(same_series: bool, folder: Path) -> None:
    for number in (2, 3):
        ds = dcmread(folder / f"{number}.dcm")
        ds.PatientID = "OTHER-7"
        if not same_series:
            ds.SeriesInstanceUID += ".7"
        ds.save_as(folder / f"{number}.dcm")
    with pytest.raises(PermanentError, match=r"(?s)PID123 .*0\.dcm.*OTHER-7 .*2\.dcm") as raised:
        read_folder(folder)
    assert raised.value.code == "PATIENTS_MIXED"


def test_files_that_say_different_things_of_one_image_are_named(folder: Path) -> None:
    ds = dcmread(folder / "1.dcm")
    ds.PatientName = "Somebody^Else"
    ds.save_as(folder / "changed.dcm")
    with pytest.raises(PermanentError, match=r"1\.dcm and .*changed\.dcm .*keep one of them") as raised:
        read_folder(folder)
    assert raised.value.code == "CONTENT_DIFFERS"


def test_nothing_of_an_earlier_study_stays_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmentation or an overlay of somebody else would pass for this patient's."""
    monkeypatch.setattr(offline, "load_pipeline", lambda *_: Threshold())
    out, notes = tmp_path / "out", tmp_path / "out" / "sc" / "notes.txt"
    for name, series in (("bleeding", scan()), ("too short", ct_series(2, rows=16))):
        (tmp_path / name).mkdir()
        for number, ds in enumerate(series):
            ds.save_as(tmp_path / name / f"{number}.dcm", enforce_file_format=True)
        result = offline.analyse_folder(tmp_path / name, out, Settings(), lambda words: None)
        notes.write_text("of a person")
        written = {path for paths in result.files.values() for path in paths}
        assert {path for path in out.rglob("*") if path.is_file()} == {*written, notes}
    assert result.findings.status is Status.NOT_ANALYSED
