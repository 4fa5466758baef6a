"""The figures as tables, section by section; every one with its interval. Says nothing that a table lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.training.report.blocks import Block, Heading, Points, Table, Words
from workers.training.report.classes import SPECIFICITIES
from workers.training.report.masks import GRID_PIXELS
from workers.training.report.numbers import UNTOLD, fact, plain, shown

Summary = Mapping[str, Any]
LEVELS = {"study": "Studies", "slice": "Slices"}


def level(summary: Summary, which: str) -> list[Block]:
    """Every class on slices or studies."""
    told = summary[which]
    if not any(one["n"] for one in told.values()):
        return [Heading(LEVELS[which]), Words("These cases tell no truth for their slices.")]
    ranked = ("auc", "ap", *(f"sensitivity_at_specificity_{wanted:.2f}" for wanted in SPECIFICITIES))
    decided = ("recall", "specificity", "precision", "f1", "accuracy")
    right = ("log_loss", "ece")
    words = {
        "auc": "ROC AUC", "ap": "PR AUC (AP)", "recall": "recall (sensitivity)", "f1": "F1",
        "log_loss": "log loss",
        "ece": "ECE", **{name: f"sensitivity at specificity {name[-3:]}" for name in ranked[2:]},
    }  # fmt: skip

    def rows(names: Sequence[str], first: str) -> Table:
        head = ("class", first, *(words.get(name, name) for name in names))
        lines = []
        for name, one in told.items():
            lead = f"{one['positive']} of {one['n']}" if first == "positive" else fact(one["threshold"])
            lines.append((name, lead, *(shown(one.get(key)) for key in names)))
        return Table(head, lines)

    loss = summary["rsna_log_loss"].get(which)
    return [
        Heading(LEVELS[which]),
        Heading("Whatever the threshold", 3),
        rows(ranked, "positive"),
        Heading("At the given threshold", 3),
        rows(decided, "threshold"),
        Heading("Of the probabilities", 3),
        rows(right, "positive"),
        *([Words(f"RSNA 2019 weighted log loss of all six classes: {shown(loss)}.")] if loss else []),
    ]


def predictive(summary: Summary) -> list[Block]:
    """PPV and NPV at several prevalences."""
    told = summary["predictive_values"]
    if not told:
        return []
    rows = [(f"{float(share):.0%}", shown(one["ppv"]), shown(one["npv"])) for share, one in told.items()]
    return [
        Heading('Predictive values of "any"', 3),
        Words(
            "From sensitivity and specificity of studies at the threshold, for places where a bleed is as "
            "frequent as told. They hold only where the patients are otherwise like these."
        ),
        Table(("prevalence", "PPV", "NPV"), rows),
    ]


def calibration(summary: Summary) -> list[Block]:
    """The bins of "any"."""
    found: list[Block] = []
    for which, word in LEVELS.items():
        one = summary[which].get("any", {})
        if not one.get("calibration"):
            continue
        rows = [
            (
                f"{row['low']:.1f} to {row['high']:.1f}",
                str(row["n"]),
                plain(row["predicted"]),
                shown(row["observed"]),
            )
            for row in one["calibration"]
        ]
        found += [
            Heading(f"{word}, any", 3),
            Table(("probability said", "cases", "mean said", "share with it"), rows),
        ]
    return found or [Words('The model does not tell "any".')]


def masks(summary: Summary) -> list[Block]:
    """Overlap, distance, area and volume of the mask; nothing where no mask was judged."""
    told = summary["masks"]
    if told is None:
        return []
    groups = {
        "by_hand": "with blood, drawn by hand",
        "pseudo": "with blood, pseudo-mask",
        "all": "all known, with or without blood",
    }
    rows = []
    for group, words in groups.items():
        one = told[group]
        if one["slices"]:
            figures = [shown(one.get(key)) for key in ("dice_mean", "dice_pooled", "iou_mean", "iou_pooled")]
            rows.append((words, f"{one['slices']} ({one['patients']})", *figures))
    found: list[Block] = [
        Heading("Masks"),
        Table(("masks", "slices (patients)", "Dice, mean", "Dice, pooled", "IoU, mean", "IoU, pooled"), rows),
        Points(_empty(told, groups)),
    ]
    distances = [
        (words, f"{name} ({one['slices']})", shown(one["mean"], 1), shown(one["median"], 1), shown(areas[1]))
        for group, words in groups.items()
        for name, one in told[group].get("hd95", {}).items()
        for areas in [_area(told[group], name)]
    ]
    if distances:
        head = ("masks", "unit (slices with both masks)", "HD95, mean", "HD95, median", "area, Pearson r")
        found += [Heading("Distance and area", 3), Table(head, distances)]
    volumes = [
        (f"{unit} ({one['n']} studies)", shown(one["pearson"]), *_agreement(one, unit))
        for unit, one in told["volume"].items()
        if one["n"]
    ]
    if volumes:
        head = ("unit", "Pearson r", "bias", "lower limit of agreement", "upper limit of agreement")
        found += [Heading("Volume, drawn minus true", 3), Table(head, volumes)]
    return found


def _area(told: Mapping[str, Any], unit: str) -> tuple[int, list[float | None]]:
    one = told["area"]["mm2" if unit == "mm" else GRID_PIXELS]
    return one["slices"], one["pearson"]


def _agreement(one: Mapping[str, Any], unit: str) -> list[str]:
    digits = 2 if unit == "mL" else 0
    return [shown(one[key], digits) for key in ("bias", "limit_low", "limit_high")]


def _empty(told: Mapping[str, Any], groups: Mapping[str, str]) -> list[str]:
    kinds = {
        "both": "both masks hold blood on {}",
        "only_true": "only the true one on {} (Dice 0)",
        "only_drawn": "only the drawn one on {} (Dice 0)",
        "both_empty": "neither on {} (left out)",
    }
    found = []
    for group, words in groups.items():
        parts = [text.format(told[group][kind]) for kind, text in kinds.items() if told[group][kind]]
        if parts:
            found.append(f"{words}, slices: {', '.join(parts)}.".capitalize().replace("dice", "Dice"))
    clean = told["without_blood"]
    if clean["slices"]:
        found.append(
            f"Of {clean['slices']} slices known to hold no blood, a mask is drawn on a share of "
            f"{shown(clean['falsely_drawn'])}."
        )
    return found


def explanation(summary: Summary) -> list[Block]:
    """Where Grad-CAM++ points; nothing where no map was judged."""
    told = summary["explanation"]
    if told is None:
        return []
    words = {
        "pointing": "peak in the mask or one grid pixel beside it", "pointing_by_chance": "same by chance",
        "iou": "IoU of mask and map above half its peak", "energy": "share of the map inside the mask",
        "energy_by_chance": "same by chance",
    }  # fmt: skip
    rows = [
        (text, *(shown(told[group].get(key)) for group in ("all", "detected"))) for key, text in words.items()
    ]
    head = ["Grad-CAM++ on slices with a known bloody mask"]
    head += [
        f"{group} ({told[group]['slices']} slices, {told[group]['patients']} patients)" for group in told
    ]
    empty = told["all"]["empty_maps"]
    return [
        Heading("Explanation"),
        Words(
            "A map that points at blood does not show why the network decided; one that points elsewhere "
            "is a warning."
        ),
        Table(head, rows),
        *([Words(f"{empty} maps are empty: they miss, and have no share inside.")] if empty else []),
    ]


def seeds(summary: Summary) -> list[Block]:
    """Each seed judged alone and how far they lie apart; nothing where there was one seed of one network."""
    told = summary.get("seeds") or []
    if len(told) < 2:
        return []
    keys = {
        "slice_auc": "slice AUC, any", "study_auc": "study AUC, any", "sensitivity": "sensitivity",
        "specificity": "specificity", "dice_pooled": "Dice, pooled",
    }  # fmt: skip
    rows = []
    for recipe in dict.fromkeys(one["recipe"] for one in told):
        own = [one for one in told if one["recipe"] == recipe]
        rows += [(f"{recipe}, seed {one['seed']}", *(plain(one[key]) for key in keys)) for one in own]
        if len(own) > 1:
            rows.append(
                (f"{recipe}, lowest to highest", *(_spread([one[key] for one in own]) for key in keys))
            )
    return [
        Heading("Seeds and parts, each alone"),
        Words(
            "Each is calibrated and thresholded by itself, over the same folds. The figures above are those "
            "of all seeds' mean; what lies between the seeds is chance of the training, not of the patients."
        ),
        Table(("which", *keys.values()), rows),
    ]


def _spread(values: Sequence[float | None]) -> str:
    known = [one for one in values if one is not None]
    return f"{plain(min(known))} to {plain(max(known))}" if known else UNTOLD
