"""A DICOM sender on a bare socket: for odd PDUs in tests, and for benchmarks, where it must cost little.

Writes PS3.8 and PS3.7 by hand, so that it shares no line with what it tests.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import read_file_meta_info

APPLICATION = b"1.2.840.10008.3.1.1.1"
LAST, COMMAND = 2, 1


@dataclass(frozen=True)
class Stored:
    """What a C-STORE sends: a data set as its bytes are."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes


def stored(path: Path) -> Stored:
    """The data set of a Part 10 file."""
    meta = read_file_meta_info(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<I", raw[140:144])
    uids = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
    return Stored(*map(str, uids), raw[144 + length :])


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context_id, control) + data


def request(
    contexts: Sequence[tuple[str, Iterable[str]]], maximum: int = 16384, calling: str = "RAW"
) -> bytes:
    """An A-ASSOCIATE-RQ; contexts get the IDs 1, 3, 5, …"""
    proposed = b"".join(
        item(
            0x20,
            bytes((2 * number + 1, 0, 0, 0))
            + item(0x30, abstract.encode())
            + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes),
        )
        for number, (abstract, syntaxes) in enumerate(contexts)
    )
    user = item(0x51, struct.pack(">I", maximum)) + item(0x52, b"1.2.3.4") + item(0x55, b"RAW")
    titles = b"ICHNODE".ljust(16) + calling.encode().ljust(16)
    body = struct.pack(">HH", 1, 0) + titles + bytes(32) + item(0x10, APPLICATION) + proposed
    return pdu(1, body + item(0x50, user))


def element(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(
    field: int, message_id: int, sop_class: str, sop_instance: str = "", has_data: bool = True
) -> bytes:
    body = element(0x0002, sop_class.encode()) + element(0x0100, struct.pack("<H", field))
    body += element(0x0110, struct.pack("<H", message_id)) + element(0x0700, bytes(2))
    body += element(0x0800, struct.pack("<H", 0 if has_data else 0x0101))
    if sop_instance:
        body += element(0x1000, sop_instance.encode())
    return element(0x0000, struct.pack("<I", len(body))) + body


def store_pdus(what: Stored, message_id: int, longest: int, context_id: int = 1) -> bytes:
    """A whole C-STORE in P-DATA-TF PDUs of at most `longest` bytes."""
    head = command(1, message_id, what.sop_class_uid, what.sop_instance_uid)
    pdus = [pdu(4, pdv(context_id, COMMAND | LAST, head))]
    step = longest - 6
    for at in range(0, max(len(what.data), 1), step):
        last = LAST if at + step >= len(what.data) else 0
        pdus.append(pdu(4, pdv(context_id, last, what.data[at : at + step])))
    return b"".join(pdus)


class RawPeer:
    """One association."""

    def __init__(
        self, port: int, contexts: Sequence[tuple[str, Iterable[str]]], maximum: int = 16384
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request(contexts, maximum))
        kind, self.accept = self.read()
        if kind != 2:
            raise ConnectionError(f"answered with PDU type {kind}: {self.accept!r}")

    @property
    def longest(self) -> int:
        """The longest PDU that the other side takes; 128 KiB where it takes any."""
        at = self.accept.index(b"\x51\0\0\x04")
        return int(struct.unpack_from(">I", self.accept, at + 4)[0]) or 131072

    def results(self) -> list[int]:
        """Of the presentation contexts (PS3.8 Table 9-18)."""
        found, at = [], 68
        while at < len(self.accept):
            kind, length = struct.unpack_from(">BxH", self.accept, at)
            if kind == 0x21:
                found.append(self.accept[at + 6])
            at += 4 + length
        return found

    def read(self) -> tuple[int, bytes]:
        """Type and body of the next PDU. Raises ConnectionError at the end."""
        kind, length = struct.unpack(">BxI", self._read(6))
        return kind, self._read(length)

    def status(self) -> int:
        """Of the next response, put together of its fragments. Raises ConnectionError for anything else."""
        found, last = b"", False
        while not last:
            kind, body = self.read()
            if kind != 4:
                raise ConnectionError(f"PDU type {kind}: {body!r}")
            while body:
                length, _, control = struct.unpack_from(">IBB", body)
                found += body[6 : 4 + length]
                last = bool(control & LAST)
                body = body[4 + length :]
        at = 0
        while at < len(found):  # element by element: values may look like a tag
            _, number, length = struct.unpack_from("<HHI", found, at)
            if number == 0x0900:
                return int(struct.unpack_from("<H", found, at + 8)[0])
            at += 8 + length
        raise ConnectionError(f"a response without status: {found!r}")

    def store(self, what: Stored, message_id: int = 1) -> int:
        self.socket.sendall(store_pdus(what, message_id, self.longest))
        return self.status()

    def release(self) -> None:
        self.socket.sendall(pdu(5, bytes(4)))
        assert self.read()[0] == 6
        self.socket.close()

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            if not more:
                raise ConnectionError("the other side closed the connection")
            found += more
        return found
