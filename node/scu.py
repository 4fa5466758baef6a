"""C-STORE and C-ECHO SCU: sends stored objects over one association. Retries nothing, records nothing."""

from __future__ import annotations

import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, Association, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node import transcode
from node.credentials import client_tls
from node.domain.errors import SettingsError, TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.settings import Destination, Encoding
from node.transport import PAUSES_WITHIN_S, bound

log = logging.getLogger(__name__)

CONNECTION_TIMEOUT_S = 10
RESPONSE_TIMEOUT_S = 60
LOOK_S = 0.25
"""How often a sender looks whether bytes still go out."""
WARNINGS = range(0xB000, 0xC000)  # PS3.7 C.4: the object was stored, with a remark
DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 Annex C: the peer has it, as after an answer that was lost


@dataclass(frozen=True)
class Parcel:
    """An object to send: the stored file, and the key by which the caller knows it."""

    key: int
    file: Path
    sop_class_uid: str
    moved: Callable[[], object] = field(default=lambda: None, compare=False, repr=False)
    """Called now and then while its bytes go out, where a carrier sees them go."""


@dataclass(frozen=True)
class Outcome:
    """What came of one parcel; `status` is the C-STORE status, empty when none was received."""

    key: int
    accepted: bool
    status: str
    text: str = ""


class AssociationBroke(TransientError):
    """The association ended while the parcel `key` was on its way; whether it arrived is unknown."""

    def __init__(self, key: int, message: str) -> None:
        super().__init__(message)
        self.key = key


class NothingAccepted(TransientError):
    """The peer is there, and takes none of the presentation contexts."""


