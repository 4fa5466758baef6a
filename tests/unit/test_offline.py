"""`ichnode analyse`: what a folder holds, before anything is analysed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.errors import PermanentError
from tests.factories import ct_series
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
