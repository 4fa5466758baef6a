"""DICOM on the wire, put together by hand, for peers that break the rules: PDUs, command sets, answers."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing

from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

ASSOCIATE_AC, P_DATA = 0x02, 0x04  # PDU types, PS3.8 9.3
COMMAND, LAST = 0x01, 0x02  # message control header, PS3.8 E.2
C_STORE_RQ, NO_DATASET = 0x0001, 0x0101  # PS3.7 E.1


def association_request(called: str = "ICHNODE") -> bytes:
    """A real A-ASSOCIATE-RQ for CT images in Explicit VR Little Endian, as pynetdicom sends it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as trap:
        ae = AE("FUZZ")
        ae.acse_timeout = ae.network_timeout = 1
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        port = trap.getsockname()[1]
        asking = threading.Thread(
            target=lambda: ae.associate("127.0.0.1", port, ae_title=called), daemon=True
        )
        asking.start()
        peer, _ = trap.accept()
        with peer:
            request = read_pdu(peer)
        asking.join()
        return request


def read_pdu(peer: socket.socket) -> bytes:
    """One PDU with its header; what there is of it where the other side closes."""
    head = _exactly(peer, 6)
    return head + (_exactly(peer, struct.unpack(">L", head[2:])[0]) if len(head) == 6 else b"")


def pdv(context_id: int, control: int, content: bytes) -> bytes:
    """A P-DATA-TF PDU with one presentation data value."""
    value = struct.pack(">LBB", len(content) + 2, context_id, control) + content
    return struct.pack(">BBL", P_DATA, 0, len(value)) + value


def store_command(sop_class: str, sop_instance: str) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    ds = Dataset()
    ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID = sop_class, sop_instance
    ds.CommandField, ds.MessageID, ds.Priority, ds.CommandDataSetType = C_STORE_RQ, 1, 0, 0
    body = _implicit(ds)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def store(ds: Dataset, data: bytes | None = None, piece: int = 16000) -> Iterator[bytes]:
    """The PDUs that send an instance; `data` stands in for its data set."""
    yield pdv(1, COMMAND | LAST, store_command(str(ds.SOPClassUID), str(ds.SOPInstanceUID)))
    data = encoded(ds) if data is None else data
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)] or [b""]
    for number, part in enumerate(pieces, start=1):
        yield pdv(1, LAST if number == len(pieces) else 0, part)


def encoded(ds: Dataset) -> bytes:
    """The data set alone, in Explicit VR Little Endian."""
    stream = io.BytesIO()
    dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def status_of(answer: bytes) -> int | None:
    """The Status (0000,0900) of a response; None for an A-ABORT, a closed connection, anything else."""
    at = answer.find(struct.pack("<HHL", 0x0000, 0x0900, 2))
    if answer[:1] != bytes([P_DATA]) or at < 0:
        return None
    return int(struct.unpack("<H", answer[at + 8 : at + 10])[0])


def _implicit(ds: Dataset) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = True, True
    write_dataset(stream, ds)
    return stream.getvalue()


def _exactly(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := peer.recv(count - len(found))):
        found += more
    return found
