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


def test_files_that_say_different_things_of_one_image_are_named(folder: Path) -> None:
    ds = dcmread(folder / "1.dcm")
    ds.PatientName = "Somebody^Else"
    ds.save_as(folder / "changed.dcm")
    with pytest.raises(PermanentError, match=r"1\.dcm and .*changed\.dcm .*keep one of them") as raised:
        read_folder(folder)
    assert raised.value.code == "CONTENT_DIFFERS"
