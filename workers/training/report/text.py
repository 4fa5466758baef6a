"""What the report says, in the order a sceptical reader asks: who, what is unknown, limits, then figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.training.metrics import FEW
from workers.training.report.blocks import Block, Heading, Image, Points, Table, Words
from workers.training.report.classes import BINS
from workers.training.report.masks import SCATTERED
from workers.training.report.numbers import fact, plain, shown
from workers.training.report.opening import WARNING, limits_of, unknown, who
from workers.training.report.sections import (
    LEVELS,
    Summary,
    calibration,
    explanation,
    level,
    masks,
    predictive,
    seeds,
)


def blocks(
    summary: Summary, facts: Mapping[str, Any], about: str, limits: Sequence[str], pictures: Mapping[str, str]
) -> list[Block]:
    """The whole document; `pictures` are captions by name."""

    def shows(*names: str) -> list[Block]:
        return [Image(name, caption) for name, caption in pictures.items() if name.startswith(names)]

    return [
        Words(WARNING, loud=True),
        *who(summary, about),
        Heading("What is not known"),
        Points(unknown(summary)),
        Heading("Limits"),
        Points([*limits, *limits_of(summary)]),
        Heading("In short"),
        _short(summary),
        Words("Brackets, here and below: 95 % interval, drawing whole patients anew."),
        *level(summary, "study"),
        *predictive(summary),
        *shows("prevalence"),
        *level(summary, "slice"),
        Heading("Curves"),
        *shows("roc", "precision_recall"),
        Heading("Calibration"),
        *calibration(summary),
        *shows("calibration", "scores"),
        *masks(summary),
        *shows("volume", "bland_altman"),
        *explanation(summary),
        *seeds(summary),
        *_facts(facts),
        Heading("How the figures are made"),
        Points(_methods(summary)),
    ]


def _short(summary: Summary) -> Table:
    rows = []
    if "any" in summary["classes"]:
        for which, word in LEVELS.items():
            one = summary[which]["any"]
            if one["n"]:
                rows += [
                    (f"{word}, any: AUC", shown(one["auc"])),
                    (f"{word}, any: sensitivity at the threshold", shown(one.get("recall"))),
                    (f"{word}, any: specificity at the threshold", shown(one.get("specificity"))),
                ]
    if summary["masks"]:
        for group, word in (("by_hand", "drawn by hand"), ("pseudo", "pseudo-masks")):
            one = summary["masks"][group]
            if one["slices"]:
                dice = f"{shown(one['dice_mean'])}; pooled {shown(one['dice_pooled'])}"
                rows.append(
                    (f"Mean Dice, {word}: {one['slices']} slices of {one['patients']} patients", dice)
                )
    if summary["explanation"]:
        one = summary["explanation"]["all"]
        chance = f"{shown(one['pointing'])}; by chance {plain(one['pointing_by_chance'][0])}"
        rows.append((f"Grad-CAM++ peak at the blood, {one['slices']} slices", chance))
    return Table(("figure", "value"), rows)


def _facts(facts: Mapping[str, Any]) -> list[Block]:
    if not facts:
        return []
    rows = [(key, fact(value)) for key, value in facts.items()]
    return [
        Heading("Model and run"),
        Words("As told by the run, not measured here."),
        Table(("fact", "value"), rows),
    ]


def _methods(summary: Summary) -> list[str]:
    drawn = summary["bootstrap"]
    return [
        f"Intervals: percentiles 2.5 and 97.5 over {drawn['draws']} draws of whole patients with "
        f"replacement (seed {drawn['seed']}); draws in which a figure is undefined are left out, and no "
        f"interval is given where those are more than half, or where fewer than {FEW} patients stand behind "
        f"it (have the class, lack it, have such a mask; {SCATTERED} for correlations and limits of "
        "agreement).",
        "PR AUC is average precision, without interpolation. Sensitivity at a specificity: the best that "
        "any threshold of at least that specificity gets on these cases; it is chosen anew in each draw.",
        "Log loss: natural logarithm, probabilities clipped to 1e-15. The RSNA 2019 log loss weights any "
        "2/7 and each subtype 1/7.",
        f"ECE: mean distance of probability and frequency over {BINS} bins of equal width, weighted by "
        "cases. With few cases it is above 0 even for a perfectly calibrated model, and its draws lie "
        "higher still.",
        "Masks: slices with a known true mask, on the network's grid, background not counted. Both empty: "
        "left out. One empty: Dice and IoU 0, no distance. Pooled: pixels of all slices together; mean: "
        "each slice counts the same.",
        "HD95: the greater of the two directed 95th percentiles of the distances between the edges of the "
        "masks, in plane, over slices where both hold blood; so a missed bleed does not worsen it.",
        "Volume: pixels of the known slices of a study times the size of a cell; studies with neither "
        "mask are left out.",
        "Pointing: of several equal peaks the share that hits counts; coarser maps are brought to the "
        "grid bilinearly. By chance: a point, or a map, spread evenly over the picture. Detected: slice "
        "probability of any at or above its threshold.",
    ]
