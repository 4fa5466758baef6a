"""What benchmarks found, as data: panels of repeated measurements, their ratios, a drawing. Measures nothing.

A benchmark that is given `--panels FILE` writes its panels there; `python -m tests.bench` collects them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

COLOURS = ("#1b5e8a", "#8a8a8a", "#c98a2b", "#b9b9b9", "#6a4c8c", "#5d8a5a")
"""Ours first."""
COLUMNS = 2


@dataclass(frozen=True)
class Panel:
    """Bars of one chart: `values[group][name]` is what `name` reached in each round, in `unit`.

    Rounds are paired: entry k of every name of a group is from the same round. `ours` is what the others are
    compared with; `higher` says which way is better.
    """

    title: str
    unit: str
    ours: str
    higher: bool
    values: Mapping[str, Mapping[str, Sequence[float]]]

    def ratios(self) -> Iterator[tuple[str, str, list[float]]]:
        """Group, peer, and by how many times ours is better than the peer in each round.

        Raises ValueError where rounds are not paired.
        """
        for group, runs in self.values.items():
            for peer, theirs in runs.items():
                if peer != self.ours and self.ours in runs:
                    pairs = zip(runs[self.ours], theirs, strict=True)
                    yield group, peer, [a / b if self.higher else b / a for a, b in pairs]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    told = (statistics.median(values), min(values), max(values))
    return "{:.{d}f} ({:.{d}f}–{:.{d}f})".format(*told, d=digits)


def write(file: Path, panels: Sequence[Panel]) -> None:
    """Keep panels as JSON."""
    file.write_text(json.dumps([asdict(panel) for panel in panels]))


def read(file: Path) -> list[Panel]:
    """What `write` kept; nothing where there is no such file."""
    return [Panel(**one) for one in json.loads(file.read_text())] if file.exists() else []


def summary(panels: Sequence[Panel]) -> str:
    """All ratios as one Markdown table: above 1, ours is better. Empty where nothing was compared."""
    rows = [
        f"| {panel.title} | {group} | {peer} | {spread(found)} | {len(found)} |"
        for panel in panels
        for group, peer, found in panel.ratios()
    ]
    if not rows:
        return ""
    return "\n".join(
        ["| what | how | ours against | × better, median (range) | rounds |", "|---" * 5 + "|", *rows]
    )


def draw(file: Path, panels: Sequence[Panel]) -> None:
    """One picture: a chart for each panel, medians as bars, ranges as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(11, 3.4 * rows), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        names = list(dict.fromkeys(name for runs in panel.values.values() for name in runs))
        names.sort(key=lambda name: name != panel.ours)
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            found = {at: runs[name] for at, runs in enumerate(panel.values.values()) if name in runs}
            middles = [statistics.median(values) for values in found.values()]
            low = [middle - min(values) for middle, values in zip(middles, found.values(), strict=True)]
            high = [max(values) - middle for middle, values in zip(middles, found.values(), strict=True)]
            at = [group + (place - (len(names) - 1) / 2) * width for group in found]
            axis.bar(at, middles, 0.92 * width, yerr=(low, high), color=COLOURS[place % len(COLOURS)],
                     error_kw={"lw": 0.8, "capsize": 2}, label=name)  # fmt: skip
        labels = [group.replace(", ", ",\n") for group in panel.values]
        axis.set_xticks(range(len(labels)), labels)
        better = "higher" if panel.higher else "lower"
        axis.set(title=panel.title, ylabel=f"{panel.unit} ({better} is better)", ylim=(0, None))
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        below = -0.19 if any("\n" in text for text in labels) else -0.12
        axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, below), frameon=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
