"""Read the files of one series into a volume. Changes none of them; names the one it cannot read."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.acquisition import Acquisition
from node.domain.errors import PermanentError
from node.frames import UNREADABLE
from node.headers import acquisition_of
from workers.head import Evidence, require_head
from workers.images import Image, image_of
from workers.volume import Volume, build_volume, volume_of


def load_volume(paths: Iterable[str | Path]) -> Volume:
    """The volume in these files. PermanentError FILE_UNREADABLE, FILE_MISSING, or as `build_volume`."""
    return build_volume([read_dataset(path) for path in paths])


@dataclass(frozen=True, eq=False)
class Loaded:
    """A head as it was read, with what is known of how it was acquired."""

    volume: Volume
    acquisition: Acquisition
    load_s: float


def load_acquired(paths: Sequence[Path], known: Mapping[Path, Image] | None = None) -> Loaded:
    """A series for an analysis. Raises PermanentError as `load_volume` does, and NOT_A_HEAD.

    `known` are images that were read before, of these very files; what is gone since is missing all the same.
    """
    began = time.perf_counter()
    known = {path: image for path, image in (known or {}).items() if path.exists()}
    unread = {path: read_dataset(path) for path in paths if path not in known}
    volume = volume_of([known.get(path) or image_of(unread[path]) for path in paths])
    evidence = require_head(volume.hu, volume.pixel_spacing_mm, volume.thickness_mm, volume.seen)
    return Loaded(volume, acquired(paths, volume, evidence), time.perf_counter() - began)


def load_head(paths: Iterable[str | Path]) -> Volume:
    """The same, once its pixels show a head. Raises PermanentError NOT_A_HEAD where they do not."""
    volume = load_volume(paths)
    require_head(volume.hu, volume.pixel_spacing_mm, volume.thickness_mm)
    return volume


def read_image(path: Path) -> Image:
    """One image, its pixels still to be decoded. Raises PermanentError as `load_volume` does."""
    return image_of(read_dataset(path))


def read_dataset(path: str | Path) -> Dataset:
    """One Part 10 file with its pixels. Other trouble with the disk is left an OSError, worth a retry."""
    try:
        return dcmread(path)
    except FileNotFoundError as error:
        raise PermanentError("FILE_MISSING", f"{path} is no longer there; send the study again") from error
    except UNREADABLE as error:
        text = f"{path} cannot be read as DICOM: {error}; send the study again"
        raise PermanentError("FILE_UNREADABLE", text) from error


def acquired(paths: Iterable[str | Path], volume: Volume, evidence: Evidence) -> Acquisition:
    """How the slices of a volume were acquired, and what they show of a head. For statistics: never fails."""
    inside = [s.median_hu for s in evidence.slices if s.is_cranial]
    return replace(
        _header_of(paths, set(volume.sop_instance_uids)),
        slices=len(volume.hu),
        head_hu=float(np.median(inside)) if inside else None,
        head_share=evidence.cranial_mm / evidence.covered_mm if evidence.covered_mm else None,
    )


def _header_of(paths: Iterable[str | Path], wanted: Collection[str]) -> Acquisition:
    """Of the first file that holds a wanted instance."""
    for path in paths:
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except (OSError, *UNREADABLE):
            continue
        if str(ds.get("SOPInstanceUID", "")) in wanted:
            return acquisition_of(ds)
    return Acquisition()
