"""C-STORE in every transfer syntax and over TLS: what is proposed, what is sent; no pixel ever changes."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, evt

from node.domain.errors import SettingsError, TransientError
from node.filemeta import file_head
from node.outputs.catalogue import build_all
from node.outputs.context import Context
from node.outputs.encoding import encode
from node.outputs.source import Source
from node.scu import Parcel, Peer
from node.settings import Destination
from node.transcode import FALL_BACK, SYNTAXES, in_syntax
from node.wholeness import Announced
from tests.certificates import Certificate, make_certificate, server_context
from tests.delivering import data_set
from tests.factories import MADE_AT, analysed, bleed, ct_series, hu_of
from tests.orthanc import WebOrthanc
from tests.peers import eventually, requires
from tests.ports import free_port

EXPLICIT, IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian
KINDS = ("sr", "seg", "sc", "pm", "gsps", "kos")
EVERYTHING = tuple(SYNTAXES.values())


@pytest.fixture(scope="module")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parcel]:
    """One object of each kind as it lies in the spool, by output name."""
    series, masks = ct_series(6, rows=64), bleed(6, 64)
    findings = analysed(series, {"any": 0.97}, masks=masks)
    heat = np.linspace(0, 1, 6 * 64 * 64, dtype=np.float32).reshape(6, 64, 64)
    context = Context(findings, Source.ordered(series, findings, hu_of), MADE_AT, "0.1.0", masks, heat)
    folder, made = tmp_path_factory.mktemp("objects"), {}
    for key, name in enumerate(KINDS):
        (*_, ds) = build_all(context, ("seg", "sc", name))[name]
        file = folder / f"{name}.dcm"
        file.write_bytes(encode(ds))
        made[name] = Parcel(key, file, str(ds.SOPClassUID))
    return made


class Scp:
    """A pynetdicom SCP that takes `syntaxes` and keeps the encoded objects."""

    def __init__(self, parcels: dict[str, Parcel], syntaxes: tuple[UID, ...], **options: Any) -> None:
        self._ae = AE("PACS")
        self._ae.add_supported_context("1.2.840.10008.1.1")
        for parcel in parcels.values():
            self._ae.add_supported_context(parcel.sop_class_uid, list(syntaxes))
        self._options, self.port = options, free_port()
        self.files: dict[str, bytes] = {}
        self.proposed: list[tuple[str, list[str]]] = []
        self.maximum_length: int | None = None

    def __enter__(self) -> Scp:
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._requested)]
        self._server = self._ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=handlers,  # type: ignore[arg-type]
            **self._options,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _requested(self, event: evt.Event) -> None:
        requestor = event.assoc.requestor
        self.maximum_length = requestor.maximum_length
        self.proposed = [
            (str(c.abstract_syntax), [str(s) for s in c.transfer_syntax])
            for c in requestor.requested_contexts
        ]

    def _store(self, event: evt.Event) -> int:
        self.files[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return 0x0000


def destination(port: int, *syntaxes: str, **changes: Any) -> Destination:
    wanted = {"transfer_syntax": syntaxes} if syntaxes else {}
    usual = {"name": "pacs", "ae_title": "PACS", "host": "localhost", "port": port}
    return Destination(**{**usual, **wanted, **changes})


def send(port: int, parcels: dict[str, Parcel], *syntaxes: str, **changes: Any) -> None:
    outcomes = list(Peer(destination(port, *syntaxes, **changes), "ICHNODE").send(list(parcels.values())))
    assert [outcome.status for outcome in outcomes] == ["0x0000"] * len(parcels), outcomes


def same_but_for_the_encoding(file: bytes, stored: Path) -> bool:
    """Every element the same; pixels bit for bit."""
    came, was = dcmread(BytesIO(file)), dcmread(stored)
    if "PixelData" in was:
        if was.BitsAllocated == 1:
            assert came.PixelData == was.PixelData
        assert np.array_equal(came.pixel_array, was.pixel_array)
        for ds in (came, was):
            del ds.PixelData
            ds.pop("PlanarConfiguration", None)
    return came == was


IMAGES, ALL = {"sc", "pm"}, set(KINDS)
CODED = [
    ("rle", RLELossless, IMAGES),
    ("jpegls", JPEGLSLossless, IMAGES),
    ("jpeg2000", JPEG2000Lossless, IMAGES),
    ("deflated", DeflatedExplicitVRLittleEndian, ALL),
    ("implicit", IMPLICIT, ALL),
    ("explicit", EXPLICIT, ALL),
]


@pytest.mark.parametrize(("word", "syntax", "suited"), CODED)
def test_each_object_travels_as_wanted_where_that_suits_it(
    word: str, syntax: UID, suited: set[str], parcels: dict[str, Parcel]
) -> None:
    before = {name: parcel.file.read_bytes() for name, parcel in parcels.items()}
    with Scp(parcels, EVERYTHING) as scp:
        send(scp.port, parcels, word)
    for name, parcel in parcels.items():
        file = scp.files[str(dcmread(parcel.file).SOPInstanceUID)]
        expected = syntax if name in suited else EXPLICIT
        assert dcmread(BytesIO(file)).file_meta.TransferSyntaxUID == expected, name
        assert same_but_for_the_encoding(file, parcel.file), name
        assert parcel.file.read_bytes() == before[name]


def test_the_stored_bytes_go_out_as_they_are(parcels: dict[str, Parcel]) -> None:
    with Scp(parcels, EVERYTHING) as scp:
        send(scp.port, parcels)
    for parcel in parcels.values():
        uid = str(dcmread(parcel.file, stop_before_pixels=True).SOPInstanceUID)
        assert data_set(scp.files[uid]) == data_set(parcel.file.read_bytes())


def test_several_wishes_are_met_in_order(parcels: dict[str, Parcel]) -> None:
    with Scp(parcels, EVERYTHING) as scp:
        send(scp.port, parcels, "jpegls", "deflated")
    came = {str(ds.SOPClassUID): ds.file_meta.TransferSyntaxUID for ds in datasets(scp)}
    for name, parcel in parcels.items():
        expected = JPEGLSLossless if name in IMAGES else DeflatedExplicitVRLittleEndian
        assert came[parcel.sop_class_uid] == expected


@pytest.mark.parametrize("word", ["jpegls", "deflated", "implicit"])
@pytest.mark.parametrize("accepted", [(EXPLICIT, IMPLICIT), (EXPLICIT,), (IMPLICIT,)])
def test_what_a_peer_declines_goes_in_what_it_takes(
    word: str, accepted: tuple[UID, ...], parcels: dict[str, Parcel]
) -> None:
    with Scp(parcels, accepted) as scp:
        send(scp.port, parcels, word)
    wanted = IMPLICIT if word == "implicit" and IMPLICIT in accepted else accepted[0]
    assert {ds.file_meta.TransferSyntaxUID for ds in datasets(scp)} == {wanted}
    for parcel in parcels.values():
        assert same_but_for_the_encoding(scp.files[str(dcmread(parcel.file).SOPInstanceUID)], parcel.file)


def datasets(scp: Scp) -> Iterator[Any]:
    return (dcmread(BytesIO(file)) for file in scp.files.values())


KANJI = b"Yamada^Taro=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B "  # PS3.5 H.3.1
AS_THEY_STAND: dict[str, dict[int, tuple[bytes, bytes]]] = {
    "a name in kanji": {0x00080005: (b"CS", b"\\ISO 2022 IR 87 "), 0x00100010: (b"PN", KANJI)},
    "a name in another character set than the header names": {
        0x00080005: (b"CS", b"ISO_IR 192"),
        0x00100010: (b"PN", b"M\xfcller^Jo"),
    },
    "a character set nobody knows": {0x00080005: (b"CS", b"ISO_IR 999"), 0x00100010: (b"PN", b"M\xfcller ")},
    "blanks and delimiters": {
        0x00080050: (b"SH", b"A1\\A2 "),
        0x00100010: (b"PN", b"Doe^J^^^"),
        0x00100020: (b"LO", b" 0042 "),
    },
    "numbers as text": {0x00181114: (b"DS", b"1.2345678901234567890 "), 0x00200013: (b"IS", b"1.0 ")},
    "a VR that depends on another element": {
        0x00280103: (b"US", b"\x01\0"),
        0x00280120: (b"SS", b"\x30\xf8"),
    },
    "private elements": {
        0x00090010: (b"LO", b"GEMS_IDEN_01"),
        0x00091002: (b"SH", b"CT01"),
        0x00091033: (b"UN", b"abcd"),
    },
}


def element(tag: int, vr: bytes, value: bytes, implicit: bool) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<I", len(value)) + value
    long = vr in (b"OW", b"SQ", b"UN")
    return head + vr + struct.pack("<xxI" if long else "<H", len(value)) + value


def elements(values: dict[int, tuple[bytes, bytes]], implicit: bool) -> bytes:
    return b"".join(element(tag, *values[tag], implicit) for tag in sorted(values))


@pytest.mark.parametrize("what", AS_THEY_STAND)
@pytest.mark.parametrize("wanted", [EXPLICIT, IMPLICIT, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("stored", [EXPLICIT, IMPLICIT])
def test_the_values_of_a_header_stay_the_bytes_they_are(what: str, wanted: UID, stored: UID) -> None:
    values = AS_THEY_STAND[what]

    def whole(implicit: bool) -> bytes:
        body = elements(values, implicit)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
        return elements(
            {**values, 0x00081140: (b"SQ", item), 0x7FE00010: (b"OW", bytes(range(64)))}, implicit
        )

    announced = Announced("1.2", "1.3", str(stored), "CT1", "a")
    file = file_head(announced) + whole(stored == IMPLICIT)
    stream = BytesIO()
    dcmwrite(stream, in_syntax(dcmread(BytesIO(file)), wanted), enforce_file_format=True)
    sent = data_set(stream.getvalue())
    if wanted == DeflatedExplicitVRLittleEndian:
        sent = zlib.decompress(sent, -zlib.MAX_WBITS)
    assert sent.rstrip(b"\0") == whole(wanted == IMPLICIT).rstrip(b"\0")


def test_an_element_of_which_nobody_can_make_sense_goes_as_unknown() -> None:
    broken = {0x00189306: (b"FD", b"abcd"), 0x00200013: (b"IS", b"1 ")}
    announced = Announced("1.2", "1.3", str(IMPLICIT), "CT1", "a")
    ds = in_syntax(dcmread(BytesIO(file_head(announced) + elements(broken, implicit=True))), EXPLICIT)
    stream = BytesIO()
    dcmwrite(stream, ds, enforce_file_format=True)
    broken[0x00189306] = (b"UN", b"abcd")  # PS3.5 6.2.2
    assert data_set(stream.getvalue()) == elements(broken, implicit=False)


TABLES = {"zeros": (0, 0, 0), "counts fragments": (0, 1, 2), "another's": (0, 4000, 8000), "none": ()}


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("offsets", TABLES.values(), ids=TABLES)
def test_no_frame_is_taken_for_another_whatever_its_offset_table_says(
    offsets: tuple[int, ...], syntax: UID, extended: bool
) -> None:
    """Sent on plain, an image of several frames showed one slice in the place of others."""
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(1, 32, 32)
    frames = np.concatenate([ramp, ramp[:, ::-1] + 7, ramp.transpose(0, 2, 1) * 3])
    ds = dcmread(BytesIO(encode(ct_series(1, rows=32)[0])))
    ds.PixelRepresentation, ds.NumberOfFrames, ds.PixelData = 0, 3, frames.tobytes()
    ds.compress(syntax, generate_instance_uid=False)
    streams = list(generate_frames(ds.PixelData, number_of_frames=3))
    table = struct.pack(f"<HHI{len(offsets)}I", 0xFFFE, 0xE000, 4 * len(offsets), *offsets)
    ds.PixelData = table + encapsulate(streams, has_bot=False)[8:]
    if extended:
        ds.ExtendedOffsetTable = struct.pack("<3Q", 0, 0, 0)
        ds.ExtendedOffsetTableLengths = struct.pack("<3Q", *map(len, streams))
    plain = in_syntax(dcmread(BytesIO(encode(ds))), EXPLICIT)
    np.testing.assert_array_equal(plain.pixel_array, frames)


def test_one_presentation_context_for_each_sop_class_and_transfer_syntax(parcels: dict[str, Parcel]) -> None:
    with Scp(parcels, EVERYTHING) as scp:
        send(scp.port, parcels, "jpeg2000", "rle", "deflated", max_pdu_bytes=20_000)
    assert all(len(syntaxes) == 1 for _, syntaxes in scp.proposed)
    assert len({(a, tuple(t)) for a, t in scp.proposed}) == len(scp.proposed)
    documents = [DeflatedExplicitVRLittleEndian, *FALL_BACK]
    for name, parcel in parcels.items():
        mine = [syntaxes[0] for abstract, syntaxes in scp.proposed if abstract == parcel.sop_class_uid]
        assert mine == ([JPEG2000Lossless, RLELossless, *documents] if name in IMAGES else documents)
    assert scp.maximum_length == 20_000


def test_encoders_work_side_by_side(parcels: dict[str, Parcel]) -> None:
    """Each destination has a thread of its own."""
    file, expected = parcels["sc"].file, dcmread(parcels["sc"].file).pixel_array

    def once(number: int) -> bool:
        syntax = (JPEG2000Lossless, JPEGLSLossless, RLELossless)[number % 3]
        return bool(
            (dcmread(BytesIO(encode(in_syntax(dcmread(file), syntax)))).pixel_array == expected).all()
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(once, range(30)))


def test_an_encoder_that_fails_means_the_next_transfer_syntax(
    parcels: dict[str, Parcel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr("pydicom.dataset.Dataset.compress", broken)
    with Scp(parcels, EVERYTHING) as scp:
        send(scp.port, {"sc": parcels["sc"]}, "jpegls")
    assert [ds.file_meta.TransferSyntaxUID for ds in datasets(scp)] == [EXPLICIT]


class TestOtherDecoders:
    @pytest.mark.parametrize(
        ("word", "option", "decoder"), [("jpegls", "+xt", "dcmdjpls"), ("rle", "+xr", "dcmdrle")]
    )
    def test_dcmtk_receives_and_decodes(
        self, word: str, option: str, decoder: str, parcels: dict[str, Parcel], tmp_path: Path
    ) -> None:
        requires("storescp", "echoscu", decoder)
        port = free_port()
        with storescp(port, tmp_path, option):
            send(port, {"sc": parcels["sc"]}, word)
        (received,) = [path for path in tmp_path.iterdir() if path.is_file()]
        assert dcmread(received).file_meta.TransferSyntaxUID == SYNTAXES[word]
        subprocess.run([decoder, received, tmp_path / "plain.dcm"], check=True, timeout=30)
        plain, stored = dcmread(tmp_path / "plain.dcm"), dcmread(parcels["sc"].file)
        assert np.array_equal(plain.pixel_array, stored.pixel_array)

    def test_openjpeg_decodes_our_jpeg_2000(self, parcels: dict[str, Parcel]) -> None:
        ds = in_syntax(dcmread(parcels["sc"].file), JPEG2000Lossless)
        (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
        assert np.array_equal(imagecodecs.jpeg2k_decode(frame), dcmread(parcels["sc"].file).pixel_array)

    def test_orthanc_takes_every_encoding(self, parcels: dict[str, Parcel], tmp_path: Path) -> None:
        orthanc = WebOrthanc(tmp_path / "pacs")
        there = {name: parcels[name] for name in ("sc", "sr", "seg")}
        try:
            for word in ("explicit", "deflated", "jpegls", "rle", "jpeg2000"):
                send(orthanc.port, there, word, "explicit", host="127.0.0.1", ae_title="ORTHANC")
                held = orthanc.files()
                assert len(held) == 3
                for name, parcel in there.items():
                    uid = str(dcmread(parcel.file).SOPInstanceUID)
                    assert same_but_for_the_encoding(held[uid], parcel.file), (word, name)
                    if word == "explicit":
                        assert data_set(held[uid]) == data_set(parcel.file.read_bytes())
                for item in orthanc.get("/instances"):
                    orthanc.delete(f"/instances/{item}")
        finally:
            orthanc.close()


class storescp:
    """dcmtk's storescp, writing to a folder."""

    def __init__(self, port: int, folder: Path, *options: str) -> None:
        self._command = ["storescp", "-od", str(folder), *options, str(port)]
        self._port = port

    def __enter__(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet)
        if "+tls" not in self._command:
            echo = ["echoscu", "localhost", str(self._port)]
            eventually(lambda: subprocess.run(echo, capture_output=True, timeout=20).returncode == 0)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate, Certificate]:
    """Of the PACS, of the node, and of a PACS whose certificate names another host."""
    folder = tmp_path_factory.mktemp("tls")
    return (
        make_certificate(folder, "pacs"),
        make_certificate(folder, "node", "ichnode"),
        make_certificate(folder, "other", "pacs.example.org"),
    )


