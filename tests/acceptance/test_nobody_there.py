"""PACS and ward are away, and then the whole node is killed: what it owes outlives it, and comes once."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.acceptance.conftest import NodeMaker
from tests.acceptance.crashes import stand_in
from tests.alerting import Receiver
from tests.peers import eventually, requires
from tests.ports import free_port
from workers.phantom_series import write_series

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


def test_what_is_owed_outlives_the_whole_tree_and_comes_once(make_node: NodeMaker, tmp_path: Path) -> None:
    requires("storescp", "storescu")
    phantom = write_series(tmp_path / "phantom", 3, ("intraparenchymal",), slices=22, size=128)
    study = str(dcmread(phantom[0], stop_before_pixels=True).StudyInstanceUID)
    pacs_port, ward_port = free_port(), free_port()
    ward_url = f"http://127.0.0.1:{ward_port}/hook"
    again = "retry_base_s = 1\nretry_max_s = 2\n"
    node = make_node(
        f"model = {{ pipeline = {json.dumps(str(stand_in(tmp_path)))} }}\n"
        f'[[alert]]\ntype = "webhook"\nurl = "{ward_url}"\n{again}'
        f'[[destination]]\nname = "pacs"\nae_title = "PACS"\nport = {pacs_port}\n{again}'
    )
    assert node.storescu(*phantom).returncode == 0

    def tried() -> bool:
        """The alert and every delivery were tried, and say what to look at."""
        waiting = [*node.records.views.deliveries(), *node.records.alerts.of_study(study)]
        final = [row for row in node.records.alerts.of_study(study) if row["stage"] == "FINAL"]
        return (
            bool(final)
            and all(row["last_error"] for row in final)
            and any(row["last_error"] for row in waiting if row.get("destination") == "pacs")
        )

    node.wait_for(tried, 120)
    owed = {row["sop_instance_uid"] for row in node.records.views.deliveries()}
    assert {row["state"] for row in node.records.views.deliveries()} == {"PENDING"}
    (alert,) = [row for row in node.records.alerts.of_study(study) if row["state"] != "SUPERSEDED"]
    assert alert["state"] == "PENDING" and "cannot be reached" in alert["last_error"]
    family = node.family()
    node.kill()
    eventually(lambda: not any(process.is_running() for process in family))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    pacs = subprocess.Popen(["storescp", "+uf", "-od", str(inbox), "-aet", "PACS", str(pacs_port)])
    try:
        with Receiver(port=ward_port) as ward:
            node.start()
            node.finished_job(study, 120)
            told = node.wait_for(
                lambda: [r for r in node.records.alerts.of_study(study) if r["state"] == "ACKNOWLEDGED"]
            )
            assert {row["state"] for row in node.records.views.deliveries()} == {"SENT"}
    finally:
        pacs.terminate()
        pacs.wait(timeout=10)
    came = Counter(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in inbox.iterdir())
    assert came == Counter(owed)
    assert [row["id"] for row in told] == [alert["id"]]
    (said,) = [json.loads(request.body) for request in ward.got]
    assert (said["id"], said["stage"], said["reading_priority"]) == (alert["identifier"], "final", "STAT")
