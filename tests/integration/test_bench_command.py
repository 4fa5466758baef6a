"""The benchmark command from end to end, as short as it goes: that it works, not how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.report import read
from tests.peers import missing
from workers.demo import orthanc_executable


def test_receivers_are_measured_side_by_side_and_reported(tmp_path: Path) -> None:
    if not (command.PEERS["storescp"]() and orthanc_executable()):
        missing("dcmtk and Orthanc are needed")

    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--only", "ingest", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr
    (panel,) = read(tmp_path / "panels.json")
    (rates,) = panel.values.values()
    assert set(rates) == {"ichnode streaming", "ichnode pynetdicom", "dcmtk storescp", "Orthanc"}
    assert all(rate > 0 for (rate,) in rates.values())
    told = (tmp_path / "report.md").read_text()
    assert "| Images taken, data and name synced; files on a tmpfs | 1 association | dcmtk storescp |" in told
    assert "bare socket" in told
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000


def test_a_benchmark_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = command.Bench("broken", "Breaks", "no_such_module", peers=())
    wanting = command.Bench("wanting", "Wants a peer", "ingest")
    monkeypatch.setattr(command, "BENCHES", (broken, wanting))
    monkeypatch.setitem(command.PEERS, "Orthanc", lambda: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "broken", "wanting", "--out", str(tmp_path)])

    with pytest.raises(SystemExit, match="failed: broken"):
        command.main()

    told = (tmp_path / "report.md").read_text()
    assert "## Breaks\n\nFailed: tests.bench.no_such_module ended with exit code 1" in told
    assert "## Wants a peer\n\nNot run: Orthanc not installed." in told
