"""The commands `train`, `evaluate` and `models`. They print and write files; the store is not theirs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from node.admin.cli import with_settings
from node.domain.errors import PermanentError
from node.domain.findings import ModelIdentity
from node.settings import DATABASE_FILE, Settings

if TYPE_CHECKING:
    from workers.training.fit import Progress as Callback
    from workers.training.sources import Source

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
MANY = click.IntRange(min=1)


class _Side(click.IntRange):
    """Side of a picture, which networks halve up to five times: that must leave no rest."""

    STEP = 32

    def __init__(self) -> None:
        super().__init__(min=2 * self.STEP)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        side: int = super().convert(value, param, ctx)
        if side % self.STEP:
            self.fail(f"{side} is no multiple of {self.STEP}.", param, ctx)
        return side


SIDE = _Side()


@click.command()
@click.option("--kind", required=True, help="Which set it is; an unknown one is answered with all names.")
@click.option("--data", type=EXISTING, required=True, help="The set's own folder.")
@click.option("--out", type=FOLDER, required=True, help="Where explore.json and the pictures go.")
@click.option("--limit", type=click.IntRange(min=1), help="Read no more series than this.")
def explore(kind: str, data: Path, out: Path, limit: int | None) -> None:
    """Count the labels of a set and draw its HU and examples. Trains nothing."""
    from workers.training import explore as survey

    try:
        facts = survey.explore(kind, data, out, limit)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0]), param_hint="--kind") from error
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{facts['patients']} patients, {facts['series']} series, {facts['slices']} slices: see {out}")


@click.command()
@click.option("--out", type=FOLDER, default=Path("runs"), show_default=True, help="Where train put its own.")
def table(out: Path) -> None:
    """Set every recipe that was cross-validated side by side, as Markdown. Trains nothing."""
    from workers.training.outcome import table as lines

    try:
        click.echo(lines(out))
    except PermanentError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("recipe", default="default")
@click.option("--data", multiple=True, required=True, metavar="KIND:FOLDER", help="As it was trained with.")
@click.option("--out", type=FOLDER, default=Path("runs"), show_default=True, help="Where train put its own.")
@click.option("--only", type=int, multiple=True, help="Judge this fold only (from 0); repeat for more.")
@click.option("--seeds", type=MANY, default=1, show_default=True, help="As it was trained with.")
@click.option("--size", type=SIDE, help="As it was trained with.")
@click.option("--scanners", type=click.IntRange(min=0), help="As it was trained with.")
@click.option("--init", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same.")
@click.option("--cache", type=FOLDER, help="Where prepared pictures are kept (default: in --out).")
@click.option("--disturb", multiple=True, metavar="NAME", help="This disturbance only; repeat for more.")
def robustness(
    recipe: str,
    data: tuple[str, ...],
    size: int | None,
    scanners: int | None,
    disturb: tuple[str, ...],
    **given: Any,
) -> None:
    """How much RECIPE minds noise, kernels, tilt, … Networks of the cross-validation read disturbed heads."""
    from workers.training import disturb as known
    from workers.training import recipes, robustness
    from workers.training.plan import Plan

    try:
        chosen = tuple(known.disturbance(name) for name in disturb) or known.DISTURBANCES
        sets = _to_learn_from(data)
        one = recipes.recipe(recipe).adjusted(size, None, scanners)
        plan = Plan(one, data=sets, size=size, scanners=scanners, **given)
        with _bar() as bar:
            rows = robustness.measure(plan, lambda name: _follow(bar, name), chosen)
        path = robustness.write(plan.folder, f"{recipe}: robustness", rows)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0])) from error
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    click.echo(robustness.lines(rows))
    click.echo(f"table and picture: {path}")


def _to_learn_from(data: Sequence[str]) -> tuple[tuple[Source, Path], ...]:
    """Sets by KIND:FOLDER. Raises KeyError, PermanentError SET_UNFIT for one without labels of slices."""
    from workers.training import sources

    sets = tuple(sources.parse(text) for text in data)
    if any(not source.slices for source, _ in sets):
        text = "a set that labels whole studies only cannot be trained on: evaluate on it"
        raise PermanentError("SET_UNFIT", text)
    return sets


class _Train(click.Command):
    """`explore`, `table` and `robustness` are commands of their own; any other first word is a recipe."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        for other in (explore, table, robustness):
            if args[:1] == [other.name]:
                return other.make_context(f"{info_name} {other.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_Train)
@click.argument("recipe", default="default")
@click.option(
    "--data",
    multiple=True,
    metavar="KIND:FOLDER",
    help="A labelled set, ct-ich:DIR say; repeat for more. Without it: phantoms only.",
)
@click.option(
    "--phantoms",
    type=click.IntRange(min=0),
    help="Synthetic heads to draw, where wanted, instead of the recipe's.",
)
@click.option("--out", type=FOLDER, default=Path("runs"), show_default=True, help="A folder in it a recipe.")
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    help="Folds of the cross-validation over patients.",
)
@click.option("--only", type=int, multiple=True, help="Run this fold only (from 0); repeat for more.")
@click.option(
    "--seeds", type=MANY, default=1, show_default=True, help="Repetitions with other seeds, averaged."
)
@click.option("--seed", default=1, show_default=True)
@click.option("--size", type=SIDE, help="Side of the pictures instead of the recipe's, a multiple of 32.")
@click.option("--steps", type=MANY, help="Steps of each stage instead of the recipe's own (to try things).")
@click.option(
    "--scanners",
    type=click.IntRange(min=0),
    help="So many more readings of each patient are learned from, as other scanners may show them.",
)
@click.option(
    "--init",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public ImageNet weights for the backbone, from this file.",
)
@click.option("--cache", type=FOLDER, help="Where prepared pictures are kept (default: in --out).")
@click.option("--device", default="auto", show_default=True)
@click.option("--version", "model_version", default="1.0.0", show_default=True)
@click.option(
    "--soup",
    is_flag=True,
    help="Average the weights of seeds and snapshots that share a pretraining, not what they say.",
)
@click.option("--ship/--no-ship", default=True, show_default=True, help="Train on all patients in the end.")
def train(
    recipe: str,
    data: tuple[str, ...],
    size: int | None,
    steps: int | None,
    scanners: int | None,
    only: tuple[int, ...],
    device: str,
    model_version: str,
    **given: Any,
) -> None:
    """Train RECIPE: cross-validation over patients with its report, then weights of all of them.

    A stopped run is resumed. `ichnode train explore --help` looks into a labelled set instead, `ichnode train
    table` sets what was trained side by side.
    """

    from workers.models.device import choose_device
    from workers.training import recipes, ship
    from workers.training.learners import takes_public_weights
    from workers.training.plan import Plan

    try:
        chosen = recipes.recipe(recipe)
        sets = _to_learn_from(data)
        where = choose_device(device)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0])) from error
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    if not sets and chosen.pretrain is None:
        raise click.ClickException(f"recipe {recipe} learns from patients: give --data KIND:FOLDER")
    if any(not 0 <= number < given["folds"] for number in only):
        raise click.BadParameter(f"folds are 0 to {given['folds'] - 1}", param_hint="--only")
    plan = Plan(
        chosen.adjusted(size, steps, scanners),
        data=sets,
        size=size,
        steps=steps,
        scanners=scanners,
        version=model_version,
        only=only,
        workers=os.cpu_count() or 1,
        device=where,
        **given,
    )
    if plan.soup and not any(one.souped for one in plan.whole()):
        text = f"--soup: the networks of {recipe} share no pretraining, and their mean would know nothing"
        raise click.ClickException(text)
    if plan.init and not any(takes_public_weights(one.recipe) for one in plan.whole()):
        raise click.ClickException(
            f"--init: no network of {recipe} can begin with public weights; leave it out"
        )
    if plan.phantoms == 0 and any(one.recipe.pretrain for one in plan.whole()):
        raise click.ClickException(f"{recipe} begins with phantoms: give --phantoms 1 or more")
    try:
        with _bar() as bar:
            outcome, identity = ship.run(plan, lambda name: _follow(bar, name))
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    if outcome:
        click.echo(f"report: {plan.folder / 'report' / 'report.html'}")
    if identity:
        click.echo(f"{identity.name} {identity.version} sha256 {identity.sha256} in {plan.folder}")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns)


