"""How long the console's pages take over many studies: fills a database of its own, then asks for each page.

`python -m tests.bench.console [--studies 100000] [--instances 10] [--database URL] [--keep FOLDER]`. Wall
time is of this machine at this moment; CPU time is what an idle one needs, a local server's included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from fastapi.testclient import TestClient
from sqlalchemy import text

from node.admin.web.app import make_app
from node.settings import (
    Archive,
    AuditRepository,
    Database,
    Destination,
    Hl7,
    Route,
    Settings,
    Ups,
    Watcher,
)
from node.store.records import Records, open_records
from tests.bench.year import fill

GOAL_MS = 200
PAGES = (
    ("worklist, 24 h", "/"),
    ("worklist, all, unread", "/?within=all"),
    ("worklist, all, both", "/?within=all&read=all"),
    ("worklist, all, page 40", "/?within=all&read=all&page=40"),
    ("worklist, suspected, all", "/?within=all&show=suspected&read=all"),
    ("worklist, not analysed, all", "/?within=all&show=not-analysed&read=all"),
    ("worklist, not detected, all", "/?within=all&show=not-detected"),
    ("worklist, acknowledged, all", "/?within=all&read=acknowledged"),
    ("worklist, search", "/?q=PID-4711"),
    ("worklist, refreshing", "/?refresh"),
    ("study", "/study/2.25.1000"),
    ("queue", "/queue"),
    ("missing", "/missing"),
    ("routing", "/routing"),
    ("routing, searched", "/routing?q=PID-4711"),
    ("quality, by scanner", "/quality"),
    ("quality, by month, all", "/quality?by=month&within=all"),
    ("quality, by model, all", "/quality?by=model&within=all"),
    ("scanner", "/quality/scanner?name=CT+1"),
    ("shadow, 90 days", "/shadow"),
    ("shadow, all", "/shadow?within=all"),
    ("shadow, one scanner", "/shadow?within=all&scanner=CT+1"),
    ("series", "/series/2.25.1000.1"),
    ("audit trail", "/audit"),
    ("audit trail of a user", "/audit?who=anna"),
    ("CSV, 30 days", "/worklist.csv?within=30d"),
    ("JSON: studies", "/api/v1/studies"),
    ("JSON: status", "/api/v1/status"),
    ("JSON: alerts", "/api/v1/alerts"),
    ("JSON: audit queue", "/api/v1/audit/queue"),
    ("JSON: quality, by month", "/api/v1/quality?by=month&within=all"),
    ("JSON: shadow", "/api/v1/shadow"),
    ("metrics", "/metrics"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--instances", type=int, default=10, help="of each study")
    parser.add_argument("--database", default="", help="an empty database; else SQLite")
    parser.add_argument("--keep", type=Path, help="keep, or use again, what is filled in this folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="pages with this word in their names")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ichnode-bench-") as place:
        folder = options.keep or Path(place)
        (folder / "spool").mkdir(parents=True, exist_ok=True)
        settings = Settings(
            data_dir=folder,
            database=Database(url=options.database),
            destination=(
                Destination(name="pacs", ae_title="PACS", rules=(Route(), Route(station=("CT1",)))),
            ),
            archive=(Archive(name="pacs", ae_title="PACS"),),
            alert=(Hl7(name="ei", type="hl7", host="ei.example.org"),),
            audit=AuditRepository(host="audit.example.org"),
            ups=Ups(port=11114, watcher=(Watcher(ae_title="BOARD"),)),
        )
        records = open_records(settings)
        if not records.views.studies(1):
            began = time.perf_counter()
            fill(records, options.studies, options.instances)
            print(f"{options.studies} studies filled in {time.perf_counter() - began:.0f} s")
        while records.pairs.count_days(time.time()):
            pass  # as the clock does beside its work
        pages = [page for page in PAGES if options.only in page[0]]
        measure(make_app(settings, records), pages, options.repeats, Server(records))
        records.close()


class Server:
    """What a PostgreSQL server on this machine needed of its cores; nothing for SQLite, which is inside."""

    def __init__(self, records: Records) -> None:
        if records.engine.dialect.name == "postgresql":
            with records.engine.connect() as connection:
                pid = int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            self._postmaster = psutil.Process(pid).parent()

    def seconds(self) -> float:
        """User and system time of every process of it, to 10 ms."""
        postmaster = getattr(self, "_postmaster", None)
        times = [child.cpu_times() for child in postmaster.children()] if postmaster else []
        return sum(t.user + t.system for t in times)


def measure(app: Any, pages: Sequence[tuple[str, str]], repeats: int, server: Server) -> None:
    client = TestClient(app, base_url="http://127.0.0.1:8080", headers={"Accept": "text/html"})
    client.get("/")
    print(f"{'page':<30} {'median ms':>9} {'worst ms':>9} {'CPU ms':>7} {'kB':>6}")
    for name, path in pages:
        headers = {"HX-Request": "true"} if path.endswith("?refresh") else {}
        wall, cpu = [], []
        for _ in range(repeats):
            began, began_cpu = time.perf_counter(), time.process_time() + server.seconds()
            answer = client.get(path, headers=headers)
            wall.append((time.perf_counter() - began) * 1000)
            cpu.append((time.process_time() + server.seconds() - began_cpu) * 1000)
            assert answer.status_code == 200, (path, answer.text[:200])
        best = statistics.median(cpu)
        mark = "" if best <= GOAL_MS else "  above the goal"
        size = len(answer.content) / 1000
        print(f"{name:<30} {statistics.median(wall):9.0f} {max(wall):9.0f} {best:7.0f} {size:6.0f}{mark}")


if __name__ == "__main__":
    main()
