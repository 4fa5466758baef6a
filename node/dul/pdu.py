"""The PDUs of the upper layer (PS3.8 9.3) between bytes and dataclasses. Trusts no length that a peer gives.

P-DATA-TF is not here: it is taken apart while it comes, by `stream` and `conversation`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
APPLICATION_CONTEXT, CONTEXT_RQ, CONTEXT_AC, USER_INFORMATION = 0x10, 0x20, 0x21, 0x50
ABSTRACT_SYNTAX, TRANSFER_SYNTAX = 0x30, 0x40
MAXIMUM_LENGTH, IMPLEMENTATION_CLASS, ROLE, IMPLEMENTATION_VERSION = 0x51, 0x52, 0x54, 0x55  # PS3.7 D.3.3
OPERATIONS_WINDOW = 0x53  # PS3.7 D.3.3.3
APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
PROTOCOL_VERSION = 1
_FIXED = struct.Struct(">HH16s16s32s")
HEADER = struct.Struct(">BxI")


class InvalidPdu(Exception):
    """Bytes that are no PDU of PS3.8; `reason` as in A-ABORT (PS3.8 9.3.8)."""

    def __init__(self, text: str, reason: int = 6) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class ProposedContext:
    """One presentation context of an A-ASSOCIATE-RQ."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Role:
    """SCP/SCU role selection (PS3.7 D.3.3.4) of the requestor."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True)
class AssociateRequest:
    """What an A-ASSOCIATE-RQ says. Items that are not listed here are ignored (PS3.8 9.3.1)."""

    protocol_version: int
    called_ae: str
    calling_ae: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    maximum_length: int = 0
    """Longest P-DATA-TF that the peer takes, in bytes; 0: any (PS3.8 D.1)."""
    implementation_class_uid: str = ""
    implementation_version: str = ""
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True)
class AnsweredContext:
    """`result` as in PS3.8 Table 9-18; the transfer syntax of a rejected one is without meaning."""

    id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True)
class AssociateAccept:
    """An A-ASSOCIATE-AC."""

    contexts: tuple[AnsweredContext, ...]
    maximum_length: int
    implementation_class_uid: str
    implementation_version: str
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True)
class AssociateReject:
    """PS3.8 9.3.4."""

    result: int
    source: int
    reason: int


@dataclass
class _UserInformation:
    maximum_length: int = 0
    implementation_class_uid: str = ""
    implementation_version: str = ""
    roles: list[Role] = field(default_factory=list)


def read_request(body: bytes) -> AssociateRequest:
    """An A-ASSOCIATE-RQ without its first six bytes. Raises InvalidPdu."""
    if len(body) < _FIXED.size:
        raise InvalidPdu(f"an A-ASSOCIATE-RQ of {len(body)} bytes")
    version, _, called, calling, _ = _FIXED.unpack_from(body)
    application, contexts, user = "", [], _UserInformation()
    for kind, value in items(body[_FIXED.size :]):
        if kind == APPLICATION_CONTEXT:
            application = _uid(value)
        elif kind == CONTEXT_RQ:
            contexts.append(_read_context(value))
        elif kind == USER_INFORMATION:
            user = _read_user_information(value)
    ids = [context.id for context in contexts]
    if len(set(ids)) < len(ids) or any(number % 2 == 0 for number in ids):
        raise InvalidPdu("presentation context IDs are even, or there twice (PS3.8 9.3.2.2)")
    return AssociateRequest(
        version,
        _ae_title(called),
        _ae_title(calling),
        application,
        tuple(contexts),
        user.maximum_length,
        user.implementation_class_uid,
        user.implementation_version,
        tuple(user.roles),
    )


def items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of the items that follow one another (PS3.8 9.3.2)."""
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise InvalidPdu("an item is cut short")
        kind, length = struct.unpack_from(">BxH", data, at)
        if len(data) - at - 4 < length:
            raise InvalidPdu(f"item 0x{kind:02X} announces {length} bytes, and has {len(data) - at - 4}")
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def _read_context(value: bytes) -> ProposedContext:
    if len(value) < 4:
        raise InvalidPdu("a presentation context is cut short")
    abstract, transfer = "", []
    for kind, item in items(value[4:]):
        if kind == ABSTRACT_SYNTAX:
            abstract = _uid(item)
        elif kind == TRANSFER_SYNTAX:
            transfer.append(_uid(item))
    return ProposedContext(value[0], abstract, tuple(transfer))


def _read_user_information(value: bytes) -> _UserInformation:
    """Other items, such as user identity (PS3.7 D.3.3.7), are left unanswered, which declines them."""
    user = _UserInformation()
    for kind, item in items(value):
        if kind == MAXIMUM_LENGTH and len(item) == 4:
            (user.maximum_length,) = struct.unpack(">I", item)
        elif kind == IMPLEMENTATION_CLASS:
            user.implementation_class_uid = _uid(item)
        elif kind == IMPLEMENTATION_VERSION:
            user.implementation_version = item.decode("ascii", "replace").strip()
        elif kind == ROLE:
            user.roles.append(_read_role(item))
    return user


def _read_role(item: bytes) -> Role:
    (length,) = struct.unpack_from(">H", item) if len(item) >= 2 else (0,)
    if len(item) != length + 4:
        raise InvalidPdu("a role selection item is cut short")
    return Role(_uid(item[2:-2]), bool(item[-2]), bool(item[-1]))


def _uid(value: bytes) -> str:
    """Some peers pad UIDs, though PS3.8 F.1 forbids it."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def _ae_title(value: bytes) -> str:
    """Some peers end it as C ends a string; what follows is no part of it."""
    return value.partition(b"\0")[0].decode("ascii", "replace").strip()


def encode_accept(accept: AssociateAccept, request: AssociateRequest) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3); the AE titles are those of the request, as it wants."""
    contexts = b"".join(
        _item(CONTEXT_AC, bytes((c.id, 0, c.result, 0)) + _text(TRANSFER_SYNTAX, c.transfer_syntax))
        for c in accept.contexts
    )
    user = (
        _item(MAXIMUM_LENGTH, struct.pack(">I", accept.maximum_length))
        + _text(IMPLEMENTATION_CLASS, accept.implementation_class_uid)
        + b"".join(_role(role) for role in accept.roles)
        + _text(IMPLEMENTATION_VERSION, accept.implementation_version)
    )
    titles = [_padded(title) for title in (request.called_ae, request.calling_ae)]
    body = _FIXED.pack(PROTOCOL_VERSION, 0, *titles, b"") + _text(
        APPLICATION_CONTEXT, APPLICATION_CONTEXT_NAME
    )
    return _pdu(ASSOCIATE_AC, body + contexts + _item(USER_INFORMATION, user))


def encode_reject(reject: AssociateReject) -> bytes:
    return _pdu(ASSOCIATE_RJ, bytes((0, reject.result, reject.source, reject.reason)))


def encode_abort(source: int, reason: int) -> bytes:
    """Source 0: the user of the service; 2: its provider (PS3.8 9.3.8)."""
    return _pdu(ABORT, bytes((0, 0, source, reason)))


def encode_release_response() -> bytes:
    return _pdu(RELEASE_RP, bytes(4))


def _pdu(kind: int, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _text(kind: int, text: str) -> bytes:
    return _item(kind, text.encode("ascii", "replace"))


def _role(role: Role) -> bytes:
    uid = role.sop_class_uid.encode("ascii", "replace")
    return _item(ROLE, struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp)))


def _padded(title: str) -> bytes:
    return title.encode("ascii", "replace").ljust(16)[:16]
