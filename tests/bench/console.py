"""How long the console's pages take over many studies: fills a database of its own, then asks for each page.

`python -m tests.bench.console [--studies 100000] [--instances 10] [--database URL] [--keep FOLDER]`. Wall
time is of this machine at this moment; CPU time is what an idle one needs, a local server's included.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from fastapi.testclient import TestClient
from sqlalchemy import Table, insert, null, text

from node.admin.web.app import make_app
from node.domain.findings import Priority
from node.headers import instance_of
from node.settings import Archive, Database, Destination, Route, Settings
from node.store import tables
from node.store.records import Records, open_records
from tests import factories

DAY_S = 86400
SPREAD_DAYS = 365
BATCH = 5000
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
    ("audit trail", "/audit"),
    ("audit trail of a user", "/audit?who=anna"),
    ("CSV, 30 days", "/worklist.csv?within=30d"),
    ("JSON: studies", "/api/v1/studies"),
    ("JSON: status", "/api/v1/status"),
    ("metrics", "/metrics"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--instances", type=int, default=10, help="of each study")
    parser.add_argument("--database", default="", help="an empty database; else SQLite")
    parser.add_argument("--keep", type=Path, help="keep, or use again, what is filled in this folder")
    parser.add_argument("--repeats", type=int, default=5)
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
        )
        records = open_records(settings)
        if not records.views.studies(1):
            began = time.perf_counter()
            fill(records, options.studies, options.instances)
            print(f"{options.studies} studies filled in {time.perf_counter() - began:.0f} s")
        measure(make_app(settings, records), options.repeats, Server(records))
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


def measure(app: Any, repeats: int, server: Server) -> None:
    client = TestClient(app, base_url="http://127.0.0.1:8080", headers={"Accept": "text/html"})
    client.get("/")
    print(f"{'page':<30} {'median ms':>9} {'worst ms':>9} {'CPU ms':>7} {'kB':>6}")
    for name, path in PAGES:
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


def fill(records: Records, studies: int, instances: int) -> None:
    """Rows as the roles would have left them, in bulk: a year of studies, the latest just now."""
    chance = random.Random(7)
    priorities = [chance.choices((*Priority, None), (10, 3, 85, 2))[0] for _ in range(studies)]
    now = time.time()
    at = [now - (studies - n) * SPREAD_DAYS * DAY_S / studies for n in range(studies)]
    association = {"id": "a", "listener": "l", "calling_ae": "CT", "address": "", "opened_at": 0.0}
    put(records, tables.associations, [association | {"closed_at": 1.0, "outcome": "released"}])
    put(records, tables.studies, (_study(n, at[n]) for n in range(studies)))
    put(records, tables.series, (_series(n, at[n], instances) for n in range(studies)))
    rows = (_instance(n, k, at[n]) for n in range(studies) for k in range(instances))
    put(records, tables.instances, rows)
    put(records, tables.jobs, (_job(n, at[n], priorities[n], studies) for n in range(studies)))
    put(records, tables.objects, (_object(n, k, at[n]) for n in range(studies) for k in range(3)))
    late = studies - 30
    put(records, tables.deliveries, (_delivery(n, k, at[n], late) for n in range(studies) for k in range(3)))
    said = (n for n in range(studies) if chance.random() < (0.6 if priorities[n] is Priority.STAT else 0.1))
    put(
        records,
        tables.reviews,
        ({"job_id": n + 1, "acknowledged_by": "anna", "acknowledged_at": at[n] + 900} for n in said),
    )
    put(
        records,
        tables.analyses,
        (_analysis(n, at[n], priorities[n]) for n in range(studies) if priorities[n]),
    )
    put(records, tables.audit, (_entry(n, at[n]) for n in range(studies)))
    put(records, tables.gaps, (_gap(n, at[n]) for n in range(0, studies, 20)))
    with records.engine.begin() as connection:
        connection.execute(text("ANALYZE"))


def put(records: Records, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    waiting: Iterator[dict[str, Any]] = iter(rows)
    while batch := list(islice(waiting, BATCH)):
        with records.engine.begin() as connection:
            connection.execute(insert(table), batch)


def _study(n: int, at: float) -> dict[str, Any]:
    return {
        "study_instance_uid": f"2.25.{n}",
        "patient_id": f"PID-{n % 50_000}",
        "patient_name": "Doe^Jane",
        "accession_number": f"ACC{n}",
        "study_date": "20261120",
        "description": "CT HEAD",
        "first_received_at": at - 20,
        "last_received_at": at,
    }


def _series(n: int, at: float, instances: int) -> dict[str, Any]:
    return {
        "series_instance_uid": f"2.25.{n}.1",
        "study_instance_uid": f"2.25.{n}",
        "modality": "CT",
        "description": "Head 5.0",
        "series_number": 2,
        "state": "ACCEPTED",
        "revision": 1,
        "instance_count": instances,
        "first_received_at": at - 20,
        "last_received_at": at,
        "completed_at": at + 10,
        "decided_at": at + 10,
    }


def _instance(n: int, k: int, at: float) -> dict[str, Any]:
    return {
        "sop_instance_uid": f"2.25.{n}.1.{k}",
        "series_instance_uid": f"2.25.{n}.1",
        "association_id": "a",
        "path": f"incoming/{n}/{k}.dcm",
        "size_bytes": 526_000,
        "sha256": "0" * 64,
        "header": _HEADER | {"instance_number": k, "position": [0.0, 0.0, 5.0 * k]},
        "received_at": at - 20 + k,
    }


def _job(n: int, at: float, priority: Priority | None, studies: int) -> dict[str, Any]:
    analysed = priority is not None
    return {
        "id": n + 1,
        "series_instance_uid": f"2.25.{n}.1",
        "study_instance_uid": f"2.25.{n}",
        "revision": 1,
        "state": "COMPOSED" if analysed else "FAILED",
        "attempts": 1,
        "reason_code": None if analysed else "NO_VOLUME",
        "reason_text": None if analysed else "the slices do not form a volume",
        "created_at": at + 10,
        "started_at": at + 11,
        "analysed_at": at + 15 if analysed else None,
        "reported_at": at + 16,
        "priority": priority,
        "findings": (_WHOLE if n > studies - 3000 else _LIGHT)[priority] if priority else null(),
        "maps_path": f"results/{n}/1/maps.npz",
    }


_SERIES = factories.ct_series(32, 8)
_HEADER = instance_of(_SERIES[0], "1.2.840.10008.1.2.1").to_json()
_WHOLE = {
    priority: factories.analysed(
        _SERIES, {"any": 0.9 if priority is Priority.STAT else 0.1}, priority=priority
    ).to_json()
    for priority in Priority
}
_LIGHT = {priority: {**found, "slices": []} for priority, found in _WHOLE.items()}
"""Without the slices: of all but the latest studies, to save room."""


def _analysis(n: int, at: float, priority: Priority | None) -> dict[str, Any]:
    """Of four scanners and two models; readers judged most alarms and a few negatives."""
    alarm = priority is Priority.STAT
    told = (alarm and n % 10 < 7) or n % 20 == 0
    wrong = int(n % 17 == 0) if told else None
    return {
        "job_id": n + 1,
        "study_instance_uid": f"2.25.{n}",
        "analysed_at": at + 15,
        "model_name": "default",
        "model_version": "1" if n % 2 else "2",
        "model_sha256": "a",
        "scanner": f"CT {n % 4}",
        "verdict": str(priority),
        "any_probability": 0.9 if alarm else (n % 97) / 500,
        "present": int(alarm),
        "evaluated": 63,
        "kernel": "H31s",
        "kvp": 120.0,
        "slice_thickness_mm": 5.0,
        "pixel_mm": 0.4 + (n % 13) / 100,
        "slices": 30 + n % 5,
        "head_hu": 33 + (n % 11) / 10,
        "head_share": 0.7,
        "told": 63 if told else None,
        "wrong": wrong,
        "opinion": ("DISAGREE" if wrong else "AGREE") if told else None,
        "why": "UNSPECIFIED" if wrong else None,
        "opinion_by": "anna" if told else None,
        "opinion_at": at + 900 if told else None,
        "sampled_at": at if n % 40 == 0 and not alarm else None,
    }


def _object(n: int, k: int, at: float) -> dict[str, Any]:
    return {
        "sop_instance_uid": f"2.25.{n}.9.{k}",
        "job_id": n + 1,
        "output": ("sr", "seg", "sc")[k],
        "series_instance_uid": f"2.25.{n}.9",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.7",
        "path": f"outgoing/{n}/{k}.dcm",
        "size_bytes": 700_000,
        "created_at": at + 16,
    }


def _delivery(n: int, k: int, at: float, late: int) -> dict[str, Any]:
    state = "SENT" if n < late else "PENDING"
    if n % 2000 == 7:
        state = "FAILED"
    return {
        "sop_instance_uid": f"2.25.{n}.9.{k}",
        "job_id": n + 1,
        "destination": "pacs",
        "rank": k,
        "urgent": int(n % 10 == 0),
        "state": state,
        "attempts": 1,
        "created_at": at + 16,
        "next_try_at": at + 16,
        "sent_at": at + 17 if state == "SENT" else None,
    }


def _gap(n: int, at: float) -> dict[str, Any]:
    return {
        "archive": "pacs",
        "kind": "slices",
        "study_instance_uid": f"2.25.{n}",
        "series_instance_uid": f"2.25.{n}.1",
        "patient_id": f"PID-{n % 50_000}",
        "accession_number": f"ACC{n}",
        "study_date": "20261120",
        "description": "Head 5.0",
        "expected": 32,
        "here": 10,
        "note": "",
        "state": "OPEN" if n % 200 == 0 else "CLOSED",
        "first_seen_at": at,
        "last_seen_at": at,
        "attempts": 0,
    }


def _entry(n: int, at: float) -> dict[str, Any]:
    who = ("anna", "victor")[n % 2]
    return {
        "at": at,
        "who": who,
        "role": "admin",
        "address": "",
        "action": "study",
        "study_instance_uid": f"2.25.{n}",
        "detail": "",
    }


if __name__ == "__main__":
    main()
