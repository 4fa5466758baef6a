"""The RSNA 2019 reader on a challenge of two series, written as the real one is: sparse headers, odd UIDs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from pydicom.config import disable_value_validation

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from tests.factories import AXIAL, ct_series
from workers.training.rsna import CORRUPT, index, read_labels, rsna

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
BLEEDING = {"any", "subdural"}


def write(folder: Path, *, bleeding_slice: int = 4, iop: tuple[float, ...] = AXIAL) -> Path:
    """Two series of one patient and a corrupt file; files are named against the order of the slices."""
    images = folder / "stage_2_train"
    images.mkdir(parents=True)
    rows = ["ID,Label"]
    for number in range(2):
        series = ct_series(6, 64, iop=iop, name=f"rsna-{number}", SOPClassUID=None, SliceThickness=None)
        for place, ds in enumerate(series):
            image = f"ID_{number}{99 - place:08d}"
            with disable_value_validation():
                ds.SOPInstanceUID, ds.SeriesInstanceUID = image, f"ID_series{number}"
                ds.PatientID = "ID_patient"
                ds.save_as(images / f"{image}.dcm", enforce_file_format=True)
            held = BLEEDING if number == 0 and place == bleeding_slice else ()
            rows += [f"{image}_{name},{int(name in held)}" for name in reversed(CLASSES)]
    corrupt = next(iter(CORRUPT))
    (images / f"{corrupt}.dcm").write_bytes(b"broken")
    rows += [f"{corrupt}_{name},0" for name in CLASSES]
    (folder / "stage_2_train.csv").write_text("\n".join([*rows, *rows[1:7]]) + "\n")
    return folder


def test_slices_are_ordered_by_place_and_keep_their_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        first, second = rsna(write(tmp_path))
    assert next(iter(CORRUPT)) in caplog.text
    assert first.patient == second.patient == "rsna-ID_patient"
    assert first.labels.shape == (6, 6) and first.pictures.shape[0] == 6
    assert np.flatnonzero(first.labels[:, CLASSES.index("subdural")]).tolist() == [4]
    assert np.flatnonzero(first.labels[:, 0]).tolist() == [4]
    assert (first.known == (first.labels == 0)).all() and not first.masks.any()
    assert not second.labels.any() and second.known.all()


def test_the_labels_follow_a_series_whose_slices_are_given_head_first(tmp_path: Path) -> None:
    """Rows that run to anterior turn the slice normal to the feet: the first slice is the highest."""
    series = next(rsna(write(tmp_path, bleeding_slice=1, iop=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0))))
    assert np.flatnonzero(series.labels[:, 0]).tolist() == [4]


@pytest.mark.parametrize("rows_run", [1.0, -1.0])
def test_thin_slices_among_thick_ones_are_learned_from_as_they_will_be_seen(
    tmp_path: Path, rows_run: float
) -> None:
    """Twelve slices of 2.5 mm, then eight of 5 mm; blood on the third of all is on the second picture."""
    heights = [*(2.5 * z for z in range(12)), *(31.25 + 5.0 * z for z in range(8))]
    images = tmp_path / "stage_2_train"
    images.mkdir()
    rows = ["ID,Label"]
    for place, ds in enumerate(ct_series(20, 64, iop=(1.0, 0.0, 0.0, 0.0, rows_run, 0.0))):
        ds.ImagePositionPatient = [-100, -110 * rows_run, heights[place]]
        image = f"ID_{place:09d}"
        with disable_value_validation():
            ds.SOPInstanceUID = image
            ds.save_as(images / f"{image}.dcm", enforce_file_format=True)
        rows += [f"{image}_{name},{int(place == 3)}" for name in CLASSES]
    (tmp_path / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    (series,) = rsna(tmp_path)
    assert len(series.pictures) == len(series.labels) == 6 + 8
    assert np.flatnonzero(series.labels[:, 0]).tolist() == [1]
    assert series.step_mm == 5.0


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("ID_000000099_any,1", "LABELS_CONFLICT", "ID_000000099"),
        ("ID_000000777_any,1", "LABELS_INCOMPLETE", "ID_000000777"),
        ("ID_000000099_none,1", "LABELS_UNREADABLE", "ID_000000099_none"),
        ("ID_000000099_any,2", "LABELS_UNREADABLE", "ID_000000099_any,2"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, code: str, told: str) -> None:
    table = write(tmp_path) / "stage_2_train.csv"
    table.write_text(table.read_text() + line + "\n")
    with pytest.raises(PermanentError, match=told) as caught:
        read_labels(table)
    assert caught.value.code == code


def test_missing_files_and_files_without_labels_are_named(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path) / "stage_2_train.csv")
    lost = tmp_path / "stage_2_train" / "ID_000000097.dcm"
    spare = lost.rename(lost.with_name("ID_spare.dcm"))
    with pytest.raises(PermanentError, match="ID_000000097") as missing:
        index(lost.parent, labels)
    assert missing.value.code == "FILE_MISSING"
    lost.write_bytes(spare.read_bytes())
    with pytest.raises(PermanentError, match="ID_spare") as stranger:
        index(lost.parent, labels)
    assert stranger.value.code == "LABELS_MISSING"
    spare.unlink()
    lost.write_bytes(b"no dicom")
    with pytest.raises(PermanentError, match="ID_000000097") as broken:
        index(lost.parent, labels)
    assert broken.value.code == "FILE_UNREADABLE"


def test_a_series_of_two_slices_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write(tmp_path) / "stage_2_train.csv"
    gone = [f"ID_1{99 - place:08d}" for place in range(4)]
    for image in gone:
        (tmp_path / "stage_2_train" / f"{image}.dcm").unlink()
    kept = [row for row in table.read_text().splitlines() if not row.startswith(tuple(gone))]
    table.write_text("\n".join(kept) + "\n")
    with caplog.at_level(logging.WARNING):
        assert len(list(rsna(tmp_path))) == 1
    assert "ID_series1" in caplog.text and "TOO_FEW_SLICES" in caplog.text
