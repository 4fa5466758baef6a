"""Drawn against true volume as pictures: scatter and Bland–Altman, in mL or pixels. Computes no figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from workers.training.report.masks import GRID_PIXELS, Volumes
from workers.training.report.numbers import shown
from workers.training.report.picture import WITH, WITHOUT, Picture, below


def volume_pictures(summary: Mapping[str, Any], one: Volumes) -> list[Picture]:
    """Both pictures of one unit; none where no study has a volume."""
    told = summary["masks"]["volume"][one.unit]
    if len(one.owners) == 0:
        return []
    suffix = "pixels" if one.unit == GRID_PIXELS else "ml"
    origin = "" if one.unit == "mL" else " The set tells no pixel size: no mL can be said."
    return [
        Picture(
            f"volume_{suffix}",
            f"Volume drawn against volume in the known masks, a study a point ({one.both_empty} with "
            f"neither left out). Both axes grow logarithmically beyond the first tick.{origin}",
            _volume_scatter(one, told),
        ),
        Picture(
            f"bland_altman_{suffix}",
            "Bland–Altman: drawn minus true volume against their mean, a study a point; bias and limits "
            f"of agreement (bias ± 1.96 SD) with 95 % intervals, drawing patients.{origin}",
            _bland_altman(one, told),
        ),
    ]


def _volume_scatter(one: Volumes, told: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.add_subplot()
    top = max(one.drawn.max(), one.true.max()) * 1.4
    linear = 1.0 if one.unit == "mL" else 100.0
    axes.plot((0, top), (0, top), color="#999999", linewidth=0.8, linestyle=":")
    axes.plot(one.true, one.drawn, "o", color=WITHOUT, alpha=0.5, clip_on=False)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=linear)
    axes.set(
        xlim=(0, top), ylim=(0, top), xlabel=f"true volume ({one.unit})", ylabel=f"drawn volume ({one.unit})"
    )
    axes.set_title(f"Pearson r {shown(told['pearson'], 2)}, {len(one.owners)} studies", fontsize=11)
    axes.grid(alpha=0.25)
    return figure


def _bland_altman(one: Volumes, told: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    mean, difference = (one.drawn + one.true) / 2, one.drawn - one.true
    digits = 1 if one.unit == "mL" else 0
    axes.plot(mean, difference, "o", color=WITHOUT, alpha=0.5)
    for key, name, style in (
        ("limit_high", "upper limit", "--"), ("bias", "bias", "-"), ("limit_low", "lower limit", "--"),
    ):  # fmt: skip
        value, low, high = told[key]
        if value is None:
            continue
        axes.axhline(
            value, color=WITH, linestyle=style, linewidth=1.3, label=f"{name} {shown(told[key], digits)}"
        )
        if low is not None:
            axes.axhspan(low, high, color=WITH, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"mean of drawn and true volume ({one.unit})", ylabel=f"drawn − true ({one.unit})")
    below(axes, columns=3)
    axes.grid(alpha=0.25)
    return figure
