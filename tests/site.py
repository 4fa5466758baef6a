"""Fills the records of a node as its roles would, by their own queries; on request with real images."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from pydicom.dataset import Dataset

from node.admin.roles import spool_of
from node.admin.web.app import make_app
from node.compose import Composer
from node.domain.findings import (
    CLASSES,
    ClassFinding,
    Consistency,
    Findings,
    ModelIdentity,
    Priority,
    Reason,
    SegmentationFinding,
    Status,
)
from node.domain.instance import Instance
from node.headers import instance_of
from node.maps import Maps, pack
from node.outputs.encoding import encode
from node.settings import Settings
from node.store.arrivals import StoredFile
from node.store.decisions import SeriesRow
from node.store.deliveries import NewDelivery
from node.store.jobs import NewObject
from node.store.records import Records
from tests import factories

CT = "1.2.840.10008.5.1.4.1.1.2"


class Site:
    def __init__(self, records: Records, settings: Settings | None = None) -> None:
        self.records = records
        self.settings = settings
        self._received = 0

    def receive(self, study: str, series: str, *, ago: float = 0, images: int = 2, **header: str) -> None:
        now = time.time() - ago
        self.records.arrivals.open_association(f"{study}/{series}", "listen", ("CT1", "127.0.0.1"), now)
        for _ in range(images):
            self._received += 1
            uid = f"2.25.{self._received}"
            instance = Instance(uid, CT, series, study, "1.2.840.10008.1.2.1", "CT", **header)
            file = StoredFile(f"{uid}.dcm", 1000, f"{self._received:064d}")
            self.records.arrivals.record(instance, file, f"{study}/{series}", now)
        self.records.arrivals.close_association(f"{study}/{series}", "released", now)

    def decide(self, study: str, chosen: str | None, reason: Reason | None = None) -> int | None:
        """Settle all series of the study; each but the chosen one is refused for the reason."""
        now = time.time()
        for row in self.rows(study):
            self.records.decisions.settle(row, now)
        rows = self.rows(study)
        refused = [
            (row, reason or Reason("NOT_CHOSEN", "another series"))
            for row in rows
            if row.series_instance_uid != chosen
        ]
        accepted = next((r for r in rows if r.series_instance_uid == chosen), None)
        return self.records.decisions.decide(accepted, refused, now)

    def rows(self, study: str) -> list[SeriesRow]:
        return self.records.decisions.of_study(study)

    def queued(self, study: str, **header: Any) -> int:
        self.receive(study, f"{study}.1", **header)
        job = self.decide(study, f"{study}.1")
        assert job is not None
        return job

    def running(self, study: str, **header: Any) -> int:
        job = self.queued(study, **header)
        assert self.records.jobs.claim(job, "worker", time.time() + 60, time.time())
        return job

    def failed(self, study: str, reason: Reason, **header: Any) -> int:
        job = self.running(study, **header)
        assert self.records.jobs.fail(job, reason)
        return job

    def analysed(self, study: str, findings: Findings, **header: Any) -> int:
        job = self.running(study, **header)
        assert self.records.jobs.store_analysis(job, "worker", findings, "maps", time.time())
        return job

    def composed(self, study: str, findings: Findings, **header: Any) -> int:
        """With one object on its way to the PACS."""
        job = self.analysed(study, findings, **header)
        made = NewObject(f"{study}.9", CT, f"{study}.8", "sr", "sr.dcm", 1000)
        urgent = findings.priority is Priority.STAT
        delivery = NewDelivery(made.sop_instance_uid, "pacs", 0, urgent)
        stored = self.records.jobs.get(job)
        assert stored
        assert self.records.jobs.store_objects(stored, [made], [delivery], time.time())
        return job

    def delivery_of(self, job: int) -> int:
        found: int = self.records.views.deliveries_of(job)[0]["id"]
        return found

    def given_up(self, study: str, findings: Findings, **header: Any) -> int:
        """The id of a delivery that is tried no more."""
        delivery = self.delivery_of(self.composed(study, findings, **header))
        assert self.records.deliveries.give_up(delivery, "PACS refused the association", "0xA700")
        return delivery

    def overtaken(self, study: str, findings: Findings, **header: Any) -> int:
        """The id of a delivery in whose place that of a newer result of the same images goes."""
        job = self.composed(study, findings, **header)
        older = self.delivery_of(job)
        self.records.jobs.reanalyse(job)
        assert self.records.jobs.claim(job, "worker", time.time() + 60, time.time())
        assert self.records.jobs.store_analysis(job, "worker", findings, "maps", time.time())
        again = self.records.jobs.get(job)
        made = NewObject(f"{study}.19", CT, f"{study}.8", "sr", "sr2.dcm", 1000)
        going = NewDelivery(made.sop_instance_uid, "pacs", 0, findings.priority is Priority.STAT)
        assert again and self.records.jobs.store_objects(again, [made], [going], time.time())
        return older

    def store(self, series: list[Dataset]) -> None:
        """Real images, in the spool and in the records."""
        assert self.settings
        spool, now = spool_of(self.settings), time.time()
        study = str(series[0].StudyInstanceUID)
        association = study[-36:]  # as long as an id may be
        self.records.arrivals.open_association(association, "listen", ("CT1", "127.0.0.1"), now)
        for number, ds in enumerate(series):
            instance = instance_of(ds, str(ds.file_meta.TransferSyntaxUID))
            path = spool.instance_path(study, instance.series_instance_uid, instance.sop_instance_uid)
            data = encode(ds)
            spool.write(path, (data,))
            self._received += 1
            file = StoredFile(path, len(data), f"{self._received:064d}")
            self.records.arrivals.record(instance, file, association, now + number * 1e-3)
        self.records.arrivals.close_association(association, "released", now)

    def pictured(self, series: list[Dataset], probabilities: dict[str, float] | None = None) -> int:
        """A study with real images, a mask and a heat map, analysed and composed; returns the job."""
        assert self.settings
        job_id = self.looked_at(series, probabilities)
        Composer(self.settings, self.records, spool_of(self.settings)).round()
        return job_id

    def looked_at(self, series: list[Dataset], probabilities: dict[str, float] | None = None) -> int:
        """…analysed, and to be composed."""
        assert self.settings
        return self.look_at(self.sent(series), series, probabilities)

    def sent(self, series: list[Dataset]) -> int:
        """…and waits for a worker."""
        self.store(series)
        job_id = self.decide(str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID))
        assert job_id is not None
        return job_id

    def look_at(
        self, job_id: int, series: list[Dataset], probabilities: dict[str, float] | None = None
    ) -> int:
        """What a worker does."""
        assert self.settings
        first = series[0]
        job = self.records.jobs.claim(job_id, "worker", time.time() + 60, time.time())
        assert job
        bleeding = max((probabilities or {}).values(), default=0.0) >= 0.5
        masks = factories.bleed(len(series), first.Rows) & bleeding
        heat = np.stack([np.uint8(200) * mask[::8, ::8].astype(np.uint8) for mask in masks])
        findings = factories.analysed(series, probabilities, masks=masks)
        path = spool_of(self.settings).job_path(job_id, job.attempts, "maps.npz")
        spool_of(self.settings).write(path, (pack(Maps(masks, heat)),))
        assert self.records.jobs.store_analysis(job_id, "worker", findings, path, time.time())
        return job_id


def browser(settings: Settings, records: Records, **options: Any) -> TestClient:
    """On the node's own machine; `options` as of TestClient."""
    usual = {"base_url": "http://127.0.0.1:8080", "headers": {"Accept": "text/html"}}
    return TestClient(make_app(settings, records), **{**usual, **options})


def findings(
    present: dict[str, float] | None = None,
    volume_ml: float = 0.0,
    consistency: Consistency = Consistency.AGREE,
    priority: Priority | None = None,
) -> Findings:
    present = present or {}
    values = {name: present.get(name, 0.02) for name in CLASSES}
    return Findings(
        ModelIdentity("test", "1", "0" * 64),
        "series",
        1,
        Status.ANALYSED,
        classes={name: ClassFinding(value, name in present) for name, value in values.items()},
        segmentation=SegmentationFinding(volume_ml, ("2.25.1", "2.25.2") if volume_ml else ()),
        consistency=consistency,
        priority=priority or (Priority.STAT if present else Priority.ROUTINE),
    )


SUBDURAL = findings({"any": 0.94, "subdural": 0.914}, 23.4)
