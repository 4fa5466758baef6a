"""The command line does what the buttons do, and leaves the same lines in the trail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.admin.cli import main
from node.domain.lifecycle import JobState
from node.domain.opinion import Opinion
from node.settings import Settings
from node.store.records import Records
from tests.site import SUBDURAL, Site


@pytest.fixture
def settings(no_settings_around: Path) -> Settings:
    text = 'data_dir = "data"\n[[destination]]\nname = "pacs"\nae_title = "PACS"\nport = 1\n'
    (no_settings_around / "ichnode.toml").write_text(text)
    (no_settings_around / "data" / "spool").mkdir(parents=True)
    return Settings(data_dir=no_settings_around / "data")


def run(*words: str, fails: bool = False) -> str:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def test_jobs_and_deliveries(records: Records) -> None:
    site = Site(records)
    job = site.composed("1.1", SUBDURAL)
    delivery = site.given_up("1.2", SUBDURAL)
    assert "is acknowledged" in run("jobs", "acknowledge", str(job))
    run("jobs", "judge", str(job), "disagree", "--why", "subtype", "--actual", "epidural")
    review = records.worklist.study("1.1")["review"]  # type: ignore[index]
    assert (review["opinion"], review["wrong"]) == (Opinion.DISAGREE, "SUBTYPE")
    run("jobs", "unread", str(job))
    assert records.worklist.study("1.1")["review"] is None  # type: ignore[index]
    run("jobs", "reanalyse", str(job))
    run("jobs", "cancel", str(job))
    run("jobs", "retry", str(job))
    assert records.jobs.get(job).state is JobState.QUEUED  # type: ignore[union-attr]
    assert "1 deliveries are due now" in run("deliveries", "retry-all", "--destination", "pacs")
    run("deliveries", "retry", str(delivery))
    actions = [entry["action"] for entry in records.audit.entries(20)][::-1]
    assert actions == [
        "acknowledge", "disagree", "mark-unread", "reanalyse", "cancel-job", "retry-job",
        "retry-deliveries", "retry-delivery",
    ]  # fmt: skip
    assert {entry["who"].split(" (")[0] for entry in records.audit.entries(20)} == {"command line"}


def test_what_is_not_possible_is_one_line(records: Records) -> None:
    assert "there is no job 7" in run("jobs", "acknowledge", "7", fails=True)
    assert "cannot be paused" in run("pause", "destination:nowhere", fails=True)
    assert "no destination" in run("echo", "nowhere", fails=True)
    assert "cannot be reached" in run("echo", "pacs", fails=True)


def test_pausing(records: Records) -> None:
    run("pause")
    run("pause", "destination:pacs")
    assert set(records.pauses.all()) == {"queue", "destination:pacs"}
    run("resume")
    assert set(records.pauses.all()) == {"destination:pacs"}


def test_the_figures_and_the_canaries(records: Records) -> None:
    Site(records).composed("1.1", SUBDURAL)
    whole, one = json.loads(run("quality", "--json"))
    assert (whole["analysed"]["suspected"], one["name"]) == (1, "unknown scanner")
    assert "unknown scanner" in run("quality")
    records.canaries.ask("2.25.1", "anna", 1.0)
    assert json.loads(run("canary", "--json"))[0]["state"] == "WANTED"
    assert "WANTED" in run("canary")
    assert "no canary brought values" in run("canary", "accept", fails=True)
