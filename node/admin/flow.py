"""`ichnode routing`: what goes where, told for studies already seen. Sends nothing, saves no rule."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.admin.cli import listing, show, stored, with_settings
from node.domain.errors import SettingsError

if TYPE_CHECKING:
    from node.settings import Settings


@click.command()
@with_settings
@click.option(
    "--try",
    "draft",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Rules to try out: a TOML file with [[destination]] sections.",
)
@click.option("--search", default="", help="Beginning of a patient ID or accession number.")
@listing(limit=20)
def routing(settings: Settings, draft: Path | None, search: str, as_json: bool, limit: int) -> None:
    """Tell which destination gets what of studies already seen, and why."""
    from node.admin.listing import routing_table
    from node.routing import Ruled, trial_json, try_out
    from node.settings.routing import read_drafts

    destinations: tuple[Ruled, ...] = settings.destination
    if draft is not None:
        try:
            destinations = read_drafts(draft.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{draft} cannot be read: {error}") from error
    found = try_out(destinations, stored(settings), time.time(), limit, search)
    show([trial_json(trial) for trial in found], as_json, routing_table)
