"""A presentation state (GSPS) that draws the mask's contours on the source slices. Never touches a pixel.

It shows the series in the brain window, and names the key slices. A presentation state replaces the
modality LUT of the images it refers to (PS3.4 N.2.1), so there is one for each rescale of the series.
"""

from __future__ import annotations

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from node.domain.findings import Status
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, MODEL_NAME, serial_number, software_versions, stamp
from node.outputs.outlines import outlines
from node.outputs.segmentation import COLOUR, check_matrix
from node.outputs.source import numbers
from node.outputs.wording import HEADLINES, RESEARCH_USE, key_slices, plain, verdict

SERIES_NUMBER = 904
CENTRE_HU, WIDTH_HU = 40.0, 80.0
LAYER = "AI"
LABEL_BOX = (0.1, 0.93, 0.9, 0.98)
"""Left, top, right, bottom as shares of the image: below the head of an axial slice."""
MOST_POINTS = 8000
"""GraphicData is FL, whose length field has 16 bits in Explicit VR (PS3.5 7.1.2): 8191 points at most."""
_PIXEL = hd.pr.AnnotationUnitsValues.PIXEL
Rescale = tuple[float, float]


def build(context: Context) -> list[Dataset]:
    """One state for each rescale of the slices (so nearly always one); none where the mask marks nothing."""
    if context.findings.status is not Status.ANALYSED or not context.marked:
        return []
    check_matrix(context)
    groups = _by_rescale(context)
    return [_state(context, number, rescale, groups[rescale]) for number, rescale in enumerate(groups, 1)]


def _by_rescale(context: Context) -> dict[Rescale, list[int]]:
    """Indices of slices by (slope, intercept), those without a rescale left out; first come, first served."""
    groups: dict[Rescale, list[int]] = {}
    for index, ds in enumerate(context.source.datasets):
        slope, intercept = numbers(ds, "RescaleSlope", 1), numbers(ds, "RescaleIntercept", 1)
        if slope and intercept and slope[0]:
            groups.setdefault((slope[0], intercept[0]), []).append(index)
    return groups


def _state(context: Context, number: int, rescale: Rescale, indices: list[int]) -> Dataset:
    headers = context.source.headers
    layer = hd.pr.GraphicLayer(
        LAYER, 1, description="AI contours", display_color=hd.color.CIELabColor.from_rgb(*COLOUR)
    )
    found = (_annotation(context, index, layer) for index in indices)
    annotations = [annotation for annotation in found if annotation is not None]
    state = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[headers[index] for index in indices],
        series_instance_uid=context.uid("gsps-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid("gsps", number - 1),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(context)[0],  # `stamp` writes all three
        device_serial_number=serial_number(context),
        content_label="AI_ICH",
        content_description="AI contours, brain window",
        content_creator_name="ichnode^AI",
        graphic_annotations=annotations or None,
        graphic_layers=[layer] if annotations else None,
        modality_lut_transformation=hd.ModalityLUTTransformation(
            rescale_intercept=rescale[1], rescale_slope=rescale[0], rescale_type="HU"
        ),
        voi_lut_transformations=[hd.pr.SoftcopyVOILUTTransformation([CENTRE_HU], [WIDTH_HU], ["BRAIN"])],
    )
    return _finished(state, context)


def _annotation(context: Context, index: int, layer: hd.pr.GraphicLayer) -> hd.pr.GraphicAnnotation | None:
    """The contours of one slice, and its label if it is a key slice (PS3.3 C.10.5)."""
    assert context.masks is not None
    header = context.source.headers[index]
    contours = [
        hd.pr.GraphicObject(hd.pr.GraphicTypeValues.POLYLINE, points, units=_PIXEL)
        for outline in outlines(context.masks[index])
        for points in pieces(outline)
    ]
    is_key = context.source.refs[index] in key_slices(context.findings)
    labels = [_label(context, header)] if is_key else []
    if not contours and not labels:
        return None
    return hd.pr.GraphicAnnotation(
        [header], layer, graphic_objects=contours or None, text_objects=labels or None
    )


def pieces(outline: np.ndarray) -> list[np.ndarray]:
    """The outline in stretches of at most `MOST_POINTS`, each beginning where the one before ended."""
    starts = range(0, len(outline) - 1, MOST_POINTS - 1)
    return [outline[start : start + MOST_POINTS] for start in starts]


def _label(context: Context, header: Dataset) -> hd.pr.TextObject:
    left, top, right, bottom = LABEL_BOX
    words = f"AI key slice: {HEADLINES[verdict(context.findings)].lower()}. {RESEARCH_USE}"
    rows, columns = header.Rows, header.Columns
    return hd.pr.TextObject(
        plain(words),
        units=_PIXEL,
        bounding_box=(left * columns, top * rows, right * columns, bottom * rows),
        text_justification="CENTER",
    )


def _finished(state: Dataset, context: Context) -> Dataset:
    """With the source's pixel spacing, so that pixels that are not square look right (PS3.3 C.10.4)."""
    state.BodyPartExamined = "HEAD"  # else Laterality is wanted: PS3.3 C.7.3.1
    area = state.DisplayedAreaSelectionSequence[0]
    area.pop("PixelOriginInterpretation", None)  # only for tiled images
    if spacing := numbers(context.source.headers[0], "PixelSpacing", 2):
        del area.PresentationPixelAspectRatio
        area.PresentationPixelSpacing = [DSfloat(mm, auto_format=True) for mm in spacing]
    stamp(state, context, "AI ICH contours")
    state.PresentationCreationDate, state.PresentationCreationTime = state.ContentDate, state.ContentTime
    del state.ContentDate, state.ContentTime  # not in this IOD: PS3.3 A.33.1
    return state
