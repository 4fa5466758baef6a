"""Several evaluations side by side as one Markdown table, intervals and all. Ranks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from node.domain.findings import SUBTYPES
from workers.training.report.blocks import Table, table
from workers.training.report.numbers import UNTOLD, fact, shown

MANY = 5
"""Best and worst subtype are looked for among those that more than this many patients have."""
HEAD = (
    "recipe",
    "parameters",
    "slice AUC, any",
    "study AUC, any",
    "slice AP, any",
    "study AP, any",
    "best subtype, slice AUC",
    "worst subtype, slice AUC",
    "Dice, pooled",
    "Dice, mean",
    "images/s",
)


def compare(rows: Sequence[tuple[str, dict[str, Any], Mapping[str, Any]]]) -> str:
    """A line for each (name, summary, facts); facts `parameters` and `images_per_s` where they are told.

    `images_per_s` may be a number or [value, low, high]. Dice is of all slices with a known mask.
    """
    return table(Table(HEAD, [_row(*row) for row in rows]))


def _row(name: str, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    by_slice, by_study = summary["slice"].get("any", {}), summary["study"].get("any", {})
    masks = (summary["masks"] or {}).get("all", {})
    ranked = sorted(_subtypes(summary), key=lambda one: one[1]["auc"][0])
    return [
        name,
        fact(facts.get("parameters")),
        shown(by_slice.get("auc")),
        shown(by_study.get("auc")),
        shown(by_slice.get("ap")),
        shown(by_study.get("ap")),
        _subtype(ranked[-1:]),
        _subtype(ranked[:1]),
        shown(masks.get("dice_pooled")),
        shown(masks.get("dice_mean")),
        _rate(facts.get("images_per_s")),
    ]


def _subtypes(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, one)
        for name, one in summary["slice"].items()
        if name in SUBTYPES and one["patients_positive"] > MANY and one.get("auc", [None])[0] is not None
    ]


def _subtype(one: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not one:
        return UNTOLD
    name, told = one[0]
    return (
        f"{name} {shown(told['auc'])}, n = {told['positive']} slices of {told['patients_positive']} patients"
    )


def _rate(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return shown(value, 1)
    return fact(value)
