"""`ichnode alerts`: what channels were told, and what came of it. Sends one again, or a marked test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from node.admin.cli import ROW, listing, show, stored, with_settings, with_settings_of_group
from node.domain.errors import SettingsError

if TYPE_CHECKING:
    from node.settings import Settings


@click.group(invoke_without_command=True)
@with_settings
@listing(limit=50)
@click.pass_context
def alerts(ctx: click.Context, settings: Settings, as_json: bool, limit: int) -> None:
    """List the latest alerts; `retry ID` sends one at once, `test NAME` tries a channel."""
    from node.admin.listing import alerts_table

    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        show(stored(settings).alerts.latest(limit), as_json, alerts_table)


@alerts.command()
@ROW
@with_settings_of_group
def retry(settings: Settings, number: int) -> None:
    """Send a waiting or given-up alert at once."""
    from node.admin.hands import at_hand

    deeds, visitor = at_hand(settings)
    deeds.retry_alert(visitor, number)
    click.echo(f"alert {number} is due now")


@alerts.command()
@click.argument("name")
@with_settings_of_group
def test(settings: Settings, name: str) -> None:
    """Send a message that is marked as a test through the channel NAME, and show what its receiver says."""
    from node.admin.people import operator
    from node.channels.catalogue import channel_of
    from node.channels.trial import trial

    found = next((alert for alert in settings.alert if alert.name == name), None)
    if found is None:
        known = ", ".join(alert.name for alert in settings.alert) or "none"
        raise SettingsError(f"no [[alert]] is called {name!r}; there are: {known}")
    channel = channel_of(found, settings)
    channel.check()
    stored(settings).audit.write(operator(), "test-alert", time.time(), detail=name)
    began = time.perf_counter()
    receipt = channel.send(trial(name, time.time()))
    word = "acknowledged" if receipt.acknowledged else "sent"
    said = f": {receipt.text}" if receipt.text else ""
    click.echo(f"{name}: {word} in {time.perf_counter() - began:.2f} s ({receipt.status}{said})")
