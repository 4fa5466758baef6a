"""Command sets between bytes and values (PS3.7 6.3), in Implicit VR Little Endian. Trusts no length."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

# Command Field, PS3.7 E.1
C_STORE_RQ, C_GET_RQ, C_FIND_RQ, C_MOVE_RQ, C_ECHO_RQ = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030
N_EVENT_REPORT_RQ, N_GET_RQ, N_SET_RQ = 0x0100, 0x0110, 0x0120
N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ = 0x0130, 0x0140, 0x0150
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
COMPOSITE = (C_STORE_RQ, C_GET_RQ, C_FIND_RQ, C_MOVE_RQ, C_ECHO_RQ)
NORMALISED = (N_EVENT_REPORT_RQ, N_GET_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ)

# Elements of group 0000, PS3.7 E.1
GROUP_LENGTH, AFFECTED_SOP_CLASS, REQUESTED_SOP_CLASS = 0x0000, 0x0002, 0x0003
COMMAND_FIELD, MESSAGE_ID, MESSAGE_ID_RESPONDED_TO = 0x0100, 0x0110, 0x0120
PRIORITY, DATA_SET_TYPE, STATUS, ERROR_COMMENT = 0x0700, 0x0800, 0x0900, 0x0902
AFFECTED_SOP_INSTANCE, REQUESTED_SOP_INSTANCE, EVENT_TYPE, ACTION_TYPE = 0x1000, 0x1001, 0x1002, 0x1008
NO_DATA_SET = 0x0101

_ELEMENT = struct.Struct("<HHI")
_SHORT = struct.Struct("<H")
_US = struct.Struct("<HHIH")
_GROUP_LENGTH = struct.Struct("<HHII")


class InvalidCommand(Exception):
    """Bytes that are no command set."""


@dataclass(frozen=True)
class Command:
    """A command set that was read; values by element of group 0000."""

    elements: Mapping[int, bytes]
    field: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str

    def number(self, element: int) -> int | None:
        """A US value; None where it is absent or of another length."""
        return _number(self.elements, element)


def read_command(data: bytes) -> Command:
    """Raises InvalidCommand for what is cut short or lacks the elements that every command has."""
    elements: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        if end - at < 8:
            raise InvalidCommand("an element of the command set is cut short")
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += 8
        if group != 0 or length > end - at:
            raise InvalidCommand(f"({group:04X},{element:04X}) of {length} bytes in a command set")
        elements[element] = data[at : at + length]
        at += length
    field, data_set_type = _number(elements, COMMAND_FIELD), _number(elements, DATA_SET_TYPE)
    if field is None or data_set_type is None:
        raise InvalidCommand("a command set without command field or data set type (PS3.7 E.1)")
    sop_class = _uid(elements, AFFECTED_SOP_CLASS, REQUESTED_SOP_CLASS)
    sop_instance = _uid(elements, AFFECTED_SOP_INSTANCE, REQUESTED_SOP_INSTANCE)
    return Command(elements, field, data_set_type != NO_DATA_SET, sop_class, sop_instance)


def _number(elements: Mapping[int, bytes], element: int) -> int | None:
    value = elements.get(element, b"")
    return int(_SHORT.unpack(value)[0]) if len(value) == 2 else None


def _uid(elements: Mapping[int, bytes], *alternatives: int) -> str:
    """The first of these that is there; empty without any."""
    for element in alternatives:
        if element in elements:
            return elements[element].rstrip(b"\0 ").decode("ascii", "replace")
    return ""


def encode_command(values: Mapping[int, int | str]) -> bytes:
    """Numbers are US, texts UI (PS3.7 E.1); elements in ascending order, behind their group length."""
    body = b""
    for element in sorted(values):
        value = values[element]
        if isinstance(value, int):
            body += _US.pack(0, element, 2, value)
        else:
            text = value.encode("ascii", "replace")
            text += b"\0" * (len(text) % 2)
            body += _ELEMENT.pack(0, element, len(text)) + text
    return _GROUP_LENGTH.pack(0, GROUP_LENGTH, 4, len(body)) + body


def response_to(request: Command, status: int, more: Mapping[int, int | str]) -> dict[int, int | str]:
    """A response without data set, unless `more` says otherwise (PS3.7 9.3 and 10.3)."""
    values: dict[int, int | str] = {
        COMMAND_FIELD: request.field | RESPONSE,
        MESSAGE_ID_RESPONDED_TO: request.number(MESSAGE_ID) or 0,
        DATA_SET_TYPE: NO_DATA_SET,
        STATUS: status,
    }
    if request.sop_class_uid:
        values[AFFECTED_SOP_CLASS] = request.sop_class_uid
    if request.sop_instance_uid:
        values[AFFECTED_SOP_INSTANCE] = request.sop_instance_uid
    return values | dict(more)
