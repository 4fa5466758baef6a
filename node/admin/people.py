"""`ichnode users` and `ichnode audit`: who may use the console, and what they did. Leaves lines, too."""

from __future__ import annotations

import getpass
import json
import sys
import time
from typing import TYPE_CHECKING

import click

from node.admin.cli import ROW, limit_option, show, stored, stored_or_new, with_settings
from node.domain.errors import SettingsError
from node.domain.permissions import Role

if TYPE_CHECKING:
    from node.settings import Settings
    from node.store.audit import Actor

NAME = click.argument("name")
ROLE = click.Choice([role.value for role in Role])
FROM_STDIN = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
TOKEN_PREFIX = "ichnode_"


@click.group()
def users() -> None:
    """Who may use the console."""


@users.command()
@NAME
@click.option("--role", type=ROLE, default=Role.VIEWER.value, show_default=True)
@FROM_STDIN
@with_settings
def add(settings: Settings, name: str, role: str, password_stdin: bool) -> None:
    """Add a user; asks for the password."""
    from node.admin.passwords import hashed

    _check_name(name)
    records = stored_or_new(settings)  # the first one may come before the first start
    if records.people.get(name):
        raise SettingsError(f"there is a user {name!r} already; `ichnode users passwd {name}`")
    secret, now = _password(name, password_stdin), time.time()
    records.audit.write(operator(), "add-user", now, detail=f"{name} as {role}")
    records.people.add(name, Role(role), hashed(secret), now)
    click.echo(f"user {name} may log in as {role}")


@users.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@with_settings
def list_users(settings: Settings, as_json: bool) -> None:
    """List the users."""
    from node.admin.listing import users_table

    show(stored(settings).people.users(), as_json, users_table)


@users.command()
@NAME
@with_settings
def remove(settings: Settings, name: str) -> None:
    """Remove a user, with sessions and API tokens."""
    records = stored(settings)
    if user := records.people.get(name):
        name = user.name
        records.audit.write(operator(), "remove-user", time.time(), detail=name)
    records.people.remove(name)
    click.echo(f"user {name} is removed")
    if not records.people.any():
        click.echo("nobody can log in now: on loopback the console asks for no login any more", err=True)


@users.command()
@NAME
@FROM_STDIN
@with_settings
def passwd(settings: Settings, name: str, password_stdin: bool) -> None:
    """Give a user a new password; ends the user's sessions."""
    from node.admin.passwords import hashed

    records = stored(settings)
    if (user := records.people.get(name)) is None:
        raise SettingsError(f"there is no user {name!r}; `ichnode users list` lists them")
    secret = _password(user.name, password_stdin)
    records.audit.write(operator(), "new-password", time.time(), detail=user.name)
    records.people.set_password(user.name, hashed(secret))
    click.echo(f"user {name} has a new password and is logged out everywhere")


@users.command()
@NAME
@click.option(
    "--role", type=ROLE, default=Role.VIEWER.value, show_default=True, help="Never more than the user's."
)
@click.option("--label", default="", help="What it is for.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650))
@with_settings
def token(settings: Settings, name: str, role: str, label: str, days: int) -> None:
    """Make an API token; it is shown once."""
    from node.admin.passwords import digest, new_token

    records, secret, now = stored(settings), new_token(TOKEN_PREFIX), time.time()
    if user := records.people.get(name):
        name = user.name
        detail = f"{name} as {role}, {days} days, {label[:64]}"
        records.audit.write(operator(), "add-token", now, detail=detail)
    times = (now, now + days * 86400)
    number = records.people.add_token(digest(secret), name, Role(role), label[:64], times)
    click.echo(f"token {number} of {name}, good for {days} days; it is not shown again:", err=True)
    click.echo(secret)


@users.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@with_settings
def tokens(settings: Settings, as_json: bool) -> None:
    """List the API tokens."""
    from node.admin.listing import tokens_table

    show(stored(settings).people.tokens(), as_json, tokens_table)


@users.command()
@ROW
@with_settings
def revoke(settings: Settings, number: int) -> None:
    """Revoke an API token."""
    records = stored(settings)
    if number in [token["id"] for token in records.people.tokens()]:
        records.audit.write(operator(), "revoke-token", time.time(), detail=f"token {number}")
    records.people.revoke_token(number)
    click.echo(f"token {number} is revoked")


@click.command()
@limit_option(50)
@click.option("--who", default="", help="Of this user alone.")
@click.option("--study", default="", help="Of this Study Instance UID alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, oldest first.")
@with_settings
def audit(settings: Settings, limit: int, who: str, study: str, as_json: bool) -> None:
    """Show the audit trail: who saw which study, and who did what."""
    from node.admin.listing import audit_table

    entries = stored(settings).audit.entries(limit, who=who, study_uid=study)
    if as_json:
        for entry in reversed(entries):
            click.echo(json.dumps(entry))
    else:
        show(entries, False, audit_table)


def operator() -> Actor:
    """Whoever may write into data_dir."""
    from node.store.audit import Actor

    try:
        person = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        person = "?"
    return Actor(f"command line ({person})"[:64], Role.ADMIN, "")


def _check_name(name: str) -> None:
    from node.admin.reach import LOCAL

    if not name.isprintable() or name != name.strip() or not 1 <= len(name) <= 64 or name == LOCAL:
        raise SettingsError(
            f"{name!r} is no name for a user: choose up to 64 printable characters, not {LOCAL!r}"
        )


def _password(name: str, from_stdin: bool) -> str:
    from node.admin.passwords import check_strength

    if from_stdin:
        secret = sys.stdin.readline().rstrip("\r\n")
    else:
        secret = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    check_strength(secret, name)
    return str(secret)
