"""A worker follows the choice of the active model, or takes none; the shadow worker reads, or gives up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from node.domain.choice import Active, Promotion
from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from node.domain.lifecycle import JobState
from node.settings import Model, Settings
from node.store.audit import Actor
from node.store.pairs import Asked
from node.store.promotions import Wish
from node.store.records import open_records
from node.store.shadows import ShadowModel
from tests.integration.test_unusual_series import Node
from tests.othermodel import make_other_model
from tests.scanned import Threshold, scan
from workers import following, selection, shadow, tasks
from workers.selection import load_active, patiently
from workers.shadow import ShadowWorker

ON_CPU = Model(device="cpu")

NEW = ModelIdentity("new", "2", "11" * 32)


class Newer(Threshold):
    identity = NEW


class Broken(Threshold):
    """A model that answers nonsense; `error` says whether it raises instead."""

    identity = NEW
    error: Exception | None = None

    def classify(self, hu: np.ndarray, spacing_mm: object) -> Any:
        if self.error:
            raise self.error
        found = super().classify(hu, spacing_mm)
        found.series[:] = np.nan
        return found


class Following(Node):
    """A node whose worker follows promotions; `there` are the models on this host."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.there: dict[str, Any] = {"default": self.worker.pipeline, "/m/new.json": Newer()}
        self.signals: list[tuple[int, int]] = []
        self.worker.model.active = Active("default")

        def load(active: Active, device: str) -> Any:
            if active.pipeline not in self.there:
                raise PermanentError("MODEL_REFUSED", f"no {active.pipeline} on this host")
            return self.there[active.pipeline]

        monkeypatch.setattr(following, "load_active", load)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append((pid, number)))

    def promote(self, pipeline: str = "/m/new.json", model: ModelIdentity = NEW) -> None:
        last = self.records.promotions.last()
        wish = Wish(pipeline, model, "default", "default", Threshold.identity, "better")
        after_id, anna = last.id if last else 0, Actor("anna", "admin", "")
        self.records.promotions.add(wish, anna, "promote-model", after_id, 1.0)

    def analysed_by(self) -> ModelIdentity:
        (job,) = self.work(1)
        assert job.findings, job.reason
        return job.findings.model


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    made = Following(tmp_path, monkeypatch)
    yield made
    made.records.close()


def test_the_next_series_is_read_by_the_promoted_model(node: Following) -> None:
    node.receive(*scan())
    node.promote()
    assert node.analysed_by() == NEW
    assert node.worker.standing()["sha256"] == NEW.sha256


def test_what_the_model_before_found_ahead_is_not_used(node: Following) -> None:
    series = scan()
    node.receive(*series)
    node.records.arrivals.close_association("a1", "released", node.now)
    node.worker.prepare(str(series[0].SeriesInstanceUID), 1)
    assert len(node.worker.shelf) == 1
    node.promote()
    assert node.analysed_by() == NEW
    assert node.worker.jobs_ahead == 0


def test_going_back_is_followed_too(node: Following) -> None:
    node.promote()
    assert node.worker.model.follow() and node.worker.pipeline.identity == NEW
    node.promote("default", Threshold.identity)
    assert node.worker.model.follow() and node.worker.pipeline.identity == Threshold.identity


def test_a_host_without_the_promoted_model_takes_no_study_and_its_worker_ends(node: Following) -> None:
    node.receive(*scan())
    del node.there["/m/new.json"]
    node.promote()
    (job,) = node.work(1)
    assert job.state is JobState.QUEUED and job.attempts == 0, "another host may take it"
    assert node.signals[0] == (os.getpid(), signal.SIGTERM)


