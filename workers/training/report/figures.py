"""The pictures of an evaluation: intervals are drawn, and no legend lies over data. Computes no figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.training.metrics import Array, Ranks, ratio
from workers.training.report.agreement import volume_pictures
from workers.training.report.case import Case
from workers.training.report.classes import PREVALENCES, Scores
from workers.training.report.masks import overlap, volumes
from workers.training.report.numbers import shown
from workers.training.report.picture import (
    COLOURS,
    WITH,
    WITHOUT,
    Picture,
    below,
    line,
    nothing,
    pair,
    square,
)
from workers.training.report.summary import LEVELS, level

PREVALENCE_COLOURS = ("#56b4e9", "#0072b2", "#00324f")
MANY = 5
"""A subtype is drawn when it has more positives than this."""


def draw(summary: Mapping[str, Any], cases: Sequence[Case]) -> list[Picture]:
    """Every picture these cases allow."""
    listed: list[Picture | None] = []
    if any(_drawn(summary, which) for which in LEVELS):
        listed += [_roc(summary, cases), _precision_recall(summary, cases)]
    if "any" in summary["classes"]:
        listed += [_calibration(summary), _scores(summary, cases), _prevalence(summary, cases)]
    found = overlap(cases, distances=False)
    for one in volumes(found) if found else ():
        listed += volume_pictures(summary, one)
    return [picture for picture in listed if picture is not None]


def _drawn(summary: Mapping[str, Any], which: str) -> list[str]:
    """Classes that have a curve: "any", and subtypes with enough positives; both with and without it."""
    told = summary[which]
    return [
        name
        for name, one in told.items()
        if (name == "any" or one["positive"] > MANY) and one.get("auc", [None])[0] is not None
    ]


def _label(name: str, told: Mapping[str, Any], key: str) -> str:
    apart = told["patients_positive"] != told["positive"]
    patients = f", {told['patients_positive']} patients" if apart else ""
    return f"{name}: {shown(told[key], 2)}; {told['positive']} of {told['n']}{patients}"


def _titles(summary: Mapping[str, Any]) -> dict[str, str]:
    counts = summary["cases"]
    patients = counts["patients"]
    seen = max((one["patients"] for one in summary["slice"].values()), default=0)
    slices = f" ({counts['slices_with_truth']} of {seen} patients)" if seen else ""
    one_each = counts["studies"] == patients
    return {
        "slice": f"Slices{slices}",
        "study": f"Studies ({patients}, one a patient)" if one_each else f"Studies ({counts['studies']})",
    }


Draw = Callable[[Axes, Scores, str, str], None]
"""Draws one class, by name, with its label."""


def _curves(summary: Mapping[str, Any], cases: Sequence[Case], key: str, draw_one: Draw) -> Figure:
    """A curve a class, slices on the left and studies on the right; the labels tell the figure `key`."""
    figure, both = pair()
    words = {"auc": "AUC", "ap": "Average precision"}[key]
    for axes, which in zip(both, LEVELS, strict=True):
        names, title = _drawn(summary, which), _titles(summary)[which]
        if not names:
            nothing(axes, title)
            continue
        one = level(cases, which)
        axes.set_title(title)
        for name in names:
            draw_one(axes, one.scores(name), name, _label(name, summary[which][name], key))
        below(axes, f"{words} (95 % interval); positives")
    return figure


def _roc(summary: Mapping[str, Any], cases: Sequence[Case]) -> Picture:
    def curve(axes: Axes, scores: Scores, name: str, label: str) -> None:
        sensitivity, false_alarms = _rates(scores)
        axes.plot(np.append(0, false_alarms), np.append(0, sensitivity), label=label, **line(name))
        square(axes, axes.get_title(), "1 − specificity", "sensitivity")

    figure = _curves(summary, cases, "auc", curve)
    for axes, which in zip(figure.axes, LEVELS, strict=True):
        if _drawn(summary, which):
            axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, linestyle=":")
        if band := summary[which].get("any", {}).get("roc_band"):
            _band(axes, band)
    return Picture(
        "roc",
        'ROC curves. Shaded: 95 % interval of the sensitivity of "any" at each specificity, drawing '
        f"patients. Subtypes with more than {MANY} positives only.",
        figure,
    )


def _band(axes: Axes, band: Mapping[str, Any]) -> None:
    rows = [
        (1 - specificity, low, high)
        for specificity, (_, low, high) in zip(band["specificity"], band["sensitivity"], strict=True)
        if low is not None
    ]
    across, low, high = np.asarray(rows, float).reshape(-1, 3).T
    axes.fill_between(across, low, high, color=COLOURS["any"], alpha=0.13, linewidth=0)


def _precision_recall(summary: Mapping[str, Any], cases: Sequence[Case]) -> Picture:
    def curve(axes: Axes, scores: Scores, name: str, label: str) -> None:
        ranks = Ranks.of(scores.truth, scores.score)
        recall, precision = (
            ranks.true[0] / ranks.true[0, -1],
            ratio(ranks.true[0], ranks.true[0] + ranks.false[0]),
        )
        grows = np.diff(recall, prepend=0) > 0
        across, up = np.append(0, recall[grows]), np.append(precision[grows][0], precision[grows])
        axes.step(across, up, where="pre", label=label, **line(name))
        axes.axhline(scores.truth.mean(), color=COLOURS[name], linewidth=0.8, linestyle=":")
        square(axes, axes.get_title(), "recall (sensitivity)", "precision")

    return Picture(
        "precision_recall",
        "Precision against recall. Dotted: the share of positives, which is what chance gets. "
        f"Subtypes with more than {MANY} positives only.",
        _curves(summary, cases, "ap", curve),
    )


def _calibration(summary: Mapping[str, Any]) -> Picture:
    figure, both = pair()
    for axes, which in zip(both, LEVELS, strict=True):
        told, title = summary[which]["any"], _titles(summary)[which]
        if not told.get("calibration"):
            nothing(axes, title)
            continue
        axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, linestyle=":")
        for row in told["calibration"]:
            value, low, high = row["observed"]
            if low is not None:
                axes.plot((row["predicted"],) * 2, (low, high), color=COLOURS["any"], linewidth=1.2)
            axes.plot(row["predicted"], value, "o", color=COLOURS["any"], markersize=5)
        square(
            axes,
            f"{title}: ECE {shown(told['ece'])}",
            'probability given for "any"',
            "share with haemorrhage",
        )
        axes.set_xticks(np.linspace(0, 1, 11))
        counts = axes.secondary_xaxis(1.0)
        counts.set_xticks([row["predicted"] for row in told["calibration"]])
        counts.set_xticklabels([str(row["n"]) for row in told["calibration"]], fontsize=7, rotation=60)
        counts.tick_params(length=2)
        counts.set_xlabel("cases in the bin", fontsize=8)
    return Picture(
        "calibration",
        'Calibration of "any" in ten bins of equal width: mean probability against the share of '
        "positives, bars: 95 % interval drawing patients. Numbers above: cases in the bin; a bin of few "
        "cases says little.",
        figure,
    )


def _scores(summary: Mapping[str, Any], cases: Sequence[Case]) -> Picture:
    figure, both = pair()
    edges = np.linspace(0, 1, 26).tolist()
    for axes, which in zip(both, LEVELS, strict=True):
        one, title = level(cases, which), _titles(summary)[which]
        if not len(one.owners):
            nothing(axes, title)
            continue
        scores, threshold = one.scores("any"), summary[which]["any"]["threshold"]
        with_it, without = scores.score[scores.truth > 0], scores.score[scores.truth == 0]
        axes.hist(without, edges, color=WITHOUT, alpha=0.55, label=f"without haemorrhage ({len(without)})")
        axes.hist(
            with_it, edges, color=WITH, alpha=0.9, histtype="step", linewidth=2,
            label=f"with haemorrhage ({len(with_it)})",
        )  # fmt: skip
        if threshold is not None:
            axes.axvline(
                threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}"
            )
        if which == "slice":
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        axes.set(xlabel='probability of "any"', title=title, xlim=(0, 1))
        axes.set_ylabel(f"{'slices (logarithmic)' if which == 'slice' else 'studies'}")
        below(axes)
    return Picture("scores", 'What probability of "any" was given, by truth.', figure)


def _prevalence(summary: Mapping[str, Any], cases: Sequence[Case]) -> Picture | None:
    told, values = summary["study"]["any"], summary["predictive_values"] or {}
    if told.get("auc", [None])[0] is None:
        return None
    sensitivity, false_alarms = _rates(level(cases, "study").scores("any"))
    some = false_alarms > 0
    figure = Figure(figsize=(7.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    for shift, share, colour in zip((-0.012, 0, 0.012), PREVALENCES, PREVALENCE_COLOURS, strict=True):
        right, wrong = sensitivity[some] * share, false_alarms[some] * (1 - share)
        ppv = values.get(f"{share:.2f}", {}).get("ppv")
        label = f"prevalence {share:.0%}" + (f": PPV {shown(ppv, 2)}" if ppv else "")
        axes.plot(sensitivity[some], ratio(right, right + wrong), color=colour, linewidth=1, label=label)
        axes.axhline(share, color=colour, linewidth=0.8, linestyle=":")
        if ppv and told["recall"][0] is not None:
            _point(axes, told["recall"][0] + shift, ppv, colour)
    square(axes, "", "sensitivity", "positive predictive value")
    axes.set_aspect("auto")
    title = f"At the given threshold (sensitivity {shown(told['recall'], 2)})" if values else None
    below(axes, title, gap=0.11)
    return Picture(
        "prevalence",
        'Studies: the predictive value of an alarm for "any" against sensitivity, over all thresholds, '
        "where a bleed is as frequent as told (dotted: an alarm that knows nothing). Points and boxes: "
        "the given threshold with 95 % intervals both ways. Thresholds without a false alarm are not "
        "drawn: these cases are too few to tell a predictive value there.",
        figure,
    )


def _rates(scores: Scores) -> tuple[Array, Array]:
    """Sensitivity and share of false alarms at each distinct score, highest first."""
    ranks = Ranks.of(scores.truth, scores.score)
    return ranks.true[0] / ranks.true[0, -1], ranks.false[0] / ranks.false[0, -1]


def _point(axes: Axes, place: float, figure: Sequence[float | None], colour: str) -> None:
    """A figure at its place, with its interval as a bar; nothing where it is undefined."""
    value, low, high = figure
    if low is not None and high is not None:
        axes.plot((place, place), (low, high), color=colour, linewidth=3.5, alpha=0.6, solid_capstyle="butt")
    if value is not None:
        axes.plot(place, value, "o", color=colour, markersize=8, markeredgecolor="white", zorder=3)
