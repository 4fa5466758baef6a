"""How long the first path takes: the listener's start, and the stages from last slice to SR in the PACS.

`python -m tests.bench.first_path [--slices 32] [--repeats 3]`. Needs Orthanc and dcmtk. Times are of this
machine at this moment; what to compare across machines are the ratios to dcmtk's storescp, taken alternately.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread

from workers.demo import Orthanc, await_result, free_port, orthanc_executable, running
from workers.phantom_series import write_series

Start = Callable[[Path, int], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ["TCP_NODELAY"] = "1"  # else dcmtk stalls some 40 ms an image on Nagle's algorithm
    if not (orthanc_executable() and shutil.which("storescu")):
        parser.error("Orthanc and dcmtk must be installed")
    with tempfile.TemporaryDirectory(prefix="ichnode-bench-") as place:
        folder = Path(place)
        files = write_series(folder / "source", 7, ("intraparenchymal",), slices=options.slices)
        print_starts(folder, options.repeats)
        print_receiving(folder, files, options.repeats)
        print_stages(folder, files)


def ichnode_listen(folder: Path, port: int) -> list[str]:
    os.environ["ICHNODE_SCP__PORT"] = str(port)
    return [sys.executable, "-m", "node", "listen", "--data-dir", str(folder / "listen")]


def storescp(folder: Path, port: int) -> list[str]:
    (folder / "storescp").mkdir(exist_ok=True)
    return ["storescp", "-od", str(folder / "storescp"), "--fork", str(port)]


RECEIVERS: dict[str, Start] = {"ichnode listen": ichnode_listen, "dcmtk storescp": storescp}


def started(start: Start, folder: Path) -> tuple[subprocess.Popen[bytes], int, float]:
    """The process, its port, and the seconds until it answered a C-ECHO."""
    port = free_port()
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(start(folder, port), stdout=quiet, stderr=quiet)
    while subprocess.run(["echoscu", "127.0.0.1", str(port)], capture_output=True).returncode != 0:
        if time.perf_counter() - began > 30:
            raise SystemExit(f"{process.args!r} does not answer")
    return process, port, time.perf_counter() - began


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


def print_starts(folder: Path, repeats: int) -> None:
    """Until the first C-ECHO is answered; a new data_dir once, then the same again."""
    times = []
    for _ in range(repeats + 1):
        process, _, seconds = started(ichnode_listen, folder)
        stop(process)
        times.append(seconds)
    print(f"listener ready: {times[0]:.2f} s in a new data_dir, then {statistics.median(times[1:]):.2f} s")


def print_receiving(folder: Path, files: list[Path], repeats: int) -> None:
    """Images a second over one association, alternating between receivers; ours syncs, dcmtk's does not."""
    rates: dict[str, list[float]] = {name: [] for name in RECEIVERS}
    for _ in range(repeats):
        for name, start in RECEIVERS.items():
            shutil.rmtree(folder / "listen", ignore_errors=True)
            process, port, _ = started(start, folder)
            rates[name].append(len(files) / _send(files, port))
            stop(process)
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    for name, values in rates.items():
        spread = f"{min(values):.0f}–{max(values):.0f}"
        print(f"receiving, {name}: {statistics.median(values):.0f} images/s ({spread})")
    print(f"receiving, ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


def _send(files: list[Path], port: int) -> float:
    began = time.perf_counter()
    subprocess.run(["storescu", "127.0.0.1", str(port), *map(str, files)], check=True)
    return time.perf_counter() - began


def print_stages(folder: Path, files: list[Path]) -> None:
    """Where the time goes between the last C-STORE response and the SR in Orthanc."""
    os.environ.pop("ICHNODE_SCP__PORT", None)
    place = folder / "node"
    place.mkdir()
    with running(place, lambda text: None) as demo:
        assert isinstance(demo.pacs, Orthanc)
        _send(files, demo.dicom_port)
        job = await_result(demo, lambda text: None)
        times = demo.records.views.job_times(job["id"])
        (deliveries,) = [demo.records.views.deliveries_of(job["id"])]
    moments = {
        "received": times["received_at"],
        "complete and queued": times["created_at"],
        "analysed": times["analysed_at"],
        "objects stored": job["reported_at"],
        "SR in the PACS": times["first_sent_at"],
        "everything in the PACS": max(d["sent_at"] for d in deliveries),
    }
    before = start = moments.pop("received")
    print(f"{len(files)} slices of {dcmread(files[0], stop_before_pixels=True).Rows} px:")
    for name, moment in moments.items():
        print(f"  {name:<24} + {moment - before:5.2f} s  = {moment - start:5.2f} s after the last slice")
        before = moment


if __name__ == "__main__":
    main()
