"""`ichnode demo`: the whole node in a temporary folder, with a PACS that receives and a phantom that bleeds.

It talks to loopback only, uses free ports, and touches no other installation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, AllStoragePresentationContexts, evt

from node.admin.roles import ending_with_this
from node.admin.supervise import PROGRAM
from node.domain.errors import IchnodeError, TransientError
from node.scu import Parcel, Peer
from node.settings import Destination, load
from node.store.records import Records, open_records
from workers.phantom_series import write_series

SEED = 3
BLEEDS = ("intraparenchymal", "intraventricular")
QUIET_S = 2
START_TIMEOUT_S = 300
RESULT_TIMEOUT_S = 180
Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """Where the parts of a running demonstration are."""

    folder: Path
    dicom_port: int
    web_port: int
    records: Records
    pacs: Pacs

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.web_port}/"


class Pacs:
    """Where results go: has a name to show, and can hand over what arrived as files."""

    name: str
    port: int

    def fetch(self, out: Path) -> dict[str, list[Path]]:
        """Files of what arrived, by kind: SR, SEG, SC; in order of InstanceNumber."""
        raise NotImplementedError


class FolderPacs(Pacs):
    """A C-STORE SCP that writes what it gets to a folder; stands in where Orthanc is not installed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.name, self.port = f"a built-in C-STORE SCP writing to {folder}", free_port()
        ae = AE("DEMOPACS")
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax))
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def _store(self, event: evt.Event) -> int:
        data = event.encoded_dataset()
        (self._folder / f"{len(list(self._folder.iterdir())):04d}.dcm").write_bytes(data)
        return 0x0000

    def fetch(self, out: Path) -> dict[str, list[Path]]:
        return _by_kind([path.read_bytes() for path in sorted(self._folder.glob("*.dcm"))], out)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()


class Orthanc(Pacs):
    """A real PACS in a folder of its own, with no plug-ins and no access from outside."""

    def __init__(self, executable: str, folder: Path, dicom_port: int = 0, **options: Any) -> None:
        """`options` stand in Orthanc's configuration beside ours, and before it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.http_port = dicom_port or free_port(), options.pop("HttpPort", 0) or free_port()
        self.name = f"Orthanc at http://127.0.0.1:{self.http_port}/"
        configuration = {
            "Name": "demo",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": True,
            "Plugins": [],
            "StableAge": 1,
            **options,
        }
        self._file, self._executable = folder / "orthanc.json", executable
        self._file.write_text(json.dumps(configuration), encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Also again, after its end: what it stored is still there."""
        with self._file.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._executable, str(self._file)], stdout=log, stderr=log, preexec_fn=ending_with_this()
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                self.get("/system")
                return
            time.sleep(0.1)
        raise IchnodeError("Orthanc does not answer; run the demo without it by taking it off the PATH")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def file(self, instance: str) -> bytes:
        url = f"http://127.0.0.1:{self.http_port}/instances/{instance}/file"
        with urllib.request.urlopen(url, timeout=30) as answer:
            data: bytes = answer.read()
            return data

    def fetch(self, out: Path) -> dict[str, list[Path]]:
        return _by_kind([self.file(instance) for instance in self.get("/instances")], out)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _by_kind(objects: Sequence[bytes], out: Path) -> dict[str, list[Path]]:
    """Write each object to a file, named by its kind and its place in its series."""
    found: dict[str, list[tuple[str, int, bytes]]] = {}
    for data in objects:
        ds = dcmread(io.BytesIO(data), stop_before_pixels=True)
        kind = "SC" if ds.SOPClassUID == SecondaryCaptureImageStorage else str(ds.Modality)
        place = (str(ds.SeriesInstanceUID), int(ds.get("InstanceNumber") or 0), data)
        found.setdefault(kind, []).append(place)
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    for kind, items in found.items():
        for number, (_, _, data) in enumerate(sorted(items), start=1):
            files.setdefault(kind, []).append(out / f"{kind}-{number:03d}.dcm")
            files[kind][-1].write_bytes(data)
    return files


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def orthanc_executable() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def running(folder: Path, say: Say) -> Iterator[Demo]:
    """The node and its PACS, up and ready; both are stopped at the end of the block."""
    executable = orthanc_executable()
    say("starting a PACS that receives")
    pacs = Orthanc(executable, folder / "pacs") if executable else FolderPacs(folder / "pacs")
    dicom_port, web_port = free_port(), free_port()
    data_dir, config = folder / "node", folder / "ichnode.toml"
    config.write_text(_settings(pacs, data_dir, dicom_port, web_port), encoding="utf-8")
    say("starting the node")
    with (folder / "node.log").open("wb") as log:
        command = [*PROGRAM, "up", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ending_with_this())
    try:
        settings = load(config)
        wait_ready(process, web_port, folder / "node.log")
        records = open_records(settings)
        yield Demo(folder, dicom_port, web_port, records, pacs)
        records.close()
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=12)
        pacs.close()


