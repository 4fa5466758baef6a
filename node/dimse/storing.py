"""C-STORE as SCU (PS3.7 9.1.1) over an association of our own: requests out, responses in. Reads no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.dimse.command import (
    AFFECTED_SOP_CLASS,
    AFFECTED_SOP_INSTANCE,
    C_STORE_RQ,
    COMMAND_FIELD,
    DATA_SET_TYPE,
    ERROR_COMMENT,
    MESSAGE_ID,
    MESSAGE_ID_RESPONDED_TO,
    PRIORITY,
    RESPONSE,
    STATUS,
    InvalidCommand,
    encode_command,
    read_command,
)
from node.dul.requestor import Bytes, Over, Requestor

WITH_DATA_SET = 0x0001
MEDIUM = 0x0000  # PS3.7 9.1.1.1.5
MOST_MESSAGES = 0x10000


@dataclass(frozen=True)
class Response:
    """`status` as in PS3.4 Table B.2-1, `comment` as the peer wrote it."""

    message_id: int
    status: int
    comment: str


class Storing:
    """C-STORE requests over one association; several may be outstanding where the peers agreed on that."""

    def __init__(self, requestor: Requestor) -> None:
        self._requestor = requestor
        self._next_id = 1

    def request(
        self, context_id: int, sop_class: str, sop_instance: str, pieces: Iterator[tuple[Bytes, bool]]
    ) -> int:
        """Send a data set; the Message ID by which its response will be known. Raises Over."""
        message_id, self._next_id = self._next_id, self._next_id % (MOST_MESSAGES - 1) + 1
        command = encode_command(
            {
                AFFECTED_SOP_CLASS: sop_class,
                COMMAND_FIELD: C_STORE_RQ,
                MESSAGE_ID: message_id,
                PRIORITY: MEDIUM,
                DATA_SET_TYPE: WITH_DATA_SET,
                AFFECTED_SOP_INSTANCE: sop_instance,
            }
        )
        self._requestor.send(context_id, command, pieces)
        return message_id

    def response(self) -> Response:
        """The next response. Raises Over, also for what is none."""
        try:
            command = read_command(self._requestor.command())
        except InvalidCommand as error:
            self._requestor.abort()
            raise Over(f"the peer sent what is no command: {error}") from error
        status, message_id = command.number(STATUS), command.number(MESSAGE_ID_RESPONDED_TO)
        if command.field != C_STORE_RQ | RESPONSE or status is None or message_id is None:
            self._requestor.abort()
            raise Over(f"the peer sent command 0x{command.field:04X} where the response to a C-STORE is due")
        comment = command.elements.get(ERROR_COMMENT, b"").decode("ascii", "replace").strip("\0 ")
        return Response(message_id, status, comment)
