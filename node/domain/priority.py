"""Which reading priority the results propose, and whether classifier and mask agree. Never lowers an alarm.

STAT     any class is present, whatever the mask says: an alarm sent early stays true.
HIGH     no class is present, but the mask holds blood, or "any" comes close to its threshold.
ROUTINE  neither. It is a reading order, not an all-clear.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from node.domain.findings import SUBTYPES, ClassFinding, Consistency, Priority

MIN_MASK_ML = 0.1
"""A mask below this volume is taken for noise (about one 5 mm × 4.5 mm × 4.5 mm speck)."""
BORDERLINE = 0.7
"""A probability of "any" from this share of its threshold on is borderline. Subtypes do not count: their
thresholds rest on few patients and can be so low that hardly a scan would stay ROUTINE."""


def priority(
    classes: Mapping[str, ClassFinding],
    thresholds: Mapping[str, float],
    consistency: Consistency | None = None,
) -> Priority:
    """Proposed priority; leave `consistency` out while there is no mask yet.

    What comes later can only raise it: the mask is never a reason to take a STAT back.
    """
    if any(finding.present for finding in classes.values()):
        return Priority.STAT
    if consistency is Consistency.MASK_ONLY:
        return Priority.HIGH
    borderline = classes["any"].probability >= BORDERLINE * thresholds["any"]
    return Priority.HIGH if borderline else Priority.ROUTINE


def consistency(
    classes: Mapping[str, ClassFinding],
    volume_ml: float,
    mask_subtypes: Collection[str] | None = None,
) -> Consistency:
    """Whether classifier and mask tell the same story.

    `mask_subtypes` are those a multi-class mask shows, None for a mask that knows no subtypes.
    """
    present = {name for name, finding in classes.items() if finding.present}
    masked = volume_ml >= MIN_MASK_ML
    if present and not masked:
        return Consistency.CLASSIFIER_ONLY
    if masked and not present:
        return Consistency.MASK_ONLY
    subtypes = present.intersection(SUBTYPES)
    if masked and mask_subtypes and subtypes and subtypes.isdisjoint(mask_subtypes):
        return Consistency.SUBTYPE_DISAGREEMENT
    return Consistency.AGREE
