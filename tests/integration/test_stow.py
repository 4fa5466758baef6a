"""STOW-RS against Orthanc, and against services that refuse, stumble or are not there."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from socket import SHUT_RDWR
from threading import Thread
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage

from node.deliver import carrier_to, start_couriers
from node.domain.errors import SettingsError, TransientError
from node.settings import Destination, Settings
from node.spool import Spool
from node.store.records import open_records
from tests.certificates import Certificate, make_certificate, server_context
from tests.delivering import PENDING, SENT, T0, Place, data_set
from tests.orthanc import PASSWORD, USER, TlsProxy, WebOrthanc
from tests.ports import free_port


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    records = open_records(Settings(data_dir=tmp_path))
    (tmp_path / "spool").mkdir()
    yield Place(records, Spool(tmp_path / "spool"), prefix=tmp_path.name)
    records.close()


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebOrthanc]:
    pacs = WebOrthanc(tmp_path_factory.mktemp("pacs") / "orthanc")
    yield pacs
    pacs.close()


def web(url: str, **changes: Any) -> Destination:
    return Destination(name="pacs", url=url, retry_base_s=5, retry_max_s=60, **changes)


def stored(place: Place) -> dict[str, bytes]:
    """What stands in the spool, by SOP Instance UID."""
    files = place.spool.root.glob("outgoing/*/*.dcm")
    return {str(dcmread(path).SOPInstanceUID): path.read_bytes() for path in files}


class TestOrthanc:
    def test_it_holds_what_was_sent_byte_for_byte(self, place: Place, orthanc: WebOrthanc) -> None:
        uids = place.compose("pacs", count=5)
        carrier_to(web(orthanc.url), "ICHNODE").echo()
        assert place.courier(web(orthanc.url)).round(lambda: T0)
        assert place.states() == [SENT] * 5
        held, sent = orthanc.files(), stored(place)
        assert set(held) >= set(uids)
        assert all(data_set(held[uid]) == data_set(sent[uid]) for uid in uids)

    def test_many_megabytes_go_in_several_requests(
        self, place: Place, orthanc: WebOrthanc, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("node.stow.REQUEST_BYTES", 20_000)
        uids = place.compose("pacs", count=7)
        assert place.courier(web(orthanc.url)).round(lambda: T0)
        assert set(orthanc.files()) >= set(uids)
        assert place.states() == [SENT] * 7

    def test_a_compressed_capture_shows_the_same_pixels(self, place: Place, orthanc: WebOrthanc) -> None:
        uids = place.compose("pacs", count=3, mixed=True)
        assert place.courier(web(orthanc.url, transfer_syntax="jpegls")).round(lambda: T0)
        held = {uid: dcmread(BytesIO(orthanc.files()[uid])) for uid in uids}
        by_class = {ds.SOPClassUID: ds.file_meta.TransferSyntaxUID for ds in held.values()}
        assert by_class[SecondaryCaptureImageStorage] == JPEGLSLossless
        assert set(by_class.values()) == {JPEGLSLossless, ExplicitVRLittleEndian}
        for uid, ds in held.items():
            assert (ds.pixel_array == dcmread(BytesIO(stored(place)[uid])).pixel_array).all()

    def test_over_tls_and_behind_a_password(
        self, place: Place, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PACS_PASSWORD", PASSWORD)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/dev/null")
        (tmp_path / "wrong").write_text("wrong\n")
        pacs = WebOrthanc(tmp_path / "secure", guarded=True)
        proxy = TlsProxy(certificate, pacs.http_port)
        url, tls = f"https://localhost:{proxy.port}/dicom-web", {"ca": certificate.cert}
        good = web(url, tls=tls, username=USER, password="env:PACS_PASSWORD")
        wrong = web(url, tls=tls, username=USER, password=f"file:{tmp_path}/wrong")
        distrusted = web(url, username=USER, password="env:PACS_PASSWORD")
        try:
            uids = place.compose("pacs")
            for bad, said in ((wrong, "HTTP 401"), (distrusted, "TLS failed")):
                with pytest.raises(TransientError, match=said):
                    carrier_to(bad, "ICHNODE").echo()
                with pytest.raises(TransientError, match=said):
                    list(carrier_to(bad, "ICHNODE").send(place.parcels()))
            carrier_to(good, "ICHNODE").echo()
            assert place.courier(good).round(lambda: T0)
            assert set(pacs.files()) == set(uids)
        finally:
            proxy.close()
            pacs.close()

    @pytest.mark.parametrize("check", [True, False])
    def test_the_name_in_the_certificate_is_checked_unless_that_is_not_wanted(
        self, check: bool, place: Place, tmp_path: Path
    ) -> None:
        other = make_certificate(tmp_path, "other", "pacs.example.org")
        place.compose("pacs")
        with Service(taken, server_context(other)) as service:
            there = web(service.url, tls={"ca": other.cert, "check_hostname": check})
            assert place.courier(there).round(lambda: T0) is not check
        assert place.states() == [PENDING if check else SENT] * 3

    def test_something_that_is_no_dicomweb_service_says_so(self, orthanc: WebOrthanc) -> None:
        with pytest.raises(TransientError, match=r"HTTP 404 .*is url the root"):
            carrier_to(web(f"{orthanc.root}/somewhere"), "ICHNODE").echo()


CUT = 0
"""In place of a status: the connection is cut."""
Respond = Callable[[list[FileDataset]], tuple[int, Any]]


@dataclass
class Service:
    """A STOW-RS service that answers each request as it is told, and keeps what was asked."""

    respond: Respond
    tls: Any = None
    content_type: str = "application/dicom+json; charset=utf-8"
    retry_after: str = ""
    now: float | None = None
    """What its clock says, where it is not right."""
    port: int = field(default_factory=free_port)
    requests: list[list[FileDataset]] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)

    def __enter__(self) -> Service:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.body()
                if self.headers.get("Expect") == "100-continue":
                    self.send_response_only(100)
                datasets = parts(self.headers["Content-Type"], body)
                service.headers.append(self.headers)
                service.requests.append(datasets)
                status, answer = service.respond(datasets)
                if status == CUT:
                    self.connection.shutdown(SHUT_RDWR)
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"{service.url}/login")
                if service.retry_after:
                    self.send_header("Retry-After", service.retry_after)
                self.send_header("Content-Type", service.content_type)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def body(self) -> bytes:
                """Whole, or in chunks (RFC 9112 7.1)."""
                if "Content-Length" in self.headers:
                    return self.rfile.read(int(self.headers["Content-Length"]))
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def do_GET(self) -> None:
                """What a portal shows to whoever is not signed in."""
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(service.now if timestamp is None else timestamp)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}/dicom-web"

    def sizes(self) -> list[int]:
        return [len(request) for request in self.requests]


def parts(content_type: str, body: bytes) -> list[FileDataset]:
    whole = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    payloads: list[Any] = [part.get_payload(decode=True) for part in whole.get_payload()]  # type: ignore[union-attr]
    return [dcmread(BytesIO(payload)) for payload in payloads]


def http_date(at: float) -> str:
    return formatdate(at, usegmt=True)


def sequence(items: list[tuple[FileDataset, str, int]]) -> dict[str, Any]:
    """The Store Instances Response Module of these (data set, keyword's tag or nothing, reason)."""
    found: dict[str, Any] = {}
    for ds, tag, reason in items:
        item = {
            "00081150": {"vr": "UI", "Value": [str(ds.SOPClassUID)]},
            "00081155": {"vr": "UI", "Value": [str(ds.SOPInstanceUID)]},
        }
        if reason:
            item[tag] = {"vr": "US", "Value": [reason]}
        where = "00081198" if tag == "00081197" else "00081199"
        found.setdefault(where, {"vr": "SQ", "Value": []})["Value"].append(item)
    return found


def taken(datasets: list[FileDataset]) -> tuple[int, Any]:
    return 200, sequence([(ds, "", 0) for ds in datasets])


def but_for_the_second(status: int) -> Respond:
    """Everything is stored, but for a request with the second object, which gets this status."""

    def respond(datasets: list[FileDataset]) -> tuple[int, Any]:
        poison = any(ds.InstanceNumber == 2 for ds in datasets)
        return (status, b"") if poison else taken(datasets)

    return respond


FAILURE, WARNING = "00081197", "00081196"


class TestAnswers:
    def test_each_instance_has_its_own_outcome(self, place: Place) -> None:
        def respond(datasets: list[FileDataset]) -> tuple[int, Any]:
            reasons = [("", 0), (FAILURE, 0xA700), (WARNING, 0xB000)]
            items = [(ds, *reason) for ds, reason in zip(datasets, reasons, strict=True)]
            return 202, sequence(items)

        place.compose("pacs")
        with Service(respond) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [3]
        assert place.states() == [SENT, PENDING, SENT]
        assert [row.last_status for row in place.rows()] == ["0x0000", "0xA700", "0xB000"]
        assert place.rows()[1].next_try_at == T0 + 5

    def test_whoever_waits_sees_the_bytes_go(self, place: Place) -> None:
        """A request that takes long is no reason for another process to send it, too."""
        place.compose("pacs")
        (large, *small) = place.parcels()
        ds = dcmread(large.file)
        ds.Rows = ds.Columns = 2048
        ds.PixelData = bytes(2 * 2048 * 2048)
        ds.save_as(large.file)
        moves = list[str]()
        watched = replace(large, moved=lambda: moves.append("large"))
        with Service(taken) as service:
            carrier = carrier_to(web(service.url), "ICHNODE")
            assert [one.accepted for one in carrier.send([watched, *small])] == [True] * 3
            assert service.sizes() == [3]
        assert len(moves) >= 8

    def test_a_conflict_names_the_instances_that_failed(self, place: Place) -> None:
        place.compose("pacs", count=2)
        with Service(lambda all_: (409, sequence([(ds, FAILURE, 0x0122) for ds in all_]))) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [2]
        assert {row.last_status for row in place.rows()} == {"0x0122"}

    def test_what_the_service_holds_already_counts_as_sent(self, place: Place) -> None:
        place.compose("pacs", count=2)
        with Service(lambda all_: (409, sequence([(ds, FAILURE, 0x0111) for ds in all_]))) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, SENT]
        assert {row.last_status for row in place.rows()} == {"0x0111"}

    @pytest.mark.parametrize("status", [400, 413, 415, 500])
    def test_a_request_refused_as_a_whole_is_tried_object_by_object(self, status: int, place: Place) -> None:
        place.compose("pacs", count=4)
        with Service(but_for_the_second(status)) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [4, 1, 1, 1, 1]
        assert place.states() == [SENT, PENDING, SENT, SENT]
        assert place.rows()[1].last_status == f"HTTP {status}"

    @pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
    def test_a_service_that_is_away_or_refuses_us_makes_everything_wait(
        self, status: int, place: Place
    ) -> None:
        place.compose("pacs")
        with Service(lambda _: (status, b"")) as service:
            assert not place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [3]
        assert place.states() == [PENDING] * 3
        assert f"HTTP {status}" in place.rows()[0].last_error

    @pytest.mark.parametrize(
        ("said", "wait_s"), [("40", 40), ("86400", 60), ("soon", 5), ("Thu, 01 Jan 1970 00:00:00 GMT", 5)]
    )
    @pytest.mark.parametrize("status", [429, 503])
    def test_how_long_to_leave_the_service_alone_is_heeded(
        self, status: int, said: str, wait_s: float, place: Place
    ) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (status, b""), retry_after=said) as service:
            assert not place.courier(web(service.url)).round(lambda: T0)
        assert place.rows()[0].next_try_at == T0 + wait_s

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(("ahead_s", "clock_s"), [(40, 0), (40, 7200), (40, -7200), (3600, 0)])
    def test_a_date_until_when_to_leave_the_service_alone_is_heeded(
        self, ahead_s: float, clock_s: float, status: int, place: Place
    ) -> None:
        """By the clock of the service, which says in the same answer what time it has (RFC 9110 6.6.1)."""
        place.compose("pacs", count=1)
        now = time.time() + clock_s
        with Service(lambda _: (status, b""), retry_after=http_date(now + ahead_s), now=now) as service:
            assert not place.courier(web(service.url)).round(lambda: T0)
        assert place.rows()[0].next_try_at == T0 + min(ahead_s, 60)

    def test_an_accepted_without_a_word_about_the_instances_is_not_believed(self, place: Place) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (202, b"")) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING]

    def test_an_instance_that_is_left_out_of_the_answer_was_not_stored(self, place: Place) -> None:
        place.compose("pacs")
        with Service(lambda all_: taken(all_[:2])) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, SENT, PENDING]

    @pytest.mark.parametrize("body", [b"", b"{}", b"[{}]"])
    def test_an_ok_without_words_counts(self, body: bytes, place: Place) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (200, body)) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT]

    @pytest.mark.parametrize("body", [b"<html>Sign in</html>", b"\n<!DOCTYPE html><title>Away</title>"])
    def test_a_web_page_in_place_of_an_answer_is_not_believed(self, body: bytes, place: Place) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (200, body), content_type="text/html") as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING]
        assert "a web page in place of a STOW-RS response" in place.rows()[0].last_error

    def test_an_answer_in_xml_is_read_too(self, place: Place) -> None:
        def respond(datasets: list[FileDataset]) -> tuple[int, bytes]:
            uid = (
                '<DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID"><Value number="1">'
            )
            items = "".join(
                f'<Item number="{n}">{uid}{ds.SOPInstanceUID}</Value></DicomAttribute></Item>'
                for n, ds in enumerate(datasets[:2], 1)
            )
            sequence = f'<DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence">{items}'
            return 202, f"<NativeDicomModel>{sequence}</DicomAttribute></NativeDicomModel>".encode()

        place.compose("pacs")
        with Service(respond, content_type="application/dicom+xml") as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, SENT, PENDING]

    def test_a_service_that_cannot_read_the_compressed_object_gets_it_plain(self, place: Place) -> None:
        def respond(datasets: list[FileDataset]) -> tuple[int, Any]:
            bad = [ds.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian for ds in datasets]
            tags = [(ds, FAILURE, 0xC122) if b else (ds, "", 0) for ds, b in zip(datasets, bad, strict=True)]
            return 202 if any(bad) else 200, sequence(tags)

        place.compose("pacs", mixed=True)
        with Service(respond) as service:
            assert place.courier(web(service.url, transfer_syntax="rle")).round(lambda: T0)
            assert service.sizes() == [3, 1]
        assert place.states() == [SENT] * 3

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_page_to_which_the_service_points_instead_has_stored_nothing(
        self, status: int, place: Place
    ) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (status, b"")) as service:
            assert not place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [1]
        assert place.states() == [PENDING]
        assert f"HTTP {status}" in place.rows()[0].last_error
        assert "points elsewhere, check the url" in place.rows()[0].last_error

    @pytest.mark.parametrize("status", [CUT, 502, 504])
    def test_an_object_at_which_the_service_breaks_down_holds_up_no_other(
        self, status: int, place: Place
    ) -> None:
        place.compose("pacs", count=4)
        with Service(but_for_the_second(status)) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, PENDING, SENT, SENT]

    @pytest.mark.parametrize("status", [CUT, 502, 504])
    def test_a_service_that_breaks_down_at_everything_is_left_alone_for_now(
        self, status: int, place: Place
    ) -> None:
        place.compose("pacs", count=9)
        with Service(lambda _: (status, b"")) as service:
            assert not place.courier(web(service.url)).round(lambda: T0)
            assert service.sizes() == [9, 1, 8, 1]
        assert place.states() == [PENDING] * 9
        assert [row.attempts for row in place.rows()] == [1, 1, *[0] * 7]

    def test_a_broken_file_keeps_no_refused_request_from_being_tried_object_by_object(
        self, place: Place
    ) -> None:
        place.compose("pacs", count=4)
        place.spool.absolute(f"outgoing/1/{place.rows()[0].sop_instance_uid}.dcm").write_bytes(b"rot")
        with Service(but_for_the_second(400)) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING, PENDING, SENT, SENT]

    def test_an_image_that_cannot_be_decompressed_holds_up_no_other(self, place: Place) -> None:
        def respond(datasets: list[FileDataset]) -> tuple[int, Any]:
            plain = [ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian for ds in datasets]
            tags = [
                (ds, "", 0) if p else (ds, FAILURE, 0xC122) for ds, p in zip(datasets, plain, strict=True)
            ]
            return 200 if all(plain) else 202, sequence(tags)

        place.compose("pacs")
        place.spoil(1)
        with Service(respond) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, PENDING, SENT]
        assert "cannot be read" in place.rows()[1].last_error

    def test_an_object_that_cannot_be_encoded_holds_up_no_other(self, place: Place) -> None:
        place.compose("pacs")
        file = place.spool.absolute(f"outgoing/1/{place.rows()[1].sop_instance_uid}.dcm")
        whole = file.read_bytes()
        stray = b"\x02\x00\x16\x00AE\x06\x00ELSE  "  # group 0002 has no place in a data set (PS3.10 7.1)
        file.write_bytes(whole + stray)
        with Service(taken) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, PENDING, SENT]
        assert "cannot be sent" in place.rows()[1].last_error

    @pytest.mark.parametrize("body", [b"[{}]", b'{"00081199": 7}', b'{"00081199": "x"}', b"null", b"3"])
    def test_an_ok_with_words_that_nobody_understands_counts(self, body: bytes, place: Place) -> None:
        place.compose("pacs", count=1)
        with Service(lambda _: (200, body), content_type="application/dicom+json") as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT]

    def test_an_answer_in_a_list_is_read_too(self, place: Place) -> None:
        place.compose("pacs")
        with Service(
            lambda all_: (202, [taken(all_[:2])[1]]), content_type="application/dicom+json"
        ) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [SENT, SENT, PENDING]

    @pytest.mark.parametrize("reason", [{"vr": "US", "Value": [0xA700]}, {"vr": "US", "Value": ["0xA700"]}])
    @pytest.mark.parametrize("tag", ["00081198", "0008119A"])
    def test_an_ok_that_tells_of_a_failure_is_not_believed(self, tag: str, reason: Any, place: Place) -> None:
        failed = {tag: {"vr": "SQ", "Value": [{FAILURE: reason}]}}
        place.compose("pacs", count=1)
        with Service(lambda _: (200, failed)) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING]

    @pytest.mark.parametrize("value", ["0xA700", "42752 42753", ""])
    def test_a_reason_that_is_no_number_is_a_failure_all_the_same(self, value: str, place: Place) -> None:
        def respond(datasets: list[FileDataset]) -> tuple[int, Any]:
            told = sequence([(datasets[0], FAILURE, 1), *((ds, "", 0) for ds in datasets[1:])])
            told["00081198"]["Value"][0][FAILURE] = {"vr": "LO", "Value": [value]}
            return 202, told

        place.compose("pacs")
        with Service(respond) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING, SENT, SENT]
        assert place.rows()[0].last_status == "0x0110"

    def test_a_file_that_is_gone_does_not_hold_up_the_rest(self, place: Place) -> None:
        place.compose("pacs")
        place.spool.absolute(f"outgoing/1/{place.rows()[0].sop_instance_uid}.dcm").unlink()
        with Service(taken) as service:
            assert place.courier(web(service.url)).round(lambda: T0)
        assert place.states() == [PENDING, SENT, SENT]

    def test_nobody_there(self, place: Place) -> None:
        place.compose("pacs")
        assert not place.courier(web(f"http://127.0.0.1:{free_port()}/d")).round(lambda: T0)
        assert "cannot be reached (Connection refused); is it running" in place.rows()[0].last_error


