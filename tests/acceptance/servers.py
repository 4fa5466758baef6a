"""PostgreSQL, Redis and Orthanc for the crash harness: each may be cut off, stay away, and come back.

They are the real programs, with their data in the run's folder, so that a run can go on where it was stopped.
Nothing here looks at the node.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from tests.orthanc import plain_orthanc
from tests.peers import requires
from tests.ports import free_port
from tests.postgres import Postgres

OUTAGES = {"postgres": 2, "broker": 2, "orthanc": 3}
"""What to cut off, and how often; beside TARGETS."""
DATABASE = "test_1"


class Servers:
    """The three servers of one run."""

    def __init__(self, folder: Path, node_port: int) -> None:
        requires("redis-server")
        state = folder / "servers.json"
        known = json.loads(state.read_text()) if state.exists() else {}
        self._ports: list[int] = known.get("ports") or [free_port() for _ in range(4)]
        self.postgres = Postgres(folder / "postgres", self._ports[0])
        if not known:
            self.postgres.create()
            state.write_text(json.dumps({"ports": self._ports}))
        self._log = folder / "redis.log"
        self._start_redis()
        modality = {"ichnode": {"AET": "ICHNODE", "Host": "127.0.0.1", "Port": node_port}}
        self.orthanc = plain_orthanc(
            folder / "orthanc",
            self._ports[2],
            HttpPort=self._ports[3],
            DicomModalities=modality,  # whom to tell of storage commitment
            OverwriteInstances=False,
        )

    def settings(self) -> str:
        """What `ichnode.toml` says of them, but for the destination."""
        return (
            f"database = {{ url = {json.dumps(self.postgres.url(DATABASE))} }}\n"
            f'broker = {{ url = "redis://127.0.0.1:{self._ports[1]}/0" }}\n'
        )

    def destination(self) -> str:
        return (
            f'[[destination]]\nname = "orthanc"\nae_title = "ORTHANC"\nport = {self._ports[2]}\n'
            'outputs = ["sr", "seg"]\nretry_base_s = 1\nretry_max_s = 5\n'
            "commitment = true\ncommitment_wait_s = 5\n"
        )

    def outage(self, name: str, away_s: float, hard: bool) -> None:
        """Cut one off, `hard` without a chance to tidy up, and bring it back."""
        if name == "postgres":
            self.postgres.halt(signal.SIGQUIT if hard else signal.SIGINT)
            time.sleep(away_s)
            self.postgres.start()
        elif name == "broker":
            _end(self._redis, hard)
            time.sleep(away_s)
            self._start_redis()
        else:
            _end(self.orthanc.process, hard)
            time.sleep(away_s)
            self.orthanc.start()

    def held(self) -> set[str]:
        """SOP Instance UIDs that Orthanc holds."""
        found = self.orthanc.get("/instances?expand")
        return {item["MainDicomTags"]["SOPInstanceUID"] for item in found}

    def close(self) -> None:
        _end(self._redis, hard=True)
        self.orthanc.close()
        self.postgres.stop()

    def _start_redis(self) -> None:
        """It keeps nothing: what it held is gone, as the node must expect."""
        command = [shutil.which("redis-server") or "redis-server", "--port", str(self._ports[1])]
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with self._log.open("ab") as log:
            self._redis = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        client = redis.Redis(port=self._ports[1])
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                client.close()
                return
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes], hard: bool) -> None:
    process.kill() if hard else process.terminate()
    process.wait(timeout=60)
