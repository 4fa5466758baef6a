"""`ichnode canary` and `ichnode quality`: what the page Quality shows and does. Leaves lines, too."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from node.admin.cli import listing, show, stored, with_settings, with_settings_of_group
from node.domain.canary import GOOD, State
from node.domain.errors import IchnodeError

if TYPE_CHECKING:
    from node.settings import Settings

LOOK_S = 0.5


@click.group(invoke_without_command=True)
@with_settings
@listing(limit=20)
@click.pass_context
def canary(ctx: click.Context, settings: Settings, as_json: bool, limit: int) -> None:
    """List the latest canaries; `run` sends one, `accept` expects what the last one brought."""
    from node.admin.listing import canaries_table

    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        show(stored(settings).canaries.latest(limit), as_json, canaries_table)


@canary.command()
@with_settings_of_group
def run(settings: Settings) -> None:
    """Send a phantom the whole way now, and wait for it. Exit code 1 when it does not come out right."""
    from node.admin.people import operator
    from node.canary import new_uid

    records, uid = stored(settings), new_uid()
    actor = operator()
    records.audit.write(actor, "canary-run", time.time())
    number = records.canaries.ask(uid, actor.name, time.time())
    row = _awaited(records, number, settings.canary.max_s + 30)
    steps = ", ".join(f"{name} after {value:.1f} s" for name, value in (row["steps_s"] or {}).items())
    click.echo(f"canary {number}: {' '.join(filter(None, (row['state'], row['text'], steps)))}")
    if row["state"] not in GOOD:
        sys.exit(1)


def _awaited(records: Any, number: int | None, patience_s: float) -> dict[str, Any]:
    """Once it is over. Raises IchnodeError when nobody sends it, or it never ends."""
    began = time.monotonic()
    while True:
        row = next(r for r in records.canaries.latest(100) if r["id"] == number)
        if row["finished_at"]:
            found: dict[str, Any] = row
            return found
        waited_s = time.monotonic() - began
        if waited_s > patience_s or (row["state"] == State.WANTED and waited_s > 60):
            text = f"canary {number} is {row['state']} after {waited_s:.0f} s; is `ichnode settle` running?"
            raise IchnodeError(text)
        time.sleep(LOOK_S)


@canary.command("accept")
@with_settings_of_group
def accept_last(settings: Settings) -> None:
    """Expect from now on what the last canary brought, for its model."""
    from node.admin.people import operator
    from node.canary import accept

    records, actor, now = stored(settings), operator(), time.time()
    records.audit.write(actor, "canary-accept", now)
    row = accept(records, actor.name, now)
    click.echo(f"the values of canary {row['id']} are expected of {row['model']} from now on")


@click.command()
@click.option("--by", type=click.Choice(["scanner", "model", "month"]), default="scanner", show_default=True)
@click.option("--within", type=click.Choice(["30d", "90d", "365d", "all"]), default="90d", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@with_settings
def quality(settings: Settings, by: str, within: str, as_json: bool) -> None:
    """How often readers agree with the model, and what drifts."""
    from node.admin.listing import drifts_table, quality_table
    from node.admin.web.quality import By, as_json_rows, figures

    records = stored(settings)
    rows = as_json_rows(figures(records, settings, By(by), within, time.time()))
    show(rows, as_json, quality_table)
    if not as_json:
        show(records.drifts.drifting(), False, drifts_table)
