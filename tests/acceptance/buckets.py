"""Machines that share a bucket, a database and a broker, and no volume: kills them, takes the bucket away.

`python -m tests.acceptance.buckets --kills 40` runs it by hand. Each machine has a data_dir of its own: one
receives and decides, another analyses, composes and sends. The books are those of tests.acceptance.crashes;
in the end the bucket must hold what the records name, and no disk anything alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from node.settings import Settings, load
from node.store.records import Records
from tests.acceptance.crashes import LONGEST_OUTAGE_S, Ledger
from tests.acceptance.hosts import Hosts
from tests.ceph import Ceph
from tests.s3 import KEYS, Moto, S3Server

TARGETS = {
    "listen": 3,
    "settle": 1,
    "worker": 5,
    "deliver": 3,
    "host": 2,
    "bucket": 6,
    "postgres": 1,
    "broker": 1,
}
"""What to kill, and how often; the bucket goes away for a while, and comes back with what it held."""


class Machines(Hosts):
    """A run on two of them."""

    plan: ClassVar[dict[str, tuple[str, ...]]] = {
        "host-a": ("listen", "settle"),
        "host-b": ("worker", "deliver"),
    }

    def __init__(
        self,
        folder: Path,
        seed: int,
        say: Callable[[str], None],
        namespaces: bool = True,
        bucket: S3Server | None = None,
    ) -> None:
        """Without a `bucket` it is moto's."""
        folder.mkdir(parents=True, exist_ok=True)
        self.bucket = bucket or Moto(folder / "s3.log")
        os.environ.update(KEYS)  # the scan at the end needs them as well
        super().__init__(folder, seed, say, namespaces)

    def _settings(self) -> Settings:
        super()._settings()
        config = self.folder / "ichnode.toml"
        text = config.read_text().replace(
            "spool = { reserve_mb = 16 }",
            f'spool = {{ reserve_mb = 16, s3 = {{ bucket = "{self.bucket.settings().bucket}", '
            f'endpoint = "{self.bucket.endpoint}", timeout_s = 5 }} }}',
        )
        config.write_text(text)
        return load(config)

    def environment(self, name: str) -> dict[str, str]:
        return {"ICHNODE_DATA_DIR": str(self.folder / name)}

    def strike(self, target: str, chance: random.Random) -> bool:
        if target != "bucket":
            return super().strike(target, chance)
        self.bucket.go_away()
        time.sleep(chance.uniform(0.5, LONGEST_OUTAGE_S))
        self.bucket.come_back()
        return True

    def balance(self, records: Records) -> Ledger:
        ledger = super().balance(records)
        for disk in records.held.disks():
            ledger.faults.append(f"{disk.instances} images are on the disk {disk.name} alone")
        if ledger.faults:
            return ledger
        named = {f"ichnode/{path}" for path in records.keeping.all_paths()}
        if absent := named - set(self.bucket.stored()):
            ledger.faults.append(f"{len(absent)} files are not in the bucket: {sorted(absent)[:3]}")
        if self.bucket.unfinished():
            ledger.faults.append("uploads in parts were left")
        return ledger

    def close(self) -> None:
        super().close()
        self.bucket.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="a new one: the bucket is held in memory")
    parser.add_argument("--pause", type=float, default=8.0, help="longest time between two kills, in seconds")
    parser.add_argument("--minutes", type=float, help="stop killing after so long, whatever the count")
    parser.add_argument("--ceph", action="store_true", help="the bucket is Ceph's, not moto's")
    options = parser.parse_args()
    began = time.monotonic()
    machines = Machines(
        options.folder,
        options.seed,
        lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True),
        bucket=Ceph() if options.ceph else None,
    )
    try:
        machines.pause_s = options.pause
        ledger = machines.run(options.kills, options.minutes and options.minutes * 60, TARGETS)
    finally:
        machines.close()
    print(json.dumps(asdict(ledger), indent=2))
    words = "the books balance" if ledger.balances else "THE BOOKS DO NOT BALANCE"
    print(f"{words} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if ledger.balances else 1)


if __name__ == "__main__":
    main()