class Peer:
    """A destination that speaks DIMSE, as seen from the node's own AE title; `called` so in its errors."""

    def __init__(self, destination: Destination, calling_ae: str, called: str = "destination") -> None:
        self.destination = destination
        self._called = called
        self._calling_ae = calling_ae

    @property
    def name(self) -> str:
        d = self.destination
        return f"{self._called} {d.name} ({d.ae_title} at {d.host}:{d.port})"

    def check(self) -> None:
        """Raises SettingsError when the certificates of this destination cannot be used."""
        tls_context(self.destination)

    def echo(self) -> None:
        """Raises TransientError when the destination does not answer a C-ECHO with Success."""
        assoc = self.associate([build_context(Verification, [s]) for s in transcode.FALL_BACK])
        try:
            status = assoc.send_c_echo()
            if "Status" not in status or status.Status != 0x0000:
                text = f"{self.name}: C-ECHO was answered with {words(status)}"
                raise TransientError(f"{text}; its log says why")
        finally:
            let_go(assoc)

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        """Send over one association; an Outcome for each parcel that was tried, in order.

        Raises TransientError when no association can be had, AssociationBroke when it breaks: what got
        no Outcome by then was not accepted.
        """
        offers = dict.fromkeys(
            (parcel.sop_class_uid, syntax)
            for parcel in sorted(parcels, key=lambda p: p.sop_class_uid)
            for syntax in syntaxes_for(parcel, self.destination.transfer_syntax)
        )
        try:
            assoc = self.associate([build_context(sop_class, [syntax]) for sop_class, syntax in offers])
        except NothingAccepted:
            yield from map(self.not_accepted, parcels)
            return
        patience = _Patience(assoc)
        try:
            for parcel in parcels:
                patience.moved = parcel.moved
                yield self._send_one(assoc, parcel)
        finally:
            let_go(assoc)

    def not_accepted(self, parcel: Parcel) -> Outcome:
        """The peer takes no presentation context for it."""
        text = f"{self.name} does not accept SOP class {parcel.sop_class_uid}"
        return Outcome(parcel.key, False, "", text)

    def _send_one(self, assoc: Association, parcel: Parcel) -> Outcome:
        accepted = {
            context.transfer_syntax[0]
            for context in assoc.accepted_contexts
            if context.abstract_syntax == parcel.sop_class_uid
        }
        wanted = syntaxes_for(parcel, self.destination.transfer_syntax)
        usable = [syntax for syntax in wanted if syntax in accepted]
        if not usable:
            return self.not_accepted(parcel)
        try:
            what = prepared(parcel.file, usable)
        except (OSError, InvalidDicomError) as error:
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be read: {error}")
        try:
            status = assoc.send_c_store(what)
        except (OSError, ValueError, RuntimeError) as error:
            if not assoc.is_established:
                raise AssociationBroke(parcel.key, f"{self.name}: the association broke: {error}") from error
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be sent: {error}")
        if "Status" not in status:
            text = f"{self.name}: no answer to the C-STORE of {parcel.file.name}"
            raise AssociationBroke(parcel.key, text)
        code = int(status.Status)
        return Outcome(parcel.key, is_held(code), f"0x{code:04X}", "" if code == 0 else words(status))

    def associate(
        self, contexts: Sequence[PresentationContext], within_s: float | None = None, **more: Any
    ) -> Association:
        """An association for `contexts`; `more` goes to pynetdicom. Raises TransientError without one.

        `within_s`: how long connecting and negotiating may take together, where it is less than usual.
        """
        _config.LOG_HANDLER_LEVEL = "none"
        _config.STORE_SEND_CHUNKED_DATASET = True  # a file given by its path goes out as the bytes it holds
        d = self.destination
        ae = AE(self._calling_ae)
        ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.connection_timeout = min(CONNECTION_TIMEOUT_S, within_s or CONNECTION_TIMEOUT_S)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = RESPONSE_TIMEOUT_S
        ae.requested_contexts = list(contexts)
        patience_s = min(RESPONSE_TIMEOUT_S, within_s or RESPONSE_TIMEOUT_S)
        handlers = [_bounds(patience_s, d.max_pdu_bytes), *more.pop("evt_handlers", ())]
        if within_s is not None:
            handlers.append(_bound_negotiation(time.monotonic() + within_s))
        try:
            tls = tls_context(d)
            assoc = ae.associate(
                d.host,
                d.port,
                ae_title=d.ae_title,
                max_pdu=d.max_pdu_bytes,
                evt_handlers=handlers,
                tls_args=(tls, d.host) if tls else None,
                **more,
            )
        except SettingsError as error:
            raise TransientError(str(error)) from error
        except (OSError, UnicodeError) as error:
            raise TransientError(f"{self.name}: the host's name cannot be resolved: {error}") from error
        if not assoc.is_established:
            raise self._why_not(assoc, contexts)
        return assoc

    def _why_not(self, assoc: Association, contexts: Sequence[PresentationContext]) -> TransientError:
        if assoc.is_rejected:
            reason = getattr(assoc.acceptor.primitive, "reason_str", "no reason given")
            text = f"{self.name} rejected the association ({reason})"
            return TransientError(f"{text}; it must know AE title {self._calling_ae}")
        if assoc.rejected_contexts:
            classes = sorted({str(context.abstract_syntax) for context in contexts})
            text = f"{self.name} does not accept SOP class {' nor '.join(classes)}"
            return NothingAccepted(f"{text}, and so no association")
        tls = " and do both ends speak TLS and trust each other" if self.destination.tls.wanted else ""
        text = f"{self.name} cannot be reached; is it running, and are host and port right{tls}?"
        return TransientError(text)


def is_held(status: int) -> bool:
    """Whether a peer that answers so holds the object: a SOP Instance UID names one for ever (PS3.5 9)."""
    return status == 0x0000 or status in WARNINGS or status == DUPLICATE_SOP_INSTANCE


def let_go(assoc: Association) -> None:
    """Release it, where it is still there. Never waits without end.

    pynetdicom waits for its own thread to pause first, for ever, and on a busy machine that was seen to
    stand still without saying so.
    """
    if not assoc.is_established:
        return
    releasing = threading.Thread(target=assoc.release, name="release", daemon=True)
    releasing.start()
    releasing.join(PAUSES_WITHIN_S)
    if releasing.is_alive():
        assoc._is_paused = True
        releasing.join(assoc.acse_timeout or RESPONSE_TIMEOUT_S)


