"""Numbers from a mask in source orientation: millilitres and slices. Judges neither."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.volume import Volume


def volume_ml(mask: NDArray[np.bool_], volume: Volume) -> float:
    """Volume of a mask (z, y, x), each slice with its own perpendicular thickness."""
    between_rows, between_columns = volume.pixel_spacing_mm
    counts = np.count_nonzero(mask, axis=(1, 2))
    return float(counts @ volume.thickness_mm) * between_rows * between_columns / 1000


def slices_with(mask: NDArray[np.bool_], volume: Volume) -> tuple[str, ...]:
    """SOP Instance UIDs of the slices that hold any of the mask, in order."""
    held = np.asarray(mask.any(axis=(1, 2)))
    return tuple(uid for uid, holds in zip(volume.sop_instance_uids, held, strict=True) if holds)
