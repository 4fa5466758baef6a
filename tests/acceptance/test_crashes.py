"""A short run of the crash harness: the books balance after a few random kills of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.crashes import TARGETS, Crashes, crashing

pytestmark = pytest.mark.acceptance
KILLS = 6
LONGEST_S = 20.0


def test_nothing_is_lost_and_nothing_comes_twice_however_processes_die(tmp_path: Path) -> None:
    with crashing(tmp_path / "run", seed=20261121) as crashes:
        crashes.start()
        _every_target_is_found(crashes)
        ledger = crashes.run(KILLS, longest_s=LONGEST_S)
        assert ledger.balances, ledger
        assert sum(ledger.kills.values()) >= 1 and ledger.sent >= 1
        _goes_on_where_it_stopped(tmp_path / "run", crashes)


def _goes_on_where_it_stopped(folder: Path, before: Crashes) -> None:
    before.close()
    again = Crashes(folder, 0, lambda _: None)
    try:
        assert (again.seed, again.sent, again.kills) == (before.seed, before.sent, before.kills)
        assert set(again.pacs.objects) == set(before.pacs.objects)
    finally:
        again.close()


def _every_target_is_found(crashes: Crashes) -> None:
    """A harness that kills nobody would prove nothing."""
    found = {target: crashes.victims(target) for target in TARGETS}
    assert all(found.values()), found
    assert len(found["tree"]) >= 9, "up, redis, five roles and two listeners"
