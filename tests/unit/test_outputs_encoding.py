"""What the objects of a series share is encoded once, and each is still as if it had been made by itself."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.outputs import capture
from node.outputs.context import Context
from node.outputs.encoding import another, encode, frozen
from node.outputs.source import Source
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of, make_uid

NEW_UID = make_uid("another")


def test_another_differs_in_its_uid_alone_and_leaves_the_first_as_it_was() -> None:
    (plain, *_) = ct_series(1, 8)
    common = frozen(plain)
    made = another(common, NEW_UID)
    made.PatientName = "Somebody^Else"
    del made.PatientID
    plain.SOPInstanceUID = plain.file_meta.MediaStorageSOPInstanceUID = NEW_UID
    assert encode(another(common, NEW_UID)) == encode(plain)
    assert common.file_meta.MediaStorageSOPInstanceUID == common.SOPInstanceUID != NEW_UID
    assert (made.file_meta.MediaStorageSOPInstanceUID, "PatientID" in common) == (NEW_UID, True)


def test_a_changed_element_is_written_in_the_character_set_of_the_object() -> None:
    (ds,) = ct_series(1, 8, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    made = another(frozen(ds), NEW_UID)
    made.StudyDescription = ds.StudyDescription = "頭部"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = NEW_UID
    assert encode(made) == encode(ds)


def uneven() -> list[Dataset]:
    """Slices that differ in more than slices usually do, and are written in ways that we would not use."""
    series = ct_series(6, 16, SliceLocation="1.50")
    del series[2].SliceThickness
    del series[4].SliceLocation
    series[3].PixelSpacing = ["3.0", "3.00 "]
    series[5].ImageOrientationPatient = [1, 0.001, 0, 0, 1, 0]
    return series


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"FrameOfReferenceUID": None},
        {"ImagePositionPatient": None},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Жук^Ёж"},
        {"LossyImageCompression": "01", "LossyImageCompressionRatio": 5},
    ],
)
def test_each_slice_is_what_it_would_be_alone(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    series = uneven()
    for ds in series:
        for keyword, value in changes.items():
            if value is None:
                del ds[keyword]
            else:
                setattr(ds, keyword, value)
    read = [dcmread(BytesIO(encode(ds))) for ds in series]
    masks = bleed(6, 16)
    findings = analysed(read, {"any": 0.9}, masks=masks)
    context = Context(findings, Source.ordered(read, findings, hu_of), MADE_AT, "0.1.0", masks)
    together = capture.build(context)
    for index, ds in enumerate(together[1:]):
        monkeypatch.setattr(capture, "slices_shown", lambda _, index=index: [index])
        _, alone = capture.build(context)
        alone.InstanceNumber = ds.InstanceNumber
        assert encode(ds) == encode(alone)
        assert encode(dcmread(BytesIO(encode(ds)))) == encode(ds)
