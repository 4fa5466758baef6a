"""`ichnode routing` and `ichnode reconcile`: what goes where, and what never came."""

from __future__ import annotations

import sys
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


@click.command()
@with_settings
@click.option("--archive", "name", default="", help="Only this one of the settings.")
@click.option("--since", default="", help="First StudyDate, as 2026-11-20; else as far back as `lookback_h`.")
@click.option("--until", default="", help="Last StudyDate; else today.")
@click.option("--fetch", is_flag=True, help="Have what is missing fetched by the running node.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def reconcile(settings: Settings, name: str, since: str, until: str, fetch: bool, as_json: bool) -> None:
    """Compare archives with what came, and list what is missing; exit code 1 when something is."""
    from node.admin.hands import at_hand
    from node.admin.listing import gaps_table
    from node.admin.roles import spool_of
    from node.admin.web.deeds import MOST_AT_ONCE
    from node.reconcile import Reconciler, check_days, default_days

    archives = [a for a in settings.archive if name in ("", a.name)]
    if not archives:
        text = f"the settings name no archive {name!r}" if name else "the settings name no [[archive]]"
        raise SettingsError(f"{text}: add one")
    (deeds, visitor), records = at_hand(settings), stored(settings)
    reconciler, found = Reconciler(settings, records, spool_of(settings)), set()
    for archive in archives:
        first, last = default_days(archive, time.time(), settings.web.time_zone)
        days = (since.replace("-", "") or first, until.replace("-", "") or last)
        check_days(days)
        detail = f"{archive.name} {days[0]}-{days[1]}"
        records.audit.write(visitor.actor, "compare", time.time(), detail=detail)
        found.update(reconciler.compare_now(archive, days, visitor.name))
    for begin in range(0, len(found) if fetch else 0, MOST_AT_ONCE):
        deeds.fetch_gaps(visitor, sorted(found)[begin : begin + MOST_AT_ONCE])
    rows = [row for row in map(records.gaps.get, sorted(found)) if row and row["state"] != "DISMISSED"]
    show(rows, as_json, gaps_table)
    if rows:
        sys.exit(1)
