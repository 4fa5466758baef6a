"""Whether a data set that comes again is the one that came before. Keeps nothing.

XXH3 with 128 bits takes a thirtieth of the time of SHA-256, and tells apart what differs by chance. It is no
proof against somebody who makes two contents alike on purpose: what seems the same is compared by SHA-256
too, wherever the file is still there. Earlier versions recorded SHA-256 itself.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import xxhash

from node.filemeta import META_LENGTH_AT

_KIND = "xxh3:"


def fingerprint() -> xxhash.xxh3_128:
    """To be given a data set piece by piece; `recorded` tells what came out."""
    return xxhash.xxh3_128()


def recorded(made: xxhash.xxh3_128) -> str:
    """As it stands in the records, in at most 64 characters."""
    return f"{_KIND}{made.hexdigest()}"


def file_fingerprint(file: Path) -> str:
    """Of the data set in a file of the intake, as it is recorded. Raises OSError, struct.error."""
    made = fingerprint()
    with file.open("rb") as stream:
        stream.seek(_data_at(file))
        while piece := stream.read(2**20):
            made.update(piece)
    return recorded(made)


def file_digest(file: Path) -> str:
    """SHA-256 of the data set in a file that the intake wrote, in hex. Raises OSError and struct.error."""
    with file.open("rb") as stream:
        stream.seek(_data_at(file))
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_repeated(known: str, file: Path, came: str, digest: Callable[[], str]) -> bool:
    """Whether what came is what is recorded as `known` and lies in `file`.

    `came` is its fingerprint, `digest` tells its SHA-256. If the file is lost, the fingerprint must do.
    """
    if not known.startswith(_KIND):
        return known == digest()
    if known != came:
        return False
    try:
        return file_digest(file) == digest()
    except FileNotFoundError:
        return True


def _data_at(file: Path) -> int:
    with file.open("rb") as stream:
        stream.seek(META_LENGTH_AT)
        (length,) = struct.unpack("<I", stream.read(4))
    return META_LENGTH_AT + 4 + int(length)
