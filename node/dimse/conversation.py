"""Messages of one association: fragments are put together, each request goes to its service, answers go back.

Commands are bounded and gathered; data sets stream into what the service gave for them. A request that no
service takes is answered with the status of PS3.7 Annex C; what is no message at all ends the association.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.dimse.command import (
    C_CANCEL_RQ,
    COMPOSITE,
    DATA_SET_TYPE,
    MESSAGE_ID,
    NO_DATA_SET,
    NORMALISED,
    RESPONSE,
    Command,
    InvalidCommand,
    encode_command,
    read_command,
    response_to,
)
from node.dul.association import COMMAND, LAST, Association, ProtocolError
from node.dul.negotiation import Context

MOST_COMMAND_BYTES = 64 * 1024
MOST_GATHERED_BYTES = 16 * 1024 * 1024
"""Of a data set that is held in memory, as that of an N-EVENT-REPORT is; images are not."""

# PS3.7 Annex C
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_SOP_CLASS = 0x0118
UNRECOGNISED_OPERATION = 0x0211
RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True)
class Request:
    """A command, the presentation context it came in, and who sent it."""

    command: Command
    context: Context


@dataclass(frozen=True)
class Answer:
    """One response; `more` are further elements of its command set."""

    status: int
    more: Mapping[int, int | str] = field(default_factory=dict)
    data: bytes = b""


class Sink(Protocol):
    """Takes the data set of one request, and answers it."""

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        """The next bytes. Raises ProtocolError when the peer must be cut off."""

    def end(self) -> Iterable[Answer]: ...

    def abandon(self) -> None:
        """The rest will not come."""


Service = Callable[[Request], Sink]
Services = Mapping[int, Service]
"""By command field."""


class Fixed:
    """The same answer whatever comes; a data set goes nowhere."""

    def __init__(self, status: int, more: Mapping[int, int | str] | None = None) -> None:
        self._answer = Answer(status, more or {})

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        """Not kept."""

    def end(self) -> Iterable[Answer]:
        return (self._answer,)

    def abandon(self) -> None:
        """Nothing is held."""


class Gathered:
    """Holds a small data set in memory and hands it, whole, to `answer`."""

    def __init__(self, answer: Callable[[bytes], Iterable[Answer]]) -> None:
        self._answer = answer
        self._data = bytearray()

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        for piece in pieces:
            self._data += piece
        if len(self._data) > MOST_GATHERED_BYTES:
            raise ProtocolError(f"a data set of more than {MOST_GATHERED_BYTES} bytes that is no instance")

    def end(self) -> Iterable[Answer]:
        return self._answer(bytes(self._data))

    def abandon(self) -> None:
        self._data.clear()


class Conversation:
    """Fragments in, answers out (PS3.8 Annex E). One message at a time: nothing else was negotiated."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._command = bytearray()
        self._request: Request | None = None
        self._context_id = 0
        self._sink: Sink | None = None
        self._pieces: list[memoryview | bytes] = []

    def fragment(
        self, association: Association, context_id: int, control: int, pieces: Iterable[memoryview | bytes]
    ) -> None:
        """One PDV. Raises ProtocolError for what is not a message."""
        context = association.contexts.get(context_id)
        if context is None:
            raise ProtocolError(f"presentation context {context_id} was not accepted")
        if (self._command or self._sink) and context_id != self._context_id:
            raise ProtocolError("one message in two presentation contexts")
        self._context_id = context_id
        if control & COMMAND:
            self._take_command(pieces)
            if control & LAST:
                self._begin(association, context)
            return
        if self._sink is None:
            raise ProtocolError("a data set without a command")
        for piece in pieces:  # on the way `flush` is called, whenever the buffer is needed again
            self._pieces.append(piece)
        if control & LAST:
            self._finish(association)

    @property
    def is_amid(self) -> bool:
        """Whether a message has begun that has not ended."""
        return bool(self._command) or self._sink is not None

    def flush(self) -> None:
        """Hand on what lies in a buffer that is about to be used again."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if self._sink is not None:
                self._sink.write(pieces)

    def abandon(self) -> None:
        """The association is over; what was half received goes."""
        self._pieces = []
        if self._sink is not None:
            self._sink.abandon()
            self._sink = None

    def _take_command(self, pieces: Iterable[memoryview | bytes]) -> None:
        if self._sink is not None:
            raise ProtocolError("a command in the middle of a data set")
        for piece in pieces:
            self._command += piece
            if len(self._command) > MOST_COMMAND_BYTES:
                raise ProtocolError(f"a command of more than {MOST_COMMAND_BYTES} bytes")

    def _begin(self, association: Association, context: Context) -> None:
        data = bytes(self._command)
        self._command.clear()
        try:
            command = read_command(data)
        except InvalidCommand as error:
            raise ProtocolError(str(error)) from error
        if command.field == C_CANCEL_RQ:  # there is nothing to cancel any more (PS3.7 9.3.2.3)
            return
        if command.field & RESPONSE or command.number(MESSAGE_ID) is None:
            raise ProtocolError(f"command 0x{command.field:04X} is no request")
        self._request = Request(command, context)
        service = self._services.get(command.field)
        self._sink = service(self._request) if service else Fixed(_not_served(command.field))
        if not command.has_data_set:
            self._finish(association)

    def _finish(self, association: Association) -> None:
        self.flush()
        sink, self._sink = self._sink, None
        request, self._request = self._request, None
        assert sink is not None and request is not None
        for answer in sink.end():
            values = response_to(request.command, answer.status, answer.more)
            if answer.data:
                values[DATA_SET_TYPE] = NO_DATA_SET - 1
            association.send(self._context_id, COMMAND, encode_command(values))
            if answer.data:
                association.send(self._context_id, 0, answer.data)


def _not_served(command_field: int) -> int:
    if command_field in COMPOSITE:
        return SOP_CLASS_NOT_SUPPORTED
    return NO_SUCH_SOP_CLASS if command_field in NORMALISED else UNRECOGNISED_OPERATION
