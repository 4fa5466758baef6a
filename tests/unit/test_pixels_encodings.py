"""HU in every transfer syntax, written by the encoders of others: bit for bit, or refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    UID_dictionary,
)

from node.domain.errors import PermanentError
from node.offer import LOSSY, TRANSFER_SYNTAXES
from node.pixels import hounsfield, lossy_words
from tests.factories import ct_series
from tests.peers import requires
from workers.volume import build_volume

SIGNED = {"signed": True, "unsigned 12 bits": False}


def source(signed: bool) -> Dataset:
    """One slice with noise in it; HU stored directly when signed, else 12 bits from -1024."""
    ds = ct_series(1, 64, 48)[0]
    hu = np.frombuffer(ds.PixelData, "<i2").reshape(64, 48).astype(np.int32) - 1024
    hu += np.random.default_rng(3).integers(-15, 16, hu.shape)
    hu = np.maximum(hu, -1024)
    if signed:
        ds.RescaleIntercept = 0
    else:
        hu = hu + 1024
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
    ds.PixelData = hu.astype("<i2").tobytes()
    return ds


def converted(ds: Dataset, folder: Path, *command: str) -> Dataset:
    """What a program of dcmtk makes of it."""
    requires(command[0])
    plain, made = folder / "plain.dcm", folder / "made.dcm"
    ds.save_as(plain, enforce_file_format=True)
    subprocess.run([*command, str(plain), str(made)], check=True, capture_output=True)
    return dcmread(made)


def encapsulated(ds: Dataset, stream: bytes, syntax: UID) -> Dataset:
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    stored = io.BytesIO()
    ds.save_as(stored, enforce_file_format=True)
    stored.seek(0)
    return dcmread(stored)


def stream_of(ds: Dataset) -> bytes:
    return get_frame(ds.PixelData, 0, number_of_frames=1)


DCMTK = {
    "implicit little endian": ("dcmconv", "+ti"),
    "explicit little endian": ("dcmconv", "+te"),
    "explicit big endian": ("dcmconv", "+tb"),
    "deflated": ("dcmconv", "+td"),
    "RLE": ("dcmcrle",),
    "JPEG lossless SV1": ("dcmcjpeg", "+e1"),
    **{f"JPEG lossless, predictor {n}": ("dcmcjpeg", "+el", "+sv", str(n)) for n in range(1, 8)},
    "JPEG-LS": ("dcmcjpls", "+el"),
}


@pytest.mark.parametrize("name", DCMTK)
@pytest.mark.parametrize("signed", SIGNED.values(), ids=SIGNED)
def test_written_by_dcmtk(name: str, signed: bool, tmp_path: Path) -> None:
    ds = source(signed)
    expected = hounsfield(ds)
    made = converted(ds, tmp_path, *DCMTK[name])
    np.testing.assert_array_equal(hounsfield(made), expected)
    assert lossy_words(made) == ""


def jpeg_2000(pixels: np.ndarray) -> bytes:
    return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)


def htj2k(pixels: np.ndarray) -> bytes:
    return imagecodecs.htj2k_encode(pixels, reversible=True)


ENCODED: dict[str, tuple[UID, Callable[[np.ndarray], bytes]]] = {
    "JPEG 2000 lossless": (JPEG2000Lossless, jpeg_2000),
    "JPEG 2000": (JPEG2000, jpeg_2000),
    "HTJ2K lossless": (HTJ2KLossless, htj2k),
    "HTJ2K lossless RPCL": (HTJ2KLosslessRPCL, htj2k),
    "HTJ2K": (HTJ2K, htj2k),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("signed", SIGNED.values(), ids=SIGNED)
def test_written_by_other_encoders(name: str, signed: bool) -> None:
    ds = source(signed)
    expected = hounsfield(ds)
    syntax, encode = ENCODED[name]
    pixels = np.frombuffer(ds.PixelData, "<i2" if signed else "<u2").reshape(64, 48)
    np.testing.assert_array_equal(hounsfield(encapsulated(ds, encode(pixels), syntax)), expected)


@pytest.mark.parametrize("name", ["JPEG 2000 lossless", "HTJ2K lossless"])
def test_a_stream_that_calls_signed_values_unsigned(name: str) -> None:
    ds = source(True)
    expected = hounsfield(ds)
    syntax, encode = ENCODED[name]
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(64, 48)
    np.testing.assert_array_equal(hounsfield(encapsulated(ds, encode(pixels), syntax)), expected)


def test_near_lossless_is_within_its_bound_and_said(tmp_path: Path) -> None:
    ds = source(False)
    expected = hounsfield(ds)
    made = converted(ds, tmp_path, "dcmcjpls", "+en", "+md", "2")
    assert np.abs(hounsfield(made) - expected).max() <= 2
    assert "compressed with loss" in lossy_words(made)


def test_lossy_jpeg_is_read_as_dcmtk_reads_it_and_said(tmp_path: Path) -> None:
    made = converted(source(False), tmp_path, "dcmcjpeg", "+ee", "+q", "90")
    reference = converted(made, tmp_path, "dcmdjpeg")
    assert np.abs(hounsfield(made) - hounsfield(reference)).max() <= 2 * float(made.RescaleSlope)
    assert "compressed with loss" in lossy_words(made)


def test_lossy_jpeg_2000_is_said_with_its_ratio() -> None:
    ds = source(False)
    expected = hounsfield(ds)
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(64, 48)
    ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "6"
    made = encapsulated(ds, imagecodecs.jpeg2k_encode(pixels, level=85, codecformat="j2k"), JPEG2000)
    assert 0 < np.abs(hounsfield(made) - expected).max() < 40
    assert lossy_words(made) == "the source images were compressed with loss (ratio 6): HU are not exact"


def test_the_warning_reaches_the_volume_once() -> None:
    series = ct_series(5, 32, LossyImageCompression="01")
    assert [w for w in build_volume(series).warnings if "loss" in w] == [lossy_words(series[0])]


def streams() -> dict[str, tuple[UID, bytes, Dataset]]:
    made = {}
    for name, (syntax, encode) in ENCODED.items():
        ds = source(False)
        made[name] = (syntax, encode(np.frombuffer(ds.PixelData, "<u2").reshape(64, 48)), ds)
    for name, syntax, encode in (
        ("JPEG lossless", "1.2.840.10008.1.2.4.57", lambda p: imagecodecs.ljpeg_encode(p, bitspersample=12)),
        ("JPEG-LS", "1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    ):
        ds = source(False)
        made[name] = (UID(syntax), encode(np.frombuffer(ds.PixelData, "<u2").reshape(64, 48)), ds)
    return made


STREAMS = streams()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.98])
@pytest.mark.filterwarnings("ignore")
def test_part_of_a_stream_is_never_taken_for_a_slice(name: str, share: float) -> None:
    syntax, stream, ds = STREAMS[name]
    cut = encapsulated(ds, stream[: int(share * len(stream))], syntax)
    with pytest.raises(PermanentError, match="send the series again") as caught:
        hounsfield(cut)
    assert caught.value.code == "PIXELS_UNDECODABLE"


def test_lossy_jpeg_that_ends_early_is_refused(tmp_path: Path) -> None:
    made = converted(source(False), tmp_path, "dcmcjpeg", "+ee")
    made.PixelData = encapsulate([stream_of(made)[:-200]])
    with pytest.raises(PermanentError, match="ends early"):
        hounsfield(made)


@pytest.mark.parametrize("offsets", [(0, 0), (0, 2_000_000), (12,), (8, 300)])
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda uid: uid.name)
def test_frames_of_lossy_jpeg_need_no_offsets(syntax: UID, offsets: tuple[int, ...], tmp_path: Path) -> None:
    """As with every other encoding: a fragment a frame, and a Basic Offset Table that cannot be right."""
    made = WRITTEN[syntax](tmp_path)
    expected, stream = hounsfield(made), stream_of(made)
    made.NumberOfFrames = 2
    table = struct.pack(f"<HHI{len(offsets)}I", 0xFFFE, 0xE000, 4 * len(offsets), *offsets)
    made.PixelData = table + encapsulate([stream, stream], has_bot=False)[8:]
    for frame in (0, 1):
        np.testing.assert_array_equal(hounsfield(made, frame), expected)


@pytest.mark.parametrize("syntax", [MPEG2MPML, JPEG2000MC])
def test_what_nobody_decodes_is_named(syntax: UID) -> None:
    with pytest.raises(PermanentError, match=syntax.name[:20]) as caught:
        hounsfield(encapsulated(source(False), b"\0\1\2\3" * 40, syntax))
    assert caught.value.code == "PIXELS_UNDECODABLE"


def eight_bits(folder: Path) -> Dataset:
    """Baseline JPEG holds no more: the same head in steps of 16 HU, by an encoder of JPEG itself."""
    ds = source(False)
    pixels = (np.frombuffer(ds.PixelData, "<u2").reshape(64, 48) >> 4).astype(np.uint8)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.RescaleSlope = 8, 8, 7, 16
    return encapsulated(ds, imagecodecs.jpeg8_encode(pixels, level=98), JPEGBaseline8Bit)


WRITTEN: dict[UID, Callable[[Path], Dataset]] = {
    **{
        syntax: lambda folder, words=words: converted(source(False), folder, *words)
        for syntax, words in {
            ImplicitVRLittleEndian: DCMTK["implicit little endian"],
            ExplicitVRLittleEndian: DCMTK["explicit little endian"],
            ExplicitVRBigEndian: DCMTK["explicit big endian"],
            DeflatedExplicitVRLittleEndian: DCMTK["deflated"],
            RLELossless: DCMTK["RLE"],
            JPEGLosslessSV1: DCMTK["JPEG lossless SV1"],
            JPEGLossless: DCMTK["JPEG lossless, predictor 6"],
            JPEGExtended12Bit: ("dcmcjpeg", "+ee", "+q", "95"),
            JPEGLSLossless: DCMTK["JPEG-LS"],
            JPEGLSNearLossless: ("dcmcjpls", "+en", "+md", "2"),
        }.items()
    },
    JPEGBaseline8Bit: eight_bits,
    **{
        syntax: lambda _, syntax=syntax, encode=encode: encapsulated(
            source(False),
            encode(np.frombuffer(source(False).PixelData, "<u2").reshape(64, 48)),
            syntax,
        )
        for syntax, encode in ENCODED.values()
    },
}
"""A real slice in every transfer syntax that is on offer."""


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.name)
def test_whatever_is_on_offer_is_decoded(syntax: UID, tmp_path: Path) -> None:
    made = WRITTEN[syntax](tmp_path)
    assert made.file_meta.TransferSyntaxUID == syntax
    difference = np.abs(hounsfield(made) - hounsfield(source(False))).max()
    assert difference <= (80 if syntax in LOSSY else 0)  # HU; air and bone are 2000 apart


NOT_ON_OFFER = [
    UID(uid)
    for uid, about in UID_dictionary.items()
    if about[1] == "Transfer Syntax" and uid not in TRANSFER_SYNTAXES
]


@pytest.mark.parametrize("syntax", NOT_ON_OFFER, ids=lambda uid: uid.name)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_decoded_is_on_offer(syntax: UID) -> None:
    """Else somebody could be told at the door that the node lacks what it has."""
    for _, stream, ds in STREAMS.values():
        with pytest.raises(PermanentError) as caught:
            hounsfield(encapsulated(ds.copy(), stream, syntax))
        assert caught.value.code == "PIXELS_UNDECODABLE"
