"""The Grad-CAM++ as a Parametric Map that viewers lay over the source slices. Never resamples what it shows.

The coarse grid of the explanation is kept as it is; its pixel spacing and position make it cover exactly
the field of view of the slice it explains. A series without a finding has nothing to explain and gets none.
Like the SEG, it holds all slices of up to `FULL_STACK`, and of a longer series only those with an activation
strong enough to be shown on the overlays. uint16, since PS3.3 A.75 allows no 8 bits.
"""

from __future__ import annotations

import copy

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, software_versions, stamp
from node.outputs.overlay import THRESHOLD
from node.outputs.segmentation import FULL_STACK
from node.outputs.source import numbers
from node.outputs.wording import Verdict, verdict

SERIES_NUMBER = 902
FULL_SCALE = 65535
"""The stored value of an activation of 1."""
LABEL = "Grad-CAM++, 0 to 1"


def build(context: Context) -> list[Dataset]:
    """One map; none without a finding or heat, or where the source is no stack in one frame of reference."""
    source = context.source
    if context.heat is None or verdict(context.findings) not in (Verdict.SUSPECTED, Verdict.INDETERMINATE):
        return []
    if not source.is_stack or not source.frame_of_reference_uid:
        return []
    stored = stored_values(context.heat)
    kept = frames_kept(stored)
    if not kept or not stored.any():
        return []
    planes = [coarse_plane(source.headers[i], stored.shape[1:]) for i in kept]
    pm = hd.pm.ParametricMap(
        source_images=planes,
        pixel_array=stored[kept],
        series_instance_uid=context.uid("pm-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid("pm"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(context)[0],  # `stamp` writes all three
        device_serial_number=serial_number(context),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping()],
        voi_lut_transformations=[hd.VOILUTTransformation(FULL_SCALE / 2, FULL_SCALE)],
        content_label="AI_CAM",
        content_description="Grad-CAM++ of the AI finding",
        content_creator_name="ichnode^AI",
        content_qualification="RESEARCH",
        derived_pixel_contrast="NONE",
    )
    pm.BodyPartExamined = "HEAD"
    _own_grid(pm)
    return [stamp(pm, context, "AI ICH activation map")]


def stored_values(heat: np.ndarray) -> np.ndarray:
    """uint16 0…65535 (z, h, w) from float 0…1 or uint8 0…255; what is not a number shows nothing."""
    if heat.dtype == np.uint8:
        return heat.astype(np.uint16) * np.uint16(FULL_SCALE // 255)
    finite = np.nan_to_num(heat.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(np.clip(finite, 0, 1) * FULL_SCALE).astype(np.uint16)


def frames_kept(stored: np.ndarray) -> list[int]:
    """Indices of the slices that get a frame."""
    if len(stored) <= FULL_STACK:
        return list(range(len(stored)))
    strongest = stored.reshape(len(stored), -1).max(axis=1, initial=0)
    return [int(i) for i in np.flatnonzero(strongest >= THRESHOLD * FULL_SCALE)]


def coarse_plane(header: Dataset, grid: tuple[int, ...]) -> Dataset:
    """`header` as if its field of view had been sampled on `grid` (rows, columns).

    ImagePositionPatient is the centre of the first pixel (PS3.3 C.7.6.2.1.1), so it moves inwards by half
    the difference of the spacings while the corners of the field stay where they are.
    """
    spacing, position = numbers(header, "PixelSpacing", 2), numbers(header, "ImagePositionPatient", 3)
    cosines = numbers(header, "ImageOrientationPatient", 6)
    assert spacing and position and cosines  # the source is a stack
    fine_mm = np.array(spacing)
    coarse_mm = fine_mm * (header.Rows, header.Columns) / np.array(grid)
    down, right = (coarse_mm - fine_mm) / 2
    first = np.array(position) + right * np.array(cosines[:3]) + down * np.array(cosines[3:])
    plane = copy.deepcopy(header)
    plane.Rows, plane.Columns = grid
    plane.PixelSpacing = [DSfloat(float(v), auto_format=True) for v in coarse_mm]
    plane.ImagePositionPatient = [DSfloat(float(v), auto_format=True) for v in first]
    return plane


def _own_grid(pm: Dataset) -> None:
    """Say that a pixel here is not the pixel of the same row and column there (PS3.3 C.12.4)."""
    for group in pm.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or ():
            for image in derivation.SourceImageSequence:
                image.SpatialLocationsPreserved = "NO"


def _mapping() -> hd.pm.RealWorldValueMapping:
    """Stored value × 1/65535 = activation (PS3.3 C.7.6.16.2.11)."""
    return hd.pm.RealWorldValueMapping(
        lut_label="CAM",
        lut_explanation=LABEL,
        unit=codes.NO_UNITS,
        value_range=(0, FULL_SCALE),
        slope=1 / FULL_SCALE,
        intercept=0.0,
        quantity_definition=codes.GRAD_CAM,
    )