def _follow(bar: Progress, name: str) -> Callback:
    """A line of its own for each part of the work, the same one where it is asked for again."""
    task = next((one.id for one in bar.tasks if one.fields["part"] == name), None)
    if task is None:
        task = bar.add_task(name, total=None, part=name)

    def step(done: int, steps: int, loss: float) -> None:
        bar.update(task, completed=done, total=steps, description=f"{name} loss {loss:.3f}")

    return step


@click.command()
@click.argument("model", default="default")
@click.option("--data", multiple=True, metavar="KIND:FOLDER", help="A labelled set; repeat for more.")
@click.option(
    "--phantoms", type=MANY, default=40, show_default=True, help="Held-out synthetic heads, when no --data."
)
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Where train put its own.")
@click.option("--device", default="auto", show_default=True)
@click.option("--out", type=FOLDER, help="Write report.html, report.md and report.json into this folder.")
def evaluate(
    model: str, data: tuple[str, ...], phantoms: int, runs: Path, device: str, out: Path | None
) -> None:
    """Evaluate MODEL at its shipped thresholds: a pipeline's name, its sidecar, or a recipe that was trained.

    Says so when it was trained on the same patients.
    """
    from workers.training import appraise, report, sources

    try:
        sidecar = appraise.sidecar(model, runs)
        sets = [sources.parse(text) for text in data]
        verdict = appraise.appraise(sidecar, sets, phantoms, device)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0])) from error
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    if verdict.seen:
        click.echo(
            f"WARNING: {len(verdict.seen)} of these patients were trained on: the figures flatter.", err=True
        )
    if out:
        report.write(
            out,
            verdict.title,
            verdict.facts,
            verdict.summary,
            verdict.cases,
            about=verdict.about,
            limits=verdict.limits,
        )
        click.echo(f"report: {out / 'report.html'}")
    Console().print(_figures(verdict.summary))