class TestCredentials:
    def test_the_token_travels_and_is_never_logged(
        self,
        place: Place,
        certificate: Certificate,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("PACS_TOKEN", "s3cr3t-token")
        place.compose("pacs")
        with Service(taken, server_context(certificate)) as service:
            there = web(service.url, token="env:PACS_TOKEN", tls={"ca": certificate.cert})
            assert place.courier(there).round(lambda: T0)
            assert service.headers[0]["Authorization"] == "Bearer s3cr3t-token"
            assert service.headers[0]["Accept"] == "application/dicom+json"
            service.respond = lambda _: (401, b"")
            with pytest.raises(TransientError) as refused:
                list(carrier_to(there, "ICHNODE").send(place.parcels()))
        assert "s3cr3t" not in f"{refused.value} {refused.value.__cause__} {there} {caplog.text}"

    def test_a_new_token_in_the_file_is_used_from_then_on(
        self, place: Place, certificate: Certificate, tmp_path: Path
    ) -> None:
        file = tmp_path / "token"
        place.compose("pacs")
        with Service(taken, server_context(certificate)) as service:
            carrier = carrier_to(
                web(service.url, token=f"file:{file}", tls={"ca": certificate.cert}), "ICHNODE"
            )
            with pytest.raises(TransientError, match="cannot be read"):
                list(carrier.send(place.parcels()))
            for token in ("first", "second"):
                file.write_text(f"{token}\n")
                list(carrier.send(place.parcels()))
        assert [headers["Authorization"] for headers in service.headers] == ["Bearer first", "Bearer second"]

    def test_a_client_certificate_is_shown(
        self, place: Place, certificate: Certificate, tmp_path: Path
    ) -> None:
        own = make_certificate(tmp_path, "own", "ichnode")
        place.compose("pacs")
        with Service(taken, server_context(certificate, own.cert)) as service:
            anonymous = web(service.url, tls={"ca": certificate.cert})
            with pytest.raises(TransientError):
                list(carrier_to(anonymous, "ICHNODE").send(place.parcels()))
            known = web(service.url, tls={"ca": certificate.cert, "cert": own.cert, "key": own.key})
            assert place.courier(known).round(lambda: T0)
        assert place.states() == [SENT] * 3

    @pytest.mark.parametrize(
        "changes",
        [
            {"token": "env:NO_SUCH_VARIABLE"},
            {"token": "file:/no/such/file"},
            {"tls": {"ca": "/no/such/ca.pem"}},
        ],
    )
    def test_what_is_missing_is_told_at_start(self, changes: dict[str, Any], place: Place) -> None:
        settings = Settings(destination=(web("https://localhost/dicom-web", **changes),))
        with pytest.raises(SettingsError, match=r"NO_SUCH_VARIABLE|no/such/file|tls of destination pacs"):
            start_couriers(settings, place.records, place.spool, lambda _: True)