class TestTls:
    def test_both_show_who_they_are(
        self, certificates: tuple[Certificate, ...], parcels: dict[str, Parcel]
    ) -> None:
        pacs, node, _ = certificates
        trusting = {"ca": pacs.cert, "cert": node.cert, "key": node.key}
        with Scp(parcels, EVERYTHING, ssl_context=server_context(pacs, node.cert)) as scp:
            Peer(destination(scp.port, tls=trusting), "ICHNODE").echo()
            send(scp.port, parcels, "jpegls", tls=trusting)
            for tls in ({}, {"ca": pacs.cert}, {"ca": "system", "cert": node.cert, "key": node.key}):
                with pytest.raises(TransientError):
                    Peer(destination(scp.port, tls=tls), "ICHNODE").echo()
        assert len(scp.files) == len(parcels)

    def test_a_certificate_that_names_another_host_is_refused_unless_that_is_wanted(
        self, certificates: tuple[Certificate, ...], parcels: dict[str, Parcel]
    ) -> None:
        *_, other = certificates
        with Scp(parcels, EVERYTHING, ssl_context=server_context(other)) as scp:
            with pytest.raises(TransientError, match="trust each other"):
                Peer(destination(scp.port, tls={"ca": other.cert}), "ICHNODE").echo()
            lenient = {"ca": other.cert, "check_hostname": False}
            Peer(destination(scp.port, tls=lenient), "ICHNODE").echo()

    def test_dcmtk_over_tls(
        self, certificates: tuple[Certificate, ...], parcels: dict[str, Parcel], tmp_path: Path
    ) -> None:
        requires("storescp")
        pacs, node, _ = certificates
        tls = {"ca": pacs.cert, "cert": node.cert, "key": node.key}
        port = free_port()
        with storescp(port, tmp_path, "+tls", pacs.key, pacs.cert, "+cf", node.cert):
            eventually(lambda: reached(destination(port, tls=tls)))
            send(port, parcels, tls=tls)
        assert len([path for path in tmp_path.iterdir() if path.is_file()]) == len(parcels)

    @pytest.mark.parametrize("tls", [{"ca": "/absent.pem"}, {"cert": "/absent.pem"}])
    def test_files_that_cannot_be_used_are_told_and_do_not_end_a_courier(self, tls: dict[str, str]) -> None:
        peer = Peer(destination(1, tls=tls), "ICHNODE")
        with pytest.raises(SettingsError, match="tls of destination pacs"):
            peer.check()
        with pytest.raises(TransientError, match="tls of destination pacs"):
            peer.echo()


def reached(there: Destination) -> bool:
    try:
        Peer(there, "ICHNODE").echo()
    except TransientError:
        return False
    return True
