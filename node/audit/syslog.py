"""Syslog as PS3.15 A.6 and A.7 use it: RFC 5424 over TLS, TCP or UDP. Keeps nothing, retries nothing.

Syslog has no acknowledgement. Over TCP and TLS a batch counts as taken only once the repository, told that
nothing more comes, has closed its side in turn: it has then read all of it.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from node.credentials import client_tls
from node.domain.errors import TransientError
from node.settings import AuditRepository

TIMEOUT_S = 10.0
CLOSES_WITHIN_S = 5.0
AUTHORISATION = 10  # facility, PS3.15 A.6
NOTICE, WARNING = 5, 4
MESSAGE_ID = "DICOM+RFC3881"  # PS3.15 A.6
LOOK_AT = "is it running, and are host, port and transport of [audit] right?"
BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4: what follows is UTF-8


@dataclass(frozen=True)
class Line:
    """One message for syslog."""

    at: float
    content: bytes
    is_warning: bool = False


def frame(line: Line, host: str) -> bytes:
    """RFC 5424 6: header, no structured data, message."""
    priority = AUTHORISATION * 8 + (WARNING if line.is_warning else NOTICE)
    at = datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = f"<{priority}>1 {at} {_printable(host, 255)} ichnode {os.getpid()} {MESSAGE_ID} - "
    return header.encode("ascii") + BOM + line.content


def send(repository: AuditRepository, lines: Sequence[Line], host: str) -> None:
    """All of them, in order, over one connection. Raises TransientError where they may not have come."""
    frames = [frame(line, host) for line in lines]
    name = f"audit repository {repository.host}:{repository.port}"
    try:
        if repository.transport == "udp":
            _send_datagrams(repository, frames)
        else:
            with _connected(repository) as connection:
                connection.sendall(b"".join(b"%d %b" % (len(one), one) for one in frames))  # RFC 6587 3.4.1
                _wait_until_read(connection)
    except (OSError, ssl.SSLError) as error:
        raise TransientError(f"{name} ({repository.transport}): {error}; {LOOK_AT}") from error


def check(repository: AuditRepository) -> None:
    """Connects and sends nothing. Raises TransientError; over UDP nothing can be known."""
    try:
        if repository.transport != "udp":
            with _connected(repository):
                pass
    except (OSError, ssl.SSLError) as error:
        name = f"audit repository {repository.host}:{repository.port}"
        raise TransientError(f"{name}: {error}; {LOOK_AT}") from error


def _send_datagrams(repository: AuditRepository, frames: Sequence[bytes]) -> None:
    """RFC 5426: one message a datagram."""
    where = socket.getaddrinfo(repository.host, repository.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(where[0], socket.SOCK_DGRAM) as sender:
        sender.connect(where[4])  # so that an ICMP refusal is heard of, where there is one
        for one in frames:
            sender.send(one)


@contextmanager
def _connected(repository: AuditRepository) -> Iterator[socket.socket]:
    with socket.create_connection((repository.host, repository.port), timeout=TIMEOUT_S) as plain:
        if repository.transport == "tcp":
            yield plain
            return
        context = client_tls(repository.tls, "audit")
        with context.wrap_socket(plain, server_hostname=repository.host) as secure:
            yield secure


def _wait_until_read(connection: socket.socket) -> None:
    """Half-close, and wait for the end of the other side. One that leaves its side open is believed.

    Raises OSError for a reset: it threw away what it had not read.
    """
    connection.settimeout(CLOSES_WITHIN_S)
    with suppress(TimeoutError):
        if isinstance(connection, ssl.SSLSocket):
            with suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
                connection.unwrap()  # close_notify, and theirs
            return
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _printable(text: str, most: int) -> str:
    """PRINTUSASCII of RFC 5424; `-` where nothing is left."""
    return re.sub(r"[^!-~]", "", text)[:most] or "-"
