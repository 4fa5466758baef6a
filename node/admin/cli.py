"""The `ichnode` command. Imports what a subcommand needs when it runs, so that `listen` starts in a blink."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.domain.errors import IchnodeError
from node.domain.findings import SUBTYPES
from node.domain.opinion import Opinion, Wrong
from node.settings import Settings, load

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from node.admin.web.deeds import Deeds
    from node.admin.web.gate import Visitor
    from node.store.records import Records

WRONG = [why.value.lower().replace("_", "-") for why in Wrong]
COMMANDS = "ichnode.commands"
"""Entry-point group through which other packages add subcommands."""
LARGEST = 2**31 - 1
"""That the database's columns hold."""
SURROGATES = "surrogates not allowed"
"""Why words of the command line that are no UTF-8 cannot be encoded: Python keeps their bytes (PEP 383)."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a write says of a disk; no file is named then."""
OWN = {
    "users": "node.admin.people",
    "audit": "node.admin.people",
    "routing": "node.admin.flow",
    "reconcile": "node.admin.flow",
    "alerts": "node.admin.alerting",
    "backup": "node.admin.safekeeping",
    "restore": "node.admin.safekeeping",
    "upgrade": "node.admin.safekeeping",
    "pause": "node.admin.hands",
    "resume": "node.admin.hands",
    "echo": "node.admin.hands",
    "canary": "node.admin.watching",
    "quality": "node.admin.watching",
    "shadow": "node.admin.comparing",
}
"""Subcommands of the node's own that live in other modules, imported when they are asked for."""


def _announced() -> dict[str, EntryPoint]:
    """Subcommands of other packages, by name."""
    from importlib.metadata import entry_points  # slow to import, and not needed for our own

    return {entry.name: entry for entry in entry_points(group=COMMANDS)}


class Commands(click.Group):
    """The node's own subcommands, and those that other packages announce."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *OWN, *_announced()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if own := super().get_command(ctx, cmd_name):
            return own
        if cmd_name in OWN:
            from importlib import import_module

            found: click.Command = getattr(import_module(OWN[cmd_name]), cmd_name)
            return found
        entry = _announced().get(cmd_name)
        command: click.Command | None = entry.load() if entry else None
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Errors of our own are shown as one line, not as a traceback."""
        try:
            return super().invoke(ctx)
        except IchnodeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None and error.errno not in NO_ROOM:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            text = f"{where}{error.strerror}; does it exist, is there room, may you read and write there?"
            raise click.ClickException(text) from error
        except UnicodeEncodeError as error:
            if error.reason != SURROGATES:
                raise
            text = f"{error.object!a} holds bytes that are no UTF-8; write it in a terminal that sends it"
            raise click.ClickException(text) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ichnode", prog_name="ichnode")
def main() -> None:
    """ichnode: head-CT triage beside a PACS. Research use only, not for diagnosis."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 lacks letters


ROW = click.argument("number", metavar="ID", type=click.IntRange(0, LARGEST))
CONFIG = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file (TOML)."
)
DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Overrides data_dir."
)


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Adds --config and --data-dir, and passes the loaded settings as the first argument."""

    @CONFIG
    @DATA_DIR
    @wraps(function)
    def command(config: Path | None, data_dir: Path | None, **options: Any) -> None:
        function(load(config, data_dir), **options)

    return command


def with_settings_of_group(function: Callable[..., None]) -> Callable[..., None]:
    """As `with_settings`, but what was given to the group before the subcommand counts where nothing is."""

    @CONFIG
    @DATA_DIR
    @click.pass_context
    @wraps(function)
    def command(ctx: click.Context, config: Path | None, data_dir: Path | None, **options: Any) -> None:
        before = ctx.parent.params if ctx.parent else {}
        given = config or before.get("config"), data_dir or before.get("data_dir")
        function(load(*given) if config or data_dir else ctx.obj, **options)

    return command


@main.command()
@CONFIG
@DATA_DIR
def up(config: Path | None, data_dir: Path | None) -> None:
    """Run the whole node: listener, clock, worker, delivery, web and a Redis of its own."""
    import logging

    from node.admin.listing import banner, terminal
    from node.admin.supervise import Node

    settings = load(config, data_dir)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s up       %(levelname)-7s %(message)s")
    console = terminal(stderr=True)
    console.print("ichnode starts …", style="dim")
    Node(settings, config).run(on_ready=lambda _: console.print(banner(settings)))


def _role(name: str, text: str) -> None:
    @main.command(name, help=text)
    @with_settings
    def command(settings: Settings) -> None:
        from node.admin.roles import start

        start(name, settings)


_role("listen", "Run the C-STORE and C-ECHO SCP alone.")
_role("settle", "Run the clock alone: it decides what is complete and what is analysed.")
_role("worker", "Run one analysing worker alone.")
_role("shadow-worker", "Run the worker of the shadow model alone.")
_role("deliver", "Run composing and delivery alone.")
_role("announce", "Run the channels that raise priorities alone.")
_role("web", "Run the web pages alone.")
_role("orders", "Run the order desk alone: modality worklist and HL7 orders.")


