"""Objects as bytes, and many objects of one series that share most of them. Alters no object it is given.

An element that was read from its encoded form stays that form until somebody looks at it, and is written
back as it is. So what the objects of a series share is encoded once, read again, and copied.
"""

from __future__ import annotations

from copy import copy
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID


def encode(ds: Dataset) -> bytes:
    """The bytes of a whole DICOM file (PS3.10)."""
    return _encoded(ds).getvalue()


def frozen(ds: Dataset) -> Dataset:
    """The same object, each element in its encoded form. `ds` has its File Meta Information."""
    stream = _encoded(ds)
    stream.seek(0)
    return dcmread(stream)


def another(common: Dataset, sop_instance_uid: str) -> Dataset:
    """An object like `common`, which is `frozen`, under its own SOP Instance UID.

    Elements may be set and removed; values that it shares with `common` must not be changed in place.
    """
    ds = Dataset({tag: common.get_item(tag) for tag in tuple(common.keys())})
    is_implicit_vr, is_little_endian = common.original_encoding
    ds.set_original_encoding(is_implicit_vr, is_little_endian, common.original_character_set)
    ds.preamble = common.preamble
    ds.file_meta = FileMetaDataset()
    for element in common.file_meta:
        ds.file_meta.add(copy(element))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    return ds


def _encoded(ds: Dataset) -> BytesIO:
    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream
