"""The frames of a multi-frame CT, each as the header of a plain image. Decides nothing, opens no pixels.

Enhanced CT (PS3.3 A.38) and Legacy Converted Enhanced CT (A.70) say in functional groups (C.7.6.16) what a
CT image says at the top. A group that is absent or cannot be read leaves its elements out; frames are never
matched to groups by guess.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag, Tag

from node.domain.instance import ENHANCED_CT_IMAGES

UNREADABLE = (
    ArithmeticError, BytesLengthException, EOFError, InvalidDicomError, LookupError, NotImplementedError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What pydicom raises on bytes that are no DICOM, besides an OSError that no disk is to blame for."""
MOST_FRAMES = 20000

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_CONVERTED = (
    "AcquisitionNumber", "BodyPartExamined", "ContrastBolusAgent", "ConvolutionKernel", "PixelPaddingValue",
)  # fmt: skip
_MACROS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "FrameContentSequence": ("FrameAcquisitionNumber", "StackID", "TemporalPositionIndex"),
    "CTImageFrameTypeSequence": ("FrameType", "VolumeBasedCalculationTechnique"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "FrameAnatomySequence": ("AnatomicRegionSequence",),
    "UnassignedSharedConvertedAttributesSequence": _CONVERTED,
    "UnassignedPerFrameConvertedAttributesSequence": _CONVERTED,
}
"""What is taken from which macro (PS3.3 C.7.6.16.2, C.8.15.3, C.7.6.16.2.25)."""
Element = DataElement | RawDataElement
_AT_THE_TOP = {"FrameType": ("ImageType", "CS"), "FrameAcquisitionNumber": ("AcquisitionNumber", "US")}
"""Under which name, and with which VR where implicit VR leaves it out."""
_TAGS = {k: Tag(tag_for_keyword(k) or 0) for macro in _MACROS.values() for k in macro}
_NOT_COPIED = {
    Tag(keyword) for keyword in ("PixelData", SHARED, PER_FRAME, "NumberOfFrames", "DimensionIndexSequence")
}


def is_multiframe(ds: Dataset) -> bool:
    """Whether this is a CT in functional groups."""
    try:
        return str(ds.get("SOPClassUID", "")) in ENHANCED_CT_IMAGES
    except (AttributeError, TypeError, *UNREADABLE):
        return False


def frame_headers(ds: Dataset) -> list[Dataset]:
    """One header a frame, sharing the elements of `ds`; none unless every frame has its functional group."""
    shared, groups = _items(ds, SHARED), _items(ds, PER_FRAME)
    if not 0 < len(groups) <= MOST_FRAMES or len(groups) != _number_of_frames(ds):
        return []
    top = {tag: ds.get_item(tag) for tag in tuple(ds.keys()) if tag not in _NOT_COPIED}
    return [_header(ds, top, [*shared[:1], group]) for group in groups]


def _header(ds: Dataset, top: Mapping[BaseTag, Element], groups: list[Dataset]) -> Dataset:
    header = Dataset()
    implicit, little = ds.original_encoding
    header.set_original_encoding(implicit, little, ds.original_character_set)
    if meta := getattr(ds, "file_meta", None):
        header.file_meta = meta
    told = {element.tag: element for group in groups for element in _told(group)}
    header.update({**top, **told})
    if not _was_enhanced(groups):
        header.pop("ContrastBolusAgentSequence", None)
    return header


def _told(group: Dataset) -> Iterator[Element]:
    """The elements of one functional group that a plain CT image has at the top, under their names there."""
    for macro, keywords in _MACROS.items():
        for item in _items(group, macro)[:1]:
            for keyword in keywords:
                element = item.get_item(_TAGS[keyword])
                if element is None:
                    continue
                yield _renamed(element, *_AT_THE_TOP[keyword]) if keyword in _AT_THE_TOP else element


def _renamed(element: Element, keyword: str, vr: str) -> Element:
    tag = Tag(keyword)
    if isinstance(element, RawDataElement):
        return element._replace(tag=tag, VR=element.VR or vr)
    return DataElement(tag, element.VR, element.value, already_converted=True)


def _was_enhanced(groups: list[Dataset]) -> bool:
    """False where the Contrast/Bolus Usage macro says that no agent was given (PS3.3 C.8.15.3.7)."""
    given = [
        str(use.get("ContrastBolusAgentAdministered", ""))
        for group in groups
        for use in _items(group, "ContrastBolusUsageSequence")
    ]
    return not given or any(answer != "NO" for answer in given)


def _items(ds: Dataset, keyword: str) -> list[Dataset]:
    try:
        return [item for item in ds.get(keyword) or () if isinstance(item, Dataset)]
    except (AttributeError, OSError, TypeError, *UNREADABLE):
        return []


def _number_of_frames(ds: Dataset) -> int:
    try:
        return int(ds.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, *UNREADABLE):
        return 0
