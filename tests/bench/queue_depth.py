"""What taking and finishing one job costs, however many wait: on SQLite and on PostgreSQL.

`python -m tests.bench.queue_depth [--depths 100 10000 100000] [--jobs 40] [--panels FILE]` fills a database
with waiting jobs, then takes the next and stores its analysis, `--jobs` times; beside it the take that finds
a STAT order, and one look of the clock at whom to ring. It prints medians in milliseconds, and the ratio to
the smallest depth.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from sqlalchemy import Engine, insert, text

from node.domain.findings import CLASSES, ClassFinding, Findings, ModelIdentity, Priority, Status
from node.domain.orders import OrderPriority, Rules, Said, Source, Subject
from node.settings import Database, Settings
from node.store.queue import Line
from node.store.records import Records, open_records
from node.store.tables import jobs, series, studies
from tests.bench.report import Panel, write
from tests.postgres import Postgres

NOW = 1_800_000_000.0
ROWS = 5000
MODEL = ModelIdentity("bench", "1", "00" * 32)
KINDS = ("take", "take STAT", "finish", "look of the clock")
DRAWN = ("take", "finish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 10_000, 100_000])
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--panels", type=Path, help="where the times are kept as JSON")
    options = parser.parse_args()
    kept: dict[str, dict[str, list[float]]] = {}
    print(f"| database | jobs waiting | {' | '.join(f'{kind}, ms' for kind in KINDS)} |")
    print(f"|---|---|{'---|' * len(KINDS)}")
    for name, database in (("SQLite", _sqlite), ("PostgreSQL", _postgres)):
        first: dict[str, float] = {}
        for depth in options.depths:
            with database() as records:
                fill(records.engine, depth)
                times = measure(records, options.jobs)
            for kind in DRAWN:
                kept.setdefault(f"{kind}, {name}", {})[_waiting(depth)] = [1e3 * s for s in times[kind]]
            taken = {kind: statistics.median(found) for kind, found in times.items()}
            first = first or taken
            cells = [f"{taken[kind] * 1e3:.2f} ({taken[kind] / first[kind]:.1f} ×)" for kind in KINDS]
            print(f"| {name} | {depth:,} | {' | '.join(cells)} |", flush=True)
    if options.panels:
        deepest = _waiting(max(options.depths))
        write(options.panels, [Panel("Taking and finishing a job", "ms", deepest, False, kept)])


def _waiting(depth: int) -> str:
    return f"{depth:,} waiting"


@contextmanager
def _sqlite() -> Iterator[Records]:
    with tempfile.TemporaryDirectory() as folder:
        records = open_records(Settings(data_dir=Path(folder)))
        yield records
        records.close()


@contextmanager
def _postgres() -> Iterator[Records]:
    server = Postgres()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(url=server.create())
        records = open_records(Settings(data_dir=Path(folder), database=database))
        yield records
        records.close()
    server.stop()


def fill(engine: Engine, depth: int) -> None:
    """So many studies with one waiting job each, the last a few seconds ago; and as many that are done."""
    for start in range(0, 2 * depth, ROWS):
        numbers = range(start, min(start + ROWS, 2 * depth))
        with engine.begin() as connection:
            connection.execute(insert(studies), [_study(number) for number in numbers])
            connection.execute(insert(series), [_series(number) for number in numbers])
            connection.execute(insert(jobs), [_job(number, depth) for number in numbers])
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))


def _seen(number: int) -> dict[str, float]:
    at = NOW - 1000 + number * 1e-3
    return {"first_received_at": at, "last_received_at": at}


def _study(number: int) -> dict[str, object]:
    return {"study_instance_uid": f"1.{number}", "accession_number": f"A{number}", **_seen(number)}


def _series(number: int) -> dict[str, object]:
    state = {"state": "ACCEPTED", "instance_count": 32}
    return {
        "series_instance_uid": f"1.{number}.1",
        "study_instance_uid": f"1.{number}",
        **state,
        **_seen(number),
    }


def _job(number: int, depth: int) -> dict[str, object]:
    waits = number < depth
    of = {"series_instance_uid": f"1.{number}.1", "study_instance_uid": f"1.{number}", "revision": 1}
    state = {"state": "QUEUED" if waits else "COMPOSED", "attempts": 0 if waits else 1}
    heard = {"rung_at": NOW, "rung_stat": 0}
    return {**of, **state, **heard, "created_at": NOW - 1000 + number * 1e-3}


def measure(records: Records, count: int) -> dict[str, list[float]]:
    """Seconds of each step; a first round, which warms everything up, is not counted."""
    line, times = Line(Rules()), {kind: list[float]() for kind in KINDS}
    for number in range(count + 1):
        began = time.perf_counter()
        taken = records.queue.take(0, "bench", NOW + 30, NOW, line)
        moments = [began, time.perf_counter()]
        assert taken
        findings = _findings(taken.job.series_instance_uid)
        assert records.jobs.store_analysis(taken.job.id, "bench", findings, "maps", NOW)
        moments.append(time.perf_counter())
        records.queue.to_ring(NOW - 30, NOW, Rules())
        moments.append(time.perf_counter())
        study = f"1.{50 + number}"
        assert records.orders.say(Said(Source.HL7, OrderPriority.STAT, Subject(study), NOW, "M"))
        began = time.perf_counter()
        urgent = records.queue.take(0, "bench", NOW + 30, NOW, line)
        stat_s = time.perf_counter() - began
        assert urgent and urgent.job.study_instance_uid == study
        if number:
            take_s, finish_s, look_s = (after - before for before, after in pairwise(moments))
            for kind, took_s in zip(KINDS, (take_s, stat_s, finish_s, look_s), strict=True):
                times[kind].append(took_s)
    return times


def _findings(uid: str) -> Findings:
    classes = {name: ClassFinding(0.1, False, "1.2.3") for name in CLASSES}
    return Findings(MODEL, uid, 1, Status.ANALYSED, classes=classes, priority=Priority.ROUTINE)


if __name__ == "__main__":
    main()
