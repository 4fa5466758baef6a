"""A second model reads in silence, is promoted, outlives a restart, is taken back; by real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread

from node.domain.findings import Findings, ModelIdentity
from node.domain.lifecycle import ShadowState
from tests.acceptance.conftest import NodeMaker, RunningNode
from tests.othermodel import make_other_model
from tests.peers import requires
from workers.demo import Orthanc
from workers.phantom_series import SeriesLabels, write_series

pytestmark = pytest.mark.acceptance


def analysed(node: RunningNode, folder: Path, seed: int) -> tuple[dict[str, Any], Findings]:
    """A phantom with a bleed goes the whole way; its job."""
    requires("storescu")
    labels = SeriesLabels(accession_number=f"SH{seed}")
    files = write_series(folder, seed, ("intraparenchymal",), labels=labels, slices=32, size=256)
    assert node.storescu(*files).returncode == 0
    study = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    job = node.finished_job(study, 90)
    return job, Findings.from_json(job["findings"])


def read_in_shadow(node: RunningNode, job: dict[str, Any]) -> dict[str, Any] | None:
    for row in node.records.pairs.latest(_any_pair(node), 10):
        if row["job_id"] == job["id"]:
            return row
    return None


def _any_pair(node: RunningNode) -> Any:
    from node.store.pairs import Asked

    pairs = node.records.pairs.which()
    return Asked(pairs[0]["active_sha256"], pairs[0]["shadow_sha256"]) if pairs else Asked("", "")


def loaded_by_worker(node: RunningNode) -> str:
    workers = [p for p in node.records.views.processes(time.time()) if p["role"] == "worker" and p["alive"]]
    return str(workers[-1]["detail"].get("sha256") or workers[-1]["detail"]) if workers else ""


def test_a_model_reads_in_silence_is_promoted_and_taken_back(
    make_node: NodeMaker, orthanc: Orthanc, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    sidecar, other = make_other_model(models)
    shadow = f"[shadow]\npipeline = {json.dumps(str(sidecar))}\nthreads = 0\nnice = 0\n"
    node = make_node(shadow, pacs_port=orthanc.port, quiet_s=1)
    first, found = analysed(node, tmp_path / "first", 3)
    active = found.model
    assert active.sha256 != other.sha256
    row = node.wait_for(lambda: read_in_shadow(node, first), 90)
    assert row["shadow_any_probability"] == pytest.approx(row["active_any_probability"], abs=0.2)
    assert row["shadow_total_s"] > 0
    deliveries = [d for d in node.records.views.deliveries() if d["job_id"] == first["id"]]
    assert {d["state"] for d in deliveries} == {"SENT"}
    objects = node.records.worklist.objects([first["id"]])
    assert len({o["sop_instance_uid"] for o in objects}) == len(deliveries), "nothing but the active model's"
    after = node.records.jobs.get(first["id"])
    assert after and after.findings and after.findings.model == active

    api = f"http://127.0.0.1:{node.settings.web.port}/api/v1"
    refused = requests.post(f"{api}/models/promote", json={"sha256": other.sha256, "reason": "x"}, timeout=10)
    assert refused.status_code == 403, "a browser's page needs its token"
    _command(node, "promote", other.sha256[:12], "--reason", "agrees on the phantoms")
    node.wait_for(lambda: loaded_by_worker(node) == other.sha256, 60)
    _, found = analysed(node, tmp_path / "second", 4)
    assert found.model == other

    models_now = requests.get(f"{api}/models", timeout=10).json()
    assert models_now["active"]["sha256"] == other.sha256
    assert models_now["active"]["promoted"]["reason"] == "agrees on the phantoms"

    node.stop()
    (models / "other.safetensors").rename(models / "gone")
    node.start()
    refusal = node.wait_for(lambda: "refuses" in loaded_by_worker(node) and loaded_by_worker(node), 60)
    assert "other 2.0.0, promoted by" in refusal, "the choice outlives a restart"
    assert "rollback" in refusal
    ready = requests.get(f"{api.removesuffix('/api/v1')}/readyz", timeout=10)
    assert (ready.status_code, ready.json()["missing"]) == (503, ["worker"])
    _command(node, "rollback", "--reason", "its weights are gone")
    node.wait_for(lambda: loaded_by_worker(node) == active.sha256, 60)
    assert _history(node) == [(active, "its weights are gone"), (other, "agrees on the phantoms")]
    trail = [entry["action"] for entry in node.records.audit.entries(100)]
    assert "promote-model" in trail and "roll-back-model" in trail
    assert node.records.shadows.counts().get(ShadowState.FAILED) is None


def _history(node: RunningNode) -> list[tuple[ModelIdentity, str]]:
    return [(one.model, one.reason) for one in node.records.promotions.history()]


def _command(node: RunningNode, *words: str) -> None:
    from click.testing import CliRunner

    from node.admin.cli import main

    said = CliRunner().invoke(main, ["shadow", "--config", str(node.config), *words])
    assert said.exit_code == 0, said.output
