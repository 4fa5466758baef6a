"""The whole node as real processes, with Orthanc as the PACS and dcmtk as the modality."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from node.admin.roles import ending_with_this
from node.settings import Settings, load
from node.store.records import Records, open_records
from tests.orthanc import plain_orthanc
from tests.peers import requires
from tests.ports import free_port
from workers.demo import Orthanc
from workers.phantom_series import write_series

QUIET_S = 2


@dataclass
class RunningNode:
    """`ichnode up` as a child process, and a look into its database."""

    settings: Settings
    config: Path
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    records: Records = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            seen = log.tell()
            command = [sys.executable, "-m", "node", "up", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ending_with_this())
        deadline = time.monotonic() + 90
        while b"ichnode is up" not in self.log.read_bytes()[seen:]:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.records = open_records(self.settings)

    def stop(self) -> float:
        """SIGTERM; returns how many seconds it took to end."""
        began = time.monotonic()
        if hasattr(self, "records"):
            self.records.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        return time.monotonic() - began

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, role: str) -> psutil.Process:
        """The process that plays `role`."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if role in process.cmdline():
                    return process
        raise AssertionError(f"no {role} among {[p.cmdline() for p in self.family()]}")

    def kill(self) -> None:
        """SIGKILL to `ichnode up` and every process below it."""
        self.records.close()
        for process in [psutil.Process(self.process.pid), *self.family()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=30)

    def storescu(self, *files: Path | str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """dcmtk's sender, one association."""
        requires("storescu")
        target = ("-aec", self.settings.scp.ae_title, "127.0.0.1", str(self.settings.scp.port))
        command = ["storescu", "-v", *options, *target, *map(str, files)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    def wait_for(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true answer of `what`; fails with the node's log when none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := what():
                return answer
            time.sleep(0.1)
        pytest.fail(f"did not happen within {seconds} s; log of the node:\n{self.log.read_text()[-4000:]}")

    def finished_job(self, study_uid: str, seconds: float = 60) -> dict[str, Any]:
        """The job of a study once all its objects are delivered."""

        def done() -> dict[str, Any] | None:
            for job in self.records.views.jobs():
                over = job["reported_at"] and not self.records.deliveries.waiting(job["id"])
                if job["study_instance_uid"] == study_uid and over:
                    return job
            return None

        found: dict[str, Any] = self.wait_for(done, seconds)
        return found

    def series_of(self, study_uid: str) -> dict[str, dict[str, Any]]:
        """The series of a study by description."""
        for study in self.records.views.studies():
            if study["study_instance_uid"] == study_uid:
                return {s["description"]: s for s in study["series"]}
        return {}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    server = plain_orthanc(tmp_path / "pacs")
    yield server
    server.close()


NodeMaker = Callable[..., RunningNode]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[NodeMaker]:
    with nodes_in(tmp_path) as make:
        yield make


@contextlib.contextmanager
def nodes_in(folder: Path) -> Iterator[NodeMaker]:
    """Starts nodes; extra settings are TOML text. Whatever is left of them is killed at the end."""
    made: list[RunningNode] = []

    def make(extra: str = "", *, pacs_port: int | None = None, quiet_s: float = QUIET_S) -> RunningNode:
        config = folder / f"node{len(made)}.toml"
        destination = f'[[destination]]\nname = "pacs"\nae_title = "ORTHANC"\nport = {pacs_port}\n'
        text = (
            f"data_dir = {json.dumps(str(folder / f'node{len(made)}'))}\n"
            f"scp = {{ port = {free_port()}, processes = 2 }}\nweb = {{ port = {free_port()} }}\n"
            f"spool = {{ reserve_mb = 16 }}\ncompleteness = {{ quiet_s = {quiet_s}, max_wait_s = 15 }}\n"
        )
        config.write_text(text + extra + (destination if pacs_port else ""))
        node = RunningNode(load(config), config, folder / f"node{len(made)}.log")
        made.append(node)
        node.start()
        return node

    try:
        yield make
    finally:
        for node in made:
            _end(node)


def _end(node: RunningNode) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = node.family() if node.process.poll() is None else []
        if node.process.poll() is None:
            node.stop()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A head with two bleeds, 32 slices of 512 by 512; drawing it takes longer than its analysis."""
    return write_series(tmp_path_factory.mktemp("phantom"), 3, ("intraparenchymal", "intraventricular"))


def study_of(files: Sequence[Path]) -> str:
    return str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def as_study(files: Sequence[Path], folder: Path, study: str, *without: str, **changes: Any) -> list[Path]:
    """The same pictures as one series of another study; `changes` replace elements, `without` names more."""
    folder.mkdir(parents=True)
    paths = []
    for index, file in enumerate(files):
        ds = dcmread(file)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.{changes.get('SeriesNumber', 1)}"
        ds.SOPInstanceUID = f"{ds.SeriesInstanceUID}.{index}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        for keyword in without:
            del ds[keyword]
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        paths.append(folder / file.name)
        ds.save_as(paths[-1])
    return paths


def received(pacs: Orthanc, study_uid: str) -> dict[str, list[Dataset]]:
    """What the PACS holds of a study, by kind (SR, SEG, SC), in order of InstanceNumber."""
    found: dict[str, list[Dataset]] = {}
    for study in pacs.get("/studies?expand"):
        if study["MainDicomTags"]["StudyInstanceUID"] == study_uid:
            for instance in pacs.get(f"/studies/{study['ID']}/instances"):
                ds = dcmread(io.BytesIO(pacs.file(instance["ID"])))
                kind = "SC" if ds.SOPClassUID == SecondaryCaptureImageStorage else str(ds.Modality)
                found.setdefault(kind, []).append(ds)
    return {kind: sorted(group, key=lambda ds: int(ds.InstanceNumber or 0)) for kind, group in found.items()}


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a PostgreSQL of the test: not below pytest's own, which its user may not pass through."""
    made = Path(tempfile.mkdtemp(prefix="ichnode-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_data() -> Path:
    """The folder with real head CTs; skips where there is none."""
    place = os.environ.get("ICHNODE_TEST_DATA", "")
    if not place or not (Path(place) / "ct-ich" / "index.csv").exists():
        pytest.skip("ICHNODE_TEST_DATA does not point at a folder with real head CTs (ct-ich, dicom)")
    return Path(place)


test_data.__test__ = False  # type: ignore[attr-defined]
