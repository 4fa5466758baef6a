"""The mask divided by subtype: a SEG with a segment for each, or a label map. Built only on request.

Both hold only subtypes that were drawn. A label map gives a pixel to one of them: where parts overlap, to
the first in the usual order. It is a SOP class of 2024 (PS3.3 A.51), which many archives decline yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.domain.findings import SUBTYPES
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, software_versions, stamp
from node.outputs.segmentation import (
    COLOUR,
    FULL_STACK,
    SEGMENT_NUMBER,
    TRACKING_ID,
    algorithm_identification,
    check_matrix,
)

SERIES_NUMBERS = {"seg-subtypes": 906, "labelmap": 907}
WHOLE = "any"
LABELS = {
    WHOLE: "Intracranial hemorrhage (AI)",
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
    return [_built(context, "seg-subtypes", hd.seg.SegmentationTypeValues.BINARY, stacked, list(parts))]


def build_labelmap(context: Context) -> list[Dataset]:
    """One LABELMAP SEG of the subtypes, or of all blood where the mask is not divided."""
    if context.masks is None or not context.marked or not has_place(context):
        return []
    parts: Mapping[str, np.ndarray] = drawn(context) or {WHOLE: context.masks}
    labels = np.zeros(context.masks.shape, np.uint8)
    for number, mask in enumerate(parts.values(), start=1):
        labels[mask & (labels == 0)] = number
    return [_built(context, "labelmap", hd.seg.SegmentationTypeValues.LABELMAP, labels, list(parts))]


def drawn(context: Context) -> dict[str, np.ndarray]:
    """The parts that hold anything, in the order of their segment numbers, which count from 1."""
    found = {name: context.subtypes[name] for name in SUBTYPES if name in context.subtypes}
    return {name: mask for name, mask in found.items() if mask.any()}


def segment_of(context: Context) -> dict[str, tuple[str, int]]:
    """For "any" and each subtype that has a segment of its own: in which output, and its number there."""
    built, parts = context.built, list(drawn(context))
    found = {WHOLE: ("seg", SEGMENT_NUMBER)} if built.get("seg") else {}
    divided = next((output for output in SERIES_NUMBERS if built.get(output)), None)
    if divided is None:
        return found
    own = {name: (divided, number) for number, name in enumerate(parts, start=1)}
    return {**found, **own} if parts else {WHOLE: (divided, 1), **found}


def has_place(context: Context) -> bool:
    """The source is a stack of slices in one frame of reference."""
    return context.source.is_stack and bool(context.source.frame_of_reference_uid)


def tracking(context: Context, name: str) -> tuple[str, str]:
    """Tracking UID and identifier of the part of a subtype, the same in SEG and report."""
    if name == WHOLE:
        return context.uid("tracking-mask"), TRACKING_ID
    return context.uid("tracking-part", SUBTYPES.index(name)), f"AI {name} hemorrhage, segmented"


def _built(
    context: Context, kind: str, how: hd.seg.SegmentationTypeValues, pixels: np.ndarray, names: list[str]
) -> Dataset:
    check_matrix(context)
    seg = hd.seg.Segmentation(
        source_images=list(context.source.headers),
        pixel_array=pixels,
        segmentation_type=how,
        segment_descriptions=[_segment(context, n, name) for n, name in enumerate(names, start=1)],
        series_instance_uid=context.uid(f"{kind}-series"),
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=context.uid(kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(context)[0],  # `stamp` writes all three
        device_serial_number=serial_number(context),
        content_label="AI_ICH_SUBTYPES",
        content_description="Intracranial hemorrhage by subtype (AI)",
        content_creator_name="ichnode^AI",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=len(context.source.datasets) > FULL_STACK,
    )
    seg.BodyPartExamined = "HEAD"
    return stamp(seg, context, "AI ICH subtypes")


def _segment(context: Context, number: int, name: str) -> hd.seg.SegmentDescription:
    uid, identifier = tracking(context, name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=LABELS[name],
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.HEMORRHAGE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(context),
        tracking_uid=uid,
        tracking_id=identifier,
        anatomic_regions=[codes.SITES[name]],
        display_color=hd.color.CIELabColor.from_rgb(*_COLOURS[name]),
    )
