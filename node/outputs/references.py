"""Makes references to slices name what the source really is, where slices are frames. Adds no reference.

Builders know slices as single-frame instances; here each of those names becomes the multi-frame instance
and the number of the frame, or the instance alone where the standard has no place for a frame.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from node.domain.instance import SliceRef

Names = Mapping[str, tuple[str, SliceRef, int]]
"""Name of a slice → SOP Class UID of its instance, which slice it is, how many frames the instance holds."""

_OF_FRAMES = ("SourceImageSequence", "ReferencedImageSequence")
"""Image SOP Instance Reference macro, which has ReferencedFrameNumber (PS3.3 10.3)."""


def name_sources(ds: Dataset, names: Names) -> None:
    """Rename in place, through all nested sequences; items that come to name the same become one."""
    for element in ds:
        if element.VR != "SQ":
            continue
        of_frames = element.keyword in _OF_FRAMES or (
            element.keyword == "ReferencedSOPSequence" and ds.get("ValueType") == "IMAGE"  # PS3.3 C.18.4
        )
        element.value = Sequence(_renamed(element.value, names, of_frames))


def _renamed(items: Sequence, names: Names, of_frames: bool) -> list[Dataset]:
    """The items, those of one multi-frame instance joined into the first of them."""
    kept: list[Dataset] = []
    joined: dict[str, tuple[Dataset, list[int], int]] = {}
    for item in items:
        name_sources(item, names)
        name = names.get(str(item.get("ReferencedSOPInstanceUID", "")))
        if name is None:
            kept.append(item)
            continue
        sop_class_uid, ref, total = name
        if ref.sop_instance_uid not in joined:
            item.ReferencedSOPClassUID = UID(sop_class_uid)
            item.ReferencedSOPInstanceUID = UID(ref.sop_instance_uid)
            joined[ref.sop_instance_uid] = (item, [], total)
            kept.append(item)
        joined[ref.sop_instance_uid][1].append(ref.frame_number or 1)
    for item, frames, total in joined.values():
        if of_frames and (len(set(frames)) < total or total == 1):
            item.ReferencedFrameNumber = sorted(set(frames)) if len(set(frames)) > 1 else frames[0]
    return kept