def limit_option(usual: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds --limit."""
    many = click.IntRange(1, LARGEST)
    return click.option("--limit", default=usual, type=many, show_default=True, help="How many.")


def listing(limit: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds --json and --limit."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        function = limit_option(limit)(function)
        return click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(function)

    return add


@main.command()
@with_settings
@listing(limit=50)
def studies(settings: Settings, as_json: bool, limit: int) -> None:
    """List the latest studies with their series and what became of each."""
    from node.admin.listing import studies_table

    show(stored(settings).views.studies(limit), as_json, studies_table)


@main.group(invoke_without_command=True)
@with_settings
@listing(limit=50)
@click.pass_context
def jobs(ctx: click.Context, settings: Settings, as_json: bool, limit: int) -> None:
    """List the latest jobs; `retry ID` and `cancel ID` act on one."""
    from node.admin.listing import jobs_table

    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        show(stored(settings).views.jobs(limit), as_json, jobs_table)


@main.group(invoke_without_command=True)
@with_settings
@listing(limit=100)
@click.pass_context
def deliveries(ctx: click.Context, settings: Settings, as_json: bool, limit: int) -> None:
    """List the latest deliveries; `retry ID` sends one again at once."""
    from node.admin.listing import deliveries_table

    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        show(stored(settings).views.deliveries(limit), as_json, deliveries_table)


@main.command()
@with_settings
@listing(limit=50)
def incidents(settings: Settings, as_json: bool, limit: int) -> None:
    """List conflicts and losses a person should look into, latest first."""
    from node.admin.listing import incidents_table

    show(stored(settings).incidents.latest(limit), as_json, incidents_table)


@main.command()
@with_settings
@listing(limit=50)
def removals(settings: Settings, as_json: bool, limit: int) -> None:
    """List the studies whose files retention removed, latest first."""
    from node.admin.listing import removals_table

    show(stored(settings).keeping.removed(limit), as_json, removals_table)


Act = Callable[["Deeds", "Visitor", int], object]


def _action(group: click.Group, name: str, act: Act, text: str, done: str) -> None:
    """`group name ID`; --config and --data-dir may stand before or after it. Leaves a line in the trail."""

    @group.command(name, help=text)
    @ROW
    @with_settings_of_group
    def command(settings: Settings, number: int) -> None:
        from node.admin.hands import at_hand

        act(*at_hand(settings), number)
        click.echo(done.format(number))


def _actions() -> None:
    """What the buttons of the console do to one job or delivery."""
    of_jobs: tuple[tuple[str, Act, str, str], ...] = (
        (
            "retry",
            lambda d, v, n: d.retry_job(v, n),
            "Queue a failed or cancelled job again.",
            "is queued again",
        ),
        ("cancel", lambda d, v, n: d.cancel(v, n), "Cancel a job that is not composed yet.", "is cancelled"),
        ("reanalyse", lambda d, v, n: d.reanalyse(v, n), "Analyse a composed job again.", "is queued again"),
        ("acknowledge", lambda d, v, n: d.acknowledge(v, n), "Its result was read.", "is acknowledged"),
        ("unread", lambda d, v, n: d.mark_unread(v, n), "Back to unread.", "is unread"),
    )
    for name, act, text, done in of_jobs:
        _action(jobs, name, act, text, f"job {{}} {done}")
    again = "Send a waiting or given-up delivery at once."
    _action(deliveries, "retry", lambda d, v, n: d.retry_delivery(v, n), again, "delivery {} is due now")


_actions()


@jobs.command()
@ROW
@click.argument("opinion", type=click.Choice(["agree", "disagree"]))
@click.option("--why", type=click.Choice(WRONG), default=WRONG[0], show_default=True, help="What is wrong.")
@click.option("--actual", type=click.Choice(SUBTYPES), multiple=True, help="A kind that the images show.")
@with_settings_of_group
def judge(settings: Settings, number: int, opinion: str, why: str, actual: tuple[str, ...]) -> None:
    """Agree or disagree with the result of job ID; acknowledges it too."""
    from node.admin.hands import at_hand

    deeds, visitor = at_hand(settings)
    wrong = Wrong(why.upper().replace("-", "_"))
    deeds.judge(visitor, number, Opinion(opinion.upper()), wrong, actual)
    click.echo(f"job {number}: {opinion}")


@deliveries.command("retry-all")
@click.option("--destination", default="", help="Of this destination alone.")
@with_settings_of_group
def retry_all(settings: Settings, destination: str) -> None:
    """Try everything again that was given up."""
    from node.admin.hands import at_hand

    deeds, visitor = at_hand(settings)
    click.echo(f"{deeds.retry_deliveries(visitor, destination)} deliveries are due now")


@main.command()
@with_settings
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def doctor(settings: Settings, as_json: bool) -> None:
    """Check settings, database, broker, model, device, disk and each destination."""
    from rich.text import Text

    from node.admin.doctor import examine
    from node.admin.listing import doctor_table, terminal

    checks = []
    with terminal(stderr=True).status("looking …") as status:
        for check in examine(settings):
            checks.append(vars(check))
            status.update(Text(f"{check.name} looked at …"))
    show(checks, as_json, doctor_table)
    if not all(check["ok"] for check in checks):
        sys.exit(1)


def stored(settings: Settings) -> Records:
    """The records of this installation. Raises PermanentError where there are none, and makes none."""
    from node.admin.backup import require_database
    from node.store.records import open_records

    require_database(settings)
    return open_records(settings)


def stored_or_new(settings: Settings) -> Records:
    """The records of this installation, made where there are none yet."""
    from node.admin.roles import prepare
    from node.store.records import open_records

    prepare(settings)
    return open_records(settings)


def show(
    rows: Sequence[dict[str, Any]], as_json: bool, table: Callable[[Sequence[dict[str, Any]]], Any]
) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from node.admin.listing import terminal

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160"))
    terminal(width=width).print(table(rows))
