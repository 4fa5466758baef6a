"""C-STORE and C-ECHO SCU: sends stored objects over one association. Retries nothing, records nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, Association, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.domain.errors import TransientError
from node.settings import Destination

CONNECTION_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 60
MAXIMUM_PDU_BYTES = 128 * 1024
WARNINGS = range(0xB000, 0xC000)  # PS3.7 C.4: the object was stored, with a remark


@dataclass(frozen=True)
class Parcel:
    """An object to send: the stored file, and the key by which the caller knows it."""

    key: int
    file: Path
    sop_class_uid: str


@dataclass(frozen=True)
class Outcome:
    """What came of one parcel; `status` is the C-STORE status, empty when none was received."""

    key: int
    accepted: bool
    status: str
    text: str = ""


class Peer:
    """A destination, as seen from the node's own AE title."""

    def __init__(self, destination: Destination, calling_ae: str) -> None:
        self.destination = destination
        self._calling_ae = calling_ae

    def echo(self) -> None:
        """Raises TransientError when the destination does not answer a C-ECHO with Success."""
        assoc = self._associate([Verification])
        try:
            status = assoc.send_c_echo()
            if "Status" not in status or status.Status != 0x0000:
                raise TransientError(f"{self.name}: C-ECHO was answered with {_status(status)}")
        finally:
            assoc.release()

    @property
    def name(self) -> str:
        d = self.destination
        return f"destination {d.name} ({d.ae_title} at {d.host}:{d.port})"

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        """Send over one association; an Outcome for each parcel that was tried, in order.

        Raises TransientError when no association can be had, or when it breaks: what got no
        Outcome by then was not accepted.
        """
        sop_classes = sorted({parcel.sop_class_uid for parcel in parcels})
        assoc = self._associate(sop_classes)
        try:
            for parcel in parcels:
                yield self._send_one(assoc, parcel)
        finally:
            if assoc.is_established:
                assoc.release()

    def _send_one(self, assoc: Association, parcel: Parcel) -> Outcome:
        accepted = {
            str(context.transfer_syntax[0])
            for context in assoc.accepted_contexts
            if context.abstract_syntax == parcel.sop_class_uid
        }
        if not accepted:
            text = f"{self.name} does not accept SOP class {parcel.sop_class_uid}"
            return Outcome(parcel.key, False, "", text)
        try:
            ds = dcmread(parcel.file)
        except (OSError, InvalidDicomError) as error:
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be read: {error}")
        if str(ds.file_meta.TransferSyntaxUID) not in accepted:
            ds = _implicit(ds)
        try:
            status = assoc.send_c_store(ds)
        except (ValueError, RuntimeError) as error:
            if not assoc.is_established:
                raise TransientError(f"{self.name}: the association broke: {error}") from error
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be sent: {error}")
        if "Status" not in status:
            raise TransientError(f"{self.name}: no answer to the C-STORE of {parcel.file.name}")
        code = int(status.Status)
        good = code == 0x0000 or code in WARNINGS
        return Outcome(parcel.key, good, f"0x{code:04X}", "" if code == 0 else _status(status))

    def _associate(self, sop_classes: Sequence[str]) -> Association:
        _config.LOG_HANDLER_LEVEL = "none"
        d = self.destination
        ae = AE(self._calling_ae)
        ae.connection_timeout = CONNECTION_TIMEOUT_S
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = RESPONSE_TIMEOUT_S
        for sop_class in sop_classes:
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                ae.add_requested_context(sop_class, syntax)
        try:
            assoc = ae.associate(
                d.host, d.port, ae_title=d.ae_title, max_pdu=MAXIMUM_PDU_BYTES, evt_handlers=[_NO_DELAY]
            )
        except (OSError, UnicodeError) as error:
            raise TransientError(f"{self.name}: the host's name cannot be resolved: {error}") from error
        if assoc.is_established:
            return assoc
        if assoc.is_rejected:
            reason = getattr(assoc.acceptor.primitive, "reason_str", "no reason given")
            raise TransientError(
                f"{self.name} rejected the association ({reason}); it must know AE title {self._calling_ae}"
            )
        if assoc.rejected_contexts:
            text = f"{self.name} does not accept SOP class {' nor '.join(sop_classes)}"
            raise TransientError(f"{text}, and so no association")
        raise TransientError(f"{self.name} cannot be reached; is it running, and are host and port right?")


def _implicit(ds: FileDataset) -> FileDataset:
    """The same data set in Implicit VR, which every peer takes (PS3.5 10.1); ours are never compressed."""
    stream = BytesIO()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dcmwrite(stream, ds, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


def _status(status: Dataset) -> str:
    if "Status" not in status:
        return "no response"
    comment = status.get("ErrorComment", "")
    return f"status 0x{int(status.Status):04X}" + (f" ({comment})" if comment else "")


def _set_no_delay(event: evt.Event) -> None:
    """Nagle's algorithm would add some 40 ms to each small PDU that follows a large one."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


_NO_DELAY = (evt.EVT_CONN_OPEN, _set_no_delay)
