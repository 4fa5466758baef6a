"""Read the files of one series into a volume. Changes none of them; names the one it cannot read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from node.domain.errors import PermanentError
from workers.volume import Volume, build_volume

_UNREADABLE = (
    ArithmeticError, BytesLengthException, EOFError, InvalidDicomError, LookupError, NotImplementedError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


def load_volume(paths: Iterable[str | Path]) -> Volume:
    """The volume in these files. PermanentError FILE_UNREADABLE, FILE_MISSING, or as `build_volume`."""
    return build_volume([read_dataset(path) for path in paths])


def read_dataset(path: str | Path) -> Dataset:
    """One Part 10 file with its pixels. Other trouble with the disk is left an OSError, worth a retry."""
    try:
        return dcmread(path)
    except FileNotFoundError as error:
        raise PermanentError("FILE_MISSING", f"{path} is no longer there") from error
    except _UNREADABLE as error:
        raise PermanentError("FILE_UNREADABLE", f"{path} cannot be read as DICOM: {error}") from error
