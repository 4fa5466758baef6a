"""The PDUs of whoever asks for an association (PS3.8 9.3) between bytes and dataclasses. Trusts no length.

The other side, which is asked, is in `pdu`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from node.dul import pdu
from node.dul.pdu import AnsweredContext, AssociateReject, InvalidPdu, ProposedContext

_FIXED_BYTES = 68
"""Of an A-ASSOCIATE-RQ or -AC, before its items (PS3.8 9.3.2, 9.3.3)."""


@dataclass(frozen=True)
class Titles:
    """AE titles, at most 16 characters each."""

    called: str
    calling: str


@dataclass(frozen=True)
class Self:
    """What the requestor says of itself; `window` of 1 operation outstanding is what goes without saying."""

    maximum_length: int
    implementation_class_uid: str
    implementation_version: str
    window: int = 1


@dataclass(frozen=True)
class Accepted:
    """What an A-ASSOCIATE-AC says. `window` is 1 where the peer negotiates none, 0 where it sets no bound."""

    contexts: tuple[AnsweredContext, ...]
    maximum_length: int
    window: int = 1


def encode_request(titles: Titles, contexts: Sequence[ProposedContext], own: Self) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    names = (titles.called, titles.calling)
    fixed = struct.pack(">HH16s16s32s", pdu.PROTOCOL_VERSION, 0, *map(_padded, names), b"")
    user = _item(pdu.MAXIMUM_LENGTH, struct.pack(">I", own.maximum_length))
    user += _text(pdu.IMPLEMENTATION_CLASS, own.implementation_class_uid)
    if own.window != 1:
        user += _item(pdu.OPERATIONS_WINDOW, struct.pack(">HH", own.window, 1))
    user += _text(pdu.IMPLEMENTATION_VERSION, own.implementation_version)
    body = fixed + _text(pdu.APPLICATION_CONTEXT, pdu.APPLICATION_CONTEXT_NAME)
    body += b"".join(_context(context) for context in contexts) + _item(pdu.USER_INFORMATION, user)
    return encode(pdu.ASSOCIATE_RQ, body)


def encode(kind: int, body: bytes = bytes(4)) -> bytes:
    """A PDU; without a body, an A-RELEASE-RQ or -RP."""
    return pdu.HEADER.pack(kind, len(body)) + body


def read_accept(body: bytes) -> Accepted:
    """An A-ASSOCIATE-AC without its first six bytes. Raises InvalidPdu."""
    if len(body) < _FIXED_BYTES:
        raise InvalidPdu(f"an A-ASSOCIATE-AC of {len(body)} bytes")
    contexts, maximum_length, window = [], 0, 1
    for kind, value in pdu.items(body[_FIXED_BYTES:]):
        if kind == pdu.CONTEXT_AC:
            contexts.append(_read_answer(value))
        elif kind == pdu.USER_INFORMATION:
            for part, item in pdu.items(value):
                if part == pdu.MAXIMUM_LENGTH and len(item) == 4:
                    (maximum_length,) = struct.unpack(">I", item)
                elif part == pdu.OPERATIONS_WINDOW and len(item) == 4:
                    (window, _) = struct.unpack(">HH", item)
    return Accepted(tuple(contexts), maximum_length, window)


def read_reject(body: bytes) -> AssociateReject:
    """An A-ASSOCIATE-RJ without its first six bytes (PS3.8 9.3.4). Raises InvalidPdu."""
    if len(body) != 4:
        raise InvalidPdu(f"an A-ASSOCIATE-RJ of {len(body)} bytes")
    return AssociateReject(*body[1:])


def _read_answer(value: bytes) -> AnsweredContext:
    if len(value) < 4:
        raise InvalidPdu("a presentation context is cut short")
    syntaxes = [item for kind, item in pdu.items(value[4:]) if kind == pdu.TRANSFER_SYNTAX]
    syntax = syntaxes[0].rstrip(b"\0 ").decode("ascii", "replace") if syntaxes else ""
    return AnsweredContext(value[0], value[2], syntax)


def _context(context: ProposedContext) -> bytes:
    names = _text(pdu.ABSTRACT_SYNTAX, context.abstract_syntax)
    names += b"".join(_text(pdu.TRANSFER_SYNTAX, syntax) for syntax in context.transfer_syntaxes)
    return _item(pdu.CONTEXT_RQ, bytes((context.id, 0, 0, 0)) + names)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _text(kind: int, text: str) -> bytes:
    return _item(kind, text.encode("ascii", "replace"))


def _padded(title: str) -> bytes:
    return title.encode("ascii", "replace").ljust(16)[:16]
