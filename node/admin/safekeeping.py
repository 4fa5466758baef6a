"""The commands `backup`, `restore` and `upgrade`: they say what was done, and what was left out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from node.admin.backup import (
    NOT_IN_IT,
    Backup,
    back_up,
    bring_back,
    bring_up_to_date,
    read,
    require_database,
    standing_at,
)
from node.admin.cli import with_settings
from node.admin.listing import when
from node.domain.errors import PermanentError
from node.settings import Settings
from node.store.engine import SCHEMA_REVISION

FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
FEW = 5


@click.command()
@FOLDER
@with_settings
@click.option("--without-images", is_flag=True, help="Leave the received images out: the PACS has them.")
def backup(settings: Settings, folder: Path, without_images: bool) -> None:
    """Copy database and spool into a new FOLDER; the node may go on meanwhile."""
    with _told_in_one_line("BACKUP"):
        done = back_up(settings, folder, images=not without_images)
    _say("written", folder, done)


@click.command()
@FOLDER
@with_settings
def restore(settings: Settings, folder: Path) -> None:
    """Bring the backup in FOLDER back, into an empty data_dir and database. Exit code 1: it lost files."""
    with _told_in_one_line("RESTORE"):
        written = read(folder).files
        done = bring_back(settings, folder)
    _say("restored", folder, done)
    click.echo(
        "Start the node; at its start it accounts for every file, and `ichnode doctor` shows what it found."
    )
    if done.files < written:
        click.echo(f"{written - done.files} of {written} files of the backup are gone", err=True)
        raise SystemExit(1)


@click.command()
@with_settings
@click.option("--check", is_flag=True, help="Only say what would be done; exit code 1 when something would.")
def upgrade(settings: Settings, check: bool) -> None:
    """Bring the database's schema up to date. Every role does so at its start, too."""
    if check:
        at = standing_at(settings)
        click.echo(f"the database stands at {at or 'nothing'}, this version wants {SCHEMA_REVISION}")
        raise SystemExit(at != SCHEMA_REVISION)
    require_database(settings)
    before, after = bring_up_to_date(settings)
    click.echo(f"the database stands at {after}" + (f", before: {before}" if before != after else ""))


@contextmanager
def _told_in_one_line(code: str) -> Iterator[None]:
    """A disk that is full, away, or somebody else's. Raises PermanentError, which names the file."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise PermanentError(
            code, f"{where}{error.strerror or error}; is there room, and may you write there?"
        ) from error
    except sqlite3.Error as error:
        raise PermanentError(code, f"database: {error}; is there room, and is the disk well?") from error


def _say(done: str, folder: Path, found: Backup) -> None:
    size = f"{found.size_bytes / 2**20:.1f} MiB"
    click.echo(
        f"{folder}: {done}; {found.database} at migration {found.schema_revision}, "
        f"{found.files} files ({size}), made {when(found.made_at)} by version {found.version}"
    )
    click.echo(f"not in it: {NOT_IN_IT}" + "".join(f", spool/{name}" for name in found.without))
    if found.missing:
        few = ", ".join(found.missing[:FEW])
        more = f" and {len(found.missing) - FEW} more" if len(found.missing) > FEW else ""
        click.echo(f"{len(found.missing)} files that records name were not there: {few}{more}", err=True)
