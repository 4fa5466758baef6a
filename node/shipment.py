"""Sends stored objects by C-STORE on the node's own upper layer: as the bytes they are, over one association.

Retries nothing, records nothing. Where peer and settings allow, several requests are outstanding at a time;
else one waits for the answer to the one before. `node.scu` is the plain way, by pynetdicom.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmwrite
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from node import scu, transcode
from node.dimse.storing import Response, Storing
from node.domain.errors import SettingsError, TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dul.asking import Accepted, Self, Titles
from node.dul.pdu import ProposedContext
from node.dul.requestor import Bytes, Over, Requestor
from node.filemeta import FileHead, read_head
from node.scu import AssociationBroke, Outcome, Parcel, Peer, is_held, prepared, tls_context
from node.settings import Destination

CHUNK_BYTES = 2**20
"""Read and sent at a time: nothing as large as an image of many frames is held in memory."""
MOST_CONTEXTS = 128  # presentation context IDs are odd and fit into a byte (PS3.8 9.3.2.2)
REASONS = {  # PS3.8 Table 9-21, by (source, reason)
    (1, 1): "no reason given",
    (1, 2): "application context not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


@dataclass(frozen=True)
class Packed:
    """A data set that is ready to be sent."""

    parcel: Parcel
    head: FileHead
    context_id: int
    file: Path | None
    """Where it lies; None where it was transcoded, and is `data`."""
    data: bytes = b""

    def pieces(self) -> Iterator[tuple[Bytes, bool]]:
        """Its bytes, and whether these are the last. Raises OSError."""
        for piece, is_last in self._in_memory() if self.file is None else self._of_file(self.file):
            self.parcel.moved()
            yield piece, is_last

    def _in_memory(self) -> Iterator[tuple[Bytes, bool]]:
        view, size = memoryview(self.data), len(self.data)
        for at in range(0, max(size, 1), CHUNK_BYTES):
            yield view[at : at + CHUNK_BYTES], at + CHUNK_BYTES >= size

    def _of_file(self, file: Path) -> Iterator[tuple[Bytes, bool]]:
        with file.open("rb", buffering=0) as stream:
            left = stream.seek(0, 2) - self.head.data_at
            stream.seek(self.head.data_at)
            while left > 0:
                chunk = stream.read(min(left, CHUNK_BYTES))
                left -= len(chunk)
                if not chunk:
                    raise InvalidDicomError(f"{file.name} became shorter while it was sent")
                yield chunk, left == 0


class StreamingPeer(Peer):
    """A destination that gets objects this way; everything else goes the plain way."""

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        """As `Peer.send`."""
        heads = {parcel.key: _head(parcel) for parcel in parcels}
        with_heads = [(p, h) for p, h in ((p, heads[p.key]) for p in parcels) if isinstance(h, FileHead)]
        offers = list(
            dict.fromkeys(
                (parcel.sop_class_uid, str(syntax))
                for parcel, head in sorted(with_heads, key=lambda one: one[0].sop_class_uid)
                for syntax in self._syntaxes(parcel, head)
            )
        )[:MOST_CONTEXTS]
        if not offers:
            for parcel in parcels:
                yield Outcome(parcel.key, False, "", str(heads[parcel.key]))
            return
        contexts = [ProposedContext(2 * at + 1, c, (s,)) for at, (c, s) in enumerate(offers)]
        requestor, accepted = self._open(contexts)
        usable = {}  # in the syntax that the peer names, which is not always the one that was proposed
        for answer in accepted.contexts:
            if answer.result == 0 and answer.id % 2 and answer.id < 2 * len(offers):
                sop_class, proposed = offers[(answer.id - 1) // 2]
                usable[sop_class, answer.transfer_syntax or proposed] = answer.id
        try:
            yield from _Run(self, requestor, heads, usable, self._window(accepted)).outcomes(parcels)
        except BaseException:
            requestor.abort()
            raise
        requestor.release()

    def _syntaxes(self, parcel: Parcel, head: FileHead) -> tuple[UID, ...]:
        """What to send a parcel in, most wanted first."""
        offered = transcode.offered(parcel.sop_class_uid, self.destination.transfer_syntax)
        return transcode.as_stored(UID(head.transfer_syntax_uid), offered)

    def _window(self, accepted: Accepted) -> int:
        wanted = self.destination.operations
        return min(accepted.window or wanted, wanted)

    def pack(self, parcel: Parcel, head: FileHead, usable: dict[tuple[str, str], int]) -> Packed | Outcome:
        """The data set in the first syntax that the peer takes; or why there is none."""
        wanted = [s for s in self._syntaxes(parcel, head) if (parcel.sop_class_uid, str(s)) in usable]
        if not wanted:
            return self.not_accepted(parcel)
        for syntax in wanted[:1]:
            if str(syntax) == head.transfer_syntax_uid:
                context_id = usable[parcel.sop_class_uid, str(syntax)]
                return Packed(parcel, head, context_id, parcel.file)
        try:
            what = prepared(parcel.file, wanted)
            if isinstance(what, Path):
                context_id = usable[parcel.sop_class_uid, head.transfer_syntax_uid]
                return Packed(parcel, head, context_id, parcel.file)
            stream = BytesIO()
            dcmwrite(stream, what, enforce_file_format=True)
        except (OSError, InvalidDicomError) as error:
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be read: {error}")
        except transcode.IMPOSSIBLE as error:
            return Outcome(parcel.key, False, "", f"{parcel.file.name} cannot be sent: {error}")
        context_id = usable[parcel.sop_class_uid, str(what.file_meta.TransferSyntaxUID)]
        return Packed(parcel, head, context_id, None, _data_set(stream.getvalue()))

    def _open(self, contexts: Sequence[ProposedContext]) -> tuple[Requestor, Accepted]:
        """Raises TransientError without an association."""
        d = self.destination
        requestor = Requestor(self._connect(d), scu.RESPONSE_TIMEOUT_S)
        own = Self(d.max_pdu_bytes, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, d.operations)
        try:
            answer = requestor.ask(Titles(d.ae_title, self._calling_ae), contexts, own)
        except Over as error:
            raise TransientError(f"{self._unreachable()} ({error})") from error
        if not isinstance(answer, Accepted):
            requestor.close()
            reason = REASONS.get((answer.source, answer.reason), "reason unknown")
            text = f"{self.name} rejected the association ({reason})"
            raise TransientError(f"{text}; it must know AE title {self._calling_ae}")
        return requestor, answer

    def _connect(self, d: Destination) -> socket.socket:
        connection = None
        try:
            tls = tls_context(d)
            connection = socket.create_connection((d.host, d.port), timeout=scu.CONNECTION_TIMEOUT_S)
            return tls.wrap_socket(connection, server_hostname=d.host) if tls else connection
        except SettingsError as error:
            raise TransientError(str(error)) from error
        except (OSError, UnicodeError) as error:
            if connection is not None:
                connection.close()
            raise TransientError(f"{self._unreachable()} ({error})") from error

    def _unreachable(self) -> str:
        tls = " and do both ends speak TLS and trust each other" if self.destination.tls.wanted else ""
        return f"{self.name} cannot be reached; is it running, and are host and port right{tls}?"


class _Run:
    """One batch over one association."""

    def __init__(
        self,
        peer: StreamingPeer,
        requestor: Requestor,
        heads: dict[int, FileHead | str],
        usable: dict[tuple[str, str], int],
        window: int,
    ) -> None:
        self._peer, self._requestor, self._storing = peer, requestor, Storing(requestor)
        self._heads, self._usable, self._window = heads, usable, window
        self._sent: dict[int, Parcel] = {}
        """What waits for a response, by Message ID, in order."""

    def outcomes(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        """Raises AssociationBroke."""
        left = deque(parcels)
        while left or self._sent:
            while left and len(self._sent) < self._window:
                outcome = self._begin(left.popleft())
                if outcome is not None:
                    yield outcome
            if self._sent:
                yield self._answer()

    def _begin(self, parcel: Parcel) -> Outcome | None:
        """Send one; an Outcome where it cannot be sent at all."""
        head = self._heads[parcel.key]
        if isinstance(head, str):
            return Outcome(parcel.key, False, "", head)
        packed = self._peer.pack(parcel, head, self._usable)
        if isinstance(packed, Outcome):
            return packed
        try:
            message_id = self._storing.request(
                packed.context_id, parcel.sop_class_uid, packed.head.sop_instance_uid, packed.pieces()
            )
        except Over as error:
            raise self._broke(parcel, error) from error
        except (OSError, InvalidDicomError) as error:  # half of it is on its way: only an abort ends that
            self._requestor.abort()
            raise AssociationBroke(parcel.key, f"{parcel.file.name} cannot be read: {error}") from error
        self._sent[message_id] = parcel
        return None

    def _answer(self) -> Outcome:
        first = next(iter(self._sent.values()))
        try:
            response = self._storing.response()
        except Over as error:
            text = f"{self._peer.name}: no answer to the C-STORE of {first.file.name}: {error}"
            raise AssociationBroke(first.key, text) from error
        parcel = self._sent.pop(response.message_id, None)
        if parcel is None:
            self._requestor.abort()
            text = f"{self._peer.name} answered message {response.message_id}, which nobody sent"
            raise AssociationBroke(first.key, text)
        return _outcome(parcel, response)

    def _broke(self, parcel: Parcel, error: Exception) -> AssociationBroke:
        """Where several are outstanding, the one at which the peer broke off is the oldest."""
        first = next(iter(self._sent.values()), parcel)
        return AssociationBroke(first.key, f"{self._peer.name}: the association broke: {error}")


def _outcome(parcel: Parcel, response: Response) -> Outcome:
    code = response.status
    comment = f" ({response.comment})" if response.comment else ""
    text = f"status 0x{code:04X}{comment}" if code else ""
    return Outcome(parcel.key, is_held(code), f"0x{code:04X}", text)


def _head(parcel: Parcel) -> FileHead | str:
    """What the file says of itself; words where it cannot be read."""
    try:
        return read_head(parcel.file)
    except (OSError, InvalidDicomError) as error:
        return f"{parcel.file.name} cannot be read: {error}"


def _data_set(file: bytes) -> bytes:
    """Of a Part 10 file, without its meta information (PS3.10 7.1)."""
    return file[144 + int.from_bytes(file[140:144], "little") :]
