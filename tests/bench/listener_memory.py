"""Does the listener's memory stay flat? `python -m tests.bench.listener_memory --instances 100000`.

Small CT images are sent over a few associations as fast as they are taken; the resident memory of every
listener process is printed on the way. Prints figures, and judges nothing but their growth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from tests.factories import ct_series
from tests.peers import eventually, free_port

SENDERS = 2
PER_SERIES = 1000
STEPS = 20


def send(port: int, count: int, done: list[int], refused: list[int]) -> None:
    """`count` instances in series of PER_SERIES, one association a series."""
    (ds,) = ct_series(1, rows=16, name="memory")
    ae = AE("BENCH")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    while count:
        ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
        assoc = ae.associate("127.0.0.1", port, ae_title="ICHNODE")
        for _ in range(min(PER_SERIES, count)):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            status = assoc.send_c_store(ds).get("Status")
            (done if status == 0 else refused).append(1)
        count -= min(PER_SERIES, count)
        assoc.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        config = Path(folder) / "ichnode.toml"
        data_dir = json.dumps(str(Path(folder) / "data"))
        config.write_text(f"data_dir = {data_dir}\nscp = {{ port = {port}, processes = 2 }}\n")
        process = subprocess.Popen([sys.executable, "-m", "node", "listen", "--config", str(config)])
        parent = psutil.Process(process.pid)
        try:
            eventually(lambda: len(parent.children()) == 2, 60)
            time.sleep(2)
            run(port, options.instances, parent)
        finally:
            process.terminate()
            process.wait(timeout=30)


def run(port: int, instances: int, parent: psutil.Process) -> None:
    done: list[int] = []
    refused: list[int] = []
    share = instances // SENDERS
    threads = [threading.Thread(target=send, args=(port, share, done, refused)) for _ in range(SENDERS)]
    began, seen, rows = time.monotonic(), 0, []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        if len(done) >= seen + instances // STEPS:
            seen = len(done)
            rss = [child.memory_info().rss / 2**20 for child in parent.children()]
            rows.append(sum(rss))
            rate = seen / (time.monotonic() - began)
            print(
                f"{seen:7d} instances, {rate:5.0f}/s, MiB: " + ", ".join(f"{mib:.1f}" for mib in rss),
                flush=True,
            )
    half = len(rows) // 2
    first, second = statistics.mean(rows[1:half]), statistics.mean(rows[half:])
    halves = f"first half {first:.1f} MiB, second {second:.1f} MiB"
    print(f"refused: {len(refused)}; both listeners together: {halves}")
    sys.exit(1 if refused or second > 1.1 * first else 0)


if __name__ == "__main__":
    main()
