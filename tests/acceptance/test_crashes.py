"""A short run of the crash harness: the books balance after a few random kills of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.store.records import open_records
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
        _the_books_notice(crashes)
        _goes_on_where_it_stopped(tmp_path / "run", crashes)


def _the_books_notice(crashes: Crashes) -> None:
    """Books that always balance would prove nothing either."""
    records = open_records(crashes.settings)
    reports = [item for item in crashes.pacs.objects.values() if item["kind"] == "SR"]
    first = crashes.pacs.objects.pop(reports[0]["uid"])
    assert crashes.balance(records).stuck == 1
    crashes.pacs.objects |= {first["uid"]: first, "2.25.1": {**first, "uid": "2.25.1"}}
    assert crashes.balance(records).duplicated == 1
    del crashes.pacs.objects["2.25.1"]
    first["contents"].add("other")
    assert crashes.balance(records).duplicated == 1
    first["contents"].remove("other")
    crashes.sent["never-came"] = "2.25.2"
    assert crashes.balance(records).lost == 1
    del crashes.sent["never-came"]
    assert crashes.balance(records).balances
    records.close()


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
