"""Alerts as people see them: on the pages, in the JSON, the CSV and the metrics, and on the command line."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from node.admin.cli import main
from node.admin.doctor import examine
from node.channels.contract import Receipt, Rejected
from node.settings import Settings, Webhook
from node.store.records import Records
from tests.alerting import House, Receiver, alert_of
from tests.site import browser, findings

URL = "http://127.0.0.1:9/hook"
HTML = {"Accept": "text/html"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    hooks = (alert_of(Webhook, "ward", url=URL), alert_of(Webhook, "everything", url=URL, when="all"))
    return Settings(data_dir=tmp_path, alert=hooks)


@pytest.fixture
def of(records: Records, settings: Settings) -> House:
    return House(records, settings)


def press(client: TestClient, path: str) -> int:
    token = re.search(r'<meta name="csrf" content="(\w+)">', client.get("/").text)
    assert token
    return client.post(path, data={"csrf": token[1]}).status_code


def answered(of: House, channel: str, answer: Receipt | Rejected, seconds: float = 0.0) -> None:
    """What is due at a channel gets this answer, so many seconds from now."""
    from node.announce import Herald
    from tests.integration.test_alerts import Answering

    alert = next(a for a in of.settings.alert if a.name == channel)
    Herald(alert, Answering(answer), of.records).round(lambda: time.time() + seconds)


def row_of(page: str, anchor: str) -> str:
    found = re.search(rf'<tr id="{anchor}".*?</tr>', page, re.DOTALL)
    assert found, f"{anchor} is not on the page"
    return found[0]


def test_the_study_says_who_was_told_and_how_quickly(client: TestClient, of: House) -> None:
    of.alarmed(now=time.time())
    answered(of, "ward", Receipt(True, "HTTP 200", "on the list"), 7)
    answered(of, "everything", Rejected("HTTP 404", "no such hook"))
    page = client.get("/study/1.1").text
    ward, everything = row_of(page, "alert-1"), row_of(page, "alert-2")
    assert (
        "ACKNOWLEDGED" in ward
        and re.search(r">\d+\.\d s<", ward)
        and "on the list" in ward
        and "Send now" not in ward
    )
    assert "PENDING" in everything and "no such hook" in everything and "Send now" in everything


def test_the_queue_shows_channels_and_what_is_not_out(client: TestClient, of: House) -> None:
    of.alarmed(now=time.time())
    answered(of, "ward", Rejected("HTTP 404", "no such hook"))
    of.alarmed("1.2", findings(), now=time.time())
    for _ in range(2):
        answered(of, "everything", Rejected("HTTP 404", "no such <hook>"))
    page = client.get("/queue").text
    assert "A positive result has waited" in page and "to be told to" in page
    assert "no such &lt;hook&gt;" in page and "<hook>" not in page
    assert "FAILED" in row_of(page, "alert-3") and "never" in row_of(page, "alert-3")
    assert press(client, "/alerts/retry/3") == 303
    assert of.states() == ["PENDING"] * 3
    (line,) = [e for e in of.records.audit.entries() if e["action"] == "retry-alert"]
    assert line["study_instance_uid"] == "1.2"


def test_a_channel_can_be_paused_and_tried(client: TestClient, of: House) -> None:
    assert press(client, "/pause/alert%3Award") == 303
    assert "PAUSED" in client.get("/queue").text
    assert press(client, "/resume/alert%3Award") == 303
    assert press(client, "/pause/alert%3Anobody") == 404
    assert press(client, "/probe/ward") == 303
    assert "cannot be reached" in client.get("/queue").text
    assert press(client, "/probe/nobody") == 404


def test_alerts_of_a_channel_that_is_gone_are_shown_as_such(client: TestClient, of: House) -> None:
    of.alarmed()
    with_one = Settings(data_dir=of.settings.data_dir, alert=of.settings.alert[:1])
    page = browser(with_one, of.records).get("/queue")
    assert "no [[alert]] has this name any more" in page.text
    checks = {check.name: check for check in examine(with_one)}
    assert "1 to everything wait" in checks["alerts"].text and not checks["alert ward"].ok


def test_the_role_that_announces_is_missed_only_where_there_is_a_channel(
    client: TestClient, of: House
) -> None:
    assert "no alert goes out" in client.get("/").text
    quiet = Settings(data_dir=of.settings.data_dir)
    page = browser(quiet, of.records).get("/")
    assert "no alert goes out" not in page.text


def test_json_csv_and_metrics(client: TestClient, of: House) -> None:
    of.alarmed(now=time.time())
    answered(of, "ward", Receipt(True, "HTTP 200"), 9)
    told = client.get("/api/v1/alerts").json()
    assert [a["channel"] for a in told] == ["everything", "ward"] and "content" not in told[0]
    assert [a["id"] for a in client.get("/api/v1/alerts?state=PENDING").json()] == [told[0]["id"]]
    assert len(client.get("/api/v1/studies/1.1").json()["alerts"]) == 2
    assert client.get("/api/v1/status").json()["channels"]["everything"]["urgent"] == 1
    text = client.get("/worklist.csv").text.removeprefix("\ufeff")
    (line,) = csv.DictReader(io.StringIO(text))
    assert 9 <= float(line["alerted_after_s"]) == float(line["alert_acknowledged_after_s"]) < 60
    metrics = client.get("/metrics").text
    assert 'ichnode_alerts_unsent{channel="everything",state="PENDING"} 1' in metrics
    assert 'ichnode_alerts_unsent_positive{channel="ward"} 0' in metrics
    for quantity in ("to_alert_seconds{channel", "to_alert_acknowledged_seconds{channel"):
        (median,) = re.findall(rf'ichnode_last_slice_{quantity}="ward",quantile="0.5"}} ([\d.]+)', metrics)
        assert 9 <= float(median) < 60
    assert 'ichnode_paused{what="alert ward"} 0.0' in metrics


def test_nothing_of_the_patient_leaves_with_the_lists(client: TestClient, of: House) -> None:
    of.alarmed()
    for path in ("/api/v1/alerts", "/metrics", "/queue"):
        assert "Müller" not in client.get(path).text


class TestCommandLine:
    def run(self, settings: Settings, *arguments: str) -> tuple[int, str]:
        config = settings.data_dir / "ichnode.toml"
        sections = "".join(
            f'[[alert]]\ntype = "webhook"\nname = "{a.name}"\nurl = "{a.url}"\ntimeout_s = 20\n'  # type: ignore[union-attr]
            for a in settings.alert
        )
        config.write_text(f"data_dir = {json.dumps(str(settings.data_dir))}\n{sections}")
        done = CliRunner().invoke(main, ["alerts", "--config", str(config), *arguments])
        return done.exit_code, done.output

    def test_list_and_retry(self, of: House) -> None:
        of.alarmed("1.2", findings())
        answered(of, "everything", Rejected("HTTP 404", "no such hook"))
        code, text = self.run(of.settings)
        assert code == 0 and "no such hook" in text and "FAILED" in text and "Müller" not in text
        code, text = self.run(of.settings, "--json")
        assert json.loads(text)[0]["state"] == "FAILED"
        assert self.run(of.settings, "retry", "1") == (0, "alert 1 is due now\n")
        assert of.states() == ["PENDING"]
        code, text = self.run(of.settings, "retry", "9")
        assert code == 1 and "no alert 9" in text

    def test_a_test_message_is_marked_and_its_answer_shown(self, of: House) -> None:
        with Receiver() as receiver:
            there = Settings(data_dir=of.settings.data_dir, alert=(alert_of(Webhook, "x", url=receiver.url),))
            code, text = self.run(there, "test", "x")
        assert code == 0 and re.search(r"x: acknowledged in [\d.]+ s \(HTTP 204\)", text)
        said = json.loads(receiver.got[0].body)
        assert said["test"] is True and said["reading_priority"] == "STAT"
        assert of.rows() == []
        code, text = self.run(there, "test", "x")
        assert code == 1 and "cannot be reached" in text
        code, text = self.run(there, "test", "y")
        assert code == 1 and "there are: x" in text
