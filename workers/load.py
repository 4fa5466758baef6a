"""Read the files of one series into a volume. Changes none of them; names the one it cannot read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.errors import PermanentError
from node.frames import UNREADABLE
from workers.head import require_head
from workers.volume import Volume, build_volume


def load_volume(paths: Iterable[str | Path]) -> Volume:
    """The volume in these files. PermanentError FILE_UNREADABLE, FILE_MISSING, or as `build_volume`."""
    return build_volume([read_dataset(path) for path in paths])


def load_head(paths: Iterable[str | Path]) -> Volume:
    """The same, once its pixels show a head. Raises PermanentError NOT_A_HEAD where they do not."""
    volume = load_volume(paths)
    require_head(volume.hu, volume.pixel_spacing_mm, volume.thickness_mm)
    return volume


def read_dataset(path: str | Path) -> Dataset:
    """One Part 10 file with its pixels. Other trouble with the disk is left an OSError, worth a retry."""
    try:
        return dcmread(path)
    except FileNotFoundError as error:
        raise PermanentError("FILE_MISSING", f"{path} is no longer there") from error
    except UNREADABLE as error:
        raise PermanentError("FILE_UNREADABLE", f"{path} cannot be read as DICOM: {error}") from error
