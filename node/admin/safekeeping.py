"""The commands `backup`, `restore` and `upgrade`: they say what was done, and what was left out."""

from __future__ import annotations

from pathlib import Path

import click

from node.admin.backup import NOT_IN_IT, Backup, back_up, bring_back, bring_up_to_date
from node.admin.cli import with_settings
from node.admin.listing import when
from node.settings import Settings
from node.store.engine import SCHEMA_REVISION, open_engine, schema_revision

FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
FEW = 5


@click.command()
@FOLDER
@with_settings
@click.option("--without-images", is_flag=True, help="Leave the received images out: the PACS has them.")
def backup(settings: Settings, folder: Path, without_images: bool) -> None:
    """Copy database and spool into a new FOLDER; the node may go on meanwhile."""
    _say("written", folder, back_up(settings, folder, images=not without_images))


@click.command()
@FOLDER
@with_settings
def restore(settings: Settings, folder: Path) -> None:
    """Bring the backup in FOLDER back, into an empty data_dir and database."""
    _say("restored", folder, bring_back(settings, folder))
    click.echo(
        "Start the node; at its start it accounts for every file, and `ichnode doctor` shows what it found."
    )


@click.command()
@with_settings
@click.option("--check", is_flag=True, help="Only say what would be done; exit code 1 when something would.")
def upgrade(settings: Settings, check: bool) -> None:
    """Bring the database's schema up to date. Every role does so at its start, too."""
    if check:
        engine = open_engine(settings.database_url)
        at = schema_revision(engine)
        engine.dispose()
        click.echo(f"the database stands at {at or 'nothing'}, this version wants {SCHEMA_REVISION}")
        raise SystemExit(at != SCHEMA_REVISION)
    before, after = bring_up_to_date(settings)
    click.echo(
        f"the database stands at {after}" + (f", before: {before or 'empty'}" if before != after else "")
    )


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
