"""How fast images come in: the receivers of the node, storescp, Orthanc and a bare socket, side by side.

`python -m tests.bench.ingest [--rounds 5] [--images 40] [--associations 1 4 8] [--folder DIR] [--idle 8]
[--database postgresql] [--panels FILE]`: that server is not counted into the receiver's CPU time, and syncs
nothing either.
Every round sends the same images to every receiver in turn, so that what else the machine does hits all of
them; judged are ratios within a round. The node syncs data and name before Success; the others do not sync
the data. Peers run with TCP_NODELAY=1, without which dcmtk and Orthanc stall some 40 ms an image.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from pydicom import dcmwrite

from node.domain.instance import CT_IMAGE
from tests.bench.report import Panel, spread, write
from tests.factories import ct_series
from tests.ports import free_port
from tests.postgres import Postgres
from tests.raw_peer import RawPeer, Stored, store_pdus, stored
from workers.demo import orthanc_executable

ROWS = 512
"""512 × 512 16-bit CT: 526 KB an image."""
START_S = 60.0
IDLE_S = 10.0
FLOOR = "bare socket"


@dataclass(frozen=True)
class Measured:
    """One run. `cpu_ms` is the receiver's own time of user and kernel for an image, its children counted."""

    images_per_s: float
    cpu_ms: float
    peak_mib: float


@dataclass
class Running:
    """A receiver that answers on a port."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Of the process and its children, of those that have ended too."""
        total = 0.0
        for one in self._all():
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4] if one == self.process else one.cpu_times()[:2])
        return total

    def rss_mib(self) -> float:
        total = 0.0
        for one in self._all():
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss / 2**20
        return total

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


Start = Callable[[Path, int], list[str]]


def ichnode(receiver: str, database: Callable[[], str] = str) -> Start:
    """`database` gives the URL of an empty one; none: SQLite."""

    def start(folder: Path, port: int) -> list[str]:
        config = folder / "ichnode.toml"
        data_dir = json.dumps(str(folder / "data"))
        config.write_text(
            f"data_dir = {data_dir}\n[scp]\nport = {port}\nreceiver = '{receiver}'\n"
            f"[spool]\nreserve_mb = 16\n[database]\nurl = {json.dumps(database())}\n"
        )
        return [sys.executable, "-m", "node", "listen", "--config", str(config)]

    return start


def storescp(folder: Path, port: int) -> list[str]:
    return ["storescp", "-od", str(folder), "--fork", str(port)]


def orthanc(folder: Path, port: int) -> list[str]:
    config = folder / "orthanc.json"
    options = {
        "DicomPort": port,
        "HttpPort": free_port(),
        "StorageDirectory": str(folder / "s"),
        "Plugins": [],
    }
    config.write_text(
        json.dumps(options | {"IndexDirectory": str(folder / "s"), "DicomCheckCalledAet": False})
    )
    return [orthanc_executable() or "Orthanc", str(config)]


def sink(folder: Path, port: int) -> list[str]:
    """Reads and forgets: what a sender and a socket alone allow."""
    return [sys.executable, "-c", "from tests.bench.ingest import serve_sink; serve_sink()", str(port)]


RECEIVERS: dict[str, Start] = {
    "ichnode streaming": ichnode("streaming"),
    "ichnode pynetdicom": ichnode("pynetdicom"),
    "dcmtk storescp": storescp,
    "Orthanc": orthanc,
    FLOOR: sink,
}


def serve_sink() -> None:
    """A length, so many bytes, one byte back; a thread for each connection."""

    def serve(peer: socket.socket) -> None:
        buffer = memoryview(bytearray(256 * 1024))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer:
            while head := peer.recv(4, socket.MSG_WAITALL):
                (left,) = struct.unpack(">I", head)
                while left:
                    left -= peer.recv_into(buffer, min(left, len(buffer)))
                peer.send(b"K")

    with socket.create_server(("127.0.0.1", int(sys.argv[-1])), backlog=64) as server:
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


