"""The command line does what the buttons do, and leaves the same lines in the trail."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import event, insert, select, update

from node.admin.cli import main
from node.domain.lifecycle import JobState
from node.domain.opinion import Opinion
from node.settings import Settings
from node.store.records import Records
from node.store.tables import deliveries
from tests.site import SUBDURAL, Site
from workers.training.explore import Tally


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


def test_retry_all_leaves_none_behind_however_many_there_are(records: Records) -> None:
    Site(records).given_up("1.1", SUBDURAL)
    with records.engine.begin() as connection:
        row = dict(connection.execute(select(deliveries)).mappings().one())
        del row["id"]
        connection.execute(insert(deliveries), [row | {"destination": f"pacs-{n}"} for n in range(6000)])
    assert "6001 deliveries are due now" in run("deliveries", "retry-all")
    assert records.console.count_given_up() == 0
    assert records.audit.entries(1)[0]["detail"] == "6001 deliveries to every destination"


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
    assert "there are: pacs" in run("echo", "nowhere", fails=True)
    assert "cannot be reached" in run("echo", "pacs", fails=True)
    assert "there are: pacs" in run("deliveries", "retry-all", "--destination", "pcas", fails=True)
    assert "0 deliveries" in run("deliveries", "retry-all", "--destination", "pacs")


def test_what_was_given_up_for_a_destination_that_is_gone_can_be_named(records: Records) -> None:
    Site(records).given_up("1.1", SUBDURAL)
    with records.engine.begin() as connection:
        connection.execute(update(deliveries).values(destination="gone"))
    assert "1 deliveries are due now" in run("deliveries", "retry-all", "--destination", "gone")


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


@pytest.mark.parametrize("many", ["99999999999999999999", "-1"])
def test_a_number_that_no_row_has_is_refused_in_words(records: Records, many: str) -> None:
    for words in (
        ("jobs", "retry"),
        ("deliveries", "retry"),
        ("jobs", "judge"),
        ("alerts", "retry"),
        ("users", "revoke"),
    ):
        last = ("agree",) if "judge" in words else ()
        assert "is not in the range" in run(*words, "--", many, *last, fails=True)
    for listed in ("studies", "jobs", "deliveries", "incidents", "removals", "alerts", "canary", "audit"):
        assert "is not in the range" in run(listed, f"--limit={many}", fails=True)


def test_studies_are_listed_however_many_there_are(records: Records) -> None:
    """A database binds no more than so many values to a statement: SQLite 250,000, PostgreSQL 65,535."""
    site = Site(records)
    for number in range(60):
        site.receive(f"1.{number}", f"1.{number}.1", images=1)
    records.engine.dispose()
    event.listen(
        records.engine, "connect", lambda made, _: made.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 50)
    )
    assert len(records.views.studies(100)) == 60


def test_what_was_given_to_the_group_counts_for_its_subcommand(
    records: Records, no_settings_around: Path
) -> None:
    """A folder named after the subcommand does not make the file named before it void."""
    other = no_settings_around / "other.toml"
    other.write_text('[[alert]]\ntype = "webhook"\nname = "ris"\nurl = "http://127.0.0.1:1/"\n')
    said = run("alerts", "--config", str(other), "test", "pacs", "--data-dir", "data", fails=True)
    assert "there are: ris" in said


def test_a_list_shows_what_a_header_says_and_does_nothing_else(records: Records) -> None:
    """No picture in the place of letters, no order to the terminal."""
    Site(records).receive("1.1", "1.1.1", patient_id="12:100:3", study_description="a[b]\x1b[2Jb\x9bc")
    listed = run("studies")
    assert "12:100:3" in listed and r"a[b]\x1b[2Jb\x9bc" in listed


def test_a_terminal_that_knows_few_letters(records: Records, no_settings_around: Path) -> None:
    Site(records).receive("1.1", "1.1.1", patient_id="Ł-1")
    for encoding in ("ascii", "latin-1"):
        for words in (("studies",), ("quality",), ("jobs", "retry", "Ł")):
            done = subprocess.run(
                [sys.executable, "-m", "node", *words],
                env={**os.environ, "PYTHONIOENCODING": encoding},
                capture_output=True,
                check=False,
            )
            assert b"Traceback" not in done.stderr
            assert b"-1" in done.stdout or words != ("studies",)


def test_nothing_that_does_not_stand_still_is_resumed(records: Records) -> None:
    run("pause", "destination:pacs")
    assert "destination:pacs" in run("resume", "destination:pcas", fails=True)
    assert set(records.pauses.all()) == {"destination:pacs"}
    records.pauses.pause("destination:gone", "anna", 1.0)  # the settings name it no longer
    run("resume", "destination:gone")
    run("resume", "destination:pacs")
    run("resume", "destination:pacs")
    assert not records.pauses.all()


def test_an_alert_and_a_comparison_leave_their_lines_too(records: Records, no_settings_around: Path) -> None:
    assert "there is no alert 7" in run("alerts", "retry", "7", fails=True)
    with (no_settings_around / "ichnode.toml").open("a") as file:
        file.write('[[archive]]\nname = "old"\nae_title = "OLD"\nport = 1\n')
    run("reconcile", "--since", "2026-11-20", "--until", "2026-11-21", fails=True)
    compared, told = records.audit.entries(5)
    assert (compared["action"], compared["detail"]) == ("compare", "old 20261120-20261121")
    assert (told["action"], told["detail"]) == ("retry-alert", "alert 7")


def test_a_file_that_cannot_be_written_is_told_in_one_line(records: Records) -> None:
    assert "nowhere/x.csv" in run("shadow", "export", "nowhere/x.csv", fails=True)
    assert run("shadow", "export", "nowhere/x.csv", fails=True).startswith("Error: ")
    assert not records.audit.entries(5)


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize(
    "words", [("demo", "--once", "--dir"), ("train", "explore", "--kind", "ct-ich", "--data", "set", "--out")]
)
def test_a_folder_that_cannot_be_made_is_told_in_one_line(
    words: tuple[str, ...], no_settings_around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_settings_around / "set").mkdir()
    (no_settings_around / "file").write_text("no folder")
    monkeypatch.setattr("workers.training.explore.count", lambda items: Tally())
    told = run(*words, "file/results", fails=True)
    assert told.startswith("Error: file/results: Not a directory; ")


def test_a_disk_that_is_full_is_told_in_one_line(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("node.admin.cli.show", full)
    assert run("studies", fails=True).startswith("Error: No space left on device; ")


def test_the_doctor_names_destinations_as_they_are_called(records: Records, no_settings_around: Path) -> None:
    file = no_settings_around / "ichnode.toml"
    file.write_text(file.read_text().replace('"pacs"', '"pacs [/main]"'))
    assert "destination pacs [/main]" in run("doctor", fails=True)


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("words", [("audit", "--who"), ("users", "add"), ("echo",), ("pause",)])
def test_words_that_are_no_utf8_are_told_in_a_line(words: tuple[str, ...]) -> None:
    """As a shell hands them on from a terminal with another character set."""
    told = run(*words, os.fsdecode(b"M\xfcller"), fails=True)
    assert told.startswith(("Error: ", "Usage: ")) and "Traceback" not in told


LOOKS = ["studies", "jobs", "deliveries", "alerts", "incidents", "removals", "audit", "quality", "canary"]
LOOKS += ["shadow", "shadow history", "routing", "users list", "users tokens"]
DEEDS = ["pause", "resume", "echo pacs", "jobs retry 1", "deliveries retry-all", "users remove anna"]


@pytest.mark.parametrize("words", [*LOOKS, *DEEDS, "upgrade"])
def test_a_command_makes_no_database_where_there_is_none(words: str, no_settings_around: Path) -> None:
    """A slip in data_dir showed an empty node, or paused one that is not there."""
    told = run(*words.split(), "--data-dir", "typo", fails=True)
    assert told.startswith("Error: there is no database at ") and "typo" in told and "data_dir" in told
    assert not (no_settings_around / "typo").exists()


def test_the_first_user_may_come_before_the_first_start(no_settings_around: Path) -> None:
    words = ["users", "add", "anna", "--password-stdin", "--data-dir", "new"]
    result = CliRunner().invoke(main, words, input="correct horse battery staple\n")
    assert result.exit_code == 0, result.output
    assert "anna" in run("users", "list", "--data-dir", "new")


@pytest.mark.parametrize("is_there", [False, True])
def test_the_doctor_makes_nothing(is_there: bool, settings: Settings, no_settings_around: Path) -> None:
    """Before the first start, or with a slip in data_dir."""
    if is_there:
        (no_settings_around / "typo" / "below").mkdir(parents=True)
    rows = json.loads(run("doctor", "--json", "--data-dir", "typo/below", fails=True))
    checks = {row["name"]: row for row in rows}
    assert "there is none yet" in checks["database"]["text"] and "`ichnode up`" in checks["database"]["text"]
    assert "typo/below" in checks["database"]["text"]
    wrong = {name for name, row in checks.items() if not row["ok"]}
    assert wrong == {"destination pacs"}
    made = list((no_settings_around / "typo").rglob("*"))
    assert made == [no_settings_around / "typo" / "below"] * is_there


def test_the_doctor_tells_of_a_data_dir_that_cannot_be_made(
    settings: Settings, no_settings_around: Path
) -> None:
    (no_settings_around / "typo").write_text("a file")
    rows = json.loads(run("doctor", "--json", "--data-dir", "typo/below", fails=True))
    checks = {row["name"]: row for row in rows}
    assert not checks["database"]["ok"]
    assert "typo: choose a folder you own" in checks["database"]["text"]
