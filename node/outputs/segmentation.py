"""The haemorrhage mask as a DICOM SEG that viewers lay over the source slices. Never holds an empty mask.

BINARY and uncompressed, since every viewer reads that (LABELMAP is declined by some archives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from node.domain.errors import PermanentError
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, software_versions, stamp
from node.outputs.wording import long_string

SEGMENT_NUMBER = 1
SEGMENT_LABEL = "Intracranial hemorrhage (AI)"
TRACKING_ID = "AI intracranial hemorrhage"
FULL_STACK = 100
"""Up to this many slices empty frames are kept, because viewers stumble over sparse stacks."""
COLOUR = (230, 40, 40)


@dataclass(frozen=True)
class Kind:
    """What tells one kind of segmentation object from another; `name` is that of the output."""

    name: str
    series_number: int
    content_label: str
    content_description: str
    series_description: str


@dataclass(frozen=True)
class Part:
    """One segment: what it is called, where it lies, and how it is shown (RGB)."""

    label: str
    tracking_uid: str
    tracking_id: str
    site: Code
    colour: tuple[int, int, int]


KIND = Kind("seg", 901, "AI_ICH", SEGMENT_LABEL, "AI ICH segmentation")


def build(context: Context) -> list[Dataset]:
    """One SEG; none without a mask, or where the source is no stack of slices in one frame of reference."""
    if context.masks is None or not context.marked or not has_place(context):
        return []
    whole = Part(SEGMENT_LABEL, context.uid("tracking-mask"), TRACKING_ID, codes.BRAIN, COLOUR)
    binary = hd.seg.SegmentationTypeValues.BINARY
    return [made(context, KIND, binary, context.masks.astype(np.uint8), [whole])]


def has_place(context: Context) -> bool:
    """The source is a stack of slices in one frame of reference."""
    return context.source.is_stack and bool(context.source.frame_of_reference_uid)


def made(
    context: Context,
    kind: Kind,
    how: hd.seg.SegmentationTypeValues,
    pixels: np.ndarray,
    parts: Sequence[Part],
) -> Dataset:
    """The object of `pixels`, as highdicom takes them, with the segments `parts` numbered from 1.

    Raises PermanentError MASK_SHAPE as `check_matrix` does.
    """
    check_matrix(context)
    seg = hd.seg.Segmentation(
        source_images=list(context.source.headers),
        pixel_array=pixels,
        segmentation_type=how,
        segment_descriptions=[_segment(context, number, part) for number, part in enumerate(parts, start=1)],
        series_instance_uid=context.uid(f"{kind.name}-series"),
        series_number=kind.series_number,
        sop_instance_uid=context.uid(kind.name),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(context)[0],  # `stamp` writes all three
        device_serial_number=serial_number(context),
        content_label=kind.content_label,
        content_description=kind.content_description,
        content_creator_name="ichnode^AI",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=len(context.source.datasets) > FULL_STACK,
    )
    seg.BodyPartExamined = "HEAD"
    return stamp(seg, context, kind.series_description)


def algorithm_identification(context: Context) -> hd.AlgorithmIdentificationSequence:
    """Which model made it (PS3.3 10.16)."""
    model = context.findings.model
    return hd.AlgorithmIdentificationSequence(
        name=long_string(model.name),
        family=codes.AI_FAMILY,
        version=long_string(model.version),
        source=MANUFACTURER,
        parameters={"weights": f"sha256:{model.sha256 or 'none'}"},
    )


def _segment(context: Context, number: int, part: Part) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=part.label,
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.HEMORRHAGE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(context),
        tracking_uid=part.tracking_uid,
        tracking_id=part.tracking_id,
        anatomic_regions=[part.site],
        display_color=hd.color.CIELabColor.from_rgb(*part.colour),
    )


def check_matrix(context: Context) -> None:
    """Raises PermanentError MASK_SHAPE where mask and slices differ in rows or columns."""
    assert context.masks is not None
    first = context.source.headers[0]
    if context.masks.shape[1:] != (first.Rows, first.Columns):
        raise PermanentError(
            "MASK_SHAPE",
            f"a mask of {context.masks.shape[1:]} does not fit slices of {first.Rows}x{first.Columns}",
        )
