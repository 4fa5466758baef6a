"""Finds the bytes of a frame in encapsulated pixel data (PS3.5 A.4). Decodes none.

The offset tables of real writers point at anything; a frame taken for another is a slice shown in its place.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets, parse_fragments


def frame_stream(ds: Dataset, frame: int) -> bytes:
    """The fragments of one frame. An offset table that cannot be right is not believed (PS3.5 A.4).

    Where there is one frame all are its own; where there are as many as frames each is one.
    """
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    data = io.BytesIO(ds.PixelData)
    offsets = parse_basic_offsets(data)
    count, starts = parse_fragments(data)
    if frames == 1:
        return b"".join(generate_fragments(data))
    if count == frames:
        data.seek(starts[frame])
        return next(generate_fragments(data))
    if offsets and not _is_table(offsets, starts, frames):
        raise ValueError(f"{count} fragments of {frames} frames, and a wrong Basic Offset Table")
    return get_frame(ds.PixelData, frame, number_of_frames=frames)


def _is_table(offsets: Sequence[int], starts: Sequence[int], frames: int) -> bool:
    """Whether each frame starts with another fragment, and the first one with the first."""
    if len(offsets) != frames or offsets[0] != 0 or any(a >= b for a, b in pairwise(offsets)):
        return False
    return {starts[0] + offset for offset in offsets} <= set(starts)
