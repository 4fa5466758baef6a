"""The haemorrhage mask as a DICOM SEG that viewers lay over the source slices. Never holds an empty mask.

BINARY and uncompressed, since every viewer reads that (LABELMAP is declined by some archives).
"""

from __future__ import annotations

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.domain.errors import PermanentError
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, software_versions, stamp
from node.outputs.wording import long_string

SERIES_NUMBER = 901
SEGMENT_NUMBER = 1
SEGMENT_LABEL = "Intracranial hemorrhage (AI)"
TRACKING_ID = "AI intracranial hemorrhage"
FULL_STACK = 100
"""Up to this many slices empty frames are kept, because viewers stumble over sparse stacks."""
COLOUR = (230, 40, 40)


def build(context: Context) -> list[Dataset]:
    """One SEG; none without a mask, or where the source is no stack of slices in one frame of reference."""
    source = context.source
    if context.masks is None or not context.marked:
        return []
    if not source.is_stack or not source.frame_of_reference_uid:
        return []
    check_matrix(context)
    seg = hd.seg.Segmentation(
        source_images=list(source.headers),
        pixel_array=context.masks.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(context)],
        series_instance_uid=context.uid("seg-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid("seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(context)[0],  # `stamp` writes all three
        device_serial_number=serial_number(context),
        content_label="AI_ICH",
        content_description=SEGMENT_LABEL,
        content_creator_name="ichnode^AI",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=len(source.datasets) > FULL_STACK,
    )
    seg.BodyPartExamined = "HEAD"
    return [stamp(seg, context, "AI ICH segmentation")]


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


def _segment(context: Context) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=SEGMENT_NUMBER,
        segment_label=SEGMENT_LABEL,
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.HEMORRHAGE,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(context),
        tracking_uid=context.uid("tracking-mask"),
        tracking_id=TRACKING_ID,
        anatomic_regions=[codes.BRAIN],
        display_color=hd.color.CIELabColor.from_rgb(*COLOUR),
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
