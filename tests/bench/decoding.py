"""How long one slice takes to become HU in each transfer syntax, and what other decoders would take.

`python -m tests.bench.decoding [--size 512] [--repeats 15]`. The slice is a phantom with noise. Wall times of
this machine at this moment, median with the fastest and slowest; compare within one run only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from node.pixels import hounsfield
from tests.factories import ct_series
from workers.phantom import volume

Encode = Callable[[np.ndarray], bytes]
ENCODERS: dict[UID, Encode] = {
    JPEGLosslessSV1: lambda stored: imagecodecs.ljpeg_encode(stored, bitspersample=12),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda stored: imagecodecs.jpeg2k_encode(
        stored, level=0, codecformat="j2k", reversible=True
    ),
    HTJ2KLossless: lambda stored: imagecodecs.htj2k_encode(stored, reversible=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    plain = phantom_slice(options.size)
    expected = hounsfield(plain)
    print(f"{options.size} x {options.size}, 12 bits, {options.repeats} repeats")
    tell("Explicit VR Little Endian", lambda: hounsfield(plain), options.repeats)
    for syntax in (*ENCODERS, RLELossless):
        ds = compressed(plain, syntax)
        assert np.array_equal(hounsfield(ds), expected)
        share = len(ds.PixelData) / len(plain.PixelData)
        tell(f"{syntax.name[:44]} ({share:.0%})", lambda ds=ds: hounsfield(ds), options.repeats)
        for name, decode in others(ds, syntax).items():
            tell(f"    {name}, stored values only", decode, options.repeats)


def phantom_slice(size: int) -> Dataset:
    """The middle of a head as 12 unsigned bits."""
    hu = volume(7, ("intraparenchymal",), slices=3, size=size, lowest_mm=0.0).hu[1]
    (ds,) = ct_series(1, size)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
    ds.PixelData = np.clip(np.rint(hu) + 1024, 0, 4095).astype("<u2").tobytes()
    return ds


def compressed(plain: Dataset, syntax: UID) -> Dataset:
    (ds,) = ct_series(1, plain.Rows)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
    ds.PixelData = plain.PixelData
    if syntax not in ENCODERS:
        ds.compress(syntax, generate_instance_uid=False)
        return ds
    stored = np.frombuffer(plain.PixelData, "<u2").reshape(plain.Rows, plain.Columns)
    ds.PixelData = encapsulate([ENCODERS[syntax](stored)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


def recoded(plain: Dataset, syntax: UID) -> Dataset:
    """Any uncompressed image of 16 bits in another transfer syntax, its header untouched."""
    ds = Dataset()
    ds.update(plain)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.update(plain.file_meta)
    if syntax in ENCODERS:
        signed = ds.PixelRepresentation == 1 and syntax == JPEG2000Lossless  # other streams know no sign
        stored = np.frombuffer(plain.PixelData, "<i2" if signed else "<u2").reshape(plain.Rows, plain.Columns)
        ds.PixelData = encapsulate([ENCODERS[syntax](stored)])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax != plain.file_meta.TransferSyntaxUID:
        ds.compress(syntax, generate_instance_uid=False)
    return ds


def others(ds: Dataset, syntax: UID) -> dict[str, Callable[[], object]]:
    """Decoders that could stand in: pydicom's plugins, and OpenJPH."""
    assert syntax != ExplicitVRLittleEndian
    decoder = get_decoder(syntax)
    found: dict[str, Callable[[], object]] = {
        plugin: lambda plugin=plugin: decoder.as_array(ds, index=0, decoding_plugin=plugin)
        for plugin in decoder.available_plugins
        if plugin != "pillow"
    }
    if syntax == HTJ2KLossless:
        stream = get_frame(ds.PixelData, 0, number_of_frames=1)
        found["OpenJPH (takes half a stream)"] = lambda: imagecodecs.htj2k_decode(stream)
    return found


def tell(name: str, work: Callable[[], object], repeats: int) -> None:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    spread = f"{min(times[1:]):.1f} to {max(times[1:]):.1f}"
    print(f"{name:<60} {statistics.median(times[1:]):7.1f} ms ({spread})")


if __name__ == "__main__":
    main()
