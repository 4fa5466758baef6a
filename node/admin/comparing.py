"""`ichnode shadow`: what the page Shadow shows and does. What acts leaves a line in the trail."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.admin.cli import stored, with_settings, with_settings_of_group
from node.domain.errors import PermanentError

if TYPE_CHECKING:
    from node.settings import Settings
    from node.store.records import Records

WITHIN = click.option(
    "--within", type=click.Choice(["30d", "90d", "365d", "all"]), default="90d", show_default=True
)
PAIR = click.option("--pair", default="", help="Two digests joined by a colon, as --json lists them.")
SCANNER = click.option("--scanner", default="", help="Of this scanner alone.")
REASON = click.option("--reason", required=True, help="Why; it stands in the audit trail.")
JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


@click.group(invoke_without_command=True)
@with_settings
@WITHIN
@PAIR
@SCANNER
@JSON
@click.pass_context
def shadow(
    ctx: click.Context, settings: Settings, within: str, pair: str, scanner: str, as_json: bool
) -> None:
    """Compare the active model with the one that reads in silence; `promote` and `rollback` choose."""
    ctx.obj = settings
    if ctx.invoked_subcommand is not None:
        return
    from node.admin.listing import shadow_table, terminal
    from node.admin.web.shadow import Choice, models_json
    from node.admin.web.shadow import as_json as figures

    records, now = stored(settings), time.time()
    _require_pair(records, pair)
    found = figures(settings, records, Choice(pair, within, scanner), now)
    models = models_json(settings, records, now)
    if as_json:
        click.echo(json.dumps({"models": models, **found}, indent=2))
        return
    click.echo(_standing(models, found))
    if found["pair"]:
        terminal().print(shadow_table(found))


@shadow.command()
@click.argument("sha256")
@REASON
@with_settings_of_group
def promote(settings: Settings, sha256: str, reason: str) -> None:
    """Make the model with this SHA-256 (or its first 8 digits and more) the active one."""
    from node import promotion
    from node.admin.people import operator

    model = promotion.promote(settings, stored(settings), operator(), sha256, reason, time.time())
    click.echo(f"{model.name} {model.version} {model.sha256[:12]} is the active model from now on")


@shadow.command()
@REASON
@with_settings_of_group
def rollback(settings: Settings, reason: str) -> None:
    """Make the model before the active one again."""
    from node import promotion
    from node.admin.people import operator

    model = promotion.roll_back(settings, stored(settings), operator(), reason, time.time())
    click.echo(f"{model.name} {model.version} {model.sha256[:12]} is the active model again")


@shadow.command()
@JSON
@with_settings_of_group
def history(settings: Settings, as_json: bool) -> None:
    """List every promotion, the latest first."""
    from dataclasses import asdict

    from node.admin.cli import show
    from node.admin.listing import promotions_table

    rows = [asdict(one) for one in stored(settings).promotions.history(1000)]
    show(rows, as_json, promotions_table)


@shadow.command()
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@WITHIN
@PAIR
@SCANNER
@with_settings_of_group
def export(settings: Settings, file: Path, within: str, pair: str, scanner: str) -> None:
    """Write the series that both models read into FILE, as CSV; holds no patient."""
    from node.admin.people import operator
    from node.admin.web.quality import MOST_EXPORTED
    from node.admin.web.shadow import Choice, asked, chosen, csv_lines
    from node.admin.web.words import Clock

    records, now = stored(settings), time.time()
    _require_pair(records, pair)
    models = chosen(records.pairs.which(), pair)
    wanted = asked(models, Choice(pair, within, scanner), now) if models else None
    rows = records.pairs.latest(wanted, MOST_EXPORTED) if wanted else []
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            records.audit.write(operator(), "export", now, detail=f"{len(rows)} shadow readings")
            stream.writelines(csv_lines(rows, Clock(settings.web.time_zone)))
    except OSError as error:
        raise PermanentError("EXPORT", f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"{len(rows)} series in {file}")


def _require_pair(records: Records, wanted: str) -> None:
    """Raises PermanentError with the pairs there are: another one's figures would be taken for this one's."""
    from node.admin.web.shadow import key

    known = [key(pair) for pair in records.pairs.which()]
    if wanted and wanted not in known:
        there = f"there are {', '.join(known)}" if known else "there is none yet"
        raise PermanentError("PAIR_UNKNOWN", f"no pair of models {wanted!r}: {there}")


def _standing(models: dict[str, object], found: dict[str, object]) -> str:
    """The active model, the shadow model, what was read and what is wrong, a line each."""
    from node.admin.listing import model_words, when

    active, in_shadow = models["active"], models["shadow"]
    assert isinstance(active, dict)
    since = f", since {when(active['since'])}" if active["since"] else ""
    promoted = active["promoted"]
    how = f"promoted by {promoted['who']}: {promoted['reason']}" if promoted else "named by the settings"
    lines = [f"active: {model_words(active)} ({how}{since})"]
    lines.append(f"shadow: {model_words(in_shadow) if isinstance(in_shadow, dict) else 'none is loaded'}")
    readings = found["readings"]
    assert isinstance(readings, dict)
    lines.append("read: " + (", ".join(f"{n} {state}" for state, n in sorted(readings.items())) or "nothing"))
    trouble = models["trouble"]
    assert isinstance(trouble, list)
    return "\n".join([*lines, *(f"WRONG: {text}" for text in trouble)])
