"""Backup and restore there and back on both databases, and the upgrade from every schema there ever was."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import JSON, MetaData, Table, delete, insert, make_url, select
from sqlalchemy.engine import Engine

from node.admin import backup as backups
from node.admin.backup import MANIFEST, back_up, bring_back
from node.admin.cli import main
from node.domain.errors import PermanentError, SettingsError
from node.domain.findings import Priority
from node.domain.lifecycle import JobState
from node.scan import MISSING, Fate, Scan
from node.settings import DATABASE_FILE, Settings
from node.spool import Spool
from node.store.deliveries import SOURCE_RANK
from node.store.engine import SCHEMA_REVISION, migrate, open_engine, schema_revision, writing
from node.store.jobs import SOURCE, Alarm
from node.store.records import Records, open_records
from node.store.tables import instances
from tests import factories
from tests.peers import requires
from tests.postgres import Postgres
from tests.site import Site

SCRIPTS = Config()
SCRIPTS.set_main_option("script_location", "node:store/migrations")
REVISIONS = sorted(script.revision for script in ScriptDirectory.from_config(SCRIPTS).walk_revisions())


def settings_of(folder: Path, url: str) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": folder,
            "database": {"url": url},
            "destination": [{"name": "pacs", "ae_title": "PACS", "port": 104}],
        }
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Settings]:
    """A node to back up, and an empty one to restore to."""
    if request.param == "sqlite":
        return settings_of(tmp_path / "old", ""), settings_of(tmp_path / "new", "")
    requires("pg_dump", "pg_restore")
    server: Postgres = request.getfixturevalue("postgres")
    return tuple(settings_of(tmp_path / name, server.create()) for name in ("old", "new"))  # type: ignore[return-value]


@pytest.fixture
def filled(pair: tuple[Settings, Settings]) -> Iterator[Site]:
    """A study that was analysed, with its images, masks and objects on disk."""
    settings = pair[0]
    (settings.data_dir / "spool").mkdir(parents=True)
    records = open_records(settings)
    site = Site(records, settings)
    site.pictured(factories.ct_series(4, 32, name="kept"), {"any": 0.9, "subdural": 0.8})
    yield site
    records.close()


def content(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: sorted(tuple(map(str, row)) for row in connection.execute(select(table)))
            for table in tables.sorted_tables
        }


def files(settings: Settings) -> dict[str, bytes]:
    root = settings.data_dir / "spool"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def removing(path: str, site: Site, take: Callable[[Any, Path], Path]) -> Callable[[Any, Path], Path]:
    """As retention does, behind the back of `take`."""

    def taken(source: Any, target: Path) -> Path:
        made = take(source, target)
        assert site.settings
        (site.settings.data_dir / "spool" / path).unlink()
        with writing(site.records.engine) as connection:
            connection.execute(delete(instances).where(instances.c.path == path))
        return made

    return taken


class TestThereAndBack:
    def test_everything_is_as_it_was(
        self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path
    ) -> None:
        old, new = pair
        done = back_up(old, tmp_path / "backup")
        assert (done.files, done.missing, done.without) == (len(files(old)), (), ())
        bring_back(new, tmp_path / "backup")
        records = open_records(new)
        assert content(records.engine) == content(filled.records.engine)
        assert files(new) == files(old)
        counts = Scan(records, Spool(new.data_dir / "spool")).run()
        assert not counts.get(MISSING) and not counts.get(Fate.UNKNOWN) and counts[Fate.RECORDED]
        (study,) = records.views.studies(10)
        assert study["study_instance_uid"]
        records.close()

    def test_what_comes_while_it_runs_is_adopted_afterwards(
        self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The files are copied after the database: a study in between has files and no record."""
        old, new = pair
        whole = backups._named

        def meanwhile(records: Records, images: bool) -> set[str]:
            named = whole(records, images)
            if any((tmp_path / "backup").glob("database.*")):
                filled.store(factories.ct_series(3, 32, name="late"))
            return named

        monkeypatch.setattr(backups, "_named", meanwhile)
        back_up(old, tmp_path / "backup")
        bring_back(new, tmp_path / "backup")
        records = open_records(new)
        counts = Scan(records, Spool(new.data_dir / "spool")).run()
        assert counts[Fate.ADOPTED] == 3 and not counts.get(MISSING)
        records.close()

    def test_what_is_removed_while_the_database_is_taken_is_named(
        self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy of the database still names it."""
        old, _ = pair
        lost = min(filled.records.keeping.all_paths())
        for name in ("_copy_sqlite", "_dump_postgres"):
            monkeypatch.setattr(backups, name, removing(lost, filled, getattr(backups, name)))
        assert lost in back_up(old, tmp_path / "backup").missing

    def test_without_images_says_so_and_keeps_the_results(
        self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path
    ) -> None:
        old, new = pair
        done = back_up(old, tmp_path / "backup", images=False)
        assert done.without == ("incoming",) and done.missing == ()
        bring_back(new, tmp_path / "backup")
        assert files(new).keys() == {name for name in files(old) if not name.startswith("incoming/")}

    def test_a_file_that_is_gone_is_named(
        self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path
    ) -> None:
        old, _ = pair
        (lost, *_) = (p for p in (old.data_dir / "spool/incoming").rglob("*.dcm"))
        lost.unlink()
        done = back_up(old, tmp_path / "backup")
        assert done.missing == (str(lost.relative_to(old.data_dir / "spool")),)

    def test_an_older_backup_is_brought_up_to_date(
        self, pair: tuple[Settings, Settings], tmp_path: Path
    ) -> None:
        old, new = pair
        old.data_dir.mkdir(parents=True)
        engine = open_engine(old.database_url)
        raise_to(engine, "0005")
        before = fill(engine)
        engine.dispose()
        assert back_up(old, tmp_path / "backup").schema_revision == "0005"
        bring_back(new, tmp_path / "backup")
        engine = open_engine(new.database_url)
        assert schema_revision(engine) == SCHEMA_REVISION
        assert_kept(engine, before)
        engine.dispose()


class TestRefusals:
    @pytest.fixture
    def made(self, pair: tuple[Settings, Settings], filled: Site, tmp_path: Path) -> Path:
        back_up(pair[0], tmp_path / "backup")
        return tmp_path / "backup"

    def test_a_folder_that_holds_something(self, pair: tuple[Settings, Settings], made: Path) -> None:
        with pytest.raises(PermanentError, match="not empty"):
            back_up(pair[0], made)

    def test_an_installation_that_is_not_empty(self, pair: tuple[Settings, Settings], made: Path) -> None:
        before = files(pair[0])
        with pytest.raises(PermanentError, match="holds files"):
            bring_back(pair[0], made)
        spool = pair[0].data_dir / "spool"
        shutil.rmtree(spool)
        with pytest.raises(PermanentError, match=r"exists|holds \d+ tables"):
            bring_back(pair[0], made)
        assert before and not spool.exists()

    def test_a_backup_that_was_not_finished(self, pair: tuple[Settings, Settings], made: Path) -> None:
        (made / MANIFEST).unlink()
        with pytest.raises(PermanentError, match="not finished"):
            bring_back(pair[1], made)

    @pytest.mark.parametrize("broken", ["", "{}", "[1]", '{"version": 1}'])
    def test_a_manifest_that_says_nothing(self, broken: str, tmp_path: Path) -> None:
        (tmp_path / MANIFEST).write_text(broken)
        with pytest.raises(PermanentError, match="cannot be read"):
            backups.read(tmp_path)

    def test_a_database_that_was_touched(self, pair: tuple[Settings, Settings], made: Path) -> None:
        (dump,) = made.glob("database.*")
        with dump.open("ab") as file:
            file.write(b"x")
        with pytest.raises(PermanentError, match="not the file that was written"):
            bring_back(pair[1], made)
        assert not (pair[1].data_dir / "spool").exists()

    def test_a_backup_of_a_newer_version(self, pair: tuple[Settings, Settings], made: Path) -> None:
        manifest = json.loads((made / MANIFEST).read_text())
        (made / MANIFEST).write_text(json.dumps(manifest | {"version": "99.0", "schema_revision": "9999"}))
        with pytest.raises(PermanentError, match=r"made by ichnode 99\.0.*install that version"):
            bring_back(pair[1], made)
        assert not (pair[1].data_dir / "spool").exists()

    def test_another_kind_of_database(self, pair: tuple[Settings, Settings], made: Path) -> None:
        manifest = json.loads((made / MANIFEST).read_text())
        kinds = {"sqlite": "postgresql", "postgresql": "sqlite"}
        (made / MANIFEST).write_text(json.dumps(manifest | {"database": kinds[manifest["database"]]}))
        with pytest.raises(SettingsError, match="same kind"):
            bring_back(pair[1], made)

    def test_an_empty_database(self, tmp_path: Path) -> None:
        with pytest.raises(PermanentError, match="nothing to back up"):
            back_up(settings_of(tmp_path / "none", ""), tmp_path / "backup")

    @pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
    def test_looking_makes_no_database_that_a_restore_would_refuse(
        self, pair: tuple[Settings, Settings], made: Path
    ) -> None:
        """Of SQLite alone: a database of a server is made by its administrator."""
        new = pair[1]
        said = CliRunner().invoke(main, ["upgrade", "--check", "--data-dir", str(new.data_dir)])
        assert said.exit_code == 1 and "stands at nothing" in said.output
        with pytest.raises(PermanentError, match="nothing to back up"):
            back_up(new, made.parent / "another")
        assert not new.data_dir.exists()
        bring_back(new, made)

    @pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
    @pytest.mark.parametrize("beside", ["-wal", "-journal"])
    def test_the_log_of_a_database_that_was_moved_away(
        self, pair: tuple[Settings, Settings], made: Path, beside: str
    ) -> None:
        """SQLite would play it into whatever database lies there next."""
        new = pair[1]
        new.data_dir.mkdir()
        left = new.data_dir / f"{DATABASE_FILE}{beside}"
        left.write_bytes(b"of a node that was killed")
        with pytest.raises(PermanentError, match=f"{left} exists"):
            bring_back(new, made)
        assert left.read_bytes() == b"of a node that was killed"

    def test_without_the_client_of_postgresql(
        self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = settings_of(tmp_path, postgres.create())
        open_records(settings).close()
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(PermanentError, match="install postgresql-client"):
            back_up(settings, tmp_path / "backup")


def test_the_password_is_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    program = tmp_path / "pg_dump"
    program.write_text(f'#!/bin/sh\necho "$@" > {said}\necho "$PGPASSWORD" >> {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = make_url("postgresql+psycopg://ichnode:s3cret@db:5432/ichnode?sslmode=verify-full")
    backups._run(url, "pg_dump", "--format=custom")
    words, password = said.read_text().splitlines()
    assert password == "s3cret" and "s3cret" not in words
    assert "postgresql://ichnode@db:5432/ichnode?sslmode=verify-full" in words


class TestCommands:
    @pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
    def test_the_commands_say_what_they_did(self, filled: Site, pair: tuple[Settings, Settings]) -> None:
        old, new = pair
        folder = old.data_dir.parent / "backup"
        run = CliRunner().invoke
        said = run(main, ["backup", str(folder), "--data-dir", str(old.data_dir), "--without-images"])
        assert said.exit_code == 0 and "not in it: settings" in said.output, said.output
        assert "spool/incoming" in said.output
        said = run(main, ["restore", str(folder), "--data-dir", str(new.data_dir)])
        assert said.exit_code == 0 and "Start the node" in said.output, said.output
        said = run(main, ["restore", str(folder), "--data-dir", str(new.data_dir)])
        assert said.exit_code == 1 and "empty" in said.output
        said = run(main, ["backup", str(folder / MANIFEST / "below"), "--data-dir", str(old.data_dir)])
        assert said.exit_code == 1 and said.output.startswith("Error: ") and "Not a directory" in said.output
        said = run(main, ["upgrade", "--data-dir", str(new.data_dir)])
        assert said.output == f"the database stands at {SCHEMA_REVISION}\n"
        engine = open_engine(old.database_url.replace("old", "older"))
        raise_to(engine, "0003")
        engine.dispose()
        older = str(old.data_dir.parent / "older")
        said = run(main, ["upgrade", "--check", "--data-dir", older])
        assert said.exit_code == 1 and "stands at 0003" in said.output
        said = run(main, ["upgrade", "--data-dir", older])
        assert said.output == f"the database stands at {SCHEMA_REVISION}, before: 0003\n"

    @pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
    def test_a_disk_that_is_full_is_told_in_one_line(
        self, filled: Site, pair: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Path) -> Path:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(backups, "_copy_sqlite", full)
        folder = pair[0].data_dir.parent / "backup"
        said = CliRunner().invoke(main, ["backup", str(folder), "--data-dir", str(pair[0].data_dir)])
        assert said.exit_code == 1 and said.output.startswith("Error: "), said.output
        assert "disk is full" in said.output

    @pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
    def test_a_backup_that_lost_files_is_brought_back_and_says_so(
        self, filled: Site, pair: tuple[Settings, Settings], tmp_path: Path
    ) -> None:
        old, new = pair
        made = back_up(old, tmp_path / "backup")
        next((tmp_path / "backup/spool/incoming").rglob("*.dcm")).unlink()
        words = ["restore", str(tmp_path / "backup"), "--data-dir", str(new.data_dir)]
        said = CliRunner().invoke(main, words)
        assert said.exit_code == 1
        assert f"1 of {made.files} files of the backup are gone" in said.output
        assert len(files(new)) == made.files - 1 and (new.data_dir / DATABASE_FILE).exists()


# -- every schema there ever was -----------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "canary": 0,
    "study_instance_uid": "1.2", "series_instance_uid": "1.2.3", "sop_instance_uid": "1.2.3.4",
    "association_id": "a1", "job_id": 1, "user_name": "anna", "state": "QUEUED", "modality": "CT",
    "revision": 1, "patient_id": "PID-1", "path": "incoming/1.2/1.2.3/1.2.3.4.dcm", "sha256": "ab" * 32,
    "priority": "STAT", "reported_priority": "STAT", "findings": None, "reason_code": None,
}  # fmt: skip
KEYS = {"associations": {"id": "a1"}, "users": {"name": "anna"}, "deliveries": {"state": "PENDING"},
        "series": {"state": "ACCEPTED"}}  # fmt: skip


def raise_to(engine: Engine, revision: str) -> None:
    """An empty database as the version of that migration made it."""
    config = Config()
    config.set_main_option("script_location", "node:store/migrations")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def fill(engine: Engine) -> dict[str, dict[str, Any]]:
    """A row in every table; returns them."""
    tables = MetaData()
    tables.reflect(engine)
    rows = {t.name: row_of(t) for t in tables.sorted_tables if t.name != "alembic_version"}
    with writing(engine) as connection:
        for table in tables.sorted_tables:
            if table.name in rows:
                connection.execute(insert(table).values(**rows[table.name]))
    return rows


def row_of(table: Table) -> dict[str, Any]:
    def value(column: Any) -> Any:
        known = {**VALUES, **KEYS.get(table.name, {})}
        if column.name in known:
            return known[column.name]
        if isinstance(column.type, JSON):
            return {"k": [1]}
        kind = column.type.python_type
        return {int: 1, float: 1.5}.get(kind, "x")

    return {column.name: value(column) for column in table.columns}


def assert_kept(engine: Engine, rows: dict[str, dict[str, Any]]) -> None:
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        for name, row in rows.items():
            (found,) = connection.execute(select(tables.tables[name])).mappings()
            assert {key: found[key] for key in row} == row, name


class TestUpgrade:
    def test_no_schema_is_left_out(self) -> None:
        assert REVISIONS[:5] == ["0001", "0002", "0003", "0004", "0005"] and REVISIONS[-1] == SCHEMA_REVISION

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_rows_of_every_schema_come_through_and_can_be_worked_on(
        self, revision: str, database_url: str
    ) -> None:
        engine = open_engine(database_url)
        raise_to(engine, revision)
        with engine.connect() as connection:
            assert MigrationContext.configure(connection).get_current_revision() == revision
        before = fill(engine)
        migrate(engine)
        assert schema_revision(engine) == SCHEMA_REVISION
        assert_kept(engine, before)
        records = Records(engine)
        job = records.jobs.get(1)
        assert job and job.state is JobState.QUEUED
        records.jobs.cancel(1)
        assert records.views.studies(5)[0]["patient_id"] == "PID-1"
        assert records.console.counts()["deliveries"] == {"PENDING": 1}
        assert records.deliveries.take_due("x", 1e9, 2e9)
        records.views.beat("settle@h:0:1:1", "settle", {}, 1.0)
        records.close()

    def test_what_was_overtaken_before_is_not_sent_any_more(self, database_url: str) -> None:
        """A report of revision 1 waits or was given up, and one of revision 2 is there for the same place."""
        engine = open_engine(database_url)
        raise_to(engine, "0027")
        rows = fill(engine)
        tables = MetaData()
        tables.reflect(engine)

        def another(table: str, **changes: Any) -> None:
            connection.execute(insert(tables.tables[table]).values(**{**rows[table], **changes}))

        with writing(engine) as connection:
            another("jobs", id=2, revision=2)
            another("objects", sop_instance_uid="2.25.2", job_id=2)
            another("objects", sop_instance_uid="2.25.3")
            another("objects", sop_instance_uid="2.25.4", output=SOURCE)
            another("deliveries", id=2, sop_instance_uid="2.25.2", job_id=2)
            another("deliveries", id=3, sop_instance_uid="2.25.3", state="FAILED")
            another("deliveries", id=4, sop_instance_uid="2.25.3", destination="viewer")
            another("deliveries", id=5, sop_instance_uid="2.25.4", rank=SOURCE_RANK)
            another("deliveries", id=6, sop_instance_uid="2.25.3", destination="sent", state="SENT")
            another("deliveries", id=7, sop_instance_uid="2.25.2", job_id=2, destination="sent")
        migrate(engine)
        with engine.connect() as connection:
            query = select(tables.tables["deliveries"].c.id, tables.tables["deliveries"].c.state)
            states = dict(connection.execute(query).all())
        expected = {1: "SUPERSEDED", 2: "PENDING", 3: "SUPERSEDED", 4: "PENDING", 5: "PENDING", 6: "SENT"}
        assert states == {**expected, 7: "PENDING"}

    def test_an_alarm_reported_before_is_known_as_one(self, database_url: str) -> None:
        engine = open_engine(database_url)
        raise_to(engine, "0025")
        fill(engine)
        migrate(engine)
        records = Records(engine)
        job = records.jobs.get(1)
        assert job and records.jobs.earlier_alarm(job) == Alarm("1.2.3", 1, Priority.STAT)
        records.close()
