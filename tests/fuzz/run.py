"""Coverage-guided fuzzing with atheris, by hand: `python -m tests.fuzz.run headers -max_total_time=600`.

Targets: headers, pixels. Each input must be understood or refused with a PermanentError; any other
exception, a crash of a decoder or a hang (`-timeout=25`) ends the run and leaves the input in a file. atheris
is not among the dependencies: `pip install atheris`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["node", "pydicom"]):
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import JPEGLSLossless, RLELossless

    from node import headers, pixels
    from node.domain.errors import PermanentError
    from tests import wire
    from tests.factories import ct_series

SYNTAXES = (JPEGLSLossless, RLELossless)
IMAGE = ct_series(1, rows=16, name="fuzz")[0]
FILE = io.BytesIO()
dcmwrite(FILE, IMAGE, enforce_file_format=True)
HEAD = FILE.getvalue()[: -len(wire.encoded(IMAGE))]


def try_headers(data: bytes) -> None:
    headers.read_instance(io.BytesIO(HEAD + data))


def try_pixels(data: bytes) -> None:
    """The first byte says how it is compressed; the rest is the data set with its pixels."""
    ds = dcmread(io.BytesIO(HEAD + data[1:]), force=True)
    ds.file_meta.TransferSyntaxUID = SYNTAXES[data[0] % len(SYNTAXES)] if data else "1.2.840.10008.1.2.1"
    if int(ds.get("Rows") or 0) * int(ds.get("Columns") or 0) <= 2**20:
        pixels.hounsfield(ds)


def seeds(target: str) -> list[bytes]:
    whole = wire.encoded(IMAGE)
    if target != "pixels":
        return [whole]
    found = []
    for number, syntax in enumerate(SYNTAXES):
        ds = ct_series(1, rows=16, name="fuzz")[0]
        ds.compress(syntax)
        found.append(bytes([number]) + wire.encoded(ds))
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "headers": try_headers,
    "pixels": try_pixels,
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which target? {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    warnings.simplefilter("ignore")
    logging.disable()
    corpus = Path(tempfile.mkdtemp(prefix=f"ichnode-fuzz-{name}-"))
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(PermanentError):  # refused, with a reason
            TARGETS[name](data)

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
