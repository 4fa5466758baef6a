"""Hands for tests of the shadow: a node whose studies a second model reads, too."""

from __future__ import annotations

import time
from dataclasses import replace

from node.domain.acquisition import Acquisition
from node.domain.findings import ClassFinding, Findings, ModelIdentity, Priority
from node.domain.opinion import Opinion, Word
from node.settings import Settings, Shadow
from node.shadowing import ROLE, Shadowing
from node.store.records import Records
from node.store.shadows import Shadowing as Taken
from node.store.shadows import ShadowModel
from tests.site import Site, findings

ACTIVE = ModelIdentity("active", "1.0", "a" * 64)
OTHER = ModelIdentity("other", "2.0", "b" * 64)
SHADOW = ShadowModel("/models/other.json", OTHER)


class Bell:
    """Notes whom it rings for."""

    def __init__(self) -> None:
        self.rung: list[int] = []

    def ring_shadow(self, number: int) -> None:
        self.rung.append(number)


class Shadowed:
    """Studies that the active model analysed, and the line of the shadow model."""

    def __init__(self, records: Records, settings: Settings | None = None, **shadow: float) -> None:
        self.settings = settings or Settings(shadow=Shadow(pipeline="/models/other.json", **shadow))  # type: ignore[arg-type]
        self.records = records
        self.site = Site(records, self.settings)
        self.bell = Bell()
        self.elapsed_s = 0.0
        self.line = Shadowing(self.settings, records, self.bell, lambda: self.elapsed_s)  # type: ignore[arg-type]

    def loads(self, model: ShadowModel = SHADOW) -> None:
        """A shadow worker says that it has this model."""
        identity = model.identity
        detail = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
        row = {**detail, "pipeline": model.pipeline}
        self.records.views.beat(f"{ROLE}@h:1", ROLE, row, time.time())

    def analysed(self, study: str, any_: float = 0.02, scanner: str = "ACME") -> int:
        """By the active model; "any" and subdural are present from 0.5 on."""
        job = self.site.running(study, patient_id=f"PID-{study}")
        found = read(any_, ACTIVE)
        held = self.records.jobs.store_analysis(
            job, "worker", found, "m", time.time(), (), Acquisition(scanner)
        )
        assert held
        return job

    def take(self, owner: str = "h:1", rung: int = 0) -> Taken | None:
        now = time.time()
        return self.records.shadows.take(rung, OTHER.sha256, owner, now + 30, now)

    def reads(self, any_: float = 0.02, model: ModelIdentity = OTHER) -> int:
        """The shadow model reads the oldest that waits; returns its job."""
        taken = self.take()
        assert taken
        assert self.records.shadows.store(taken.id, "h:1", read(any_, model), time.time())
        return taken.job_id

    def both(self, study: str, active: float, shadow: float, scanner: str = "ACME") -> int:
        """A study that both models read."""
        job = self.analysed(study, active, scanner)
        self.loads()
        self.line.round(time.time())
        assert self.reads(shadow) == job
        return job

    def judged(self, job: int, opinion: Opinion) -> None:
        self.records.reviews.judge(job, Word(opinion, "anna", time.time() + 1))


def read(any_: float, model: ModelIdentity) -> Findings:
    present = any_ >= 0.5
    base = findings({"any": any_, "subdural": any_} if present else None, 12.5 if present else 0.0)
    classes = {**base.classes, "any": ClassFinding(any_, present)}
    seconds = {"load": 0.5, "canonical": 0.1, "classify": 1.4, "segment": 1.0, "total": 4.0}
    priority = Priority.STAT if present else Priority.ROUTINE
    return replace(base, model=model, classes=classes, timings_s=seconds, priority=priority)
