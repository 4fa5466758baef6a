"""`ichnode pause`, `resume`, `echo`: buttons of the console on the command line, with a line in the trail."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from node.admin.cli import stored, with_settings
from node.admin.people import operator
from node.admin.web.deeds import Deeds
from node.admin.web.gate import Visitor
from node.domain.permissions import Role
from node.settings import Settings
from node.store import pauses
from node.store.records import Records

WHAT = click.argument("what", default=pauses.QUEUE)


@dataclass(frozen=True)
class Desk:
    """What deeds need, without a console."""

    settings: Settings
    records: Records

    def note(self, visitor: Visitor, action: str, study_uid: str | None = None, detail: str = "") -> None:
        """One line in the audit trail."""
        self.records.audit.write(visitor.actor, action, time.time(), study_uid=study_uid, detail=detail)


def at_hand(settings: Settings) -> tuple[Deeds, Visitor]:
    """The deeds, and whoever sits at the command line: who may write into data_dir is an admin."""
    actor = operator()
    return Deeds(Desk(settings, stored(settings))), Visitor(actor.name, Role.ADMIN, "", "command line")


@click.command()
@WHAT
@with_settings
def pause(settings: Settings, what: str) -> None:
    """Let the queue, `destination:NAME` or `alert:NAME` stand still until it is resumed."""
    deeds, visitor = at_hand(settings)
    deeds.pause(visitor, what)
    click.echo(f"{what} is paused; `ichnode resume {what}` lets it go on")


@click.command()
@WHAT
@with_settings
def resume(settings: Settings, what: str) -> None:
    """Let the queue, `destination:NAME` or `alert:NAME` go on."""
    deeds, visitor = at_hand(settings)
    deeds.resume(visitor, what)
    click.echo(f"{what} goes on")


@click.command()
@click.argument("destination")
@with_settings
def echo(settings: Settings, destination: str) -> None:
    """Send a C-ECHO to a destination (or ask its DICOMweb service). Exit code 1 when it does not answer."""
    deeds, visitor = at_hand(settings)
    answered, words = deeds.echo(visitor, destination)
    click.echo(f"{destination}: {words}")
    if not answered:
        raise SystemExit(1)
