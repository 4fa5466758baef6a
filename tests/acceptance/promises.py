"""Kills listeners in the midst of sending, and looks whether all that was answered with Success is recorded.

`python -m tests.acceptance.promises --seconds 60 [--folder DIR] [--database postgresql]` runs it by hand; its
exit code is 1 unless every answered instance has its record and its file. Senders never wait between two
slices, so that nearly every kill hits records that were promised and not made yet (`node.recorder`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil
from pydicom import dcmwrite
from sqlalchemy import select

from node.settings import load
from node.store.records import open_records
from node.store.tables import instances
from tests.factories import ct_series
from tests.peers import eventually
from tests.ports import free_port
from tests.postgres import Postgres
from tests.raw_peer import RawPeer, Stored, stored

SLICES = 200
"""Of a series, and over an association, unless it is cut off."""
PAUSE_S = (0.2, 0.9)
START_S = 60.0


@dataclass(frozen=True)
class Balance:
    """`adopted` were recorded from their files when their listener was found dead."""

    kills: int
    answered: int
    adopted: int
    without_record: int
    without_file: int


@dataclass(frozen=True)
class Template:
    """An image, and the UIDs of study and series that its data set holds."""

    image: Stored
    study_uid: str
    series_uid: str

    def image_of(self, series: str, instance: str) -> Stored:
        """With other UIDs of the same length, so that the data set stays whole."""
        new = f"2.25.1{instance}".ljust(len(self.image.sop_instance_uid), "7")
        data = self.image.data.replace(self.image.sop_instance_uid.encode(), new.encode())
        for kind, uid in (("2", self.series_uid), ("3", self.study_uid)):
            data = data.replace(uid.encode(), f"2.25.{kind}{series}".ljust(len(uid), "7").encode())
        return replace(self.image, sop_instance_uid=new, data=data)


@dataclass
class Sender(threading.Thread):
    """One association after another, each with a series of its own."""

    number: int
    port: int
    template: Template
    until: float
    answered: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        count = 0
        while time.monotonic() < self.until:
            count += 1
            with suppress(OSError, AssertionError):  # it was killed, or is not there yet
                self._send_series(f"{self.number}{count:06}")
            time.sleep(0.01)

    def _send_series(self, digits: str) -> None:
        image = self.template.image
        peer = RawPeer(self.port, [(image.sop_class_uid, [image.transfer_syntax_uid])])
        with peer.socket:
            for index in range(SLICES):
                one = self.template.image_of(digits, f"{digits}{index:04}")
                if peer.store(one) == 0:
                    self.answered.append(one.sop_instance_uid)
            peer.release()


def run(folder: Path, seconds: float, url: str = "", senders: int = 4, seed: int = 6) -> Balance:
    """Send and kill for so long, then balance the books."""
    port, config, log = free_port(), folder / "ichnode.toml", folder / "log"
    config.write_text(
        f"data_dir = {json.dumps(str(folder / 'data'))}\n[scp]\nport = {port}\n"
        f"[spool]\nreserve_mb = 1\n[database]\nurl = {json.dumps(url)}\n"
    )
    command = [sys.executable, "-m", "node", "listen", "--config", str(config)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        listeners = psutil.Process(process.pid).children
        eventually(lambda: len(listeners()) == 2, START_S)
        threads = _senders(folder, port, time.monotonic() + seconds, senders)
        kills = _kill(listeners, random.Random(seed), threads)
        records = open_records(load(config))
        eventually(lambda: not records.arrivals.open_listeners(), START_S)
        with records.engine.connect() as connection:
            query = select(instances.c.sop_instance_uid, instances.c.path)
            recorded = {row.sop_instance_uid: row.path for row in connection.execute(query)}
        records.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
    answered = {uid for thread in threads for uid in thread.answered}
    spool = folder / "data" / "spool"
    lost = [path for path in recorded.values() if not (spool / path).is_file()]
    adopted = log.read_text(errors="replace").count(" is adopted ")
    return Balance(kills, len(answered), adopted, len(answered - recorded.keys()), len(lost))


def _senders(folder: Path, port: int, until: float, count: int) -> list[Sender]:
    (ds,) = ct_series(1, rows=16, name="promises")
    dcmwrite(folder / "image.dcm", ds, enforce_file_format=True)
    template = Template(stored(folder / "image.dcm"), str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID))
    threads = [Sender(number, port, template, until) for number in range(1, count + 1)]
    for thread in threads:
        thread.start()
    return threads


def _kill(listeners: Callable[[], list[psutil.Process]], chance: random.Random, threads: list[Sender]) -> int:
    """One of them after the other, while anybody sends."""
    kills = 0
    while any(thread.is_alive() for thread in threads):
        time.sleep(chance.uniform(*PAUSE_S))
        if (found := listeners()) and time.monotonic() < threads[0].until:
            with suppress(psutil.NoSuchProcess):
                chance.choice(found).kill()
                kills += 1
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, help="where the node writes; default: the temporary folder")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="promises-", dir=options.folder))
        url = ""
        if options.database == "postgresql":
            server = Postgres()
            stack.callback(server.stop)
            url = server.create()
        found = run(Path(folder), options.seconds, url)
    print(json.dumps(asdict(found)))
    sys.exit(1 if found.without_record or found.without_file else 0)


if __name__ == "__main__":
    main()
