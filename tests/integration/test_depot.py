"""Files in a bucket, over HTTP: what is put comes back whole or not at all; a bucket that is away says so."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, socket
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest
from pydantic import ValidationError

from node.admin.roles import prepare
from node.depot.bucket import DIGEST, S3, TRIES
from node.depot.copies import IN_USE_S, PRESSED_S, STALE_S, Copies, Copy, surplus
from node.depot.remote import RemoteDepot, name_of_disk
from node.domain.errors import OutOfReach, PermanentError, SettingsError
from node.settings import Bucket, Scp, Settings
from node.settings import Spool as SpoolSettings
from node.spool import Spool, spool_of
from tests.certificates import make_certificate
from tests.s3 import KEYS, NAME, Moto, S3Server

pytestmark = pytest.mark.usefixtures("emptied")
PATH = "results/1/1/maps.npz"
NOW = 1_000_000.0


def machine(server: S3Server, folder: Path, **more: Any) -> Spool:
    """The spool of one machine."""
    settings = Settings(data_dir=folder, spool=SpoolSettings(s3=server.settings(**more), reserve_mb=0))
    prepare(settings)
    return spool_of(settings)


def depot_of(spool: Spool) -> RemoteDepot:
    assert isinstance(spool.depot, RemoteDepot)
    return spool.depot


class TestBucket:
    def test_what_one_machine_puts_another_gets(self, server: S3Server, tmp_path: Path) -> None:
        one, other = machine(server, tmp_path / "a"), machine(server, tmp_path / "b")
        one.write(PATH, (b"ab", memoryview(b"c")))
        assert server.stored() == [f"ichnode/{PATH}"]
        (file,) = other.fetch([PATH])
        assert file.read_bytes() == b"abc"
        assert not any(one.root.glob("results/**/*")), "nothing is left that another would have to do"

    def test_what_was_damaged_in_the_bucket_is_found_and_not_handed_out(
        self, server: S3Server, tmp_path: Path
    ) -> None:
        one, other = machine(server, tmp_path / "a"), machine(server, tmp_path / "b")
        one.write(PATH, (b"abc",))
        key = f"ichnode/{PATH}"
        kept = server.client.head_object(Bucket=NAME, Key=key)["Metadata"]
        server.client.put_object(Bucket=NAME, Key=key, Body=b"abd", Metadata=kept)
        with pytest.raises(PermanentError, match="not what was put") as error:
            other.fetch([PATH])
        assert error.value.code == "FILE_DAMAGED"
        assert not [file for file in (other.root / "copies").rglob("*") if file.is_file()]

    def test_a_put_tells_the_server_what_should_arrive(self, server: S3Server, tmp_path: Path) -> None:
        """So that it refuses what was damaged on the way; moto itself does not look at it."""
        spool, sent = machine(server, tmp_path), []
        events = depot_of(spool).bucket._client.meta.events
        events.register("before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers)))
        spool.write(PATH, (b"abc",))
        (headers,) = sent
        assert headers["Content-MD5"] in (b"kAFQmDzST7DWlj99KOF/cg==", "kAFQmDzST7DWlj99KOF/cg==")

    def test_each_object_has_its_digest_with_it(self, server: S3Server, tmp_path: Path) -> None:
        machine(server, tmp_path).write(PATH, (b"abc",))
        kept = server.client.head_object(Bucket=NAME, Key=f"ichnode/{PATH}")["Metadata"]
        assert kept == {DIGEST: "06b05ab6733a618578af5f94892f3950"}

    def test_a_file_that_is_nowhere_opens_as_such(self, server: S3Server, tmp_path: Path) -> None:
        spool = machine(server, tmp_path)
        (file,) = spool.fetch([PATH])
        with pytest.raises(FileNotFoundError):
            file.read_bytes()
        assert spool.depot.missing([PATH, "outgoing/1/1.dcm"]) == {PATH, "outgoing/1/1.dcm"}
        assert spool.remove(PATH) == 0

    def test_a_removal_takes_the_object_and_the_copy(self, server: S3Server, tmp_path: Path) -> None:
        spool = machine(server, tmp_path)
        spool.write(PATH, (b"abc",))
        assert spool.remove(PATH) == 3
        assert server.stored() == []
        assert spool.depot.missing([PATH]) == {PATH}

    def test_a_long_list_comes_whole_and_in_order(
        self, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("node.depot.bucket.LISTED_AT_ONCE", 10)
        client = server.client
        paths = [f"incoming/1/2/{number:04}.dcm" for number in range(23)]
        for path in paths:
            client.put_object(Bucket=NAME, Key=f"ichnode/{path}", Body=b"x")
        depot = depot_of(machine(server, tmp_path))
        assert [file.path for file in depot.files("incoming")] == paths
        assert depot.missing([*paths, "incoming/1/2/none.dcm"]) == {"incoming/1/2/none.dcm"}

    def test_a_prefix_is_not_mistaken_for_its_neighbour(self, server: S3Server, tmp_path: Path) -> None:
        client = server.client
        for key in ("ichnode/incoming/1/2/a.dcm", "ichnode/incoming/11/2/b.dcm", "other/incoming/1/2/c.dcm"):
            client.put_object(Bucket=NAME, Key=key, Body=b"x")
        depot = depot_of(machine(server, tmp_path))
        assert [file.path for file in depot.files("incoming/1")] == ["incoming/1/2/a.dcm"]

    def test_no_upload_goes_in_parts(self, server: S3Server, tmp_path: Path) -> None:
        machine(server, tmp_path).write(PATH, (bytes(20 * 2**20),))
        head = server.client.head_object(Bucket=NAME, Key=f"ichnode/{PATH}")
        assert "-" not in head["ETag"] and server.unfinished() == []


class TestAway:
    def test_it_is_told_with_the_next_step_and_all_is_well_after(
        self, server: S3Server, tmp_path: Path
    ) -> None:
        one, other = machine(server, tmp_path / "a"), machine(server, tmp_path / "b")
        one.write(PATH, (b"abc",))
        server.go_away()
        try:
            for deed in (
                lambda: other.fetch([PATH]),
                lambda: other.write("results/2/1/maps.npz", (b"x",)),
                lambda: other.remove(PATH),
                other.require_reach,
            ):
                with pytest.raises(OutOfReach, match=f"bucket {NAME}.*cannot be reached.*is it running"):
                    deed()
            (held,) = one.fetch([PATH])
            assert held.read_bytes() == b"abc", "a copy is at hand"
        finally:
            server.come_back()
        depot_of(other).bucket._alone_until = 0.0
        other.require_reach()
        (file,) = other.fetch([PATH])
        assert file.read_bytes() == b"abc"

    def test_who_waits_for_a_bucket_that_is_away_is_told_at_once(self, tmp_path: Path) -> None:
        bucket = S3(Bucket(bucket=NAME, endpoint="http://127.0.0.1:1"))
        with pytest.raises(OutOfReach):
            bucket.delete(PATH)
        bucket._made = None  # whoever asked would make it anew
        with pytest.raises(OutOfReach, match="cannot be reached"):
            bucket.delete(PATH)
        assert bucket._made is None

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"bucket": "no-such-bucket"}, "NoSuchBucket.*make it, or name another"),
            ({"access_key": "env:NOT_SET_HERE", "secret_key": "env:NOT_SET_HERE"}, "NOT_SET_HERE is empty"),
            ({"ca": "/nowhere/ca.pem"}, r"spool\.s3\.ca /nowhere/ca\.pem is no file"),
        ],
    )
    def test_settings_that_cannot_be_right_are_named(
        self, server: S3Server, settings: dict[str, Any], words: str
    ) -> None:
        values = {"bucket": NAME, "endpoint": server.endpoint, **settings}
        with pytest.raises(OutOfReach, match=words):
            S3(Bucket(**values)).skew_s()

    def test_without_keys_the_error_says_where_they_go(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in KEYS:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(OutOfReach, match=r"NoCredentialsError.*spool\.s3\.access_key"):
            S3(server.settings()).skew_s()

    def test_keys_come_from_files_and_are_told_nobody(
        self, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, file in (("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")):
            (tmp_path / file).write_text(f"{KEYS[name]}\n")
            monkeypatch.setenv(name, "not these")
        settings = server.settings(access_key=f"file:{tmp_path}/id", secret_key=f"file:{tmp_path}/secret")
        bucket = S3(settings)
        assert abs(bucket.skew_s()) < 5
        given = bucket._client._request_signer._credentials
        assert [given.access_key, given.secret_key] == [*KEYS.values()]
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in repr(settings)

    def test_not_even_a_log_of_everything_has_them(
        self,
        server: S3Server,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for name in ("botocore", "urllib3"):
            monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "a token of the session")
        caplog.set_level("DEBUG")
        machine(server, tmp_path).write(PATH, (b"abc",))
        assert "of the session" not in caplog.text and KEYS["AWS_SECRET_ACCESS_KEY"] not in caplog.text


class TestSomethingElseAnswers:
    """A balancer whose servers are gone, a page of maintenance: an answer, and not of a bucket."""

    @pytest.fixture(params=[(404, "404 page not found"), (200, "<html><body>Back soon</body></html>")])
    def page(self, request: pytest.FixtureRequest) -> Iterator[Bucket]:
        status, text = request.param

        class Page(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_DELETE = answer

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Bucket(bucket=NAME, endpoint=f"http://127.0.0.1:{server.server_port}", timeout_s=5)
        server.shutdown()
        server.server_close()
        thread.join()

    @pytest.mark.parametrize("request_", ["put", "get", "delete", "list"])
    def test_nothing_is_stored_nothing_is_gone_and_nothing_is_damaged(
        self, page: Bucket, request_: str, tmp_path: Path
    ) -> None:
        (tmp_path / "sent").write_bytes(b"abc")
        bucket = S3(page)
        deeds: dict[str, Callable[[], Any]] = {
            "put": lambda: bucket.put(PATH, tmp_path / "sent"),
            "get": lambda: bucket.get(PATH, tmp_path / "came"),
            "delete": lambda: bucket.delete(PATH),
            "list": lambda: list(bucket.list("incoming")),
        }
        with pytest.raises(OutOfReach, match=r"spool\.s3\.endpoint"):
            deeds[request_]()


class Damaging:
    """Hands connections on to a server of this machine, and changes a byte of each long answer."""

    WHOLE_BYTES = 2**18

    def __init__(self, target_port: int) -> None:
        line = self
        self.damaged = 0

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), create_connection(("127.0.0.1", target_port)) as target:
                    Thread(target=line._back, args=(target, self.request), daemon=True).start()
                    while data := self.request.recv(65536):
                        target.sendall(data)

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _back(self, source: socket, target: socket) -> None:
        came, whole = 0, True
        with suppress(OSError):
            while data := source.recv(65536):
                came += len(data)
                if whole and came > self.WHOLE_BYTES:
                    whole, data = False, data[:-1] + bytes((data[-1] ^ 1,))
                    self.damaged += 1
                target.sendall(data)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class TestTls:
    def test_it_is_trusted_by_its_own_authority_and_by_no_other(self, tmp_path: Path) -> None:
        made = make_certificate(tmp_path, "s3")
        server = Moto(tmp_path / "log", made)
        try:
            machine(server, tmp_path / "a", ca=made.cert).write(PATH, (b"abc",))
            assert server.stored() == [f"ichnode/{PATH}"]
            other = make_certificate(tmp_path, "other")
            for ca in (other.cert, ""):
                with pytest.raises(OutOfReach, match=r"SSLError.*spool\.s3\.ca"):
                    machine(server, tmp_path / "b", ca=ca).fetch([PATH])
        finally:
            server.stop()

    def test_what_is_damaged_within_tls_is_tried_again_and_told(self, tmp_path: Path) -> None:
        made = make_certificate(tmp_path, "s3")
        server = Moto(tmp_path / "log", made)
        line = Damaging(server.port)
        try:
            machine(server, tmp_path / "a", ca=made.cert).write(PATH, (bytes(2 * line.WHOLE_BYTES),))
            settings = server.settings(ca=made.cert, endpoint=f"https://127.0.0.1:{line.port}")
            bucket = S3(settings)
            with pytest.raises(OutOfReach, match="broke off"):
                bucket.get(PATH, tmp_path / "came")
            assert line.damaged == TRIES
        finally:
            line.close()
            server.stop()

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"endpoint": "http://minio:9000"}, "travel in the open"),
            ({"endpoint": "minio:9000"}, "write https://host:port"),
            ({"bucket": "", "region": "x"}, "region without a bucket"),
            ({"bucket": "Not_A_Name"}, "no name of a bucket"),
            ({"prefix": "../"}, "no prefix"),
            ({"prefix": "ichnode"}, "end with /"),
            ({"access_key": "AKIA123"}, "pattern"),
            ({"access_key": "env:A"}, "go together"),
        ],
    )
    def test_settings_that_say_nothing_good_are_refused(self, wrong: dict[str, str], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            Bucket(**{"bucket": NAME, **wrong})

    def test_an_object_that_no_put_takes_is_refused_at_the_door(self) -> None:
        with pytest.raises(ValidationError, match="no bucket takes in one PUT"):
            Settings(scp=Scp(max_instance_mb=6000), spool=SpoolSettings(s3=Bucket(bucket=NAME)))


class TestPermissions:
    """The policy in docs/deployment.md, as moto enforces it: signatures are looked at, too."""

    @pytest.fixture
    def guarded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
        import boto3
        import requests

        made = Moto(tmp_path / "log")
        made.client.create_bucket(Bucket="ichnode")
        admin = {"endpoint_url": made.endpoint, "region_name": "us-east-1"}
        keys = {key.lower(): value for key, value in KEYS.items()}
        iam = boto3.client("iam", **admin, **keys)
        iam.create_user(UserName="node")
        iam.put_user_policy(UserName="node", PolicyName="node", PolicyDocument=documented_policy())
        key = iam.create_access_key(UserName="node")["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        assert requests.post(f"{made.endpoint}/moto-api/reset-auth", data="0", timeout=10).ok
        yield made
        made.stop()

    def test_they_suffice_and_reach_no_further(
        self, guarded: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spool(**more: Any) -> Spool:
            s3 = Bucket(bucket="ichnode", endpoint=guarded.endpoint, **more)
            settings = Settings(data_dir=tmp_path / "a", spool=SpoolSettings(s3=s3, reserve_mb=0))
            prepare(settings)
            return spool_of(settings)

        assert_sufficient(spool())
        with pytest.raises(OutOfReach, match=r"403 AccessDenied to a PUT.*permissions in docs/deployment"):
            spool(prefix="elsewhere/").write(PATH, (b"abc",))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(OutOfReach, match=r"SignatureDoesNotMatch.*look at spool\.s3\.secret_key"):
            spool().remove(PATH)


def assert_sufficient(spool: Spool) -> None:
    """Every kind of request is allowed."""
    assert depot_of(spool).bucket.probe() > 0
    spool.write(PATH, (b"abc",))
    assert [file.path for file in spool.depot.files("results")] == [PATH]
    assert not spool.fetch(["results/none"])[0].exists(), "what is not there is no refusal"
    spool.remove(PATH)


def documented_policy() -> str:
    text = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    (policy,) = re.findall(r'```json\n(\{\n  "Version".*?)```', text, re.DOTALL)
    return str(policy)


class TestCopies:
    def test_the_least_used_go_first_and_never_what_is_in_use(self) -> None:
        copies = [Copy(str(n), 10, NOW - IN_USE_S - 10 + n) for n in range(20)]
        going = surplus(copies, 150, False, NOW)
        assert [copy.path for copy in going] == [str(n) for n in range(5)]
        assert [copy.path for copy in surplus(copies, 0, False, NOW)] == [str(n) for n in range(10)]

    def test_a_disk_without_room_takes_all_but_the_very_latest(self) -> None:
        copies = [Copy("old", 10, NOW - PRESSED_S - 1), Copy("new", 10, NOW - PRESSED_S + 1)]
        assert [copy.path for copy in surplus(copies, 1000, True, NOW)] == ["old"]
        assert surplus(copies, 1000, False, NOW) == []

    def test_what_nobody_asked_for_in_a_day_goes(self) -> None:
        copies = [Copy("old", 10, NOW - STALE_S - 1), Copy("new", 10, NOW - STALE_S + 1)]
        assert [copy.path for copy in surplus(copies, 1000, False, NOW)] == ["old"]

    def test_a_copy_counts_as_used_when_it_is_asked_for(self, tmp_path: Path) -> None:
        copies = Copies(tmp_path, 0, lambda: False)
        for name in ("a/b/old", "a/c/new"):
            part = copies.part(name)
            part.write_bytes(b"x")
            copies.take(part, name)
            os.utime(tmp_path / name, (NOW, NOW))
        assert copies.find("a/c/new")
        assert copies.trim(time.time()) == 1
        assert not (tmp_path / "a" / "b").exists() and (tmp_path / "a" / "c" / "new").exists()

    def test_one_that_is_asked_for_while_others_go_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies = Copies(tmp_path, 0, lambda: False)
        part = copies.part("a/x")
        part.write_bytes(b"x")
        os.utime(copies.take(part, "a/x"), (NOW, NOW))

        def meanwhile(*args: Any) -> list[Copy]:
            going = surplus(*args)
            assert copies.find("a/x")
            return going

        monkeypatch.setattr("node.depot.copies.surplus", meanwhile)
        assert copies.trim(time.time()) == 0 and (tmp_path / "a" / "x").exists()

    def test_parts_that_a_crash_left_go(self, tmp_path: Path) -> None:
        copies = Copies(tmp_path, 0, lambda: False)
        old, new = copies.part("a/x"), copies.part("a/x")
        for part in (old, new):
            part.write_bytes(b"half")
        os.utime(old, (NOW, NOW))
        copies.trim()
        assert not old.exists() and new.exists()


class TestDisk:
    def test_it_keeps_its_name_and_another_has_another(self, tmp_path: Path) -> None:
        first = name_of_disk(tmp_path / "a")
        assert name_of_disk(tmp_path / "a") == first != name_of_disk(tmp_path / "b")
        assert len(first) <= 64 and (tmp_path / "a" / "disk").read_text() == f"{first}\n"

    def test_a_shared_volume_has_none(self, tmp_path: Path) -> None:
        assert Spool(tmp_path).depot.disk is None

    def test_without_boto3_it_is_said_what_to_install(
        self, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("node.depot.bucket.find_spec", lambda name: None)
        with pytest.raises(SettingsError, match=r"pip install 'ichnode\[s3\]'"):
            machine(server, tmp_path)
