"""The listener against dcmtk and pynetdicom peers: what is taken, what is refused, what remains."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import psutil
import pynetdicom
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, Association, evt
from sqlalchemy import select, text

from node import scp as node_scp
from node.domain.errors import PermanentError, SettingsError, TransientError
from node.domain.instance import Instance
from node.filemeta import file_head
from node.intake import Intake
from node.recorder import LATER_S
from node.scp import listener_of, open_socket
from node.settings import Scp, Settings, Tls
from node.spool import Spool, SpoolFull
from node.store.arrivals import Arrivals, Known
from node.store.records import Records, open_records
from node.store.tables import associations, instances
from node.transport import Server
from node.wholeness import Announced, understood
from tests.factories import ct_series, enhanced
from tests.peers import eventually, requires
from tests.ports import free_port
from tests.receivers import RECEIVERS

SUCCESS, NO_ROOM, MISMATCH, UNREADABLE = 0x0000, 0xA700, 0xA900, 0xC000
TIMEOUT_S = 3.0


@dataclass
class Running:
    """A listener in a thread of this process, and its records and files."""

    settings: Settings
    records: Records
    spool: Spool

    @property
    def port(self) -> int:
        return self.settings.scp.port

    def rows(self) -> list[Any]:
        with self.records.engine.connect() as connection:
            return list(connection.execute(select(instances)).mappings())

    def associations(self) -> list[Any]:
        with self.records.engine.connect() as connection:
            return list(connection.execute(select(associations)).mappings())

    def files(self) -> list[Path]:
        return [path for path in self.spool.root.rglob("*") if path.is_file()]

    def nothing_kept(self) -> bool:
        return self.rows() == [] and self.files() == []


Starter = Callable[..., Running]


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(receiver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    """Starts listeners; keywords are settings of [scp]. They stop within 20 ms, for the tests' sake."""
    monkeypatch.setattr(Server, "serve_forever", lambda self: BaseServer.serve_forever(self, 0.02))
    with ExitStack() as stack:

        def make(**scp: Any) -> Running:
            data_dir = tmp_path / f"node{free_port()}"
            usual = {"port": free_port(), "processes": 1, "timeout_s": TIMEOUT_S, "receiver": receiver}
            options = {**usual, **scp}
            settings = Settings(data_dir=data_dir, scp=Scp(**options))
            (data_dir / "spool").mkdir(parents=True)
            records, spool = open_records(settings), Spool(data_dir / "spool")
            listening = open_socket(settings.scp)
            intake = Intake(spool, records, time.time, settings.scp, LATER_S)
            listener = listener_of(settings, records, intake)
            listener.start(listening)
            stack.callback(records.close)
            stack.callback(listening.close)
            stack.callback(listener.stop)
            return Running(settings, records, spool)

        yield make


@pytest.fixture
def node(start: Starter) -> Running:
    return start()


def associate(port: int, *wanted: tuple[str, UID], calling: str = "CT1", **options: Any) -> Association:
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for sop_class, syntax in wanted or ((CTImageStorage, ExplicitVRLittleEndian),):
        ae.add_requested_context(sop_class, syntax)
    return ae.associate("127.0.0.1", port, ae_title="ICHNODE", **options)


def store(assoc: Association, what: Path | Dataset) -> int:
    """The status that came over the wire.

    On a busy machine pynetdicom's sender may lose an answer that it received: its reactor, which should
    stand still, takes it from the queue, and `send_c_store` gives an empty Dataset after its time-out. So the
    answer is read where it comes in, and none at all is the receiver's fault.
    """
    came: list[int] = []
    assoc.bind(evt.EVT_DIMSE_RECV, lambda event: came.append(int(event.message.command_set.Status)))
    assoc.send_c_store(what)
    assert came, f"no response to the C-STORE came (aborted: {assoc.is_aborted})"
    return came[-1]


