"""What the tests ask of an S3 server, and one of their own (moto's), which can go away and come back.

`python -m tests.s3 PORT` is the server: SIGUSR1 closes its port, SIGUSR2 opens it again. It is stopped by its
process id. Moto holds objects in memory and, unless told to, looks at no signature.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from node.settings import Bucket
from tests.certificates import Certificate
from tests.peers import eventually, missing
from tests.ports import free_port

NAME = "ichnode-test"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "of the tests"}
GONE, BACK = signal.SIGUSR1, signal.SIGUSR2


class S3Server:
    """One server with one bucket, whoever made it."""

    endpoint: str
    ca: str | None = None
    """PEM file of who signed its certificate."""

    def empty(self) -> None:
        """A bucket, and nothing in it."""
        raise NotImplementedError

    def go_away(self) -> None:
        """Connections are refused from now on."""
        raise NotImplementedError

    def come_back(self) -> None:
        """With what it held. Nothing happens where it never went."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    @cached_property
    def client(self) -> Any:
        """boto3 as an administrator would use it."""
        import boto3

        keys = {key.lower(): value for key, value in KEYS.items()}
        where = {"endpoint_url": self.endpoint, "region_name": "us-east-1", "verify": self.ca}
        return boto3.client("s3", **where, **keys)

    def settings(self, **more: Any) -> Bucket:
        """`[spool.s3]` of a node that uses it; the keys stand in the environment."""
        return Bucket(**{"bucket": NAME, "endpoint": self.endpoint, "timeout_s": 5, **more})

    def stored(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))

    def unfinished(self) -> list[Any]:
        """Uploads in several parts that nobody ended."""
        found: list[Any] = self.client.list_multipart_uploads(Bucket=NAME).get("Uploads", [])
        return found


class Moto(S3Server):
    """Moto's, over HTTP or TLS."""

    def __init__(self, log: Path, tls: Certificate | None = None) -> None:
        """With `tls` it is moto's own program, which cannot go away and come back."""
        if find_spec("moto") is None or find_spec("boto3") is None:
            missing("moto and boto3 are not installed: pip install 'ichnode[s3,dev]'")
        self.port = free_port()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.ca = tls.cert if tls else None
        command = [sys.executable, "-m", "tests.s3", str(self.port)]
        if tls:
            options = ["--port", str(self.port), "--ssl", "--ssl-cert", tls.cert, "--ssl-key", tls.key]
            command = [sys.executable, "-m", "moto.server", *options]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        eventually(self._answers, 60)
        self.client.create_bucket(Bucket=NAME)

    def empty(self) -> None:
        import requests

        assert requests.post(f"{self.endpoint}/moto-api/reset", timeout=10).ok
        self.client.create_bucket(Bucket=NAME)

    def go_away(self) -> None:
        self._tell(GONE, lambda: not self._answers())

    def come_back(self) -> None:
        self._tell(BACK, self._answers)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)

    def _tell(self, number: signal.Signals, done: Callable[[], bool]) -> None:
        self.process.send_signal(number)
        eventually(done, 30)

    def _answers(self) -> bool:
        import requests

        assert self.process.poll() is None, "the S3 server ended"
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.endpoint}/moto-api/data.json", timeout=10, verify=self.ca).ok
        return False


def main() -> None:
    from moto.server import ThreadedMotoServer

    port = int(sys.argv[1])
    wanted = True

    def hear(number: int, _: Any) -> None:
        nonlocal wanted
        wanted = number == BACK

    signal.signal(GONE, hear)
    signal.signal(BACK, hear)
    server: Any = None
    while os.getppid() != 1:
        if wanted and server is None:
            server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
            server.start()
        elif not wanted and server is not None:
            server.stop()
            server._server.server_close()
            server = None
        time.sleep(0.02)


if __name__ == "__main__":
    main()
