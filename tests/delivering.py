"""Composed objects that are due, and a PACS made of pynetdicom to send them to, for tests of delivery."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from sqlalchemy import select

from node.deliver import Courier, carrier_to
from node.domain.findings import Findings, ModelIdentity, Priority, Status
from node.domain.instance import Instance
from node.domain.lifecycle import DeliveryState
from node.scu import Parcel
from node.settings import Destination
from node.spool import Spool
from node.store.arrivals import StoredFile
from node.store.deliveries import NewDelivery
from node.store.jobs import NewObject
from node.store.records import Records
from node.store.tables import deliveries
from tests.factories import ct_series
from tests.ports import free_port

T0 = 1000.0
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SENT, PENDING, FAILED = DeliveryState.SENT.value, DeliveryState.PENDING.value, DeliveryState.FAILED.value


@dataclass
class Pacs:
    """A pynetdicom SCP that keeps what it is sent and answers as it is told."""

    answers: Callable[[int], Any] = lambda number: 0x0000
    classes: tuple[str, ...] = (CTImageStorage, SecondaryCaptureImageStorage, ComprehensiveSRStorage)
    syntaxes: tuple[str, ...] = NATIVE
    calling: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    kept: list[Dataset] = field(default_factory=list)
    associations: int = 0
    asked: int = 0

    def __enter__(self) -> Pacs:
        ae = AE("PACS")
        ae.require_calling_aet = self.calling
        ae.add_supported_context("1.2.840.10008.1.1")
        for sop_class in self.classes:
            ae.add_supported_context(sop_class, list(self.syntaxes))
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count), *self.supported(ae)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        return self

    def supported(self, ae: AE) -> list[Any]:
        """More that this peer serves: adds contexts to `ae`, returns handlers."""
        return []

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _count(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> Any:
        self.asked += 1
        answer = self.answers(self.asked)
        if answer == "abort":
            event.assoc.abort()
            return 0x0110
        if answer == "cut":
            transport = event.assoc.dul.socket
            assert transport and transport.socket
            transport.socket.shutdown(socket.SHUT_RDWR)
            return 0x0110
        if answer in (0x0000, 0xB000):
            ds = event.dataset
            ds.file_meta = event.file_meta
            self.kept.append(ds)
        return answer

    def uids(self) -> list[str]:
        return [str(ds.SOPInstanceUID) for ds in self.kept]


@dataclass
class Place:
    """Objects of one composed job in the spool, due at one destination."""

    records: Records
    spool: Spool
    made: dict[str, Dataset] = field(default_factory=dict)
    prefix: str = "out"
    """Objects of another prefix are other objects."""

    def compose(
        self, *destinations: str, count: int = 3, urgent: bool = False, mixed: bool = False
    ) -> list[str]:
        """A COMPOSED job with that many objects, due at T0; returns their UIDs in sending order."""
        arrivals, jobs = self.records.arrivals, self.records.jobs
        decisions = self.records.decisions
        arrivals.open_association("a", "h:1", ("CT1", "x"), 1.0)
        number = len(self.made)
        study, series = f"1.{number}", f"1.{number}.1"
        arrivals.record(
            Instance(f"{series}.1", CTImageStorage, series, study, "x"), StoredFile("x", 1, study), "a", 1.0
        )
        (row,) = decisions.of_study(study)
        decisions.settle(row, 2.0)
        job_id = decisions.decide(row, [], 3.0)
        assert job_id and jobs.claim(job_id, "w:1", 1e12, 4.0)
        found = Findings(ModelIdentity("m", "1", "a"), series, 1, Status.ANALYSED, priority=Priority.STAT)
        assert jobs.store_analysis(job_id, "w:1", found, "m", 5.0)
        new = []
        for index, ds in enumerate(ct_series(count, rows=64, name=f"{self.prefix}{number}")):
            if mixed and index == 1:
                ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
            uid = str(ds.SOPInstanceUID)
            stream = BytesIO()
            dcmwrite(stream, ds, enforce_file_format=True)
            path = self.spool.object_path(job_id, uid)
            self.spool.write(path, (stream.getvalue(),))
            self.made[uid] = ds
            new.append(NewObject(uid, str(ds.SOPClassUID), series, "sc", path, len(stream.getvalue())))
        job = jobs.get(job_id)
        assert job
        where = [
            NewDelivery(o.sop_instance_uid, name, rank, urgent)
            for name in destinations
            for rank, o in enumerate(new)
        ]
        assert jobs.store_objects(job, new, where, T0)
        return [o.sop_instance_uid for o in new]

    def spoil(self, rank: int) -> None:
        """Compress an object, and take what a decoder needs out of it."""
        file = self.spool.absolute(f"outgoing/1/{self.rows()[rank].sop_instance_uid}.dcm")
        ds = dcmread(file)
        ds.compress(RLELossless, generate_instance_uid=False)
        del ds.PhotometricInterpretation
        ds.save_as(file)

    def courier(self, destination: Destination) -> Courier:
        return Courier(destination, carrier_to(destination, "ICHNODE"), self.records, self.spool)

    def rows(self, destination: str = "pacs") -> list[Any]:
        with self.records.engine.connect() as connection:
            query = (
                select(deliveries).where(deliveries.c.destination == destination).order_by(deliveries.c.rank)
            )
            return list(connection.execute(query).all())

    def parcels(self) -> list[Parcel]:
        """Everything composed, as a courier hands it to a carrier."""
        return [
            Parcel(number, path, str(dcmread(path, stop_before_pixels=True).SOPClassUID))
            for number, path in enumerate(sorted(self.spool.root.glob("outgoing/*/*.dcm")))
        ]

    def states(self, destination: str = "pacs") -> list[str]:
        return [row.state for row in self.rows(destination)]


def pacs_at(port: int, name: str = "pacs", **changes: Any) -> Destination:
    return Destination(name=name, ae_title="PACS", port=port, retry_base_s=5, retry_max_s=60, **changes)


def data_set(file: bytes) -> bytes:
    """The encoded data set of a Part 10 file, without its meta information (PS3.10 7.1)."""
    ds = dcmread(BytesIO(file), stop_before_pixels=True)
    return file[132 + 12 + int(ds.file_meta.FileMetaInformationGroupLength) :]
