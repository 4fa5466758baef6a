"""The words that people read, in one place. Never lets "not analysed" sound like "nothing found"."""

from __future__ import annotations

import unicodedata
from enum import StrEnum

from node.domain.findings import (
    CLASSES,
    Comparison,
    Consistency,
    Findings,
    Priority,
    Side,
    Status,
)
from node.domain.instance import SliceRef

RESEARCH_USE = "Research use only - not for diagnosis"
NOT_NEGATIVE = "This is NOT a negative result."
CLASS_WORDS = {
    "any": "Any haemorrhage",
    "epidural": "Epidural",
    "intraparenchymal": "Intraparenchymal",
    "intraventricular": "Intraventricular",
    "subarachnoid": "Subarachnoid",
    "subdural": "Subdural",
}
CONSISTENCY_WORDS = {
    Consistency.AGREE: "Classifier and segmentation agree.",
    Consistency.CLASSIFIER_ONLY: "Classifier suspects haemorrhage, segmentation marks none.",
    Consistency.MASK_ONLY: "Segmentation marks a region, classifier does not suspect haemorrhage.",
    Consistency.SUBTYPE_DISAGREEMENT: "Classifier and segmentation disagree on the subtype.",
}


SIDE_WORDS = {Side.LEFT: "left", Side.RIGHT: "right", Side.BILATERAL: "both sides", Side.MIDLINE: "midline"}
"""Of the patient."""
EXPANSION = "HAEMATOMA EXPANSION"


class Verdict(StrEnum):
    """What the series comes down to; the value is what series descriptions say."""

    SUSPECTED = "SUSPECTED"
    INDETERMINATE = "INDETERMINATE"
    NOT_DETECTED = "NOT DETECTED"
    NOT_ANALYSED = "NOT ANALYSED"


HEADLINES = {
    Verdict.SUSPECTED: "HAEMORRHAGE SUSPECTED",
    Verdict.INDETERMINATE: "INDETERMINATE",
    Verdict.NOT_DETECTED: "NO HAEMORRHAGE DETECTED",
    Verdict.NOT_ANALYSED: "NOT ANALYSED",
}
EXPLANATIONS = {
    Verdict.SUSPECTED: "AI suspects intracranial haemorrhage. Please review.",
    Verdict.INDETERMINATE: "AI result is borderline or contradicts itself. Please review.",
    Verdict.NOT_DETECTED: "AI found no sign of haemorrhage. This does not exclude one.",
    Verdict.NOT_ANALYSED: f"The AI gave no result. {NOT_NEGATIVE}",
}


def verdict(findings: Findings) -> Verdict:
    """SUSPECTED if any class is present; INDETERMINATE if only the mask or a borderline value speaks."""
    if findings.status is not Status.ANALYSED or "any" not in findings.classes:
        return Verdict.NOT_ANALYSED
    if any(finding.present for finding in findings.classes.values()):
        return Verdict.SUSPECTED
    if findings.consistency is Consistency.MASK_ONLY or findings.priority in (Priority.STAT, Priority.HIGH):
        return Verdict.INDETERMINATE
    return Verdict.NOT_DETECTED


def reason_words(findings: Findings) -> str:
    """Why there is no result, for a person."""
    return findings.reason.text if findings.reason else "no reason was recorded"


def segmentation_words(findings: Findings) -> str:
    """The mask in one sentence."""
    found = findings.segmentation
    if found is None:
        return "Segmentation: not part of this model; no volume is measured."
    if not found.slices:
        return "Segmentation: no region marked (0 mL)."
    count = len(found.slices)
    slices = f"{count} slice{'s' if count > 1 else ''}"
    side = f", {SIDE_WORDS[found.side]}" if found.side else ""
    return f"Segmented volume: {millilitres(found.volume_ml)} on {slices}{side}."


