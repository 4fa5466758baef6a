"""The commands `train`, `evaluate` and `models`. They print and write files; the store is not theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from node.domain.errors import PermanentError

if TYPE_CHECKING:
    from workers.training.fit import Progress as Callback

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)


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


class _Train(click.Command):
    """`train explore …` is a command of its own; any other first word is a recipe."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["explore"]:
            return explore.make_context(f"{info_name} explore", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_Train)
@click.argument("recipe", default="default")
@click.option(
    "--data", type=EXISTING, help="CT-ICH folder (index.csv, brain/, …); without it: phantoms only."
)
@click.option("--phantoms", default=800, show_default=True, help="Synthetic heads to draw for pretraining.")
@click.option("--out", type=FOLDER, default=Path("runs/default"), show_default=True, help="The run's folder.")
@click.option("--folds", default=5, show_default=True, help="Folds of the cross-validation over patients.")
@click.option("--members", default=1, show_default=True, help="Repetitions of fine-tuning to average.")
@click.option("--seed", default=1, show_default=True)
@click.option("--version", "model_version", default="1.0.0", show_default=True)
@click.option("--steps", type=int, help="Steps of each stage instead of the recipe's own (to try things).")
def train(
    recipe: str,
    data: Path | None,
    phantoms: int,
    out: Path,
    folds: int,
    members: int,
    seed: int,
    model_version: str,
    steps: int | None,
) -> None:
    """Train RECIPE: phantoms first, then CT-ICH with cross-validation. A stopped run is resumed.

    `train explore --help` looks into a labelled set instead.
    """
    from dataclasses import replace

    from workers.training import recipes
    from workers.training.train import Plan, run

    try:
        chosen = recipes.recipe(recipe)
    except KeyError as error:
        raise click.BadParameter(str(error.args[0]), param_hint="RECIPE") from error
    if steps is not None:
        chosen = replace(
            chosen,
            pretrain=replace(chosen.pretrain, steps=steps),
            finetune=tuple(replace(stage, steps=steps) for stage in chosen.finetune),
        )
    plan = Plan(chosen, out, model_version, data, phantoms, folds, members, seed, os.cpu_count() or 1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        identity = run(plan, lambda name: _follow(bar, name))
    click.echo(f"{identity.name} {identity.version} sha256 {identity.sha256} in {out}")


def _follow(bar: Progress, name: str) -> Callback:
    task = bar.add_task(name, total=None)

    def step(done: int, steps: int, loss: float) -> None:
        bar.update(task, completed=done, total=steps, description=f"{name} loss {loss:.3f}")

    return step


@click.command()
@click.option("--pipeline", default="default", show_default=True, help="Name, or path of a sidecar JSON.")
@click.option("--data", type=EXISTING, help="CT-ICH folder to evaluate on.")
@click.option("--phantoms", default=40, show_default=True, help="Held-out synthetic heads, when no --data.")
@click.option("--device", default="auto", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here as JSON.")
def evaluate(pipeline: str, data: Path | None, phantoms: int, device: str, out: Path | None) -> None:
    """Evaluate a pipeline at its shipped thresholds; says so when it was trained on the same patients."""
    from workers.models.multitask import MultiTaskPipeline
    from workers.models.runtime import load_pipeline
    from workers.training import datasets
    from workers.training import evaluate as judge
    from workers.training.train import HELD_OUT_SEEDS

    try:
        model = load_pipeline(pipeline, device)
    except PermanentError as error:
        raise click.ClickException(str(error)) from error
    if not isinstance(model, MultiTaskPipeline):
        raise click.ClickException(f"{pipeline} cannot be evaluated by this command")
    seeds = range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + phantoms)
    series = datasets.ct_ich(data) if data else datasets.phantoms(seeds)
    predictions = [judge.predict(model, one) for one in series]
    report = judge.report(predictions, model.operating.aggregation)
    report["operating_point"] = judge.operating_point(
        predictions, model.operating.aggregation, model.thresholds
    )
    seen = _trained_on(pipeline) & {one.patient for one in predictions}
    report["patients_seen_in_training"] = len(seen)
    if seen:
        click.echo(f"WARNING: {len(seen)} of these patients were trained on: the figures flatter.", err=True)
    text = json.dumps(report, indent=2)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    Console().print(_figures(report))


def _trained_on(pipeline: str) -> set[str]:
    from workers.models.catalogue import entry
    from workers.models.runtime import read_sidecar

    sources = read_sidecar(entry(pipeline).sidecar).get("training_data", [])
    return {patient for source in sources for patient in source.get("patients", [])}


def _figures(report: dict[str, Any]) -> Table:
    table = Table(
        title=f"{report['patients']} patients, {report['slices']} slices; 95 % intervals by patient"
    )
    for heading in ("class", "of", "positive", "AUC", "AP", "sensitivity at specificity .90"):
        table.add_column(heading)
    for level in ("patient", "slice"):
        for name, figures in report[level].items():
            values = (figures[key] for key in ("auc", "ap", "sensitivity_at_specificity_0.90"))
            table.add_row(name, level, str(figures["positive"]), *(_interval(value) for value in values))
    return table


def _interval(value: list[float | None]) -> str:
    middle, low, high = ("–" if number is None else f"{number:.3f}" for number in value)
    return f"{middle} ({low}–{high})"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the pipelines of the catalogue, with versions and digests."""
    from workers.models.catalogue import CATALOGUE
    from workers.models.runtime import read_sidecar

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
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "version", "sha256", "summary")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
