"""Stored values to Hounsfield units, in every transfer syntax and with the quirks of real scanners."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from node.domain.errors import PermanentError
from node.pixels import hounsfield

SHAPE = (48, 64)


def scene_hu() -> np.ndarray:
    """Air all round, brain in the middle, blood and bone in it, nothing symmetric."""
    hu = np.full(SHAPE, -1000, np.int32)
    hu[8:40, 12:52] = 32
    hu[12:20, 20:30] = 65
    hu[8:10, 12:52] = 1200
    hu[30, 40:44] = -7
    return hu


def image(stored: np.ndarray, **changes: Any) -> Dataset:
    """A CT image of these stored values; signed, 16 bits, intercept -1024 unless told otherwise."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.PixelData = stored.astype(np.int32).astype(np.uint16).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def unsigned_12(stored: np.ndarray, **changes: Any) -> Dataset:
    return image(stored, **{"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, **changes})


def reread(ds: Dataset) -> Dataset:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed(syntax: str) -> None:
    ds = image(scene_hu() + 1024)
    ds.file_meta.TransferSyntaxUID = syntax
    hu = hounsfield(reread(ds))
    assert hu.dtype == np.float32
    assert hu.shape == SHAPE
    np.testing.assert_array_equal(hu, scene_hu())


def test_big_endian() -> None:
    ds = image(scene_hu() + 1024)
    ds.PixelData = (scene_hu() + 1024).astype(">i2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    np.testing.assert_array_equal(hounsfield(ds), scene_hu())


def compressed(ds: Dataset, syntax: str) -> Dataset:
    if syntax != JPEGLosslessSV1:
        ds.compress(syntax, generate_instance_uid=False)
        return ds
    words = np.frombuffer(ds.PixelData, "<u2").reshape(SHAPE)
    ds.PixelData = encapsulate([imagecodecs.ljpeg_encode(words, bitspersample=ds.BitsStored)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed(syntax: str, signed: bool) -> None:
    if signed:
        ds = image(scene_hu(), RescaleIntercept=0)
    else:
        ds = unsigned_12(scene_hu() + 1024)
    np.testing.assert_array_equal(hounsfield(reread(compressed(ds, syntax))), scene_hu())


VARIANTS = [
    ("unsigned 12 bits", unsigned_12(scene_hu() + 1024)),
    ("HU stored directly", image(scene_hu(), RescaleIntercept=0)),
    ("slope one half", image(2 * (scene_hu() + 1024), RescaleSlope=0.5)),
    ("MONOCHROME1", image(scene_hu() + 1024, PhotometricInterpretation="MONOCHROME1")),
    ("RSNA wrap", unsigned_12(np.where(scene_hu() < 0, scene_hu() + 4096, scene_hu()), RescaleIntercept=0)),
    (
        "12 bits signed, sign not extended",
        image(scene_hu() & 0xFFF, RescaleIntercept=0, BitsStored=12, HighBit=11),
    ),
    ("no file meta", image(scene_hu() + 1024)),
]
del VARIANTS[-1][1].file_meta


@pytest.mark.parametrize("ds", [row[1] for row in VARIANTS], ids=[row[0] for row in VARIANTS])
def test_the_same_hu_however_stored(ds: Dataset) -> None:
    np.testing.assert_array_equal(hounsfield(ds), scene_hu())


def padded(value: int, base: np.ndarray) -> np.ndarray:
    stored = base.copy()
    stored[:4] = value
    return stored


PADDED = [
    ("GE -2000, signed", image(padded(-2000, scene_hu() + 1024), PixelPaddingValue=-2000)),
    ("read as unsigned", image(padded(-2000, scene_hu() + 1024), PixelPaddingValue=65536 - 2000)),
    (
        "signed padding in unsigned data",
        image(padded(65536 - 2000, scene_hu() + 1024), PixelRepresentation=0, PixelPaddingValue=65536 - 2000),
    ),
    (
        "a range",
        image(
            padded(-1900, padded(-2000, scene_hu() + 1024)),
            PixelPaddingValue=-2000,
            PixelPaddingRangeLimit=-1800,
        ),
    ),
    ("high padding", image(padded(32767, scene_hu() + 1024), PixelPaddingValue=32767)),
    (
        "an empty end of the range",
        image(padded(32767, scene_hu() + 1024), PixelPaddingValue=32767, PixelPaddingRangeLimit=None),
    ),
    ("not declared, far below air", image(padded(-2000, scene_hu() + 1024))),
]


@pytest.mark.parametrize("ds", [row[1] for row in PADDED], ids=[row[0] for row in PADDED])
def test_padding_is_air(ds: Dataset) -> None:
    np.testing.assert_allclose(hounsfield(ds), scene_hu(), atol=24)


def test_padding_with_a_negative_value_in_unsigned_data() -> None:
    ds = image(padded(65536 - 2000, scene_hu() + 1024), PixelRepresentation=0)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    np.testing.assert_array_equal(hounsfield(ds), scene_hu())


def in_high_bits(signed: bool, **changes: Any) -> Dataset:
    """12 bits, and above them a drawing (an overlay, or what a writer left there)."""
    stored = (scene_hu() + 1024) & 0xFFF
    stored[20:24, 20:24] |= 0xF000 if not signed else 0x1000
    return image(stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed), **changes)


def test_bits_above_the_sample_are_not_read() -> None:
    np.testing.assert_array_equal(hounsfield(in_high_bits(signed=False)), scene_hu())
    signed = in_high_bits(signed=True, RescaleIntercept=0)
    signed.PixelData = (np.frombuffer(signed.PixelData, "<u2") - 1024 & 0xFFF).astype("<u2").tobytes()
    np.testing.assert_array_equal(hounsfield(signed), scene_hu())
    signed.PixelData = (np.frombuffer(signed.PixelData, "<u2") | 0x1000).astype("<u2").tobytes()
    signed.add_new(0x60020102, "US", 12)
    np.testing.assert_array_equal(hounsfield(signed), scene_hu())


def test_padding_beyond_the_sample_is_padding() -> None:
    ds = in_high_bits(signed=False, PixelPaddingValue=0xF830)
    stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).copy()
    stored[:4] = 0xF830
    ds.PixelData = stored.tobytes()
    np.testing.assert_array_equal(hounsfield(ds), scene_hu())


def test_padding_within_tissue_is_not_believed() -> None:
    hu = scene_hu()
    hu[20:24, 20:24] = 0
    np.testing.assert_array_equal(hounsfield(image(hu, RescaleIntercept=0, PixelPaddingValue=0)), hu)


def test_no_wrap_without_the_air_that_shows_it() -> None:
    hu = np.clip(scene_hu(), 0, None)
    hu[12:14, 20:30] = 3090
    np.testing.assert_array_equal(hounsfield(unsigned_12(hu, RescaleIntercept=0)), hu)


def test_no_wrap_where_the_intercept_leaves_room_for_air() -> None:
    """Much metal then has the values that wrapped air has, and must not become air."""
    hu = scene_hu()
    hu[10:20, 12:52] = 3096 - 1024
    np.testing.assert_array_equal(hounsfield(unsigned_12(hu + 1024)), hu)


def test_frames_and_their_own_rescale() -> None:
    frames = np.stack([scene_hu(), 2 * scene_hu()[::-1]])
    ds = image(frames, NumberOfFrames=2)
    del ds.RescaleSlope, ds.RescaleIntercept
    groups = []
    for slope in (1, 0.5):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 0
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    np.testing.assert_array_equal(hounsfield(ds, 0), scene_hu())
    np.testing.assert_array_equal(hounsfield(ds, 1), np.maximum(scene_hu()[::-1], -1024))


@pytest.mark.parametrize(
    "gone", [["RescaleSlope"], ["RescaleIntercept"], ["RescaleSlope", "RescaleIntercept"]]
)
def test_no_rescale_is_refused(gone: list[str]) -> None:
    ds = image(scene_hu())
    for keyword in gone:
        delattr(ds, keyword)
    with pytest.raises(PermanentError, match=r"1\.2\.3\.4") as caught:
        hounsfield(ds)
    assert caught.value.code == "NO_RESCALE"


@pytest.mark.parametrize("changes", [{"RescaleSlope": 0}, {"RescaleSlope": None}, {"RescaleType": "Z_EFF"}])
def test_values_that_are_no_hu_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PermanentError) as caught:
        hounsfield(image(scene_hu(), **changes))
    assert caught.value.code == "NO_RESCALE"


def in_pieces(stream: bytes, *offsets: int) -> bytes:
    """Encapsulated in three fragments, with a Basic Offset Table of its own (PS3.5 A.4)."""
    size = (len(stream) // 3 + 1) // 2 * 2
    pieces = [stream[at : at + size] for at in (0, size)] + [stream[2 * size :] + len(stream) % 2 * b"\0"]
    items = [struct.pack(f"<{len(offsets)}I", *offsets), *pieces]
    whole = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    return whole + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


OFFSETS = {"none": (), "its own": (0,), "one a fragment": (0, 20, 40), "of the file": (1300,)}


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1, RLELossless])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_one_frame_in_several_fragments_is_all_of_them(syntax: str, offsets: tuple[int, ...]) -> None:
    """Whatever the Basic Offset Table says: some writers count fragments, or from the start of the file."""
    ds = compressed(unsigned_12(scene_hu() + 1024), syntax)
    ds.PixelData = in_pieces(get_frame(ds.PixelData, 0, number_of_frames=1), *offsets)
    np.testing.assert_array_equal(hounsfield(ds), scene_hu())


TABLES = {
    "zeros": (0, 0, 0),
    "cut off": (0, 2_000_000, 40),
    "one short": (0, 40),
    "not from 0": (8, 300, 600),
    "beyond the end": (0, 2_000_000, 2_000_002),
    "without the items' headers": (0, 264, 528),
}


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("offsets", TABLES.values(), ids=TABLES)
def test_a_fragment_a_frame_needs_no_offsets(syntax: str, offsets: tuple[int, ...]) -> None:
    """No frame is taken for another one, and none is refused, where the table cannot be right."""
    scenes = [np.roll(scene_hu(), shift, axis=1) for shift in (0, 3, 6)]
    lone = [compressed(unsigned_12(scene + 1024), syntax) for scene in scenes]
    streams = [get_frame(ds.PixelData, 0, number_of_frames=1) for ds in lone]
    ds = lone[0]
    ds.NumberOfFrames = 3
    table = struct.pack(f"<HHI{len(offsets)}I", 0xFFFE, 0xE000, 4 * len(offsets), *offsets)
    ds.PixelData = table + encapsulate(streams, has_bot=False)[8:]
    for frame, scene in enumerate(scenes):
        np.testing.assert_array_equal(hounsfield(ds, frame), scene)


def broken() -> list[tuple[str, Dataset]]:
    truncated, absent, colour, odd = (image(scene_hu()) for _ in range(4))
    truncated.PixelData = truncated.PixelData[:-100]
    del absent.PixelData
    colour.SamplesPerPixel = 3
    odd.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    cases = [("truncated", truncated), ("no pixels", absent), ("colour", colour), ("unknown syntax", odd)]
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1):
        half = compressed(unsigned_12(scene_hu() + 1024), syntax)
        stream = get_frame(half.PixelData, 0, number_of_frames=1)
        half.PixelData = encapsulate([stream[: len(stream) // 2]])
        junk = compressed(unsigned_12(scene_hu() + 1024), syntax)
        junk.PixelData = encapsulate([b"\0\1\2\3" * 40])
        cases += [(f"half {syntax.name}", half), (f"junk {syntax.name}", junk)]
    return cases


@pytest.mark.parametrize("ds", [row[1] for row in broken()], ids=[row[0] for row in broken()])
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_decoded_is_refused_by_name(ds: Dataset) -> None:
    with pytest.raises(PermanentError, match=r"1\.2\.3\.4") as caught:
        hounsfield(ds)
    assert caught.value.code == "PIXELS_UNDECODABLE"
