"""Orthanc as tests need it: with DICOMweb, behind a password and TLS where that is wanted."""

from __future__ import annotations

import base64
import json
import socket
import urllib.request
from contextlib import suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

from tests.certificates import Certificate, server_context
from tests.peers import missing, requires
from tests.ports import free_port
from workers.demo import Orthanc, orthanc_executable

PLUGINS = Path("/usr/share/orthanc/plugins")
USER, PASSWORD = "ichnode", "correct horse"


def executable() -> str:
    """Where Orthanc is; skips the test where it is not."""
    found = orthanc_executable()
    if found is None:
        requires("Orthanc")
    assert found
    return found


def plain_orthanc(folder: Path, dicom_port: int = 0, **options: Any) -> Orthanc:
    """Orthanc without plug-ins, running, on ports that no other test gets; skips where there is none."""
    return Orthanc(executable(), folder, dicom_port or free_port(), **{"HttpPort": free_port(), **options})


class WebOrthanc(Orthanc):
    """Orthanc with its DICOMweb plug-in; `guarded`: for USER alone."""

    def __init__(self, folder: Path, guarded: bool = False) -> None:
        plugins = sorted(map(str, PLUGINS.glob("libOrthancDicomWeb.so*")))
        if not plugins:
            missing("orthanc-dicomweb is not installed")
        options: dict[str, Any] = {
            "Plugins": plugins[:1],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        if guarded:
            options |= {"AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD}}
        super().__init__(executable(), folder, free_port(), HttpPort=free_port(), **options)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    def get(self, path: str) -> Any:
        return json.loads(self._read(path))

    def file(self, instance: str) -> bytes:
        return self._read(f"/instances/{instance}/file")

    def files(self) -> dict[str, bytes]:
        """Everything it holds, by SOP Instance UID."""
        return {
            item["MainDicomTags"]["SOPInstanceUID"]: self.file(item["ID"])
            for item in self.get("/instances?expand")
        }

    def delete(self, path: str) -> None:
        self._read(path, "DELETE")

    def _read(self, path: str, method: str = "GET") -> bytes:
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {word}"}
        request = urllib.request.Request(f"{self.root}{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            data: bytes = answer.read()
            return data


class TlsProxy:
    """Ends TLS before a plain server, as proxies do: Orthanc of Debian 12 crashes when it serves HTTPS."""

    def __init__(self, certificate: Certificate, target_port: int) -> None:
        context = server_context(certificate)

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", target_port)) as target:
                    Thread(target=_pump, args=(target, self.request), daemon=True).start()
                    _pump(self.request, target)

        class Server(ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that does not trust us hangs up."""

            def finish_request(self, request: Any, client_address: Any) -> None:
                with context.wrap_socket(request, server_side=True) as secure:
                    self.RequestHandlerClass(secure, client_address, self)

        self.port = free_port()
        self._server = Server(("127.0.0.1", self.port), Handler)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pump(source: Any, target: Any) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
