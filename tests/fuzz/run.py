"""Coverage-guided fuzzing with atheris, by hand: `python -m tests.fuzz.run headers -max_total_time=600`.

Targets: headers, pixels, pdus. Each input must be understood or refused with a PermanentError; any other
exception, a crash of a decoder or a hang (`-timeout=25`) ends the run and leaves the input in a file. atheris
is not among the dependencies: `pip install atheris`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["node", "pydicom"]):
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import JPEGLSLossless, RLELossless

    from node import headers, pixels
    from node.dimse.command import C_ECHO_RQ, C_STORE_RQ
    from node.dimse.conversation import Answer, Conversation, Fixed, Gathered
    from node.domain.errors import PermanentError
    from node.dul.association import Association
    from node.dul.negotiation import acceptance, refusal
    from node.dul.pdu import AssociateAccept, AssociateReject, AssociateRequest
    from node.frames import UNREADABLE
    from node.offer import offer
    from tests import raw_peer, wire
    from tests.factories import ct_series

OFFER = offer()
LISTENING = socket.create_server(("127.0.0.1", 0))
MOST_SENT = 60_000
"""More would not fit into the buffers of a connection that nobody reads yet."""
SYNTAXES = (JPEGLSLossless, RLELossless)
IMAGE = ct_series(1, rows=16, name="fuzz")[0]
FILE = io.BytesIO()
dcmwrite(FILE, IMAGE, enforce_file_format=True)
HEAD = FILE.getvalue()[: -len(wire.encoded(IMAGE))]


def try_headers(data: bytes) -> None:
    headers.read_instance(io.BytesIO(HEAD + data))


def try_pixels(data: bytes) -> None:
    """The first byte says how it is compressed; the rest is the data set with its pixels."""
    try:
        ds = dcmread(io.BytesIO(HEAD + data[1:]), force=True)
        is_small = int(ds.get("Rows") or 0) * int(ds.get("Columns") or 0) <= 2**20
    except (*UNREADABLE, OSError, TypeError):  # no header: the intake refuses it, and `headers` tries that
        return
    ds.file_meta.TransferSyntaxUID = SYNTAXES[data[0] % len(SYNTAXES)] if data else "1.2.840.10008.1.2.1"
    if is_small:
        pixels.hounsfield(ds)


class Echoing:
    """The user of an association that stores nothing."""

    def __init__(self) -> None:
        self.association: Association | None = None
        services = {C_ECHO_RQ: lambda _: Fixed(0), C_STORE_RQ: lambda _: Gathered(lambda data: (Answer(0),))}
        self._conversation = Conversation(services)

    def decide(self, request: AssociateRequest) -> AssociateAccept | AssociateReject:
        return refusal(request) or acceptance(request, OFFER)

    def established(self, association: Association) -> None:
        self.association = association

    def fragment(self, context_id: int, control: int, pieces: Iterable[memoryview | bytes]) -> None:
        assert self.association is not None
        self._conversation.fragment(self.association, context_id, control, pieces)

    def before_refill(self) -> None:
        self._conversation.flush()

    def releasing(self) -> None:
        pass

    def ended(self, released: bool) -> None:
        self._conversation.abandon()


def try_pdus(data: bytes) -> None:
    """What a peer sends on one connection before it closes it; the association ends, and raises nothing."""
    with socket.create_connection(LISTENING.getsockname()) as peer:
        ours, _ = LISTENING.accept()
        peer.sendall(data[:MOST_SENT])
        peer.shutdown(socket.SHUT_WR)
        Association(ours, Echoing(), 5.0).run()


def conversation() -> bytes:
    """An association, an echo, a C-STORE and a release, as one peer would send them."""
    syntax, sop_class = "1.2.840.10008.1.2.1", str(IMAGE.SOPClassUID)
    asked = raw_peer.request([("1.2.840.10008.1.1", [syntax]), (sop_class, [syntax])])
    echo = raw_peer.pdv(1, 3, raw_peer.command(C_ECHO_RQ, 1, "1.2.840.10008.1.1", has_data=False))
    image = raw_peer.Stored(sop_class, str(IMAGE.SOPInstanceUID), syntax, wire.encoded(IMAGE))
    stored = raw_peer.store_pdus(image, 2, 512, context_id=3)
    return asked + raw_peer.pdu(4, echo) + stored + raw_peer.pdu(5, bytes(4))


def seeds(target: str) -> list[bytes]:
    if target == "pdus":
        return [conversation()]
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
    "pdus": try_pdus,
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
