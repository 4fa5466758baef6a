"""Does the listener's memory stay flat? `python -m tests.bench.listener_memory --instances 100000`.

Small phantom slices with UIDs of their own come over several associations at a time, as fast as they are
taken: a study, a series and an association for every 500. Resident (RSS), proportional (PSS) and own (USS)
memory of every process of the listener is printed on the way. At the end records and files are counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import psutil
from pydicom import dcmwrite
from sqlalchemy import func, select

from node.store.engine import open_engine, reading
from node.store.tables import instances, series
from tests.factories import ct_series
from tests.peers import eventually
from tests.ports import free_port
from tests.raw_peer import RawPeer, Stored, store_pdus, stored

PER_SERIES = 500
STEPS = 20
MIB = 2**20


def template(folder: Path) -> Stored:
    """A slice of 32 × 32; its three UIDs have 25 characters."""
    (ds,) = ct_series(1, rows=32, name="memory")
    ds.StudyInstanceUID, ds.SeriesInstanceUID, uid = (_uid(kind, 0, 0) for kind in (1, 2, 3))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    dcmwrite(folder / "template.dcm", ds, enforce_file_format=True)
    return stored(folder / "template.dcm")


def _uid(kind: int, group: int, number: int) -> str:
    return f"2.25.{kind}{group:09d}{number:010d}"


def send(
    port: int, one: Stored, sender: int, count: int, sent: Synchronized[int], bad: Synchronized[int]
) -> None:
    """`count` slices, in associations of PER_SERIES."""
    for group in range(-(-count // PER_SERIES)):
        name = sender * 10**6 + group
        peer = RawPeer(port, [(one.sop_class_uid, [one.transfer_syntax_uid])])
        data = one.data
        for kind in (1, 2):
            data = data.replace(_uid(kind, 0, 0).encode(), _uid(kind, name, 1).encode())
        for number in range(min(PER_SERIES, count - group * PER_SERIES)):
            uid = _uid(3, name, number + 1)
            mine = data.replace(_uid(3, 0, 0).encode(), uid.encode())
            what = Stored(one.sop_class_uid, uid, one.transfer_syntax_uid, mine)
            peer.socket.sendall(store_pdus(what, number + 1, min(peer.longest, 131072)))
            counter = sent if peer.status() == 0 else bad
            with counter.get_lock():
                counter.value += 1
        peer.release()


def sizes(process: psutil.Process) -> tuple[float, float, float]:
    """RSS, PSS and USS in MiB, from /proc/PID/smaps_rollup; zeros for a process that is gone."""
    try:
        found = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0.0, 0.0, 0.0
    return found.rss / MIB, found.pss / MIB, found.uss / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the node writes; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ichnode-memory-", dir=options.folder) as place:
        folder, port = Path(place), free_port()
        config = folder / "ichnode.toml"
        data_dir = json.dumps(str(folder / "data"))
        config.write_text(
            f"data_dir = {data_dir}\n[scp]\nport = {port}\nprocesses = 2\n[spool]\nreserve_mb = 16\n"
        )
        process = subprocess.Popen([sys.executable, "-m", "node", "listen", "--config", str(config)])
        parent = psutil.Process(process.pid)
        try:
            eventually(lambda: len(parent.children()) == 2, 120)
            time.sleep(3)
            flat = run(port, options.instances, options.associations, parent, template(folder))
        finally:
            process.terminate()
            process.wait(timeout=60)
        whole = accounted(folder / "data", options.instances)
    sys.exit(0 if flat and whole else 1)


def run(port: int, wanted: int, associations: int, parent: psutil.Process, one: Stored) -> bool:
    """Whether nothing was refused, and the second half took at most a tenth more than the first."""
    context = multiprocessing.get_context("fork")
    sent, bad = context.Value("q", 0), context.Value("q", 0)
    share = [wanted // associations + (number < wanted % associations) for number in range(associations)]
    senders = [
        context.Process(target=send, args=(port, one, number, count, sent, bad), daemon=True)
        for number, count in enumerate(share)
    ]
    processes = [parent, *parent.children()]
    print("| instances | images/s | " + " | ".join(_names(len(processes))) + " |")
    print("|---|---|" + "---|" * len(processes))
    began, rows, seen = time.monotonic(), [], -1
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        time.sleep(0.5)
        if sent.value * STEPS // wanted > seen:
            seen = sent.value * STEPS // wanted
            rows.append([sizes(process) for process in processes])
            _print(sent.value, time.monotonic() - began, rows[-1])
    rows.append([sizes(process) for process in processes])
    _print(sent.value, time.monotonic() - began, rows[-1])
    own = [sum(uss for _, _, uss in row) for row in rows]
    first, second = statistics.mean(own[1 : len(own) // 2]), statistics.mean(own[len(own) // 2 :])
    load = ", ".join(f"{value:.0f}" for value in os.getloadavg())
    print(f"refused: {bad.value}; USS of all: first half {first:.1f} MiB, second {second:.1f}; load {load}")
    return not bad.value and second <= 1.1 * first


def _names(count: int) -> list[str]:
    return ["parent: RSS, PSS, USS MiB", *(f"listener {number}" for number in range(1, count))]


def _print(count: int, after_s: float, row: list[tuple[float, float, float]]) -> None:
    cells = " | ".join(", ".join(f"{value:.1f}" for value in one) for one in row)
    print(f"| {count:,} | {count / max(after_s, 0.001):.0f} | {cells} |", flush=True)


def accounted(data_dir: Path, wanted: int) -> bool:
    """Whether every slice has its record, its place in the count of its series, and its file."""
    engine = open_engine(f"sqlite:///{data_dir}/ichnode.sqlite3")
    with reading(engine) as connection:
        recorded = connection.execute(select(func.count()).select_from(instances)).scalar_one()
        counted = connection.execute(select(func.sum(series.c.instance_count))).scalar_one()
    engine.dispose()
    files = sum(1 for _ in (data_dir / "spool" / "incoming").rglob("*.dcm"))
    print(f"sent {wanted}: {recorded} recorded, {counted} counted in their series, {files} files")
    return recorded == counted == files == wanted


if __name__ == "__main__":
    main()
