"""How fast results go out: the node's couriers and senders beside dcmtk's storescu, to the same receiver.

`python -m tests.bench.egress [--rounds 5] [--objects 200] [--to storescp Orthanc sink] [--slow-s 0.5]`. Sent
are secondary captures of 512 × 512 RGB (786 KB), as most of the results are. "courier" is the whole way of a
delivery: rows taken from the database, sent, and written down as sent; "sender" the sending alone. Each round
sends to a fresh receiver in turn, so judged are ratios within a round. `--slow-s` adds a second destination
that takes so long for each answer, and shows what the quick one loses by it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydicom import dcmwrite
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from sqlalchemy import select

from node.deliver import Courier, carrier_to
from node.domain.findings import Findings, ModelIdentity, Priority, Status
from node.domain.instance import Instance
from node.domain.lifecycle import DeliveryState
from node.scu import Outcome, Parcel, Peer
from node.settings import Destination, Settings
from node.shipment import StreamingPeer
from node.spool import Spool
from node.store.arrivals import StoredFile
from node.store.deliveries import NewDelivery
from node.store.jobs import NewObject
from node.store.records import Records, open_records
from node.store.tables import deliveries
from tests.bench.ingest import orthanc, running, storescp
from tests.bench.report import Panel, spread, write
from tests.factories import ct_series, make_uid
from workers.demo import orthanc_executable

Send = Callable[[int], tuple[float, float]]
"""Send everything to a port; seconds it took, and seconds of a core that the sender used."""


class Watch:
    """Time and CPU time since it was made, of this process and of the children it has waited for."""

    def __init__(self) -> None:
        self._began, self._cpu = time.monotonic(), self._cpu_s()

    def read(self) -> tuple[float, float]:
        return time.monotonic() - self._began, self._cpu_s() - self._cpu

    def _cpu_s(self) -> float:
        return sum(os.times()[:4])


def plain_storescp(folder: Path, port: int) -> list[str]:
    """Parses nothing it need not, so that the sender is what is measured."""
    return ["storescp", "+B", "-od", str(folder), "--fork", str(port)]


def silent(folder: Path, port: int) -> list[str]:
    """Reads, answers, forgets."""
    return ["storescp", "--ignore", "--fork", str(port)]


COURIER = "courier, streaming"
RECEIVERS = {"storescp": storescp, "storescp +B": plain_storescp, "sink": silent, "Orthanc": orthanc}


def write_objects(folder: Path, count: int) -> list[Path]:
    """Secondary captures, each of its own UID, as the composer stores them."""
    (ds,) = ct_series(1, rows=512, name="egress")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = os.urandom(512 * 512 * 3)
    files = []
    for number in range(count):
        ds.InstanceNumber = number + 1
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = make_uid("egress", number)
        files.append(folder / f"{number:05}.dcm")
        dcmwrite(files[-1], ds, enforce_file_format=True)
    return files


def by_storescu(files: Sequence[Path]) -> Send:
    def send(port: int) -> tuple[float, float]:
        watch = Watch()
        subprocess.run(
            ["storescu", "-R", "127.0.0.1", str(port), *map(str, files)],
            check=True,
            env={**os.environ, "TCP_NODELAY": "1"},
            stdout=subprocess.DEVNULL,
        )
        return watch.read()

    return send


def by(peer: type[Peer], files: Sequence[Path], **changes: object) -> Send:
    def send(port: int) -> tuple[float, float]:
        to = Destination(name="pacs", ae_title="ANY-SCP", port=port, **changes)  # type: ignore[arg-type]
        parcels = [Parcel(n, file, str(SecondaryCaptureImageStorage)) for n, file in enumerate(files)]
        watch = Watch()
        refused = [one for one in peer(to, "ICHNODE").send(parcels) if not one.accepted]
        if refused:
            raise SystemExit(f"{len(refused)} objects were refused: {refused[0].text}")
        return watch.read()

    return send


def by_courier(files: Sequence[Path], place: Path, slow_s: float = 0.0, **changes: object) -> Send:
    """The whole way of the deliveries of one job; beside them, on request, a destination that is slow."""

    def send(port: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            settings = Settings(data_dir=Path(folder))
            records, spool = open_records(settings), Spool(Path(folder) / "spool")
            names = ["pacs", "slow"] if slow_s else ["pacs"]
            compose(records, spool, files, names)
            to = Destination(name="pacs", ae_title="ANY-SCP", port=port, **changes)  # type: ignore[arg-type]
            courier = Courier(to, carrier_to(to, "ICHNODE"), records, spool)
            over = threading.Event()
            slow = Courier(Destination(name="slow", ae_title="SLOW"), Dawdler(slow_s, over), records, spool)
            thread = threading.Thread(target=slow.round, daemon=True)
            if slow_s:
                thread.start()
                time.sleep(0.3)
            watch = Watch()
            while pending(records):
                if not courier.round():
                    raise SystemExit("the receiver did not take everything")
            found = watch.read()
            over.set()
            if slow_s:
                thread.join()
            records.close()
            return found

    return send


class Dawdler:
    """A destination that takes its time for each object."""

    name = "destination slow"

    def __init__(self, seconds: float, over: threading.Event) -> None:
        self._seconds, self._over = seconds, over

    def check(self) -> None: ...

    def echo(self) -> None: ...

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        for parcel in parcels:
            self._over.wait(self._seconds)
            yield Outcome(parcel.key, True, "0x0000")


def pending(records: Records) -> bool:
    """Whether anything is left for the quick destination."""
    with records.engine.connect() as connection:
        query = select(deliveries.c.id).where(
            deliveries.c.destination == "pacs", deliveries.c.state == DeliveryState.PENDING
        )
        return connection.execute(query.limit(1)).first() is not None


def compose(records: Records, spool: Spool, files: Sequence[Path], names: Sequence[str]) -> None:
    """A job whose objects are these files, due at every destination named."""
    jobs, decisions = records.jobs, records.decisions
    records.arrivals.open_association("a", "h:1", ("CT1", "x"), 1.0)
    instance = Instance("1.1.1", str(CTImageStorage), "1.1", "1", "x")
    records.arrivals.record(instance, StoredFile("x", 1, "1"), "a", 1.0)
    (row,) = decisions.of_study("1")
    decisions.settle(row, 2.0)
    job_id = decisions.decide(row, [], 3.0)
    assert job_id and jobs.claim(job_id, "w:1", 1e12, 4.0)
    found = Findings(ModelIdentity("m", "1", "a"), "1.1", 1, Status.ANALYSED, priority=Priority.ROUTINE)
    assert jobs.store_analysis(job_id, "w:1", found, "m", 5.0)
    made = []
    for number, file in enumerate(files):
        uid = make_uid("egress", number)
        path = spool.object_path(job_id, uid)
        spool.absolute(path).parent.mkdir(parents=True, exist_ok=True)
        os.link(file, spool.absolute(path))
        made.append(NewObject(uid, str(SecondaryCaptureImageStorage), "1.2", "sc", path, 1))
    job = jobs.get(job_id)
    assert job
    where = [NewDelivery(o.sop_instance_uid, name, n, False) for name in names for n, o in enumerate(made)]
    assert jobs.store_objects(job, made, where, time.time())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objects", type=int, default=200)
    parser.add_argument("--to", nargs="+", choices=list(RECEIVERS), default=["storescp", "Orthanc"])
    parser.add_argument("--folder", type=Path, help="where files lie and receivers write")
    parser.add_argument("--slow-s", type=float, default=0.5)
    parser.add_argument("--only", nargs="+", help="words of the senders to compare with storescu")
    parser.add_argument("--panels", type=Path, help="where all rates are kept as JSON")
    options = parser.parse_args()
    if not (shutil.which("storescu") and orthanc_executable()):
        parser.error("dcmtk and Orthanc must be installed")
    with tempfile.TemporaryDirectory(prefix="ichnode-egress-", dir=options.folder) as folder:
        place = Path(folder)
        (place / "source").mkdir()
        files = write_objects(place / "source", options.objects)
        senders: dict[str, Send] = {
            "dcmtk storescu": by_storescu(files),
            "sender, streaming": by(StreamingPeer, files),
            "sender, pynetdicom": by(Peer, files),
            COURIER: by_courier(files, place),
            "courier, pynetdicom": by_courier(files, place, sender="pynetdicom"),
            f"courier, streaming, beside one of {options.slow_s:g} s": by_courier(
                files, place, slow_s=options.slow_s
            ),
        }
        wanted = ("storescu", *(options.only or [""]))
        senders = {name: send for name, send in senders.items() if any(word in name for word in wanted)}
        rates: dict[str, dict[str, list[float]]] = {}
        for receiver in options.to:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in senders}
            for turn in range(options.rounds):
                names = list(senders)
                for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                    with (
                        tempfile.TemporaryDirectory(dir=place) as there,
                        running(RECEIVERS[receiver], Path(there)) as pacs,
                    ):
                        found[name].append(senders[name](pacs.port))
            print_table(receiver, options.objects, found)
            rates[f"to {receiver}"] = {
                name: [options.objects / took_s for took_s, _ in runs] for name, runs in found.items()
            }
    if options.panels:
        write(options.panels, [Panel("Results sent", "objects/s", COURIER, True, rates)])


def print_table(receiver: str, objects: int, found: dict[str, list[tuple[float, float]]]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    rounds = len(found["dcmtk storescu"])
    print(f"\nto {receiver}: {objects} objects, {rounds} rounds, load {load}")
    print("| sender | objects/s, median (range) | × storescu (range) | CPU ms/object |")
    print("|---|---|---|---|")
    base = [objects / took_s for took_s, _ in found["dcmtk storescu"]]
    for name, runs in found.items():
        rates = [objects / took_s for took_s, _ in runs]
        ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
        cpu_ms = statistics.median(1000 * cpu_s / objects for _, cpu_s in runs)
        print(
            f"| {name} | {spread(rates, 0)} | {spread(ratios)} | {cpu_ms:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
