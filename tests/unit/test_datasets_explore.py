"""`train explore` counts what a set tells, and only that; `train` itself still takes a recipe."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from tests.unit.test_datasets_cq500 import write_reads, write_study
from tests.unit.test_datasets_nifti import head, write, write_bhsd
from workers.commands_models import train
from workers.training.explore import explore


def test_the_command_writes_counts_and_pictures(tmp_path: Path) -> None:
    data, out = write_bhsd(tmp_path / "bhsd", "RAS"), tmp_path / "out"
    arguments = ["explore", "--kind", "bhsd", "--data", str(data), "--out", str(out), "--limit", "3"]
    done = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "1 patients, 1 series, 8 slices" in done.output
    facts = json.loads((out / "explore.json").read_text())
    assert facts["slice_labels"]["subdural"] == {"told": 8, "positive": 2}
    assert facts["slice_labels"]["epidural"] == {"told": 8, "positive": 0}
    assert facts["slices_with_mask"]["subdural"] == 2
    assert len(facts["hu"]) == len(facts["pixels"]) == 256 and sum(facts["pixels"]) == 8 * 128 * 128
    for name in ("histogram.png", "examples.png"):
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"


def test_what_a_set_does_not_tell_is_not_counted_as_absent(tmp_path: Path) -> None:
    hu, blood = head()
    write(tmp_path / "data" / "1.nii", hu)
    write(tmp_path / "label" / "1.nii", blood)
    facts = explore("instance", tmp_path, tmp_path / "out")
    assert facts["slice_labels"]["any"] == {"told": 8, "positive": 2}
    assert facts["slice_labels"]["subdural"] == {"told": 6, "positive": 0}
    assert facts["series_labels"]["subdural"] == {"told": 0, "positive": 0}


def test_votes_of_a_study_are_no_slice_labels(tmp_path: Path) -> None:
    write_reads(tmp_path, {"CQ500-CT-7": {"ICH": 3, "SDH": 2}})
    write_study(tmp_path, 7, "CT Plain")
    facts = explore("cq500", tmp_path, tmp_path / "out")
    assert facts["slice_labels"]["any"] == {"told": 0, "positive": 0}
    assert facts["series_labels"]["subdural"] == {"told": 1, "positive": 1}


def test_unknown_kinds_and_broken_sets_are_refused_with_the_next_step(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    unknown = CliRunner().invoke(train, ["explore", "--kind", "no-such", *options])
    assert unknown.exit_code != 0 and "rsna" in unknown.output
    empty = CliRunner().invoke(train, ["explore", "--kind", "rsna", *options])
    assert empty.exit_code == 1 and "stage_2_train.csv" in empty.output
    assert "--folds" in CliRunner().invoke(train, ["--help"]).output
