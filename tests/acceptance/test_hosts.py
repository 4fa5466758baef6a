"""Two hosts on one PostgreSQL, Redis and spool, Orthanc as the PACS: a process of each kind is killed."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from tests.acceptance.hosts import Hosts

pytestmark = pytest.mark.acceptance
ORDER = ("worker", "leader", "listen", "deliver")


class InOrder(Hosts):
    """One of each kind, one after the other; the hosts share their pids, so that the dead are seen."""

    def strike(self, target: str, chance: random.Random) -> bool:
        return super().strike(ORDER[self.kills.total()], chance)


def test_two_hosts_lose_nothing_and_send_nothing_twice_and_the_clock_is_taken_over(folder: Path) -> None:
    logging.getLogger("pynetdicom").setLevel("CRITICAL")
    hosts = InOrder(folder, 20261121, lambda _: None, namespaces=False)
    try:
        hosts.pause_s = 1.0
        hosts.start()
        first = list(hosts.led_by)
        ledger = hosts.run(len(ORDER))
        assert ledger.balances, ledger
        assert sum(ledger.kills.values()) == len(ORDER)
        assert len(first) == 1 and len(hosts.led_by) >= 2, hosts.led_by
    finally:
        hosts.close()