def send_file(port: int, path: Path, **options: Any) -> int:
    """Send the data set of a file exactly as its bytes are; returns the status."""
    meta = read_file_meta_info(path)
    assoc = associate(port, (meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID), **options)
    assert assoc.is_established and assoc.accepted_contexts
    before, pynetdicom._config.STORE_SEND_CHUNKED_DATASET = (
        pynetdicom._config.STORE_SEND_CHUNKED_DATASET,
        True,
    )
    try:
        return store(assoc, path)
    finally:
        pynetdicom._config.STORE_SEND_CHUNKED_DATASET = before
        assoc.release()


def echo(port: int, calling: str = "CT1", **options: Any) -> int:
    assoc = associate(port, ("1.2.840.10008.1.1", ImplicitVRLittleEndian), calling=calling, **options)
    assert assoc.is_established
    status = int(assoc.send_c_echo().Status)
    assoc.release()
    return status


def one_slice(**attributes: Any) -> Dataset:
    return ct_series(1, name="scp", **attributes)[0]


def write(path: Path, ds: Dataset) -> Path:
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def body(path: Path) -> bytes:
    """What lies behind the file meta information (PS3.10 7.1)."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[140:144])
    return data[144 + length :]


def with_body(path: Path, data: bytes, ds: Dataset) -> Path:
    """A file that announces `ds` and holds `data`."""
    head = write(path, ds).read_bytes()
    path.write_bytes(head[: len(head) - len(body(path))] + data)
    return path


def recoded(ds: Dataset, syntax: UID) -> Dataset:
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


def jpeg_lossless(folder: Path) -> Path:
    requires("dcmcjpeg")
    plain = write(folder / "plain.dcm", one_slice(PixelRepresentation=0))
    subprocess.run(["dcmcjpeg", "+e1", str(plain), str(folder / "jpeg.dcm")], check=True, timeout=30)
    return folder / "jpeg.dcm"


def file_in(syntax: UID, folder: Path) -> Path:
    if syntax == JPEGLosslessSV1:
        return jpeg_lossless(folder)
    ds = one_slice()
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        ds.compress(syntax, generate_instance_uid=False)
    else:
        ds = recoded(ds, syntax)
    return write(folder / "sent.dcm", ds)


class TestTaken:
    def test_an_echo_is_answered_and_leaves_no_trace(self, node: Running) -> None:
        assert echo(node.port) == SUCCESS
        assert node.associations() == [] and node.nothing_kept()

    def test_dcmtk_echoes(self, node: Running) -> None:
        requires("echoscu")
        subprocess.run(["echoscu", "127.0.0.1", str(node.port)], check=True, timeout=20)

    @pytest.mark.parametrize(
        "syntax",
        [
            ImplicitVRLittleEndian,
            ExplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
            RLELossless,
            JPEGLosslessSV1,
            JPEGLSLossless,
            JPEG2000Lossless,
        ],
        ids=lambda syntax: syntax.keyword,
    )
    def test_an_image_is_kept_byte_for_byte_and_never_decoded(
        self, syntax: UID, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = file_in(syntax, tmp_path)
        expected = dcmread(path)
        assert expected.file_meta.TransferSyntaxUID == syntax

        def decode(*_: Any, **__: Any) -> None:
            raise AssertionError("the listener decodes pixels")

        monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", decode)
        assert send_file(node.port, path) == SUCCESS
        (row,) = node.rows()
        kept = node.spool.absolute(row["path"])
        assert body(kept) == body(path)
        assert kept.stat().st_size == row["size_bytes"]
        meta = dcmread(kept).file_meta
        assert meta.TransferSyntaxUID == syntax
        assert meta.MediaStorageSOPInstanceUID == expected.SOPInstanceUID == row["sop_instance_uid"]
        assert meta.SourceApplicationEntityTitle == "CT1"
        assert row["header"]["transfer_syntax_uid"] == syntax
        assert (row["header"]["rows"], row["header"]["columns"]) == (64, 64)

    def test_dcmtk_sends_a_series_over_one_association(self, node: Running, tmp_path: Path) -> None:
        requires("storescu")
        series = ct_series(5, name="dcmtk")
        paths = [str(write(tmp_path / f"{i}.dcm", ds)) for i, ds in enumerate(series)]
        subprocess.run(
            ["storescu", "-aet", "DCMTK", "-aec", "ICHNODE", "127.0.0.1", str(node.port), *paths],
            check=True,
            timeout=60,
        )
        assert {row["sop_instance_uid"] for row in node.rows()} == {str(ds.SOPInstanceUID) for ds in series}
        (association,) = eventually(lambda: [a for a in node.associations() if a["closed_at"]])
        assert (association["calling_ae"], association["outcome"]) == ("DCMTK", "released")
        for ds in series:
            path = next(r["path"] for r in node.rows() if r["sop_instance_uid"] == ds.SOPInstanceUID)
            assert dcmread(node.spool.absolute(path)).PixelData == ds.PixelData

    def test_dcmtk_sends_an_enhanced_object_whose_frames_are_recorded(
        self, node: Running, tmp_path: Path
    ) -> None:
        requires("storescu")
        whole = enhanced(ct_series(24, 128, name="frames"))
        path = write(tmp_path / "enhanced.dcm", whole)
        subprocess.run(
            ["storescu", "-aec", "ICHNODE", "127.0.0.1", str(node.port), str(path)], check=True, timeout=60
        )
        (row,) = node.rows()
        assert row["header"]["frames"] == len(row["header"]["per_frame"]) == 24
        (kept,) = node.files()
        assert dcmread(kept).PixelData == whole.PixelData

    @pytest.mark.parametrize(
        "sop_class",
        [
            SecondaryCaptureImageStorage,
            UID("1.2.840.10008.5.1.4.1.1.88.67"),  # X-Ray Radiation Dose SR
            UID("1.2.840.10008.5.1.4.1.1.4"),  # MR Image
            UID("1.2.840.10008.5.1.4.1.1.104.1"),  # Encapsulated PDF
            UID("1.2.840.10008.5.1.4.1.1.2.1"),  # Enhanced CT
        ],
    )
    def test_other_storage_classes_are_taken_and_recorded(
        self, sop_class: UID, node: Running, tmp_path: Path
    ) -> None:
        ds = one_slice(SOPClassUID=sop_class, Modality="OT")
        if not sop_class.name.endswith(("Image Storage", "CT Image Storage")):
            for keyword in ("PixelData", "Rows", "Columns"):
                del ds[keyword]
        ds.file_meta.MediaStorageSOPClassUID = sop_class
        assert send_file(node.port, write(tmp_path / "other.dcm", ds)) == SUCCESS
        assert [row["header"]["sop_class_uid"] for row in node.rows()] == [sop_class]

    def test_rows_and_columns_without_pixels_are_lawful_for_a_spectrum(
        self, node: Running, tmp_path: Path
    ) -> None:
        ds = one_slice(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.2", Modality="MR")
        del ds["PixelData"]
        ds.add_new("SpectroscopyData", "OF", b"\0" * 64)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        assert send_file(node.port, write(tmp_path / "a.dcm", ds)) == SUCCESS

    def test_the_same_instance_again_is_success_and_one_row(self, node: Running, tmp_path: Path) -> None:
        path = write(tmp_path / "a.dcm", one_slice())
        assert [send_file(node.port, path) for _ in range(2)] == [SUCCESS, SUCCESS]
        assert len(node.rows()) == len(node.files()) == 1

    def test_other_content_under_the_same_uid_replaces_it(self, node: Running, tmp_path: Path) -> None:
        send_file(node.port, write(tmp_path / "a.dcm", one_slice()))
        other = write(tmp_path / "b.dcm", one_slice(SeriesDescription="Head again"))
        assert send_file(node.port, other) == SUCCESS
        (row,) = node.rows()
        assert body(node.spool.absolute(row["path"])) == body(other)
        assert row["header"]["series_description"] == "Head again"

    def test_a_header_full_of_nonsense_is_taken(self, node: Running, tmp_path: Path) -> None:
        ds = one_slice()
        with disable_value_validation():
            ds.PatientID, ds.AccessionNumber = "P" * 300, "A" * 200
            ds.add_new("SeriesNumber", "IS", "99999999999999999999")
            ds.add_new("PatientName", "PN", "A" * 70 + "^" * 9)
            path = write(tmp_path / "a.dcm", ds)
        assert send_file(node.port, path) == SUCCESS
        assert len(node.rows()) == 1

    def test_our_own_result_coming_back_is_success_and_is_not_taken_in(
        self, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ds = one_slice()
        own = Known(True, None, "", None)
        monkeypatch.setattr(Arrivals, "known", lambda self, uid: own if uid == ds.SOPInstanceUID else None)
        assert send_file(node.port, write(tmp_path / "a.dcm", ds)) == SUCCESS
        assert node.nothing_kept()


class TestRefused:
    def test_another_sop_instance_than_announced(self, node: Running, tmp_path: Path) -> None:
        announced = one_slice()
        held = one_slice(SOPInstanceUID="1.2.3.4")
        held.file_meta.MediaStorageSOPInstanceUID = held.SOPInstanceUID
        data = write(tmp_path / "held.dcm", held)
        path = with_body(tmp_path / "a.dcm", body(data), announced)
        assert send_file(node.port, path) == MISMATCH
        assert node.nothing_kept()

    def test_another_sop_class_than_announced(self, node: Running, tmp_path: Path) -> None:
        held = one_slice(SOPClassUID=SecondaryCaptureImageStorage)
        held.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        data = body(write(tmp_path / "held.dcm", held))
        path = with_body(tmp_path / "a.dcm", data, one_slice())
        assert send_file(node.port, path) == MISMATCH
        assert node.nothing_kept()

    @pytest.mark.parametrize(
        "data",
        [b"", b"garbage" * 100, b"\0" * 1000, b"\xff" * 1000, b"GET / HTTP/1.1\r\n\r\n"],
        ids=["nothing", "words", "zeros", "ones", "http"],
    )
    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_garbage(self, syntax: UID, data: bytes, node: Running, tmp_path: Path) -> None:
        ds = recoded(one_slice(), syntax)
        assert send_file(node.port, with_body(tmp_path / "a.dcm", data, ds)) >= UNREADABLE
        assert node.nothing_kept()

    @pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
    def test_an_image_that_does_not_say_what_it_is(self, keyword: str, node: Running, tmp_path: Path) -> None:
        held = one_slice()
        del held[keyword]
        stream = DicomBytesIO()
        stream.is_implicit_VR, stream.is_little_endian = False, True
        write_dataset(stream, held)
        target = with_body(tmp_path / "a.dcm", stream.getvalue(), one_slice())
        assert send_file(node.port, target) == UNREADABLE
        assert node.nothing_kept()

    @pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
    def test_a_uid_longer_than_any_column(self, keyword: str, node: Running, tmp_path: Path) -> None:
        with disable_value_validation():
            path = write(tmp_path / "a.dcm", one_slice(**{keyword: "1." + "2" * 300}))
        assert send_file(node.port, path) == UNREADABLE
        assert node.nothing_kept()

    def test_no_room(self, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.dcm", one_slice())
        node.spool.reserve_bytes = node.spool.free_bytes() + 2**40
        assert send_file(node.port, path) == NO_ROOM
        assert node.nothing_kept()
        node.spool.reserve_bytes = 0
        assert send_file(node.port, path) == SUCCESS

    def test_a_disk_that_fills_up_while_writing(
        self, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise SpoolFull("full")

        monkeypatch.setattr("node.spool._write_all", full)
        assert send_file(node.port, write(tmp_path / "a.dcm", one_slice())) == NO_ROOM
        assert node.nothing_kept()

    @pytest.mark.parametrize("method", ["record_new", "open_association", "known"])
    def test_a_database_that_is_away(
        self, method: str, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "a.dcm", one_slice())

        def away(*_: Any) -> None:
            raise TransientError("database: gone")

        with monkeypatch.context() as patched:
            patched.setattr(Arrivals, method, away)
            assert send_file(node.port, path) == NO_ROOM
        assert node.rows() == []
        assert send_file(node.port, path) == SUCCESS
        assert len(node.rows()) == 1

    def test_a_fault_of_our_own_is_a_failure_for_the_sender(
        self, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(Arrivals, "record_new", broken)
            assert send_file(node.port, write(tmp_path / "a.dcm", one_slice())) == 0x0110
        assert echo(node.port) == SUCCESS

    def test_an_ae_title_that_is_not_on_the_list(self, start: Starter) -> None:
        node = start(calling_ae_titles=["CT1", "CT2"])
        assert echo(node.port, "CT2") == SUCCESS
        assert associate(node.port, calling="STRANGER").is_rejected


def understood_in(announced: Announced, data: bytes) -> Instance:
    head = file_head(announced)
    return understood(announced, BytesIO(head + data), len(head))


class TestTruncated:
    """No prefix of a CT image is ever taken for the image."""

    @pytest.mark.parametrize(
        "syntax",
        [
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
            RLELossless,
        ],
        ids=lambda syntax: syntax.keyword,
    )
    def test_every_prefix_is_refused(self, syntax: UID, tmp_path: Path) -> None:
        path = file_in(syntax, tmp_path)
        whole = body(path)
        meta = dcmread(path).file_meta
        sop = (str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID))

        announced = Announced(*sop, str(syntax), "CT1", "a1")
        assert understood_in(announced, whole).sop_instance_uid == sop[1]
        taken = []
        lengths = {*range(1200), *range(1200, len(whole) - 100, 97), *range(len(whole) - 100, len(whole))}
        for length in sorted(n for n in lengths if 0 <= n < len(whole)):
            try:
                understood_in(announced, whole[:length])
            except PermanentError:
                continue
            taken.append(length)
        # encapsulated pixels may lack the (always zero) length of their last delimiter
        allowed = len(whole) - 4 if syntax == RLELossless else len(whole)
        assert [length for length in taken if length < allowed] == []

    def test_an_object_without_pixels_is_checked_to_its_end_too(self, tmp_path: Path) -> None:
        ds = one_slice(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", Modality="SR", PatientComments="last")
        for keyword in ("PixelData", "Rows", "Columns"):
            del ds[keyword]
        ds.add_new(0x00420011, "OB", b"x" * 64)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        whole = body(write(tmp_path / "a.dcm", ds))
        announced = Announced(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian, "CT1", "a1")
        assert understood_in(announced, whole).modality == "SR"
        for missing in range(1, 76):  # the value, and its header
            with pytest.raises(PermanentError):
                understood_in(announced, whole[:-missing])

    def test_a_truncated_image_is_answered_with_c000(self, node: Running, tmp_path: Path) -> None:
        ds = one_slice()
        data = body(write(tmp_path / "whole.dcm", ds))
        path = with_body(tmp_path / "a.dcm", data[:-1], ds)
        assert send_file(node.port, path) == UNREADABLE
        assert node.nothing_kept()


class TestAssociations:
    def test_a_release_is_recorded_as_one_however_many_end_at_once(
        self, node: Running, tmp_path: Path
    ) -> None:
        paths = [write(tmp_path / f"{i}.dcm", ds) for i, ds in enumerate(ct_series(24, rows=16))]
        for path in paths:
            assert send_file(node.port, path) == SUCCESS
        eventually(lambda: all(a["closed_at"] for a in node.associations()))
        assert [a["outcome"] for a in node.associations()] == ["released"] * 24

    @pytest.mark.parametrize("receiver", ["pynetdicom"])
    def test_a_slow_thread_does_not_make_a_release_an_abort(
        self, start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The peer may close the connection before pynetdicom's own thread says that it was released."""
        trigger = pynetdicom.association.evt.trigger

        def late(assoc: Any, event: Any, *args: Any) -> Any:
            if event is pynetdicom.evt.EVT_RELEASED and assoc.is_acceptor:
                time.sleep(0.3)
            return trigger(assoc, event, *args)

        monkeypatch.setattr(pynetdicom.association.evt, "trigger", late)
        node = start()
        assert send_file(node.port, write(tmp_path / "a.dcm", one_slice())) == SUCCESS
        eventually(lambda: all(a["closed_at"] for a in node.associations()))
        assert [a["outcome"] for a in node.associations()] == ["released"]

    @pytest.mark.parametrize("how", ["abort", "close"])
    def test_an_association_that_breaks_off_is_recorded_as_aborted(
        self, how: str, node: Running, tmp_path: Path
    ) -> None:
        ds = one_slice()
        assoc = associate(node.port)
        assert store(assoc, ds) == SUCCESS
        assert [a["closed_at"] for a in node.associations()] == [None]
        if how == "abort":
            assoc.abort()
        else:
            transport = assoc.dul.socket
            assert transport and transport.socket
            transport.socket.shutdown(socket.SHUT_RDWR)
        eventually(lambda: [a for a in node.associations() if a["outcome"] == "aborted"])
        assoc.join(5)

    def test_a_peer_that_falls_silent_is_aborted_after_the_timeout(self, start: Starter) -> None:
        node = start(timeout_s=1)
        assoc = associate(node.port)
        assert store(assoc, one_slice()) == SUCCESS
        eventually(lambda: [a for a in node.associations() if a["outcome"] == "aborted"], 15)
        assoc.abort()

    def test_noise_half_open_connections_and_hanging_peers_hinder_nobody(
        self, node: Running, tmp_path: Path
    ) -> None:
        request = b"\x01\x00" + struct.pack(">I", 200)  # the head of an A-ASSOCIATE-RQ, and no more
        too_long, unreadable = b"\x04\x00\xff\xff\xff\xff" + b"x" * 100, b"\x01\x00\x00\x00\x00\x04abcd"
        noises = [b"", b"\x00", request, b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00", too_long]
        noises += [os.urandom(4096), unreadable, b"\x07\x00" * 50]
        path = write(tmp_path / "a.dcm", one_slice())
        with ExitStack() as stack:
            for noise in noises * 3:
                peer = stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
                with suppress(OSError):
                    peer.sendall(noise)
            hanging = associate(node.port)
            assert hanging.is_established
            began = time.monotonic()
            assert send_file(node.port, path) == SUCCESS
            assert echo(node.port) == SUCCESS
            assert time.monotonic() - began < 8
            hanging.abort()
        assert echo(node.port) == SUCCESS
        assert len(node.rows()) == 1

    def test_more_associations_than_allowed_are_rejected_for_now(self, start: Starter) -> None:
        node = start(max_associations=2)
        held = [associate(node.port) for _ in range(2)]
        assert all(assoc.is_established for assoc in held)
        assert associate(node.port).is_rejected
        for assoc in held:
            assoc.release()
        eventually(lambda: (assoc := associate(node.port)).is_established and (assoc.release() or True))


class TestSocket:
    def test_a_port_that_is_taken_is_told_by_its_settings(self, node: Running) -> None:
        with pytest.raises(SettingsError, match=rf"{node.port} \(scp\.host, scp\.port\)"):
            open_socket(node.settings.scp)

    def test_an_address_that_is_not_ours_is_told(self) -> None:
        with pytest.raises(SettingsError, match=r"scp\.host"):
            open_socket(Scp(host="192.0.2.1", port=free_port()))

    def test_a_name_that_does_not_resolve_is_told(self) -> None:
        with pytest.raises(SettingsError, match=r"scp\.host"):
            open_socket(Scp(host="no-such-host.invalid", port=free_port()))

    def test_the_listener_imports_no_model_and_no_queue(self) -> None:
        code = (
            "import sys; import node.scp, node.admin.roles, node.intake; "
            "print([m for m in ('torch', 'monai', 'celery', 'highdicom', 'matplotlib', 'scipy', 'workers') "
            "if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    requires("openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return cert, key


class TestTls:
    def test_dcmtk_sends_over_tls_and_plain_text_is_refused(
        self, certificate: tuple[Path, Path], start: Starter, tmp_path: Path
    ) -> None:
        requires("storescu")
        cert, key = certificate
        node = start(tls=Tls(cert=str(cert), key=str(key)))
        path = write(tmp_path / "a.dcm", one_slice())
        target = ["-aec", "ICHNODE", "127.0.0.1", str(node.port), str(path)]
        plain = subprocess.run(["storescu", "-to", "5", "-ta", "5", *target], capture_output=True, timeout=40)
        assert plain.returncode != 0
        assert node.nothing_kept()
        command = ["storescu", "+tla", "+cf", str(cert), *target]
        sent = subprocess.run(command, capture_output=True, text=True, timeout=40)
        assert sent.returncode == 0, sent.stderr
        assert len(node.rows()) == 1

    def test_a_peer_that_never_shakes_hands_hinders_nobody(
        self, certificate: tuple[Path, Path], start: Starter
    ) -> None:
        cert, key = certificate
        node = start(tls=Tls(cert=str(cert), key=str(key)))
        trusting = ssl.create_default_context(cafile=str(cert))
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            assert echo(node.port, tls_args=(trusting, "localhost")) == SUCCESS

    def test_with_a_ca_a_peer_must_show_a_certificate(
        self, certificate: tuple[Path, Path], start: Starter
    ) -> None:
        cert, key = certificate
        node = start(tls=Tls(cert=str(cert), key=str(key), ca=str(cert)))
        stranger = ssl.create_default_context(cafile=str(cert))
        known = ssl.create_default_context(cafile=str(cert))
        known.load_cert_chain(cert, key)
        assert not associate(node.port, tls_args=(stranger, "localhost")).is_established
        assert echo(node.port, tls_args=(known, "localhost")) == SUCCESS

    def test_files_that_cannot_be_used_are_told(self, certificate: tuple[Path, Path], tmp_path: Path) -> None:
        cert, _ = certificate
        (tmp_path / "no.pem").write_text("nothing")
        for tls in (
            Tls(cert=str(tmp_path / "absent.pem")),
            Tls(cert=str(tmp_path / "no.pem")),
            Tls(cert=str(cert), key=str(tmp_path / "no.pem")),
            Tls(cert=str(cert)),
        ):
            with pytest.raises(SettingsError, match=r"scp\.tls"):
                node_scp.tls_context(Scp(tls=tls))


@dataclass
class Prefork:
    """`ichnode listen` with two processes."""

    process: subprocess.Popen[bytes]
    settings: Settings
    records: Records
    log: Path

    def listeners(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children() if _is_alive(p)]


@pytest.fixture
def prefork(receiver: str, tmp_path: Path) -> Iterator[Prefork]:
    port, config, log = free_port(), tmp_path / "node.toml", tmp_path / "log"
    settings = Settings(data_dir=tmp_path / "data", scp=Scp(port=port))
    config.write_text(
        f"data_dir = {json.dumps(str(tmp_path / 'data'))}\n[scp]\nport = {port}\nprocesses = 2\n"
        f"receiver = '{receiver}'\n"
        "[spool]\nreserve_mb = 1\n"
    )
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "node", "listen", "--config", str(config)], stdout=stream, stderr=stream
        )
    try:
        eventually(lambda: process.poll() is not None or _answers(port), 60)
        records = open_records(settings)
        made = Prefork(process, settings, records, log)
        eventually(lambda: len(made.listeners()) == 2)
        yield made
        records.close()
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _answers(port: int) -> bool:
    with suppress(OSError, AssertionError):
        return echo(port) == SUCCESS
    return False


