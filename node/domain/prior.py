"""Which earlier head CT is the patient's, and how the bleeding changed since. Never lowers an alarm.

Pure: the candidates come from the store. A PatientID alone does not make two studies one patient's: the
issuer, where both state one, must be the same, and neither name nor birth date may contradict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from node.domain.findings import Comparison, Findings, SliceFinding
from node.domain.instance import Instance
from node.domain.priority import MIN_MASK_ML
from node.domain.vocabulary import fold

EXPANSION_ML = 6.0
EXPANSION_PERCENT = 33.0
"""Growth beyond either is haematoma expansion: the definition that most trials share (Dowlatshahi et al.,
Neurology 76:1238, 2011; Brott et al., Stroke 28:1, 1997 for a third)."""
SMALL_ML = 1.0
"""Below this on both occasions a percentage says little."""
COVERAGE_SHARE = 0.8
"""A scan that covers less than this share of the other is too unlike it."""
STEP_RATIO = 2.0
"""Slice steps that differ by more than this measure small bleedings differently."""
NOBODY = frozenset((
    "", "0", "1", "X", "XXX", "NO ID", "N A", "NA", "NIL", "NONE", "NULL", "UNKNOWN", "ANON", "ANONYMOUS",
    "ANONYMIZED", "ANONYMISED", "TEST", "PATIENT",
))  # fmt: skip
"""What stands in PatientID where there is none: many people share it."""
OTHER_PERSON = (
    "an earlier head CT with the same PatientID bears another name or birth date: it was not compared"
)


@dataclass(frozen=True)
class Earlier:
    """One analysed head CT: one of its slices for who and when, and what was found."""

    instance: Instance
    findings: Findings


@dataclass(frozen=True)
class Prior:
    """The head CT to compare with, if there is one, and a remark on one that was passed over."""

    found: Earlier | None
    remark: str | None = None


def latest(now: Instance, candidates: Sequence[Earlier]) -> Prior:
    """The latest of the candidates that is of the same patient and surely earlier than `now`."""
    moment = _moment(now)
    if not moment or fold(now.patient_id) in NOBODY:
        return Prior(None)
    before = [
        candidate
        for candidate in candidates
        if candidate.instance.study_instance_uid != now.study_instance_uid
        and candidate.instance.patient_id == now.patient_id
        and _agree(candidate.instance.issuer_of_patient_id, now.issuer_of_patient_id)
        and _is_earlier(_moment(candidate.instance), moment)
    ]
    same = [candidate for candidate in before if is_same_person(candidate.instance, now)]
    remark = OTHER_PERSON if len(same) < len(before) else None
    newest = max(same, key=lambda candidate: _moment(candidate.instance), default=None)
    return Prior(newest, remark)


def is_same_person(one: Instance, other: Instance) -> bool:
    """Neither birth date nor name contradicts; what is absent does not."""
    if not _agree(_digits(one.patient_birth_date), _digits(other.patient_birth_date)):
        return False
    groups = zip_longest(one.patient_name.split("="), other.patient_name.split("="), fillvalue="")
    both = [(a, b) for a, b in groups if fold(a) and fold(b)]
    return not both or any(_names_agree(a, b) for a, b in both)


def compare(now: Findings, earlier: Earlier) -> Comparison | None:
    """The change of the segmented volume; None where either has no segmentation to compare."""
    then = earlier.findings
    if now.segmentation is None or then.segmentation is None:
        return None
    before_ml, after_ml = then.segmentation.volume_ml, now.segmentation.volume_ml
    change_ml = after_ml - before_ml
    percent = 100 * change_ml / before_ml if before_ml >= MIN_MASK_ML else None
    grown = change_ml > EXPANSION_ML or (percent is not None and percent > EXPANSION_PERCENT)
    return Comparison(
        study_uid=earlier.instance.study_instance_uid,
        series_uid=then.series_instance_uid,
        revision=then.revision,
        study_date=_digits(earlier.instance.study_date)[:8],
        study_time=_digits(earlier.instance.study_time)[:6],
        model=then.model,
        before_ml=before_ml,
        change_ml=change_ml,
        change_percent=percent,
        expansion=grown and after_ml >= MIN_MASK_ML,
        remarks=tuple(_remarks(now, then, before_ml, after_ml)),
    )


def _remarks(now: Findings, then: Findings, before_ml: float, after_ml: float) -> list[str]:
    """Why the comparison may mislead."""
    remarks = []
    if now.model != then.model:
        remarks.append(f"the earlier CT was read by another model ({then.model.name} {then.model.version})")
    if (before_ml < MIN_MASK_ML) != (after_ml < MIN_MASK_ML):
        remarks.append(f"nothing was segmented on the {'earlier' if before_ml < after_ml else 'present'} CT")
    elif max(before_ml, after_ml) < SMALL_ML:
        remarks.append(f"both volumes are below {SMALL_ML:g} mL, so the percentage says little")
    (cover_now, step_now), (cover_then, step_then) = _extent_mm(now.slices), _extent_mm(then.slices)
    if min(cover_now, cover_then) < COVERAGE_SHARE * max(cover_now, cover_then):
        remarks.append(f"the scans cover {cover_now:.0f} mm now, {cover_then:.0f} mm then")
    if max(step_now, step_then) > STEP_RATIO * min(step_now, step_then):
        remarks.append(f"the slices are {step_now:.1f} mm apart now, {step_then:.1f} mm then")
    return remarks


def _extent_mm(slices: Sequence[SliceFinding]) -> tuple[float, float]:
    """From the first slice to the last, and the usual step."""
    places = sorted(finding.position_mm for finding in slices)
    steps = sorted(b - a for a, b in pairwise(places))
    return (places[-1] - places[0], steps[len(steps) // 2]) if steps else (0.0, 0.0)


def _moment(instance: Instance) -> str:
    """StudyDate and StudyTime as digits; empty without a date. Old ACR-NEMA dates have dots, times colons."""
    date = _digits(instance.study_date)[:8]
    return date + _digits(instance.study_time.split(".")[0])[:6] if len(date) == 8 else ""


def _is_earlier(one: str, other: str) -> bool:
    """By as much as both tell: on the same day without a time neither is."""
    common = min(len(one), len(other))
    return bool(one) and one[:common] < other[:common]


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _agree(one: str, other: str) -> bool:
    """Equal, or one of them silent."""
    return not one or not other or one == other


def _names_agree(one: str, other: str) -> bool:
    """Family and given names, as far as both state them, share a word; an initial stands for its name."""
    parts = zip_longest(one.split("^")[:2], other.split("^")[:2], fillvalue="")
    return all(not a or not b or _share(a, b) for a, b in ((_words(a), _words(b)) for a, b in parts))


def _share(one: set[str], other: set[str]) -> bool:
    return any(a.startswith(b) or b.startswith(a) for a in one for b in other)


def _words(name: str) -> set[str]:
    """MÜLLER, MUELLER and Muller are one."""
    return {re.sub(r"([AOU])E", r"\1", word) for word in fold(name).split()}