@contextmanager
def running(start: Start, folder: Path) -> Iterator[Running]:
    port = free_port()
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "TCP_NODELAY": "1"}
    process = subprocess.Popen(start(folder, port), stdout=quiet, stderr=quiet, env=environment)
    try:
        _await(port, process)
        yield Running(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not answer")


def send(
    port: int, batch: Sequence[Stored], is_sink: bool, ready: object, go: object, results: object
) -> None:
    """One association: everything is built before the clock starts; it covers sending and the responses."""
    if is_sink:
        peer = socket.create_connection(("127.0.0.1", port))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames = [struct.pack(">I", len(one.data)) + one.data for one in batch]
    else:
        assoc = RawPeer(port, [(batch[0].sop_class_uid, [batch[0].transfer_syntax_uid])])
        frames = [store_pdus(one, number + 1, min(assoc.longest, 131072)) for number, one in enumerate(batch)]
        peer = assoc.socket
    ready.release()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    began, refused = time.monotonic(), 0
    for frame in frames:
        peer.sendall(frame)
        refused += peer.recv(1) != b"K" if is_sink else assoc.status() != 0
    results.put((began, time.monotonic(), refused))  # type: ignore[attr-defined]


def measure(node: Running, batches: Sequence[Sequence[Stored]], is_sink: bool) -> Measured:
    context = multiprocessing.get_context("fork")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    arguments = [(node.port, batch, is_sink, ready, go, results) for batch in batches]
    senders = [context.Process(target=send, args=given) for given in arguments]
    for sender in senders:
        sender.start()
    for _ in senders:
        if not ready.acquire(timeout=START_S):
            raise SystemExit("a sender got no association")
    before, peak = node.cpu_s(), node.rss_mib()
    go.set()
    found = []
    while len(found) < len(senders):
        with suppress(Exception):
            found.append(results.get(timeout=0.05))
        peak = max(peak, node.rss_mib())
    cpu_s = node.cpu_s() - before
    for sender in senders:
        sender.join()
    if any(refused for _, _, refused in found):
        raise SystemExit(f"{sum(refused for _, _, refused in found)} images were refused")
    count = sum(map(len, batches))
    wall_s = max(end for _, end, _ in found) - min(began for began, _, _ in found)
    return Measured(count / wall_s, 1000 * cpu_s / count, peak)


def idle(name: str, place: Path, associations: int, seconds: float) -> float:
    """CPU of a receiver in ms a second, while so many associations are open and say nothing."""
    with tempfile.TemporaryDirectory(dir=place) as folder, running(RECEIVERS[name], Path(folder)) as node:
        peers = [RawPeer(node.port, [(CT_IMAGE, ["1.2.840.10008.1.2.1"])]) for _ in range(associations)]
        time.sleep(2)
        before, began = node.cpu_s(), time.monotonic()
        time.sleep(seconds)
        used_s, passed_s = node.cpu_s() - before, time.monotonic() - began
        for peer in peers:
            peer.release()
    return 1000 * used_s / passed_s


def print_idle(names: Sequence[str], place: Path, associations: int, seconds: float) -> None:
    print(f"\n| receiver | CPU ms a second with {associations} idle associations |\n|---|---|")
    for name in names:
        if name != FLOOR:
            print(f"| {name} | {idle(name, place, associations, seconds):.1f} |", flush=True)


def storescu(node: Running, folders: Sequence[Path], count: int) -> Measured:
    """dcmtk as the sender: one process an association, its start counted."""
    before, peak = node.cpu_s(), node.rss_mib()
    began = time.monotonic()
    environment = {**os.environ, "TCP_NODELAY": "1"}
    processes = [
        subprocess.Popen(["storescu", "+sd", "127.0.0.1", str(node.port), str(folder)], env=environment)
        for folder in folders
    ]
    for process in processes:
        if process.wait() != 0:
            raise SystemExit("storescu was refused")
    wall_s = time.monotonic() - began
    return Measured(count / wall_s, 1000 * (node.cpu_s() - before) / count, max(peak, node.rss_mib()))


def write_images(folder: Path, associations: int, images: int) -> list[Path]:
    """A folder with a series for each association."""
    folders = []
    for number in range(associations):
        (ds,) = ct_series(1, rows=ROWS, name=f"ingest {number}")
        folders.append(folder / str(number))
        folders[-1].mkdir(parents=True)
        for index in range(images):
            ds.InstanceNumber = index + 1
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = (
                f"2.25.{10**20 + number * 10**6 + index}"
            )
            dcmwrite(folders[-1] / f"{index:05}.dcm", ds, enforce_file_format=True)
    return folders


def one_round(names: Sequence[str], folders: Sequence[Path], place: Path, sender: str) -> dict[str, Measured]:
    batches = [[stored(path) for path in sorted(folder.iterdir())] for folder in folders]
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory(dir=place) as folder, running(RECEIVERS[name], Path(folder)) as node:
            is_sink = name == FLOOR
            if not is_sink:  # imports, caches, the tables
                for _ in range(4):
                    peer = RawPeer(
                        node.port, [(batches[0][0].sop_class_uid, [batches[0][0].transfer_syntax_uid])]
                    )
                    warm = replace(batches[0][0], data=batches[0][0].data)
                    peer.store(warm)
                    peer.release()
            if sender == "raw" or is_sink:
                found[name] = measure(node, batches, is_sink)
            else:
                found[name] = storescu(node, folders, sum(map(len, batches)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=40, help="of each association")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--folder", type=Path, help="where receivers write; default: the temporary folder")
    parser.add_argument("--sender", choices=("raw", "storescu"), default="raw")
    parser.add_argument("--only", nargs="+", choices=list(RECEIVERS), default=list(RECEIVERS))
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="of the node")
    parser.add_argument("--idle", type=int, default=8, help="associations that say nothing; 0: not measured")
    parser.add_argument("--panels", type=Path, help="where all rates are kept as JSON")
    options = parser.parse_args()
    absent = {"dcmtk storescp": not shutil.which("storescp"), "Orthanc": not orthanc_executable()}
    names = [name for name in options.only if not absent.get(name)]
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ichnode-ingest-", dir=options.folder))
        if options.database == "postgresql":
            server = Postgres()
            stack.callback(server.stop)
            for receiver in ("streaming", "pynetdicom"):
                RECEIVERS[f"ichnode {receiver}"] = ichnode(receiver, server.create)
        found: dict[str, dict[str, list[float]]] = {}
        for associations in options.associations:
            source = Path(place) / f"source{associations}"
            folders = write_images(source, associations, options.images)
            rounds = [
                one_round(_turned(names, number), folders, Path(place), options.sender)
                for number in range(options.rounds)
            ]
            print_rounds(associations, names, rounds)
            group = f"{associations} association{'s' if associations > 1 else ''}"
            found[group] = {
                name: [one[name].images_per_s for one in rounds] for name in names if name != FLOOR
            }
            shutil.rmtree(source)
        if options.idle:
            print_idle(names, Path(place), options.idle, IDLE_S)
    if options.panels:
        write(options.panels, [Panel("Images taken", "images/s", names[0], True, found)])


def _turned(names: Sequence[str], number: int) -> list[str]:
    """Nobody is always first."""
    at = number % len(names)
    return [*names[at:], *names[:at]]


def print_rounds(associations: int, names: Sequence[str], rounds: Sequence[dict[str, Measured]]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{associations} association(s), {len(rounds)} rounds, load {load}")
    print(
        "| receiver | images/s, median (range) | CPU ms/image | peak RSS MiB | streaming is × this (range) |"
    )
    print("|---|---|---|---|---|")
    for name in names:
        rates = [found[name].images_per_s for found in rounds]
        cpu = statistics.median(found[name].cpu_ms for found in rounds)
        peak = max(found[name].peak_mib for found in rounds)
        ratios = [found[names[0]].images_per_s / found[name].images_per_s for found in rounds]
        print(
            f"| {name} | {spread(rates, 0)} | {cpu:.2f} | {peak:.0f} | {spread(ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
