"""How fast a worker works off a backlog, and how busy its networks are: series by series, and looking ahead.

`python -m tests.bench.backlog [--series 8] [--rounds 3] [--ahead 6] [--together 4] [--device auto]
[--panels FILE]` fills a node with phantom heads that wait as jobs, and lets a worker in a process of its own
do them all, in turns without and with `worker.look_ahead`. It prints medians (and ranges) of series a second,
CPU seconds and the share of the time that batches were in flight, the peak of memory, and the ratio within a
round. The same on a CPU and on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.report import Panel, spread, write

PLAIN = "one by one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ahead", type=int, default=6)
    parser.add_argument("--together", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch and OpenVINO; 0: their own choice")
    parser.add_argument("--panels", type=Path, help="where the rates are kept as JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(work(options, Path(options.one[0]), int(options.one[1]))))
        return
    modes = {PLAIN: 0, f"{options.ahead} ahead, {options.together} together": options.ahead}
    rounds = [{name: _child(options, ahead) for name, ahead in modes.items()} for _ in range(options.rounds)]
    print(f"{options.series} series a round, {options.rounds} rounds; {rounds[0][PLAIN]['runtime']}\n")
    print("| worker | series/s | × one by one | networks busy | CPU s a series | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for name in modes:
        rates = [one[name]["rate"] for one in rounds]
        ratios = [one[name]["rate"] / one[PLAIN]["rate"] for one in rounds]
        busy, cpu, peak = ([one[name][key] for one in rounds] for key in ("busy", "cpu_s", "peak_mb"))
        told = "" if name == PLAIN else spread(ratios)
        print(f"| {name} | {spread(rates)} | {told} | {spread(busy)} | {spread(cpu)} | {max(peak):.0f} |")
    if options.panels:
        kept = {name: [float(one[name]["rate"]) for one in rounds] for name in modes}
        group = {str(rounds[0][PLAIN]["runtime"]): kept}
        write(options.panels, [Panel("Under backlog", "series/s", list(modes)[-1], True, group)])


def _child(options: argparse.Namespace, ahead: int) -> dict[str, float | str]:
    """One run in a process of its own, so that each starts with empty caches and a memory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "tests.bench.backlog", "--one", folder, str(ahead)]
        for name in ("series", "together", "device", "threads"):
            words += [f"--{name}", str(getattr(options, name))]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
        return found


def work(options: argparse.Namespace, folder: Path, ahead: int) -> dict[str, float | str]:
    """Fill a node in `folder`, and work it off; a first series, which warms everything up, is not counted."""
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from node.settings import Model, Settings
    from node.settings import Worker as Bounds
    from node.store.records import open_records
    from tests.site import Site
    from workers.models.device import choose_runtime
    from workers.models.runtime import load_pipeline
    from workers.models.several import busy_s
    from workers.selection import wish_of
    from workers.worker import Worker

    if options.threads:
        torch.set_num_threads(options.threads)
    bounds = Bounds(look_ahead=ahead, together=options.together)
    settings = Settings(data_dir=folder, model=Model(device=options.device), worker=bounds)
    pipeline = load_pipeline("default", wish_of(settings.model))
    (folder / "spool").mkdir()
    records = open_records(settings)
    ids = _fill(Site(records, settings), folder / "heads", options.series + 1)
    worker = Worker(settings, pipeline)
    _do(worker, ids[:1])
    before_s, began, cpu = busy_s(pipeline) or 0.0, time.perf_counter(), time.process_time()
    _do(worker, ids[1:])
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    done = [records.jobs.get(one) for one in ids]
    assert all(one and one.state.value == "ANALYSED" for one in done), [one and one.reason for one in done]
    return {
        "runtime": choose_runtime(wish_of(settings.model)).words,
        "rate": options.series / took_s,
        "busy": ((busy_s(pipeline) or 0.0) - before_s) / took_s,
        "cpu_s": cpu_s / options.series,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _do(worker: object, ids: Sequence[int]) -> None:
    from workers.worker import Worker

    assert isinstance(worker, Worker)
    for job_id in ids:
        worker.run(job_id)
    if worker.backlog is not None:
        worker.backlog.wait_idle()


def _fill(site: object, folder: Path, count: int) -> list[int]:
    """Phantom heads in spool and records, each a job that waits."""
    from pydicom import dcmread

    from tests.site import Site
    from workers.phantom_series import write_series

    assert isinstance(site, Site)
    ids = []
    for number in range(count):
        bleeds = ("intraparenchymal",) if number % 2 else ()
        series = [dcmread(path) for path in write_series(folder / str(number), number, bleeds, slices=32)]
        site.store(series)
        job = site.decide(str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID))
        assert job is not None
        ids.append(job)
    return ids


if __name__ == "__main__":
    main()
