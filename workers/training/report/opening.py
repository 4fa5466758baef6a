"""What a reader must know before the first figure: who was looked at, what is unknown, how far it reaches."""

from __future__ import annotations

from workers.training.report.blocks import Block, Heading, Table, Words
from workers.training.report.sections import LEVELS, Summary

WARNING = (
    "Research use only. Not a medical device. These figures judge one model on one collection of head "
    "CTs. They are no clinical validation, and say nothing about a scanner, hospital or patient group "
    "that is not in it."
)
SUPPORTED = 10
"""A class with fewer positive patients is reported, and nothing is claimed of it."""


def who(summary: Summary, about: str) -> list[Block]:
    """Who was looked at, a class at a time."""
    counts = summary["cases"]
    studies = f" ({counts['studies']} studies)" if counts["studies"] != counts["patients"] else ""
    told = f"{counts['patients']} patients{studies}, {counts['slices']:,} slices."
    rows, several = [], counts["studies"] != counts["patients"]
    for name in summary["classes"]:
        by_study, by_slice = summary["study"][name], summary["slice"][name]
        cells = [f"{by_study['patients_positive']} of {by_study['patients']}"]
        cells += [f"{by_study['positive']} of {by_study['n']}"] if several else []
        cells += ["not told" if by_slice["n"] == 0 else f"{by_slice['positive']} of {by_slice['n']}"]
        rows.append((name, *cells))
    head = ("class", "patients with it", *(("studies with it",) if several else ()), "slices with it")
    return [Heading("Who was looked at"), Words(f"{about} {told}".strip()), Table(head, rows)]


def unknown(summary: Summary) -> list[str]:
    """What these cases do not tell, each with its count."""
    counts = summary["cases"]
    told = [
        (counts["studies_without_slice_truth"], "studies tell no truth for slices: not in a slice figure"),
        (counts["studies_with_untold_classes"],
         "studies tell the truth of some classes only: they count in the figures of those alone"),
        (counts["studies_without_cell_size"],
         f"of {counts['studies']} studies do not tell the size of a pixel: their distances and volumes "
         "are in pixels of the network's grid, and no mL can be said"),
        (counts["slices_with_blood_without_mask"], "slices with blood have no known mask: in no mask figure"),
        (counts["slices_mask_with_blood"] - counts["slices_mask_with_blood_by_hand"],
         f"of {counts['slices_mask_with_blood']} bloody masks are pseudo-masks, not a person's drawing: "
         "agreement with them is not agreement with a radiologist"),
    ]  # fmt: skip
    found = [f"{count} {words}." for count, words in told if count]
    if summary["masks"] is None:
        found.append("No mask could be judged.")
    if summary["explanation"] is None:
        found.append("No explanation could be judged.")
    return [
        *found,
        "Age, sex, scanner and clinical question are not looked at here: how the model does in any such "
        "group is unknown.",
        "The truth is taken as it comes; how far its readers agree with one another is unknown to this "
        "report.",
    ]


def limits_of(summary: Summary) -> list[str]:
    """How far the figures reach, of any evaluation and of this one."""
    few = [
        f"{name} ({summary['study'][name]['patients_positive']})"
        for name in summary["classes"]
        if summary["study"][name]["patients_positive"] < SUPPORTED
    ]
    found = [
        "An interval tells how the figure would change with other patients of the same kind. It does not "
        "cover another hospital, another training run, or choices that were made on these same patients.",
    ]
    if few:
        found.append(
            f"Fewer than {SUPPORTED} patients have {', '.join(few)}: the figures are there, nothing is "
            "claimed of them."
        )
    if _narrow(summary):
        found.append(
            '"no spread": every draw gave the same value. With so few patients that is no certainty: a '
            "model that is right in all of n patients may still err in up to 3 / n of them (rule of "
            "three)."
        )
    return found


def _narrow(summary: Summary) -> bool:
    return any(
        isinstance(figure, list) and len(figure) == 3 and figure[1] is not None and figure[1] == figure[2]
        for which in LEVELS
        for one in summary[which].values()
        for figure in one.values()
    )
