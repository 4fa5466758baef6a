"""Turn the pixel data of a CT image into Hounsfield units. Knows no geometry, guesses no rescale.

Uncompressed data, the usual case, is viewed in place; every other transfer syntax goes through the quickest
decoder that refuses half a stream. What cannot be decoded whole is refused by name, since half a slice
looks like a small bleed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.errors import BytesLengthException
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
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
)

from node.domain.errors import PermanentError
from node.encapsulated import frame_stream

AIR_HU = -1000.0
LOWEST_HU = -1024.0
"""Scanners write anything down to -3024 outside the field of view; all of it is air."""

_TISSUE_HU = (-200.0, 200.0)
_WRAP = 4096
_WRAP_OFFSET = 1000
_WRAPPED_AIR = (_WRAP - _WRAP_OFFSET - 100, _WRAP - _WRAP_OFFSET + 100)
_WRAPPED_AIR_SHARE = 0.02
_NOT_HOUNSFIELD = {"MGML", "Z_EFF", "ED", "EDW", "PCT", "OD"}
_NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
_JPEG = (
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
)  # fmt: skip
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_QUICK: dict[UID, Callable[[bytes], np.ndarray]] = {
    JPEGLossless: imagecodecs.ljpeg_decode,
    JPEGLosslessSV1: imagecodecs.ljpeg_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    **dict.fromkeys(
        (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), imagecodecs.jpeg2k_decode
    ),
}
"""All safe in threads. HTJ2K goes to OpenJPEG, since OpenJPH takes half a stream for a whole one."""
_END_OF_IMAGE = b"\xff\xd9"
_END_WITHIN = 64
"""Bytes of padding and the like that may follow the end of a JPEG stream."""
_UNDECODABLE = (
    ArithmeticError, AttributeError, BytesLengthException, EOFError, LookupError, MemoryError,
    NotImplementedError, OSError, RuntimeError, TypeError, ValueError, struct.error,
)  # fmt: skip
"""What pydicom and its decoder plugins raise on broken or unsupported pixel data."""


def hounsfield(ds: Dataset, frame: int = 0) -> np.ndarray:
    """One frame in HU, float32 (rows, columns), padding set to air.

    PhotometricInterpretation is ignored on purpose: MONOCHROME1 inverts the display, never the stored
    values that the rescale applies to (PS3.3 C.11.1.1.2). Raises PermanentError NO_RESCALE or
    PIXELS_UNDECODABLE.
    """
    slope, intercept = _rescale(ds, frame)
    try:
        stored = _stored(ds, frame)
        padding = _padding(ds, stored, slope, intercept)
        if _is_wrapped(ds, stored, slope, intercept):
            stored = (stored.astype(np.int32) + _WRAP_OFFSET) % _WRAP
            intercept = -float(_WRAP_OFFSET)
    except _UNDECODABLE as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        text = f"instance {_uid(ds)}: pixel data in {_syntax_of(ds).name} cannot be decoded ({cause}); "
        text += "send the series again, uncompressed (Explicit VR Little Endian) if that does not help"
        raise PermanentError("PIXELS_UNDECODABLE", text) from error
    hu = stored.astype(np.float32)
    if slope != 1.0:
        hu *= np.float32(slope)
    if intercept != 0.0:
        hu += np.float32(intercept)
    if padding is not None:
        hu[padding] = AIR_HU
    return np.maximum(hu, np.float32(LOWEST_HU), out=hu)


def lossy_words(ds: Dataset) -> str:
    """What a reader should know where the source lost detail in compression; empty where it did not."""
    if _text(ds, "LossyImageCompression") != "01" and _syntax_of(ds) not in _ALWAYS_LOSSY:
        return ""
    ratio = _text(ds, "LossyImageCompressionRatio")
    return (
        f"the source images were compressed with loss{f' (ratio {ratio})' if ratio else ''}: HU are not exact"
    )


def _syntax_of(ds: Dataset) -> UID:
    meta = getattr(ds, "file_meta", None)
    return UID((meta.get("TransferSyntaxUID", "") if meta else "") or ExplicitVRLittleEndian)


def _uid(ds: Dataset) -> str:
    return _text(ds, "SOPInstanceUID") or "without SOPInstanceUID"


def _text(ds: Dataset, keyword: str) -> str:
    try:
        return str(ds.get(keyword) or "")
    except _UNDECODABLE:
        return ""


def _rescale(ds: Dataset, frame: int) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept, from the functional groups where the image has them."""
    for source in (*_transformations(ds, frame), ds):
        try:
            slope, intercept = float(source.RescaleSlope), float(source.RescaleIntercept)
        except _UNDECODABLE:
            continue
        kind = _text(source, "RescaleType").upper()
        if kind in _NOT_HOUNSFIELD:
            text = f"instance {_uid(ds)}: RescaleType {kind}: the values are no Hounsfield units"
            raise PermanentError("NO_RESCALE", text)
        if np.isfinite(slope) and np.isfinite(intercept) and slope != 0:
            return slope, intercept
    text = (
        f"instance {_uid(ds)}: no usable RescaleSlope and RescaleIntercept, so Hounsfield units are unknown"
    )
    raise PermanentError("NO_RESCALE", text)


