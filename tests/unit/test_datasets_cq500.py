"""The CQ500 reader on two small studies: votes stay votes of a study, and the node's own rules choose."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydicom import dcmread

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from tests.factories import ct_series
from workers.training.cq500 import cq500, read_votes

SHORT = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")


def write_reads(folder: Path, votes: dict[str, dict[str, int]]) -> Path:
    """`reads.csv`: of each study, how many readers (the first ones) saw a finding."""
    columns = [f"R{reader}:{short}" for reader in (1, 2, 3) for short in SHORT]
    lines = [",".join(["name", "Category", *columns])]
    for name, seen in votes.items():
        values = [int(reader <= seen.get(short, 0)) for reader in (1, 2, 3) for short in SHORT]
        lines.append(",".join([name, "B1", *map(str, values)]))
    (folder / "reads.csv").write_text("\n".join(lines) + "\n")
    return folder / "reads.csv"


def write_study(folder: Path, number: int, description: str, slices: int = 24) -> str:
    """One series in the set's own layout; without a SeriesDescription, as its folder names it."""
    out = folder / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / description
    out.mkdir(parents=True)
    series = ct_series(
        slices, 64, name=f"{number}-{description}", SeriesDescription=None, ConvolutionKernel=None
    )
    for place, ds in enumerate(series):
        ds.StudyInstanceUID = f"2.25.{number + 1}"
        ds.save_as(out / f"CT{place:06d}.dcm", enforce_file_format=True)
    return str(series[0].SeriesInstanceUID)


def test_the_plain_head_is_chosen_and_the_majority_counts(tmp_path: Path) -> None:
    write_reads(tmp_path, {"CQ500-CT-7": {"ICH": 2, "SDH": 2, "EDH": 1, "SAH": 3}})
    plain = write_study(tmp_path, 7, "CT Plain 5mm")
    write_study(tmp_path, 7, "CT BONE")
    (study,) = cq500(tmp_path)
    assert study.patient == "cq500-ct-7" and study.series_instance_uid == plain
    assert dict(zip(CLASSES, study.votes.tolist(), strict=True)) == {
        "any": 2, "epidural": 1, "intraparenchymal": 0, "intraventricular": 0, "subarachnoid": 3,
        "subdural": 2,
    }  # fmt: skip
    assert [name for name, seen in zip(CLASSES, study.labels, strict=True) if seen] == [
        "any", "subarachnoid", "subdural",
    ]  # fmt: skip
    assert [n for n, agreed in zip(CLASSES, study.unanimous, strict=True) if not agreed] == [
        "any", "epidural", "subdural",
    ]  # fmt: skip
    assert len(study.pictures) == 24 and not hasattr(study, "known")


def test_thin_slices_among_thick_ones_are_read_as_the_node_reads_them(tmp_path: Path) -> None:
    write_reads(tmp_path, {"CQ500-CT-7": {}})
    write_study(tmp_path, 7, "CT Plain", slices=30)
    for place, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        ds = dcmread(path)
        height = 2.5 * place if place < 12 else 31.25 + 5.0 * (place - 12)
        ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], height]
        ds.save_as(path)
    (study,) = cq500(tmp_path)
    assert len(study.pictures) == 6 + 18


def test_a_study_that_cannot_be_analysed_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_reads(tmp_path, {"CQ500-CT-1": {}, "CQ500-CT-2": {}})
    write_study(tmp_path, 1, "CT Plain", slices=4)
    write_study(tmp_path / "qct01", 2, "CT Plain")
    with caplog.at_level(logging.WARNING):
        assert [study.patient for study in cq500(tmp_path)] == ["cq500-ct-2"]
    assert "CQ500-CT-1" in caplog.text and "4 slices" in caplog.text


def test_a_study_without_files_is_named(tmp_path: Path) -> None:
    write_reads(tmp_path, {"CQ500-CT-3": {}})
    with pytest.raises(PermanentError, match=r"CQ500-CT-3.*CQ500CT3 CQ500CT3.*unpack"):
        list(cq500(tmp_path))


def test_a_study_with_two_rows_that_contradict_is_refused(tmp_path: Path) -> None:
    table = write_reads(tmp_path, {"CQ500-CT-1": {"ICH": 3}, "CQ500-CT-2": {}})
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows, rows[1]]) + "\n")
    assert read_votes(table)["CQ500-CT-1"][0] == 3, "the same row twice contradicts nothing"
    table.write_text("\n".join([*rows, rows[2].replace("CT-2", "CT-1")]) + "\n")
    with pytest.raises(PermanentError, match=r"line 4.*CQ500-CT-1 .*remove the wrong row"):
        read_votes(table)


def test_an_empty_vote_or_a_missing_column_is_an_error(tmp_path: Path) -> None:
    table = write_reads(tmp_path, {"CQ500-CT-3": {}})
    text = table.read_text()
    table.write_text(text.replace("B1,0", "B1,"))
    with pytest.raises(PermanentError, match=r"CQ500-CT-3 has '' for R1:ICH"):
        read_votes(table)
    table.write_text(text.replace("R2:SAH", "R2:other"))
    with pytest.raises(PermanentError, match="R2:SAH"):
        read_votes(table)
