"""How long a result takes from the stored analysis to objects that are durable and scheduled.

`python -m tests.bench.composing [--slices 32] [--repeats 11] [--cold] [--folder DIR]`. One process composes
study after study as the delivering process does, from records and spool to records and spool; it sends none.
Wall and CPU time are printed, since on a machine with other work only the latter tells something. The first
result stands apart; `--cold` leaves out the rehearsal before it.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path

from node.compose import Composer
from node.settings import Destination, Settings
from node.spool import spool_of
from node.store.records import open_records
from tests.factories import ct_series
from tests.site import Site

ROWS = 512
FOUND = {"any": 0.97, "subdural": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help="on which volume; that of temporary files if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ichnode-composing-", dir=options.folder) as folder:
        measure(Path(folder), options.slices, options.repeats, options.cold)


def measure(folder: Path, slices: int, repeats: int, cold: bool) -> None:
    """Prints seconds of each result as it comes, then medians (ranges) of all but the first."""
    settings = Settings(data_dir=folder, destination=(Destination(name="pacs", ae_title="PACS"),))
    records, spool = open_records(settings), spool_of(settings)
    site, composer = Site(records, settings), Composer(settings, records, spool)
    if not cold:
        composer.rehearse()
        gc.collect()
        gc.freeze()
    found = []
    for number in range(repeats + 1):
        step_mm = min(5.0, 160.0 / slices)
        site.looked_at(
            ct_series(slices, ROWS, spacing_mm=0.45, step_mm=step_mm, name=f"bench {number}"), FOUND
        )
        wall, cpu = time.perf_counter(), time.process_time()
        composer.round()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
        print(
            f"wall {found[-1][0]:.2f} s, cpu {found[-1][1]:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True
        )
    records.close()
    first, *others = found
    for name, seconds, one in zip(("wall", "cpu"), zip(*others, strict=True), first, strict=True):
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}"
        print(f"{name:<4} {statistics.median(seconds):.2f} s ({spread}), first {one:.2f} s")


if __name__ == "__main__":
    main()
