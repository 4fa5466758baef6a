"""Command sets and messages, without a socket: what is put together, what is refused, what is answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import cast

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from pynetdicom.dsutils import decode

from node.dimse.command import (
    AFFECTED_SOP_CLASS,
    AFFECTED_SOP_INSTANCE,
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_FIND_RQ,
    C_STORE_RQ,
    COMMAND_FIELD,
    DATA_SET_TYPE,
    MESSAGE_ID,
    N_GET_RQ,
    RESPONSE,
    InvalidCommand,
    encode_command,
    read_command,
)
from node.dimse.conversation import Answer, Conversation, Fixed, Gathered, Request, Sink
from node.dul.association import COMMAND, LAST, Association, ProtocolError
from node.dul.negotiation import Context

CT = "1.2.840.10008.5.1.4.1.1.2"
DATA, NO_DATA = 0x0000, 0x0101


def command(field: int, data_set_type: int = NO_DATA, message_id: int = 7, **more: str) -> bytes:
    values: dict[int, int | str] = {
        COMMAND_FIELD: field,
        DATA_SET_TYPE: data_set_type,
        MESSAGE_ID: message_id,
    }
    return encode_command(values | {AFFECTED_SOP_CLASS: CT, AFFECTED_SOP_INSTANCE: "1.2.3"})


class Sent:
    """Stands in for an association."""

    def __init__(self) -> None:
        self.contexts = {1: Context(CT, "1.2.840.10008.1.2.1"), 3: Context(CT, "1.2.840.10008.1.2")}
        self.sent: list[tuple[int, int, bytes]] = []

    def send(self, context_id: int, control: int, data: bytes) -> None:
        self.sent.append((context_id, control, data))

    def statuses(self) -> list[int | None]:
        return [read_command(data).number(0x0900) for _, _, data in self.sent]


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.data, self.is_abandoned = b"", False

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        self.data += b"".join(pieces)

    def end(self) -> Iterable[Answer]:
        return (Answer(0x0000),)

    def abandon(self) -> None:
        self.is_abandoned = True


class Talk:
    def __init__(self) -> None:
        self.sink, self.sent = Kept(), Sent()
        self.requests: list[Request] = []
        self.conversation = Conversation({C_STORE_RQ: self._store, C_ECHO_RQ: lambda request: Fixed(0)})

    def _store(self, request: Request) -> Sink:
        self.requests.append(request)
        return self.sink

    def hear(self, control: int, *pieces: bytes, context_id: int = 1) -> None:
        self.conversation.fragment(cast(Association, self.sent), context_id, control, iter(pieces))


class TestCommands:
    def test_the_peer_reads_what_we_encode(self) -> None:
        ds = decode(BytesIO(command(C_STORE_RQ | RESPONSE)), True, True)
        assert (ds.CommandField, ds.AffectedSOPInstanceUID, ds.MessageID) == (0x8001, "1.2.3", 7)
        assert ds.CommandGroupLength == len(command(C_STORE_RQ | RESPONSE)) - 12

    @seed(20261121)
    @settings(max_examples=300, deadline=None, database=None)
    @given(st.data())
    def test_noise_is_refused_in_words_or_read(self, data: st.DataObject) -> None:
        whole = bytearray(command(C_STORE_RQ, DATA))
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        try:
            read = read_command(bytes(whole))
        except InvalidCommand as error:
            assert str(error)
        else:
            assert isinstance(read.sop_instance_uid, str) and 0 <= read.field < 2**16


class TestMessages:
    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_fragments_of_any_size_become_one_message(self, size: int) -> None:
        talk, head, body = Talk(), command(C_STORE_RQ, DATA), bytes(range(256)) * 3
        for control, data in ((COMMAND, head), (0, body)):
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            for number, part in enumerate(parts):
                talk.hear(control | (LAST if number == len(parts) - 1 else 0), part)
        assert talk.sink.data == body
        assert talk.requests[0].command.sop_instance_uid == "1.2.3"
        assert talk.sent.statuses() == [0x0000]

    def test_an_empty_last_fragment_ends_a_data_set(self) -> None:
        talk = Talk()
        talk.hear(COMMAND | LAST, command(C_STORE_RQ, DATA))
        talk.hear(0, b"abcd")
        assert talk.sent.sent == []
        talk.hear(LAST)
        assert (talk.sink.data, talk.sent.statuses()) == (b"abcd", [0x0000])

    @pytest.mark.parametrize(("field", "status"), [(C_FIND_RQ, 0x0122), (N_GET_RQ, 0x0118), (0x0777, 0x0211)])
    @pytest.mark.parametrize("data_set_type", [DATA, NO_DATA])
    def test_what_is_not_served_is_told_so(self, field: int, status: int, data_set_type: int) -> None:
        """PS3.7 Annex C; and the association goes on."""
        talk = Talk()
        talk.hear(COMMAND | LAST, command(field, data_set_type))
        if data_set_type == DATA:
            talk.hear(LAST, b"identifier")
        talk.hear(COMMAND | LAST, command(C_ECHO_RQ))
        assert talk.sent.statuses() == [status, 0x0000]

    def test_a_cancel_is_not_answered(self) -> None:
        talk = Talk()
        talk.hear(COMMAND | LAST, command(C_CANCEL_RQ))
        assert talk.sent.sent == []

    @pytest.mark.parametrize(
        "fragments",
        [
            [(LAST, b"data", 1)],
            [(COMMAND | LAST, b"\0" * 7, 1)],
            [(COMMAND | LAST, command(C_STORE_RQ | RESPONSE), 1)],
            [(COMMAND | LAST, command(C_STORE_RQ, DATA), 1), (COMMAND | LAST, command(C_ECHO_RQ), 1)],
            [(COMMAND | LAST, command(C_STORE_RQ, DATA), 1), (LAST, b"data", 3)],
            [(COMMAND, command(C_STORE_RQ, DATA), 1), (COMMAND | LAST, b"", 3)],
            [(COMMAND | LAST, command(C_ECHO_RQ), 5)],
            [(COMMAND, bytes(65 * 1024), 1)],
        ],
        ids=[
            "no command",
            "no elements",
            "response",
            "command in data",
            "other context",
            "split",
            "unknown",
            "long",
        ],
    )
    def test_what_is_no_message_ends_the_association(self, fragments: list[tuple[int, bytes, int]]) -> None:
        talk = Talk()
        with pytest.raises(ProtocolError):
            for control, data, context_id in fragments:
                talk.hear(control, data, context_id=context_id)
        talk.conversation.abandon()
        assert talk.sent.sent == []
        assert talk.sink.is_abandoned == bool(talk.requests)

    def test_a_data_set_in_memory_is_bounded(self) -> None:
        gathered = Gathered(lambda data: (Answer(0),))
        with pytest.raises(ProtocolError):
            for _ in range(20):
                gathered.write([bytes(2**20)])
