"""An S3 server as hospitals run it: Ceph's RADOS gateway on a cluster of one monitor and one disk in memory.

Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw. Everything listens on loopback, and ends with
the process that started it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from tests.certificates import make_certificate
from tests.peers import eventually, missing, requires
from tests.ports import free_port
from tests.s3 import KEYS, NAME, S3Server

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph", "setpriv")
SETTINGS = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
public addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 0
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
osd crush update on start = false
osd class update on start = false
memstore device bytes = 2147483648
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast {fronts}
"""


class Ceph(S3Server):
    """What it holds outlives its gateway, which goes away and comes back, and not the rest of the cluster."""

    def __init__(self) -> None:
        requires(*PROGRAMS)
        if find_spec("boto3") is None:
            missing("boto3 is not installed: pip install 'ichnode[s3]'")
        self._folder = Path(tempfile.mkdtemp(prefix="ichnode-ceph-"))
        port, secure_port = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.secure_endpoint = f"https://127.0.0.1:{secure_port}"
        self.certificate = make_certificate(self._folder, "s3")
        self._fronts = (
            f"endpoint=127.0.0.1:{port} ssl_endpoint=127.0.0.1:{secure_port} "
            f"ssl_certificate={self.certificate.cert} ssl_private_key={self.certificate.key}"
        )
        self._running: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self._make_cluster()
        self.add_user("admin", KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        self.come_back()
        self.client.create_bucket(Bucket=NAME)

    @cached_property
    def version(self) -> str:
        return self._call("radosgw", "--version").split()[2]

    def add_user(self, name: str, access_key: str, secret_key: str) -> None:
        who = (f"--uid={name}", f"--display-name={name}")
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        self._call("radosgw-admin", "-n", "client.rgw", "user", "create", *who, *keys)

    def empty(self) -> None:
        for key in self.stored():
            self.client.delete_object(Bucket=NAME, Key=key)

    def go_away(self) -> None:
        assert self._gateway is not None
        self._gateway.kill()
        self._gateway.wait(timeout=20)
        self._gateway = None

    def come_back(self) -> None:
        if self._gateway is None:
            self._gateway = self._start("radosgw", "-n", "client.rgw", "-f")
            eventually(self._answers, 60)

    def stop(self) -> None:
        if self._gateway is not None:
            self.go_away()
        for process in reversed(self._running):
            process.kill()
            process.wait(timeout=20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_cluster(self) -> None:
        fsid, monitor = uuid.uuid4(), free_port()
        for part in ("mon", "osd", "rgw"):
            (self._folder / part).mkdir()
        text = SETTINGS.format(fsid=fsid, monitor=monitor, folder=self._folder, fronts=self._fronts)
        (self._folder / "ceph.conf").write_text(text)
        map_of_monitors = str(self._folder / "monmap")
        address = f"[v1:127.0.0.1:{monitor}]"
        self._call("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", address, map_of_monitors)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_of_monitors)
        self._running.append(self._start("ceph-mon", "-i", "a", "-f"))
        disk = str(uuid.uuid4())
        eventually(self._done("ceph", "osd", "new", disk, "0"), 60)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._call("ceph", "osd", "crush", "add", "osd.0", "1", "host=a", "root=default")
        self._running.append(self._start("ceph-osd", "-i", "0", "-f"))
        eventually(lambda: "1 up" in self._call("ceph", "osd", "stat"), 60)

    def _command(self, program: str, *options: str) -> list[str]:
        return [program, "-c", str(self._folder / "ceph.conf"), *options]

    def _call(self, program: str, *options: str) -> str:
        done = subprocess.run(self._command(program, *options), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _done(self, program: str, *options: str) -> Callable[[], bool]:
        """Whether it could be done; it gives up soon, where nobody answers yet."""

        def tried() -> bool:
            with contextlib.suppress(AssertionError):
                self._call(program, *options, "--connect-timeout", "5")
                return True
            return False

        return tried

    def _start(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{program}.out").open("ab") as log:
            command = ["setpriv", "--pdeathsig", "KILL", *self._command(program, *options)]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)

    def _answers(self) -> bool:
        import requests

        assert self._gateway and self._gateway.poll() is None, (self._folder / "radosgw.out").read_text()
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.endpoint, timeout=10).ok
        return False
