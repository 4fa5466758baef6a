"""`ichnode analyse` and `ichnode demo`, found by the node through entry points. Decides nothing."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from node.admin.cli import with_settings
from node.domain.findings import Findings, Status
from node.settings import Settings

NOT_ANALYSED_EXIT_CODE = 3
PRIORITY_STYLES = {"STAT": "bold white on red", "HIGH": "bold black on yellow", "ROUTINE": "green"}


@click.command()
@with_settings
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Results go here."
)
@click.option("--json", "as_json", is_flag=True, help="Print findings.json instead of a table.")
def analyse(settings: Settings, folder: Path, out: Path, as_json: bool) -> None:
    """Analyse the head CT study in FOLDER without any network.

    Writes findings.json, sr.dcm, seg.dcm and sc/*.dcm. Exit code 3: the study was not analysed,
    and the report says why.
    """
    console = Console(stderr=True, markup=False)
    with console.status("starting") as status:
        from workers.offline import analyse_folder

        result = analyse_folder(folder, out, settings, lambda text: status.update(text + " …"))
    if as_json:
        click.echo(json.dumps(result.findings.to_json(), indent=2))
    else:
        out_console = Console(markup=False)
        out_console.print(findings_panel(result.findings))
        say_files(out_console, result.files)
    if result.findings.status is Status.NOT_ANALYSED:
        sys.exit(NOT_ANALYSED_EXIT_CODE)


@click.command()
@click.option("--once", is_flag=True, help="End after the result, with exit code 0.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything here. [default: a new temporary folder]",
)
def demo(once: bool, folder: Path | None) -> None:
    """Run the whole node with a PACS of its own, send it a head CT, show what comes back."""
    console = Console(markup=False)
    place = folder or Path(tempfile.mkdtemp(prefix="ichnode-demo-"))
    place.mkdir(parents=True, exist_ok=True)
    with console.status("starting …") as status:
        from workers import demo as parts

        said = ""

        def say(text: str) -> None:
            nonlocal said
            status.update(text + " …")
            if text != said and not console.is_terminal:
                console.print(text)
            said = text

        with parts.running(place.resolve(), say) as running:
            slices = parts.send_sample(running, say)
            job = parts.await_result(running, say)
            files = running.pacs.fetch(running.folder / "received")
            status.stop()
            _show_demo(console, running, job, slices, files)
            if not once:
                say_line(console, f"The node runs on. Dashboard: {running.dashboard}  Ctrl-C stops it.")
                parts.wait_for_interrupt()
    if job["findings"] is None:
        raise click.ClickException(f"the sample was not analysed: {job['reason_text']}")


def _show_demo(
    console: Console, running: Any, job: Mapping[str, Any], slices: int, files: Mapping[str, Sequence[Path]]
) -> None:
    if job["findings"] is not None:
        console.print(findings_panel(Findings.from_json(job["findings"])))
    times = running.records.views.job_times(job["id"])
    say_line(console, f"Drawn into the phantom: {', '.join(parts_of_sample())}")
    say_files(console, files)
    seconds = (times["first_sent_at"] or 0) - (times["received_at"] or 0)
    say_line(console, f"The SR was in {running.pacs.name} {seconds:.1f} s after the last of {slices} slices.")
    say_line(console, f"Dashboard of this run: {running.dashboard}")
    say_line(console, f"Everything is kept in {running.folder}")


def parts_of_sample() -> tuple[str, ...]:
    """What the sample study really holds, to hold against the findings."""
    from workers.demo import BLEEDS

    return BLEEDS


def say_line(console: Console, text: str) -> None:
    """One line, however narrow the terminal: paths and addresses are there to be copied."""
    console.print(text, soft_wrap=True)


def findings_panel(findings: Findings) -> Panel:
    """The findings as a person wants to read them."""
    if findings.reason:
        text = Text(f"NOT ANALYSED: {findings.reason.text} ({findings.reason.code})", style="bold red")
        return Panel(text, title="findings", expand=False)
    table = Table(box=None, pad_edge=False)
    for column in ("class", "probability", ""):
        table.add_column(column)
    for name, finding in findings.classes.items():
        mark = Text("present", style="bold red") if finding.present else Text("–", style="dim")
        table.add_row(name, f"{finding.probability:.3f}", mark)
    summary = Table.grid(padding=(0, 2))
    priority = findings.priority.value if findings.priority else ""
    summary.add_row("priority", Text(f" {priority} ", style=PRIORITY_STYLES.get(priority, "")))
    if findings.segmentation:
        count = len(findings.segmentation.slices)
        summary.add_row("volume", f"{findings.segmentation.volume_ml:.1f} mL on {count} slices")
    summary.add_row("consistency", findings.consistency.value if findings.consistency else "")
    model = findings.model
    summary.add_row("model", f"{model.name} {model.version} ({model.sha256[:12]}…)")
    for warning in findings.warnings:
        summary.add_row("note", warning)
    footer = Text("Research use only, not for diagnosis.", style="dim")
    return Panel(Group(table, "", summary, footer), title="findings", expand=False)


def say_files(console: Console, files: Mapping[str, Sequence[Path]]) -> None:
    """A line for each kind of file: the first path, and how many there are."""
    for name, paths in sorted(files.items()):
        more = f"  … {len(paths)} files" if len(paths) > 1 else ""
        say_line(console, f"{name.upper():<9} {paths[0]}{more}")
