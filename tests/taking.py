"""A Celery worker with the node's own settings and command line that only writes down which job it got."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from node import broker
from node.admin.roles import worker_arguments
from node.settings import load
from node.store.queue import Line
from node.store.records import open_records


def main(folder: Path) -> None:
    settings = load(None, folder)
    records = open_records(settings)
    broker.WORKER_MODULE = "node"  # none of the workers' own: no model is loaded
    app = broker.make_app(settings)
    owed = False

    @app.task(name=broker.ANALYSE_TASK, ignore_result=True)
    def analyse(job_id: int) -> None:
        nonlocal owed
        with (folder / "rung").open("a") as file:
            file.write(f"{job_id}\n")
        now = time.time()
        taken = records.queue.take(job_id, "w:1", now + 30, now, Line(settings.orders.rules, owed))
        if taken is None:
            return
        owed = taken.owed
        with (folder / "taken").open("a") as file:
            file.write(f"{taken.job.id}\n")

    app.worker_main(worker_arguments(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