def _transformations(ds: Dataset, frame: int) -> Iterator[Dataset]:
    """Items of the Pixel Value Transformation macro of a multi-frame image (PS3.3 C.7.6.16.2.9)."""
    for keyword, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = ds.get(keyword) or ()
        if index < len(groups):
            yield from groups[index].get("PixelValueTransformationSequence") or ()


def _stored(ds: Dataset, frame: int) -> np.ndarray:
    """Stored values of one frame, integer (rows, columns), sign-extended where the writer forgot to."""
    if int(ds.get("SamplesPerPixel", 1) or 1) != 1:
        raise ValueError(f"{ds.SamplesPerPixel} samples per pixel, 1 expected")
    syntax = _syntax_of(ds)
    if syntax in _NATIVE:
        stored = _native(ds, frame, ">" if syntax == ExplicitVRBigEndian else "<")
    else:
        stored = _decoded(ds, syntax, frame)
    bits = int(ds.BitsStored)
    if bits < 8 * stored.dtype.itemsize and _holds_more(ds, stored, bits):
        sample = stored.astype(np.int32) & ((1 << bits) - 1)
        stored = np.where(_is_padding_value(ds, stored), stored, sample)
    if ds.PixelRepresentation == 1 and bits < 8 * stored.dtype.itemsize and stored.min() >= 0:
        half = 1 << (bits - 1)
        if stored.max() >= half:
            return (stored.astype(np.int32) ^ half) - half
    return stored


def _holds_more(ds: Dataset, stored: np.ndarray, bits: int) -> bool:
    """Whether the bits above the sample are in use, for an overlay say (PS3.5 8.1.2, retired)."""
    if ds.PixelRepresentation != 1:
        return bool(stored.max() >= 1 << bits)
    return any(_number(ds, 0x60000102 + (group << 16)) >= bits for group in range(0, 32, 2))


def _is_padding_value(ds: Dataset, stored: np.ndarray) -> np.ndarray | bool:
    """Padding may lie beyond the sample: it is no sample."""
    value = ds.get("PixelPaddingValue")
    return stored == _as_stored(value, ds) if isinstance(value, int) else False


def _number(ds: Dataset, tag: int) -> int:
    """Of an element that may be absent or broken; 0 then."""
    try:
        return int(ds[tag].value or 0) if tag in ds else 0
    except _UNDECODABLE:
        return 0


