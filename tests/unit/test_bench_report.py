"""What the benchmarks' report makes of repeated measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.report import Panel, draw, read, spread, summary, write

RATES = Panel(
    "Images taken", "images/s", "ours", True, {"1": {"ours": [90.0, 120.0, 100.0], "peer": [100.0] * 3}}
)
WAITS = Panel(
    "Time", "s", "ours", False, {"a": {"plain": [9.0, 8.0], "ours": [3.0, 4.0]}, "b": {"plain": [5.0]}}
)


def test_where_more_is_better_a_ratio_above_one_says_that_ours_is_faster() -> None:
    ((group, peer, found),) = RATES.ratios()

    assert (group, peer) == ("1", "peer")
    assert found == pytest.approx([0.9, 1.2, 1.0])


def test_where_less_is_better_a_ratio_above_one_says_so_too() -> None:
    assert list(WAITS.ratios()) == [("a", "plain", [3.0, 2.0])]


def test_ratios_are_taken_within_a_round_not_between_medians() -> None:
    panel = Panel("x", "1/s", "ours", True, {"g": {"ours": [1.0, 10.0, 4.0], "peer": [2.0, 5.0, 1.0]}})

    assert summary([panel]).splitlines()[-1] == "| x | g | peer | 2.00 (0.50–4.00) | 3 |"


def test_where_nothing_was_compared_there_is_no_table() -> None:
    alone = Panel("x", "1/s", "ours", True, {"g": {"ours": [1.0]}})

    assert summary([]) == summary([alone]) == ""


def test_rounds_that_are_not_paired_are_refused() -> None:
    panel = Panel("x", "1/s", "ours", True, {"g": {"ours": [1.0, 2.0], "peer": [1.0]}})

    with pytest.raises(ValueError, match="shorter"):
        list(panel.ratios())


def test_a_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert spread([1234.4], 0) == "1234 (1234–1234)"


def test_panels_are_kept_and_read_again(tmp_path: Path) -> None:
    write(tmp_path / "panels.json", [RATES, WAITS])

    assert read(tmp_path / "panels.json") == [RATES, WAITS]
    assert read(tmp_path / "none.json") == []


def test_three_panels_are_drawn_on_a_grid_of_two_columns(tmp_path: Path) -> None:
    draw(tmp_path / "benchmarks.png", [RATES, WAITS, RATES])

    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