def _settings(pacs: Pacs, data_dir: Path, dicom_port: int, web_port: int) -> str:
    ae_title = "ORTHANC" if isinstance(pacs, Orthanc) else "DEMOPACS"
    return f"""\
data_dir = {json.dumps(str(data_dir))}
scp = {{ port = {dicom_port}, processes = 1 }}
web = {{ port = {web_port} }}
spool = {{ reserve_mb = 64 }}
completeness = {{ quiet_s = {QUIET_S} }}

[[destination]]
name = "demo PACS"
ae_title = "{ae_title}"
port = {pacs.port}
"""


def wait_ready(process: subprocess.Popen[bytes], web_port: int, log: Path) -> None:
    """Until the node is up and its console answers. Raises IchnodeError with the end of its `log`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if b"ichnode is up" in log.read_bytes():
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{web_port}/healthz", timeout=5).close()
                return
        time.sleep(0.2)
    how = "ended at its start" if process.poll() is not None else f"is not up after {START_TIMEOUT_S} s"
    raise IchnodeError(f"the node {how}; its messages are in {log}:\n{log.read_text()[-2000:]}")


def send_sample(demo: Demo, say: Say) -> int:
    """Send a phantom head CT with a haemorrhage by C-STORE. Returns the number of slices."""
    say("drawing a phantom head with a haemorrhage")
    files = write_series(demo.folder / "sample", SEED, BLEEDS)
    say(f"sending {len(files)} slices by C-STORE")
    node = Destination(name="node", ae_title="ICHNODE", port=demo.dicom_port)
    parcels = [Parcel(i, path, str(CTImageStorage)) for i, path in enumerate(files)]
    refused = [o for o in Peer(node, "DEMOMODALITY").send(parcels) if not o.accepted]
    if refused:
        raise IchnodeError(f"the node refused {len(refused)} slices: {refused[0].text}")
    return len(files)


def await_result(demo: Demo, say: Say) -> dict[str, Any]:
    """The job's row once its objects are delivered. Raises IchnodeError after three minutes."""
    deadline = time.monotonic() + RESULT_TIMEOUT_S
    words = {
        None: f"waiting until the series is complete ({QUIET_S} s of silence)",
        "QUEUED": "queued",
        "RUNNING": "a worker analyses",
        "ANALYSED": "building SR, SEG and overlays",
        "COMPOSED": f"sending them to {demo.pacs.name}",
        "FAILED": "sending the not-analysed report",
    }
    while time.monotonic() < deadline:
        with contextlib.suppress(TransientError):
            rows = demo.records.views.jobs(1)
            state = rows[0]["state"] if rows else None
            say(words.get(state, str(state)))
            done = rows and rows[0]["reported_at"] and not demo.records.deliveries.waiting(rows[0]["id"])
            if done:
                return rows[0]
        time.sleep(0.2)
    raise IchnodeError(f"no result within {RESULT_TIMEOUT_S} s; see {demo.folder / 'node.log'}")


def wait_for_interrupt() -> None:
    """Until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
