"""What a channel says in sentences, the same for all of them. Names no patient."""

from __future__ import annotations

from node.domain.announcing import Announcement, Stage
from node.domain.findings import CLASSES
from node.outputs import wording

TEST = "TEST MESSAGE - this is no real study"


def headline(told: Announcement) -> str:
    """The result in a few words, as everywhere else."""
    return wording.HEADLINES[wording.verdict(told.findings)]


def sentences(told: Announcement) -> list[str]:
    """What was found, how sure that is, and what it takes back."""
    found = told.findings
    said = [TEST] if told.test else []
    said += [f"{headline(told)}. {wording.EXPLANATIONS[wording.verdict(found)]}"]
    if told.stage is Stage.NOT_ANALYSED:
        said.append(f"Reason: {wording.reason_words(found)}.")
    likely = [
        f"{wording.CLASS_WORDS[name].lower()} {wording.probability_words(one.probability)}"
        for name in CLASSES
        if (one := found.classes.get(name)) and (one.present or name == "any")
    ]
    if likely:
        said.append(f"Probability: {', '.join(likely)}.")
    if told.stage is Stage.PRELIMINARY:
        said.append("Preliminary: classified, not measured yet.")
    if found.segmentation:
        said.append(wording.segmentation_words(found))
    said += wording.comparison_words(found)
    said += [correction(told)] if told.corrects else []
    said.append(f"Proposed reading priority: {told.reading_priority or 'none'}.")
    said.append(f"Model {found.model.name} {found.model.version}. {wording.RESEARCH_USE}.")
    return said


def correction(told: Announcement) -> str:
    """What was said before, what is said now, and what stays; empty where nothing is taken back."""
    before = told.corrects
    if before is None:
        return ""
    then = f"message {before.number} (revision {before.revision}) said {before.priority or 'not analysed'}"
    now = f"this one (revision {told.findings.revision}) says {told.findings.priority or 'not analysed'}"
    return f"Correction: {then}; {now}. The reading priority is not lowered. Read the images."
