"""Numbers from a mask in source orientation: millilitres, ABC/2, diameter, side, parts. Judges none of them.

All are in the space of the patient: each slice counts with its own perpendicular thickness, so gantry tilt
and uneven steps are allowed for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from node.domain.findings import SegmentationFinding, Side
from node.domain.instance import SliceRef
from workers.midline import midplane
from workers.shape import TOUCHING, abc2, axes_mm, box_of, regions
from workers.volume import Volume

Mask = NDArray[np.bool_]
MIDLINE_MM = 5.0
"""A mask of which MIDLINE_SHARE lies this near to the mid-sagittal plane is in the midline."""
MIDLINE_SHARE = 0.75
BILATERAL_SHARE = 0.1
"""Of the volume: with this much on the smaller side a mask is bilateral."""


def measured(mask: Mask, volume: Volume, subtypes: Mapping[str, Mask]) -> SegmentationFinding:
    """Everything that is measured on a mask (z, y, x) and on its parts by subtype."""
    whole_ml, slices, frames = volume_ml(mask, volume), slices_with(mask, volume), frames_with(mask, volume)
    if not slices:
        return SegmentationFinding(whole_ml, slices, frames)
    box, spacing_mm = box_of(mask), volume.pixel_spacing_mm
    thickness_mm = volume.thickness_mm[box[0]]
    labels, components = ndimage.label(mask[box], TOUCHING)
    heights_mm = np.broadcast_to(thickness_mm[:, None, None], labels.shape)
    largest = labels == 1 + ndimage.sum_labels(heights_mm, labels, np.arange(1, components + 1)).argmax()
    side, left_ml, method = side_of(mask, volume)
    return SegmentationFinding(
        volume_ml=whole_ml,
        slices=slices,
        frame_numbers=frames,
        abc2=abc2(largest, thickness_mm, spacing_mm),
        diameter_mm=max(axes_mm(region, spacing_mm)[0] for region in regions(mask[box])),
        side=side,
        side_method=method,
        left_ml=left_ml,
        right_ml=max(0.0, whole_ml - left_ml),
        components=int(components),
        subtypes_ml={name: volume_ml(part, volume) for name, part in subtypes.items()},
    )


def side_of(mask: Mask, volume: Volume) -> tuple[Side, float, str]:
    """The side of a mask, how many mL of it are to the patient's left, and how the middle was found."""
    pixel_mm = volume.spacing_mm[1:]
    positions = volume.slices_from_canonical(volume.positions_mm)  # a flip is its own inverse
    thickness = volume.slices_from_canonical(volume.thickness_mm)
    heights = np.abs(positions - positions[0])
    plane = midplane(volume.canonical(), heights, pixel_mm)
    turned = volume.to_canonical(mask)
    box = box_of(turned)
    z, y, x = (found + part.start for found, part in zip(np.nonzero(turned[box]), box, strict=True))
    away_mm = plane.left_of_mm(heights[z], y * pixel_mm[0], x * pixel_mm[1])
    voxels_ml = thickness[z] * pixel_mm[0] * pixel_mm[1] / 1000
    whole, left = float(voxels_ml.sum()), float(voxels_ml[away_mm > 0].sum())
    if voxels_ml[np.abs(away_mm) <= MIDLINE_MM].sum() >= MIDLINE_SHARE * whole:
        side = Side.MIDLINE
    elif min(left, whole - left) >= BILATERAL_SHARE * whole:
        side = Side.BILATERAL
    else:
        side = Side.LEFT if left > whole / 2 else Side.RIGHT
    return side, left, plane.method


def reaches_edge(mask: Mask) -> bool:
    """The mask goes on to the first or the last slice, so that some of it may lie outside the scan."""
    return bool(mask[0].any() or mask[-1].any())


def volume_ml(mask: Mask, volume: Volume) -> float:
    """Volume of a mask (z, y, x), each slice with its own perpendicular thickness."""
    between_rows, between_columns = volume.pixel_spacing_mm
    counts = np.count_nonzero(mask, axis=(1, 2))
    return float(counts @ volume.thickness_mm) * between_rows * between_columns / 1000


def slices_with(mask: Mask, volume: Volume) -> tuple[str, ...]:
    """SOP Instance UIDs of the slices that hold any of the mask, in order."""
    return tuple(ref.sop_instance_uid for ref in _refs_with(mask, volume))


def frames_with(mask: Mask, volume: Volume) -> tuple[int, ...]:
    """The frame numbers that go with `slices_with`; none where the source is single-frame."""
    return tuple(ref.frame_number for ref in _refs_with(mask, volume) if ref.frame_number is not None)


def _refs_with(mask: Mask, volume: Volume) -> list[SliceRef]:
    held = np.asarray(mask.any(axis=(1, 2)))
    return [ref for ref, holds in zip(volume.slices, held, strict=True) if holds]
