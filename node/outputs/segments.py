"""The mask divided by subtype: a SEG with a segment for each, or a label map. Built only on request.

Both hold only subtypes that were drawn. A label map gives a pixel to one of them: where parts overlap, to
the first in the usual order. It is a SOP class of 2024 (PS3.3 A.51), which many archives decline yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from node.domain.findings import SUBTYPES
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.segmentation import (
    COLOUR,
    SEGMENT_LABEL,
    SEGMENT_NUMBER,
    TRACKING_ID,
    Kind,
    Part,
    has_place,
    made,
)

_WORDS = ("AI_ICH_SUBTYPES", "Intracranial hemorrhage by subtype (AI)", "AI ICH subtypes")
KINDS = (Kind("seg-subtypes", 906, *_WORDS), Kind("labelmap", 907, *_WORDS))
WHOLE = "any"
LABELS = {
    WHOLE: SEGMENT_LABEL,
    "epidural": "Epidural hemorrhage (AI)",
    "intraparenchymal": "Intraparenchymal hemorrhage (AI)",
    "intraventricular": "Intraventricular hemorrhage (AI)",
    "subarachnoid": "Subarachnoid hemorrhage (AI)",
    "subdural": "Subdural hemorrhage (AI)",
}
_COLOURS = {  # told apart by colour-blind readers too: Okabe and Ito
    WHOLE: COLOUR,
    "epidural": (240, 228, 66),
    "intraparenchymal": (213, 94, 0),
    "intraventricular": (0, 114, 178),
    "subarachnoid": (86, 180, 233),
    "subdural": (204, 121, 167),
}


def build_binary(context: Context) -> list[Dataset]:
    """One BINARY SEG with a segment for each subtype; none where the mask is not divided."""
    parts = drawn(context)
    if not parts or not has_place(context):
        return []
    stacked = np.stack(list(parts.values()), axis=-1).astype(np.uint8)
    segments = [_part(context, name) for name in parts]
    return [made(context, KINDS[0], hd.seg.SegmentationTypeValues.BINARY, stacked, segments)]


def build_labelmap(context: Context) -> list[Dataset]:
    """One LABELMAP SEG of the subtypes, or of all blood where the mask is not divided."""
    if context.masks is None or not context.marked or not has_place(context):
        return []
    parts: Mapping[str, np.ndarray] = drawn(context) or {WHOLE: context.masks}
    labels = np.zeros(context.masks.shape, np.uint8)
    for number, mask in enumerate(parts.values(), start=1):
        labels[mask & (labels == 0)] = number
    segments = [_part(context, name) for name in parts]
    return [made(context, KINDS[1], hd.seg.SegmentationTypeValues.LABELMAP, labels, segments)]


def drawn(context: Context) -> dict[str, np.ndarray]:
    """The parts that hold anything, in the order of their segment numbers, which count from 1."""
    found = {name: context.subtypes[name] for name in SUBTYPES if name in context.subtypes}
    return {name: mask for name, mask in found.items() if mask.any()}


def segment_of(context: Context) -> dict[str, tuple[str, int]]:
    """For "any" and each subtype that has a segment of its own: in which output, and its number there."""
    built, parts = context.built, list(drawn(context))
    found = {WHOLE: ("seg", SEGMENT_NUMBER)} if built.get("seg") else {}
    divided = next((kind.name for kind in KINDS if built.get(kind.name)), None)
    if divided is None:
        return found
    own = {name: (divided, number) for number, name in enumerate(parts, start=1)}
    return {**found, **own} if parts else {WHOLE: (divided, 1), **found}


def tracking(context: Context, name: str) -> tuple[str, str]:
    """Tracking UID and identifier of the part of a subtype, the same in SEG and report."""
    if name == WHOLE:
        return context.uid("tracking-mask"), TRACKING_ID
    return context.uid("tracking-part", SUBTYPES.index(name)), f"AI {name} hemorrhage, segmented"


def _part(context: Context, name: str) -> Part:
    return Part(LABELS[name], *tracking(context, name), codes.SITES[name], _COLOURS[name])
