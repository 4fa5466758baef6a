"""A year of studies as the roles would leave them, in bulk, for tests/bench/console.py. Measures nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Table, insert, null, text

from node.domain.findings import Priority
from node.headers import instance_of
from node.store import tables
from node.store.records import Records
from tests import factories

DAY_S = 86400
SPREAD_DAYS = 365
BATCH = 5000


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
    read = [n for n in range(studies) if priorities[n]]
    put(records, tables.shadows, (_shadow(n, at[n], priorities[n]) for n in read))
    alarmed = [n for n in read if priorities[n] is not Priority.ROUTINE]
    put(records, tables.alerts, (_alert(n, at[n], late) for n in alarmed))
    put(records, tables.workitems, (_workitem(n, at[n]) for n in alarmed if now - at[n] < 30 * DAY_S))
    put(records, tables.ups_subscriptions, (_subscription(n, at[n]) for n in alarmed[-1000:]))
    put(records, tables.ups_events, (_ups_event(n, at[n]) for n in alarmed[-200:]))
    put(
        records, tables.audit_queue, (_untold(n, at[n]) for n in range(studies - min(1000, studies), studies))
    )
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
        "model_sha256": "a" * 64,
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
        "sampled_at": at if n % 40 in (0, 7) and not alarm else None,
        "sampled_by": "anna" if n % 40 in (0, 7) and not alarm else None,
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


def _shadow(n: int, at: float, priority: Priority | None) -> dict[str, Any]:
    """As the active model, but for one in 31."""
    alarm = (priority is Priority.STAT) != (n % 31 == 0)
    failed = n % 999 == 5
    return {
        "job_id": n + 1,
        "study_instance_uid": f"2.25.{n}",
        "series_instance_uid": f"2.25.{n}.1",
        "revision": 1,
        "model_name": "new",
        "model_version": "1",
        "model_sha256": "b" * 64,
        "pipeline": "/models/new.json",
        "state": "FAILED" if failed else "DONE",
        "reason_code": "MODEL_OUTPUT_INVALID" if failed else None,
        "reason_text": "the class output of the network holds NaN or infinity" if failed else None,
        "attempts": 1,
        "created_at": at + 15,
        "started_at": at + 16,
        "finished_at": at + 30,
        "verdict": "STAT" if alarm else "ROUTINE",
        "any_probability": 0.85 if alarm else (n % 89) / 450,
        "present": int(alarm),
        "evaluated": 63,
        "volume_ml": 12.5 if alarm else 0.0,
        "probabilities": {"any": 0.85 if alarm else 0.1},
        "classified_s": 2.0 + n % 7 / 10,
        "total_s": 5.0 + n % 11 / 10,
    }


def _alert(n: int, at: float, late: int) -> dict[str, Any]:
    return {
        "channel": "ei",
        "study_instance_uid": f"2.25.{n}",
        "job_id": n + 1,
        "number": 1,
        "identifier": f"alert{n}",
        "stage": "preliminary",
        "priority": "STAT",
        "urgent": 1,
        "content": {},
        "state": "ACKNOWLEDGED" if n < late else "PENDING",
        "attempts": 1,
        "last_slice_at": at,
        "created_at": at + 12,
        "due_since": at + 12,
        "next_try_at": at + 12,
        "sent_at": at + 12.5,
        "acknowledged_at": at + 12.6,
    }


def _workitem(n: int, at: float) -> dict[str, Any]:
    return {
        "sop_instance_uid": f"2.25.{n}.7",
        "job_id": n + 1,
        "study_instance_uid": f"2.25.{n}",
        "state": ("SCHEDULED", "IN PROGRESS", "COMPLETED")[n % 3],
        "performed": {},
        "claimed_by": "READER1" if n % 3 else None,
        "claimed_at": at + 60 if n % 3 else None,
        "created_at": at + 12,
        "changed_at": at + 60,
    }


def _subscription(n: int, at: float) -> dict[str, Any]:
    return {"receiving_ae": "BOARD", "sop_instance_uid": f"2.25.{n}.7", "subscribed_at": at + 12}


def _ups_event(n: int, at: float) -> dict[str, Any]:
    return {
        "receiving_ae": "BOARD",
        "sop_instance_uid": f"2.25.{n}.7",
        "event": 1,
        "content": {},
        "created_at": at + 12,
        "next_try_at": at + 12,
        "attempts": 3,
    }


def _untold(n: int, at: float) -> dict[str, Any]:
    return {
        "at": at,
        "action": "study",
        "who": "anna",
        "address": "10.0.0.9",
        "study_instance_uid": f"2.25.{n}",
        "detail": "",
        "objects": {},
        "attempts": 3,
        "next_try_at": at,
        "last_error": "no answer",
    }
