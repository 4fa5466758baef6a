"""rsyslog as an audit record repository for tests: each message that comes is a line of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import Certificate
from tests.peers import eventually, missing
from tests.ports import free_port

PATH = os.environ.get("PATH", "") + ":/usr/sbin"
TLS_DRIVER = "/usr/lib/*/rsyslog/lmnsd_gtls.so"


@dataclass(frozen=True)
class Received:
    """A message as rsyslog took it apart (RFC 5424)."""

    priority: str
    host: str
    application: str
    message_id: str
    content: str


class Rsyslog:
    """Listens on `port` by one transport: tcp, udp, or tls with a certificate of its own."""

    def __init__(self, folder: Path, transport: str, own: Certificate | None = None) -> None:
        found = shutil.which("rsyslogd", path=PATH)
        if found is None:
            missing("rsyslogd is not installed")
        if transport == "tls" and not list(Path("/").glob(TLS_DRIVER[1:])):
            missing("rsyslog-gnutls is not installed")
        self.port = free_port()
        self.file = folder / "messages"
        self._pid = folder / "rsyslogd.pid"
        config = folder / "rsyslog.conf"
        config.write_text(_configuration(folder, self.file, self.port, transport, own))
        self._command = [str(found), "-n", "-f", str(config), "-i", str(self._pid)]
        self._log = folder / "rsyslogd.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        eventually(self._pid.exists, 30)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._pid.unlink(missing_ok=True)

    def received(self) -> list[Received]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [Received(*line.split("|", 4)) for line in lines]


def _configuration(folder: Path, file: Path, port: int, transport: str, own: Certificate | None) -> str:
    secure = ""
    if own is not None:
        secure = (
            f'global(DefaultNetstreamDriver="gtls" DefaultNetstreamDriverCAFile="{own.cert}" '
            f'DefaultNetstreamDriverCertFile="{own.cert}" DefaultNetstreamDriverKeyFile="{own.key}")\n'
        )
    stream = ' StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"' if own else ""
    kind = "imudp" if transport == "udp" else "imtcp"
    return (
        f'global(workDirectory="{folder}" maxMessageSize="64k")\n{secure}'
        f'module(load="{kind}"{stream})\n'
        'template(name="parts" type="string" '
        'string="%pri%|%hostname%|%app-name%|%msgid%|%msg%\\n")\n'
        f'input(type="{kind}" address="127.0.0.1" port="{port}")\n'
        f'action(type="omfile" file="{file}" template="parts")\n'
    )