def _native(ds: Dataset, frame: int, byte_order: str) -> np.ndarray:
    """A view on uncompressed PixelData, nothing copied."""
    rows, columns, allocated = int(ds.Rows), int(ds.Columns), int(ds.BitsAllocated)
    kind = "i" if ds.PixelRepresentation == 1 else "u"
    size = rows * columns * (allocated // 8)
    data = ds.PixelData
    if size == 0 or allocated % 8 or len(data) < (frame + 1) * size:
        raise ValueError(f"{len(data)} bytes of PixelData, {(frame + 1) * size} needed")
    dtype = np.dtype(f"{byte_order}{kind}{allocated // 8}")
    return np.frombuffer(data, dtype, rows * columns, frame * size).reshape(rows, columns)


def _decoded(ds: Dataset, syntax: UID, frame: int) -> np.ndarray:
    """One frame of encapsulated PixelData."""
    shape = (int(ds.Rows), int(ds.Columns))
    decoder = None if syntax in _QUICK else get_decoder(syntax)
    stream = frame_stream(ds, frame)
    if syntax in _JPEG and _END_OF_IMAGE not in stream[-_END_WITHIN:]:
        raise ValueError("the compressed stream ends early")
    if decoder is None:
        stored = _as_represented(np.asarray(_QUICK[syntax](stream)), ds)
    else:
        plugin = "pylibjpeg" if "pylibjpeg" in decoder.available_plugins else ""
        stored, _ = decoder.as_array(_lone(ds, stream), index=0, decoding_plugin=plugin)
    if stored.shape != shape:
        raise ValueError(f"decoded to {stored.shape}, {shape} expected")
    return stored


def _lone(ds: Dataset, stream: bytes) -> Dataset:
    """An image of that one frame: pydicom's decoders find a frame by the offset table, whatever it says."""
    one = Dataset({tag: ds.get_item(tag) for tag in tuple(ds.keys()) if tag.group == 0x0028})
    one.pop("NumberOfFrames", None)
    one.file_meta = ds.file_meta
    one.PixelData = encapsulate([stream], has_bot=False)
    one["PixelData"].VR = "OB"
    return one


def _as_represented(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """The same bits, signed as PixelRepresentation says: streams do not know, or say it wrongly."""
    kind = "i" if ds.PixelRepresentation == 1 else "u"
    if stored.dtype.kind == kind:
        return stored
    if kind == "i":
        return stored.view(f"i{stored.dtype.itemsize}")
    return stored.view(f"u{stored.dtype.itemsize}") & ((1 << int(ds.BitsStored)) - 1)


def _padding(ds: Dataset, stored: np.ndarray, slope: float, intercept: float) -> np.ndarray | None:
    """Where the stored values are padding (PS3.3 C.7.5.1.1.2); None when nowhere.

    PixelPaddingValue is often written with the wrong sign, so it is taken modulo the allocated bits. One
    within the range of tissue is not believed: 0 in data stored as HU would punch holes into the ventricles.
    """
    try:
        value = int(ds.PixelPaddingValue)
        limit = ds.get("PixelPaddingRangeLimit")
        limit = value if limit is None else int(limit)
    except (AttributeError, TypeError, ValueError):
        return None
    low, high = sorted(_as_stored(bound, ds) for bound in (value, limit))
    tissue = [(hu - intercept) / slope for hu in _TISSUE_HU]
    if low <= max(tissue) and high >= min(tissue):
        return None
    mask = stored == low if low == high else (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _as_stored(value: int, ds: Dataset) -> int:
    """A padding value as it appears among the stored values, whichever sign it was written with."""
    full = 1 << int(ds.BitsAllocated)
    value %= full
    return value - full if ds.PixelRepresentation == 1 and value >= full // 2 else value


def _is_wrapped(ds: Dataset, stored: np.ndarray, slope: float, intercept: float) -> bool:
    """Whether negative HU were wrapped into 12 unsigned bits, as in part of the RSNA 2019 data.

    Such files claim an intercept near 0, which leaves no value for air; then air shows up near 3096. Only
    when it does (metal alone never fills 2 % of a slice there) is the file taken for a wrapped one.
    """
    if ds.PixelRepresentation != 0 or int(ds.BitsStored) != 12 or intercept <= -100 or slope != 1.0:
        return False
    low, high = _WRAPPED_AIR
    share = np.count_nonzero((stored >= low) & (stored <= high)) / stored.size
    return bool(share >= _WRAPPED_AIR_SHARE)