def measurement_words(findings: Findings, by_subtype: bool = True) -> list[str]:
    """What a reader would measure, in sentences."""
    found, sentences = findings.segmentation, []
    if found is None or not found.slices:
        return []
    if found.diameter_mm is not None and found.components is not None:
        parts = f"; {found.components} separate parts" if found.components > 1 else ""
        sentences.append(f"Largest axial diameter {found.diameter_mm:.0f} mm{parts}.")
    if (estimate := found.abc2) is not None:
        whose = " (largest part)" if (found.components or 1) > 1 else ""
        lengths = " x ".join(f"{mm:.0f}" for mm in (estimate.a_mm, estimate.b_mm, estimate.c_mm))
        sentences.append(f"ABC/2{whose} {millilitres(estimate.volume_ml)} ({lengths} mm).")
    if by_subtype and len(found.subtypes_ml) > 1:
        shares = sorted(found.subtypes_ml.items(), key=lambda item: -item[1])
        sentences.append("By subtype: " + ", ".join(f"{n} {millilitres(ml)}" for n, ml in shares) + ".")
    return sentences


def comparison_words(findings: Findings) -> list[str]:
    """The change since the earlier CT, and why it may mislead."""
    found = findings.comparison
    if found is None:
        return []
    percent = f", {found.change_percent:+.0f} %" if found.change_percent is not None else ""
    change = f"{found.change_ml:+.1f} mL{percent}"
    since = f"since the CT of {moment(found)}: {millilitres(found.before_ml)} before"
    verdict_ = EXPANSION if found.expansion else "Change"
    unreliable = [f"Comparison unreliable: {'; '.join(found.remarks)}."] if found.remarks else []
    return [f"{verdict_} {since}, change {change}.", *unreliable]


def priority_words(findings: Findings, since: bool = True) -> str:
    """The proposed reading priority, and whether growth (`since` when) speaks for haste."""
    if findings.priority is None:
        return ""
    found = findings.comparison
    words = f"Proposed reading priority: {findings.priority}"
    if found is None or not found.expansion:
        return words
    return f"{words} - {EXPANSION.lower()}" + (f" since the CT of {moment(found)}" if since else "")


def not_evaluated_words(findings: Findings) -> str:
    """What the model cannot tell; empty where it can tell everything."""
    names = ", ".join(CLASS_WORDS[name].lower() for name in findings.not_evaluated)
    return f"Not evaluated by this model: {names}." if names else ""


def moment(comparison: Comparison) -> str:
    """Date and time of the earlier study, as far as its header tells."""
    date, time = comparison.study_date, comparison.study_time
    clock = f" {time[:2]}:{time[2:4]}" if len(time) >= 4 else ""
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}{clock}"


def probability_words(probability: float) -> str:
    """Two digits, but nothing is certain."""
    if probability > 0.99:
        return ">0.99"
    return f"{probability:.2f}" if probability >= 0.01 else "<0.01"


def millilitres(volume_ml: float) -> str:
    """Small volumes with a second digit, so that none but nothing reads as 0."""
    return f"{volume_ml:.1f} mL" if volume_ml >= 0.95 or volume_ml == 0 else f"{max(volume_ml, 0.01):.2f} mL"


def key_slices(findings: Findings) -> tuple[SliceRef, ...]:
    """The slices worth opening: of "any" and of each class present, once each."""
    slices = [
        finding.key_slice
        for name in CLASSES
        if (finding := findings.classes.get(name)) and (name == "any" or finding.present)
    ]
    return tuple(dict.fromkeys(found for found in slices if found))


def plain(text: str, limit: int | None = None) -> str:
    """ASCII only, since the source's character set (kept in the object) may hold nothing else."""
    dashes = str.maketrans({"–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "\\": "/"})
    folded = unicodedata.normalize("NFKD", text.translate(dashes))
    kept = "".join(c for c in folded if not unicodedata.combining(c))
    words = " ".join(kept.encode("ascii", "replace").decode("ascii").split())
    return words[:limit].rstrip() if limit else words


def long_string(text: str) -> str:
    """`plain` text that fits a Long String (LO, PS3.5 6.2)."""
    return plain(text, 64)