class TestLoading:
    """Real weights, and the reasons for which they are refused."""

    @staticmethod
    def promoted(pipeline: Path, model: ModelIdentity) -> Active:
        before = ModelIdentity("default", "1", "")
        one = Promotion(1, 1.0, "anna", "better", str(pipeline), model, "default", "default", before)
        return Active(str(pipeline), one)

    def test_only_the_very_weights_will_do(self, tmp_path: Path) -> None:
        sidecar, model = make_other_model(tmp_path)
        assert load_active(self.promoted(sidecar, model), ON_CPU).identity == model
        other = ModelIdentity("other", "2.0.0", "f" * 64)
        with pytest.raises(PermanentError, match="promoted by anna, has sha256 ffffffffffff…, but"):
            load_active(self.promoted(sidecar, other), ON_CPU)
        (tmp_path / "other.safetensors").unlink()
        with pytest.raises(PermanentError, match="promoted by anna, cannot be loaded on this host") as caught:
            load_active(self.promoted(tmp_path / "gone.json", model), ON_CPU)
        assert caught.value.code == "MODEL_REFUSED"

    def test_who_waits_for_a_model_says_why_and_goes_on_once_it_is_there(
        self, node: Following, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(selection, "LOOK_AGAIN_S", 0.01)
        there, seen = threading.Event(), []

        def load() -> str:
            if not there.is_set():
                rows = node.records.views.processes(time.time())
                seen.extend(row["detail"].get("refuses") for row in rows)
                if seen:
                    there.set()
                raise PermanentError("MODEL_NOT_FOUND", "no weights at /m")
            return "loaded"

        assert patiently(node.records, "worker", load, lambda: True) == "loaded"
        assert seen == ["no weights at /m"]
        there.clear()
        with pytest.raises(PermanentError):
            patiently(node.records, "worker", load, lambda: False)


class TestShadowWorker:
    def read(self, node: Following, pipeline: Any) -> dict[str, int]:
        node.receive(*scan())
        (job,) = node.work(1)
        before = node.records.jobs.get(job.id)
        model = ShadowModel("/m/new.json", pipeline.identity)
        (drawn,) = node.records.shadows.unread(pipeline.identity.sha256, 0)
        assert node.records.shadows.want(model, drawn, None, time.time())
        records = open_records(node.settings)
        worker = ShadowWorker(node.settings, pipeline, records)
        for _ in range(3):
            worker.run(1)
        records.close()
        assert node.records.jobs.get(job.id) == before, "the study knows nothing of it"
        return node.records.shadows.counts()

    def test_it_reads_the_files_of_the_job(self, node: Following) -> None:
        assert self.read(node, Newer()) == {"DONE": 1}
        (row,) = node.records.pairs.latest(Asked(Threshold.identity.sha256, NEW.sha256), 5)
        assert row["shadow_any_probability"] == pytest.approx(row["active_any_probability"])
        assert row["shadow_volume_ml"] == row["active_volume_ml"] and row["shadow_total_s"] > 0

    def test_nonsense_is_a_failure_and_no_finding(self, node: Following) -> None:
        assert self.read(node, Broken()) == {"FAILED": 1}
        (failed,) = node.records.shadows.failures()
        assert (failed["reason_code"], failed["attempts"]) == ("MODEL_OUTPUT_INVALID", 1)

    def test_what_breaks_is_tried_again_and_given_up(self, node: Following) -> None:
        broken = Broken()
        broken.error = RuntimeError("out of memory")
        assert self.read(node, broken) == {"FAILED": 1}
        (failed,) = node.records.shadows.failures()
        assert (failed["reason_code"], failed["attempts"]) == ("WORKER_ERROR", 2)
        assert "in each of 2 attempts" in failed["reason_text"]


@pytest.mark.parametrize(("module", "step"), [(tasks, "_with_its_model"), (shadow, "open_records")])
def test_a_worker_that_breaks_at_its_start_ends(
    module: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery logs what its signal handlers raise and goes on: without a model, beside every doorbell."""

    def breaks(*_: object) -> None:
        raise RuntimeError("nobody foresaw it")

    def ends(who: str, error: Exception) -> None:
        raise SystemExit(f"{who}: {error}")

    monkeypatch.setattr(module, step, breaks)
    monkeypatch.setattr(module, "give_up", ends)
    with pytest.raises(SystemExit, match="worker: nobody foresaw it"):
        module._start(instance=SimpleNamespace(app=SimpleNamespace(settings=Settings())))