def leave_responses(assoc: Association) -> None:
    """Keep pynetdicom's own thread from taking a response away from the sender that waits for it.

    It is meant to pause while something is sent; on a busy machine it may not have noticed yet, throws the
    response away as unexpected, and the sender waits for it in vain. No peer sends requests to a storage SCU.
    """
    take = assoc.dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        return take(block) if block else (None, None)

    assoc.dimse.get_msg = get_msg  # type: ignore[method-assign]


class _Patience:
    """Waits for a response from when the last bytes went out, and tells `moved` while they do.

    pynetdicom counts from when they lie in a queue of its own, so that whatever takes longer on the wire
    would get no answer, ever. As with `leave_responses`, nobody else takes the response.
    """

    def __init__(self, assoc: Association) -> None:
        self.moved: Callable[[], object] = lambda: None
        self._assoc = assoc
        self._sent_at = 0.0
        assoc.bind(evt.EVT_PDU_SENT, self._sent)
        assoc.dimse.get_msg = self._get_msg  # type: ignore[method-assign]

    def _sent(self, event: evt.Event) -> None:
        self._sent_at = time.monotonic()

    def _get_msg(self, block: bool = False) -> Any:
        if not block:
            return None, None
        seen_at = self._sent_at = time.monotonic()
        while time.monotonic() - self._sent_at < RESPONSE_TIMEOUT_S:
            with suppress(queue.Empty):
                return self._assoc.dimse.msg_queue.get(timeout=LOOK_S)
            if self._sent_at > seen_at:
                seen_at = self._sent_at
                self.moved()
        return None, None


def syntaxes_for(parcel: Parcel, wanted: Sequence[Encoding]) -> tuple[UID, ...]:
    """What to send a parcel in, most wanted first; a received image best as it is compressed already."""
    offered = transcode.offered(parcel.sop_class_uid, wanted)
    try:
        return transcode.as_stored(read_file_meta_info(parcel.file).TransferSyntaxUID, offered)
    except (OSError, InvalidDicomError, AttributeError):
        return offered  # whoever reads the file says what is wrong with it


def prepared(file: Path, usable: Sequence[UID]) -> Path | Dataset:
    """The object in the first of `usable` in which it can be had; the file itself where that needs nothing.

    Raises OSError or InvalidDicomError when the file cannot be read.
    """
    stored = read_file_meta_info(file)
    for syntax in usable:
        if syntax == stored.TransferSyntaxUID:
            return file
        ds = dcmread(file)
        try:
            return transcode.in_syntax(ds, syntax)
        except transcode.IMPOSSIBLE as error:
            log.warning("%s cannot be sent in %s: %s", file.name, syntax.name, error)
    raise InvalidDicomError(f"no encoder for {' nor '.join(syntax.name for syntax in usable)}")


def tls_context(destination: Destination) -> ssl.SSLContext | None:
    """None where the destination is to be spoken to in the open. Raises SettingsError for unusable files."""
    tls = destination.tls
    return client_tls(tls, f"destination {destination.name}") if tls.wanted else None


def words(status: Dataset) -> str:
    """A DIMSE status as a person may read it."""
    if "Status" not in status:
        return "no response"
    comment = status.get("ErrorComment", "")
    return f"status 0x{int(status.Status):04X}" + (f" ({comment})" if comment else "")


def _bounds(patience_s: float, longest_pdu_bytes: int) -> Any:
    """A handler: no waiting without end, nor for Nagle's algorithm, some 40 ms after each large PDU."""

    def connected(event: evt.Event) -> None:
        transport = event.assoc.dul.socket
        if transport is not None and transport.socket is not None:
            transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound(event.assoc, patience_s, longest_pdu_bytes)

    return evt.EVT_CONN_OPEN, connected


def _bound_negotiation(deadline: float) -> Any:
    """A handler: what is left until `deadline` once the connection is there is for the negotiation."""

    def connected(event: evt.Event) -> None:
        event.assoc.acse_timeout = max(deadline - time.monotonic(), 0.1)

    return evt.EVT_CONN_OPEN, connected