def _is_free(scp: Scp) -> bool:
    try:
        open_socket(scp).close()
    except SettingsError:
        return False
    return True


def _is_alive(process: psutil.Process) -> bool:
    """Not even a zombie; one may also vanish between being listed and being asked."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _listeners_that_served(node: Prefork) -> set[str]:
    with node.records.engine.connect() as connection:
        return set(connection.execute(select(associations.c.listener)).scalars())


class TestProcesses:
    def test_both_processes_serve_one_socket(self, prefork: Prefork, tmp_path: Path) -> None:
        paths = iter([write(tmp_path / f"{i}.dcm", ds) for i, ds in enumerate(ct_series(60, rows=16))])

        def another() -> bool:
            held = [associate(prefork.settings.scp.port) for _ in range(2)]
            for assoc in held:
                assert store(assoc, dcmread(next(paths))) == SUCCESS
            for assoc in held:
                assoc.release()
            return len(_listeners_that_served(prefork)) == 2

        eventually(another)
        pids = {f":{p.pid}" for p in prefork.listeners()}
        assert {name[name.rindex(":") :] for name in _listeners_that_served(prefork)} == pids

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_listener_that_is_killed_is_replaced_and_its_associations_are_closed(
        self, number: signal.Signals, prefork: Prefork
    ) -> None:
        port = prefork.settings.scp.port
        assoc = associate(port)
        assert store(assoc, one_slice()) == SUCCESS
        (busy,) = _listeners_that_served(prefork)
        before = prefork.listeners()
        victim = next(p for p in before if busy.endswith(f":{p.pid}"))
        victim.send_signal(number)
        eventually(
            lambda: victim.pid not in {p.pid for p in prefork.listeners()} and len(prefork.listeners()) == 2,
            40,
        )
        eventually(lambda: prefork.records.arrivals.open_listeners() == set(), 40)
        with prefork.records.engine.connect() as connection:
            (outcome,) = connection.execute(select(associations.c.outcome)).scalars()
            kept = connection.execute(text("SELECT count(*) FROM instances")).scalar()
        assert (outcome, kept) == ("aborted", 1)
        assert [echo(port) for _ in range(10)] == [SUCCESS] * 10
        assoc.join(5)

    def test_what_a_killed_listener_had_answered_is_recorded_before_its_associations_are_closed(
        self, prefork: Prefork
    ) -> None:
        assoc = associate(prefork.settings.scp.port)
        slices = ct_series(20, rows=16, name="killed")
        assert [store(assoc, ds) for ds in slices] == [SUCCESS] * 20
        (busy,) = _listeners_that_served(prefork)
        next(p for p in prefork.listeners() if busy.endswith(f":{p.pid}")).kill()
        eventually(lambda: prefork.records.arrivals.open_listeners() == set(), 40)
        gathered = prefork.records.decisions.gather(str(slices[0].SeriesInstanceUID))
        assert (len(gathered.instances), gathered.aborted) == (20, True)
        assoc.join(5)

    def test_the_whole_listener_ends_on_sigterm_and_leaves_no_process(self, prefork: Prefork) -> None:
        children = prefork.listeners()
        prefork.process.terminate()
        assert prefork.process.wait(timeout=20) == 0
        assert not [child for child in children if child.is_running()]

    def test_the_children_end_when_their_parent_is_killed(self, prefork: Prefork) -> None:
        children = prefork.listeners()
        prefork.process.kill()
        prefork.process.wait()
        eventually(lambda: not [c for c in children if c.is_running() and c.status() != "zombie"])

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_listeners_that_hear_no_sigterm_end_with_their_parent_all_the_same(
        self, number: signal.Signals, receiver: str, request: pytest.FixtureRequest
    ) -> None:
        """SIGTERM is blocked in parent and children, as if it were missed; the port must become free."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by the node
        try:
            node: Prefork = request.getfixturevalue("prefork")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        children = node.listeners()
        node.process.send_signal(number)
        node.process.wait(timeout=30)
        eventually(lambda: not [c for c in children if _is_alive(c)], 30)
        eventually(lambda: _is_free(node.settings.scp), 5)  # a thread may go a moment after its process


def test_a_lone_listener_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    port, pid_file = free_port(), tmp_path / "pid"
    command = f"{sys.executable} -m node listen --data-dir {tmp_path / 'data'} & echo $! > {pid_file}"
    environment = {**os.environ, "ICHNODE_SCP__PORT": str(port), "ICHNODE_SCP__PROCESSES": "1"}
    subprocess.run(["sh", "-c", command], env=environment, stderr=subprocess.DEVNULL, check=True)
    listener = psutil.Process(int(pid_file.read_text()))
    try:
        eventually(lambda: _answers(port), 60)
        time.sleep(1.2)  # more than two looks
        assert _answers(port)
    finally:
        listener.terminate()
        psutil.wait_procs([listener], timeout=20)
    assert not listener.is_running()
