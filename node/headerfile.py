"""Reads the header of a Part 10 file with pydicom, up to its pixels; refuses one that goes on without end.

Of 200 MB of zeros pydicom would make 25 million elements, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, cast

from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
MOST_ELEMENTS = 2**16
"""Before the pixels, not counting what lies in sequences: real headers have some hundred."""
MOST_READS = 8_000_000
"""By pydicom, of tags, lengths and values: 20,000 frames of 100 elements take some four million."""


class TooLong(Exception):
    """More than any header holds."""


class _Stop:
    """Tells pydicom to stop at the pixels."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise TooLong(f"more than {MOST_ELEMENTS} elements before the pixels")
        return tag in PIXELS


class _Bounded:
    """A stream that gives no more than so many pieces, however deep in sequences they lie."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MOST_READS
        self.name = getattr(stream, "name", "")
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooLong(f"more than {MOST_READS} pieces")
        return self._stream.read(size)


def read_bounded(stream: BinaryIO, tags: Sequence[int]) -> FileDataset:
    """The elements `tags` of a file; the stream stands at the pixels afterwards, or at its end.

    Raises TooLong, and whatever pydicom raises on what is no DICOM (`frames.UNREADABLE`).
    """
    try:
        return read_partial(cast(BinaryIO, _Bounded(stream)), _Stop(), specific_tags=list(tags))
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidDicomError(str(error)) from error  # pydicom says so of a sequence that is cut short
