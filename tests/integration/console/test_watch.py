"""Drift from the rows of analyses to the page, the metrics and the doctor."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert

from node.admin import doctor
from node.domain.errors import PermanentError
from node.settings import Drift, Settings
from node.store.records import Records
from node.store.tables import analyses
from node.watch import Watch, look

RECENT = {"reference_studies": 100, "recent_studies": 50}
DRIFT = Drift.model_validate(RECENT)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    return Settings(data_dir=tmp_path, drift=DRIFT)


def fill(records: Records, scanner: str, numbers: range, ago: float = 0, **more: Any) -> None:
    """Analyses of a scanner, one a minute, the last one so long ago."""
    now = time.time() - ago
    row = {
        "model_name": "m", "model_version": "1", "model_sha256": "a", "scanner": scanner,
        "verdict": "ROUTINE", "present": 0, "evaluated": 63, "kernel": "H31s", "kvp": 120.0,
        "slice_thickness_mm": 5.0, "pixel_mm": 0.45, "slices": 32, "head_share": 0.7,
    }  # fmt: skip
    rows = [
        row
        | {"job_id": n, "analysed_at": now - 60 * (numbers.stop - n), "study_instance_uid": f"1.{n}"}
        | {"any_probability": 0.05 + 0.001 * (n % 17), "head_hu": 33 + 0.1 * (n % 7)}
        | more
        for n in numbers
    ]
    with records.engine.begin() as connection:
        connection.execute(insert(analyses), rows)


def test_drift_is_seen_once_said_and_ends(records: Records, caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()
    fill(records, "CT1", range(140), ago=9000)
    look(records, DRIFT, now)
    assert records.drifts.all() == []  # 100 and 50 are needed
    fill(records, "CT1", range(140, 200), slice_thickness_mm=1.25, kernel="H60s")
    fill(records, "CT2", range(200, 360))
    with caplog.at_level(logging.WARNING):
        look(records, DRIFT, now)
        look(records, DRIFT, now + 600)
    rows = {row["feature"]: row for row in records.drifts.drifting()}
    assert set(rows) == {"slice_thickness_mm", "kernel"}
    assert {row["scanner"] for row in rows.values()} == {"CT1"}
    assert rows["kernel"]["drifted_since"] == now and rows["kernel"]["looked_at"] == now + 600
    assert sum("drift of CT1" in record.message for record in caplog.records) == 2
    assert len({row["scanner"] for row in records.drifts.all()}) == 2
    fill(records, "CT1", range(400, 460), ago=-9000)
    look(records, DRIFT, now + 1200)
    assert records.drifts.drifting() == []


def test_scores_are_held_against_those_of_the_same_model(records: Records) -> None:
    fill(records, "CT1", range(120), ago=20000)
    fill(records, "CT1", range(120, 230), ago=9000, model_version="2", any_probability=0.4)
    look(records, DRIFT, time.time())
    assert "any_probability" not in {row["feature"] for row in records.drifts.all()}
    fill(records, "CT1", range(230, 290), model_version="2", any_probability=0.9)
    look(records, DRIFT, time.time())
    assert [row["feature"] for row in records.drifts.drifting()] == ["any_probability"]


def test_what_was_before_the_reference_counts_for_nothing(records: Records) -> None:
    fill(records, "CT1", range(300), ago=40 * 86400, kvp=80.0)
    fill(records, "CT1", range(300, 360))
    look(records, DRIFT, time.time())
    assert [row["feature"] for row in records.drifts.drifting()] == ["kvp"]
    late = Drift.model_validate({**RECENT, "reference_from": "2020-01-01"})
    look(records, late, time.time())
    assert records.drifts.drifting()
    look(records, Drift.model_validate({**RECENT, "reference_from": time.strftime("%Y-%m-%d")}), time.time())
    assert records.drifts.all() == []


def test_the_watch_looks_when_its_time_has_come(records: Records) -> None:
    clock = [0.0]
    watch = Watch(records, DRIFT, lambda: clock[0])
    fill(records, "CT1", range(160))
    watch.round(1.0)
    watch.round(2.0)
    assert {row["looked_at"] for row in records.drifts.all()} == {1.0}
    clock[0] = 601
    watch.round(3.0)
    assert {row["looked_at"] for row in records.drifts.all()} == {3.0}


def test_pages_metrics_and_doctor_say_it(client: TestClient, settings: Settings, records: Records) -> None:
    assert "Nothing was analysed" in client.get("/quality").text
    assert "not judged yet" in doctor._drift(settings)
    fill(records, "CT <1>", range(120), ago=9000)
    assert "gathering: 120 of 150" in client.get("/quality").text
    fill(records, "CT <1>", range(120, 180), head_hu=60.0)
    look(records, DRIFT, time.time())
    page = client.get("/quality").text
    assert "1 of 8 features drift" in page and "median HU inside the skull was 33.3" in page
    page = client.get("/quality/scanner", params={"name": "CT <1>"}).text
    assert page.count("<polygon") == 7 and page.count('class="drifted"') == 1 and "<1>" not in page
    assert client.get("/quality/scanner?name=x").status_code == 404
    assert 'drift_alarm{scanner="CT <1>",feature="head_hu"} 1.0' in client.get("/metrics").text
    assert len(client.get("/api/v1/quality/drift").json()) == 8
    with pytest.raises(PermanentError, match="median HU inside the skull was 33"):
        doctor._drift(settings)