def _figures(summary: dict[str, Any]) -> Table:
    from workers.training.report.numbers import shown

    counts = summary["cases"]
    title = f"{counts['patients']} patients, {counts['slices']} slices; 95 % intervals by patient"
    table = Table(title=title)
    for heading in ("class", "of", "positive", "AUC", "AP", "sensitivity at specificity .90"):
        table.add_column(heading, overflow="fold")
    for level in ("study", "slice"):
        for name, figures in summary[level].items():
            values = (figures.get(key) for key in ("auc", "ap", "sensitivity_at_specificity_0.90"))
            table.add_row(name, level, str(figures["positive"]), *(shown(value) for value in values))
    return table


@click.command()
@with_settings
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(settings: Settings, as_json: bool) -> None:
    """List the pipelines of the catalogue: versions, digests, figures, and which model this node uses.

    The figures are the AUC of any haemorrhage for patients that the networks had not seen.
    """
    from workers.models.catalogue import CATALOGUE
    from workers.models.device import choose_runtime
    from workers.models.runtime import read_sidecar
    from workers.selection import wish_of

    rows = []
    for known in CATALOGUE:
        try:
            facts = read_sidecar(known.sidecar)
        except PermanentError as error:
            facts = {"version": "–", "sha256": str(error)}
        rows.append(
            {
                "name": known.name,
                "version": facts["version"],
                "sha256": facts["sha256"],
                "summary": known.summary,
                "figures": _auc(facts),
                "used": "",
            }
        )
    rows = _with_use(rows, _uses(settings))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _print(rows)
    try:
        click.echo(f"networks run on {choose_runtime(wish_of(settings.model)).words}")
    except PermanentError as error:
        click.echo(f"networks cannot run: {error}")


def _print(rows: list[dict[str, str]]) -> None:
    table = Table("name", "version", "sha256", "summary", "AUC of any", "used here")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*{**row, "sha256": row["sha256"][:12]}.values())
    Console().print(table)


def _auc(facts: dict[str, Any]) -> str:
    """Of a sidecar, the AUC of any haemorrhage of its cross-validation, patients and slices."""
    from workers.training.report.numbers import UNTOLD, shown

    held_out = (facts.get("metrics") or {}).get("held_out")
    if not held_out:
        return UNTOLD
    told = {level: held_out[level]["any"] for level in ("study", "slice")}
    return "; ".join(f"{level} {shown(one['auc'])} of {one['n']}" for level, one in told.items())


def _uses(settings: Settings) -> list[tuple[ModelIdentity, str]]:
    """The active model and the one in the shadow, where this installation has a database."""
    from node.admin.listing import when
    from node.promotion import standing
    from node.store.records import open_records

    if not settings.database.url and not (settings.data_dir / DATABASE_FILE).exists():
        return []
    records = open_records(settings)
    try:
        stands = standing(settings, records, time.time())
    finally:
        records.close()
    promoted = stands.active.promoted
    how = f"active, promoted by {promoted.who}" if promoted else "active, by the settings"
    since = f", since {when(stands.since)}" if stands.since else ""
    found = [(stands.model, how + since)] if stands.model else []
    return [*found, (stands.shadow.identity, "in the shadow")] if stands.shadow else found


def _with_use(rows: list[dict[str, str]], uses: list[tuple[ModelIdentity, str]]) -> list[dict[str, str]]:
    """The catalogue, and below it what is used and stands in no catalogue."""
    of = {model.sha256: words for model, words in uses}
    known = {row["sha256"] for row in rows}
    others = [
        {
            "name": m.name,
            "version": m.version,
            "sha256": m.sha256,
            "summary": "from a file",
            "figures": "–",
            "used": words,
        }
        for m, words in uses
        if m.sha256 not in known
    ]
    return [*({**row, "used": of.get(row["sha256"], "")} for row in rows), *others]
