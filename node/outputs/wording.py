"""The words that people read, in one place. Never lets "not analysed" sound like "nothing found"."""

from __future__ import annotations

import unicodedata
from enum import StrEnum

from node.domain.findings import CLASSES, Consistency, Findings, Priority, Status
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
    if findings.segmentation is None:
        return "Segmentation: not available."
    slices = len(findings.segmentation.slices)
    if not slices:
        return "Segmentation: no region marked (0 mL)."
    plural = "s" if slices > 1 else ""
    return f"Segmented volume: {findings.segmentation.volume_ml:.1f} mL on {slices} slice{plural}."


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
