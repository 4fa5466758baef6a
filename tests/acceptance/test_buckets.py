"""Two machines without a shared volume: the bucket goes away, processes are killed, and nothing is lost."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from tests.acceptance.buckets import Machines

pytestmark = pytest.mark.acceptance
ORDER = ("worker", "bucket", "listen")


class InOrder(Machines):
    """One of each, one after the other; the machines share their pids, so that the dead are seen."""

    def strike(self, target: str, chance: random.Random) -> bool:
        return super().strike(ORDER[self.kills.total()], chance)


def test_a_study_passes_from_disk_to_bucket_to_another_machine_whatever_goes(folder: Path) -> None:
    logging.getLogger("pynetdicom").setLevel("CRITICAL")
    machines = InOrder(folder, 20261122, lambda _: None, namespaces=False)
    try:
        machines.pause_s = 1.0
        machines.start()
        ledger = machines.run(len(ORDER))
        assert ledger.balances, ledger
        assert sum(ledger.kills.values()) == len(ORDER)
        assert not set(ledger.scan) - {"recorded", "leftovers removed", "in work"}, ledger.scan
    finally:
        machines.close()
