"""Prometheus scrapes two consoles of one node, and answers every query of the dashboard."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from node.admin.roles import prepare
from node.admin.web.app import make_app
from node.settings import Destination, Settings
from node.store.records import Records
from tests.peers import eventually
from tests.peers import requires as require_programs
from tests.ports import free_port
from tests.site import Site, findings

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/dashboards/ichnode.json"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(
        data_dir=tmp_path, destination=(Destination(name="pacs", ae_title="PACS", host="127.0.0.1"),)
    )
    prepare(made)
    return made


@pytest.fixture
def records(blank_records: Records, settings: Settings) -> Records:
    """A study that waits, one whose delivery was given up; a worker and an uploader."""
    site = Site(blank_records, settings)
    site.queued("1.1")
    site.given_up("1.2", findings({"any": 0.1}))
    now = time.time()
    told = {"network_busy": 0.5, "jobs_done": 2, "jobs_ahead": 1}
    blank_records.views.beat("worker@h:2", "worker", told, now + 300)
    blank_records.views.beat("upload@h:1", "upload", {"disk": "d", "room_bytes": 1}, now + 300)
    return blank_records


class Consoles:
    """Two of them, as where the role `web` runs twice."""

    def __init__(self, records: Records, settings: Settings) -> None:
        self.ports = [free_port(), free_port()]
        self._servers = []
        for port in self.ports:
            config = uvicorn.Config(make_app(settings, records), port=port, log_level="error")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            self._servers.append((server, thread))
        for server, _ in self._servers:
            eventually(lambda server=server: server.started)

    def stop(self) -> None:
        for server, thread in self._servers:
            server.should_exit = True
            thread.join(timeout=20)


@pytest.fixture
def prometheus(records: Records, settings: Settings, tmp_path: Path) -> Iterator[str]:
    require_programs("prometheus")
    consoles, port = Consoles(records, settings), free_port()
    targets = [f"127.0.0.1:{one}" for one in consoles.ports]
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ichnode", "static_configs": [{"targets": targets}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    process = subprocess.Popen(
        ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: len(answer(url, "up == 1")) == len(targets), 60)
        eventually(lambda: len(answer(url, "count_over_time(ichnode_info[1m]) > 2")) == len(targets), 60)
        yield url
    finally:
        process.kill()
        process.wait(timeout=20)
        consoles.stop()


def answer(url: str, query: str) -> list[dict[str, Any]]:
    with suppress(requests.ConnectionError):
        said = requests.get(f"{url}/api/v1/query", params={"query": query}, timeout=20)
        if said.status_code != 503:  # it is starting
            assert said.ok, said.text
            found: list[dict[str, Any]] = said.json()["data"]["result"]
            return found
    return []


NOT_ON_SUCH_A_NODE = {
    "Last slice to report, 95 %": "nothing was reported within the hour",
    "Last slice to report": "nothing was reported within the hour",
    "Disk lasts": "nothing was received within the day",
}


def test_every_panel_has_its_figures_and_counts_nothing_twice(prometheus: str) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        for target in panel["targets"]:
            found = answer(prometheus, target["expr"])
            assert found or panel["title"] in NOT_ON_SUCH_A_NODE, target["expr"]
            if panel["title"] == "Deliveries given up":
                assert [one["value"][1] for one in found] == ["1"], found
