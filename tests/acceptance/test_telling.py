"""The whole node tells a ward and a RIS of a haemorrhage before any picture is made, killed or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.settings import Hl7, Webhook
from tests.acceptance.conftest import NodeMaker, study_of
from tests.alerting import Receiver
from tests.integration.test_hl7 import EngineOfTheSite

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


def test_a_haemorrhage_is_told_before_it_is_measured_and_outlives_a_crash(
    make_node: NodeMaker, phantom: list[Path]
) -> None:
    study = study_of(phantom)
    down: list[int] = []

    def answer(_: object) -> tuple[int, bytes]:
        return (503, b"") if down else (204, b"")

    with EngineOfTheSite() as ris, Receiver(answer) as ward:
        down.append(1)
        config = (  # without a head start, which would leave no time between the two words
            "[ahead]\nhead_start = false\n"
            f'[[alert]]\ntype = "hl7"\nport = {ris.port}\n'
            f'[[alert]]\ntype = "webhook"\nurl = "{ward.url}"\nretry_base_s = 1\nretry_max_s = 1\n'
        )
        node = make_node(config)
        assert {type(alert) for alert in node.settings.alert} == {Hl7, Webhook}
        assert node.storescu(*phantom).returncode == 0
        node.wait_for(lambda: len(ris.got) >= 2, 120)
        first, last = (
            m.oru_r01_patient_result.oru_r01_order_observation.obr.obr_25.value for m in ris.got[:2]
        )
        assert (first, last) == ("P", "F")
        node.wait_for(lambda: ward.got, 30)
        node.child("announce").kill()
        down.clear()
        rows = node.wait_for(lambda: all_told(node.records.alerts.of_study(study)), 90)
        job = node.finished_job(study)
    said = json.loads(ward.got[-1].body)
    assert (said["stage"], said["reading_priority"]) == ("final", "STAT")
    hl7 = [row for row in rows if row["channel"] == "hl7"]
    assert hl7[0]["stage"] == "PRELIMINARY" and hl7[0]["sent_at"] < job["analysed_at"]
    print("seconds from the last slice:", {
        (r["channel"], r["stage"]): round(r["acknowledged_at"] - r["last_slice_at"], 2)
        for r in rows if r["acknowledged_at"]
    })  # fmt: skip


def all_told(rows: list[dict]) -> list[dict]:  # type: ignore[type-arg]
    """The alerts, once none of both channels' final words waits."""
    final = [row for row in rows if row["stage"] == "FINAL"]
    return rows if len(final) == 2 and all(row["state"] == "ACKNOWLEDGED" for row in final) else []
