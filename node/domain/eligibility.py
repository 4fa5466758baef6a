"""Which one series of a study is analysed, and why each other is not. Reads no pixels, hides no refusal.

A study holds localizers, dose pages, reformats and several reconstructions of one scan. Wanted is the
non-contrast axial head CT in a soft kernel, 2.5 to 5 mm thick where there is one. Headers are often wrong
or empty, so an unstated body part is let through with a note, and a stated other one is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import median_low

from node.domain import vocabulary as words
from node.domain.findings import Reason
from node.domain.geometry import slice_normal, slice_position_mm
from node.domain.imagetypes import DERIVED_IMAGE, told
from node.domain.instance import CT_IMAGE, ENHANCED_CT_IMAGES, Instance
from node.domain.stacks import main_stack


class SkipCode(StrEnum):
    """Why a series is not analysed, from farthest from a readable head CT to closest to one."""

    NOT_CT = "NOT_CT"
    LOCALIZER = "LOCALIZER"
    DOSE_REPORT = "DOSE_REPORT"
    NOT_HEAD = "NOT_HEAD"
    RENDERED = "RENDERED"
    PERFUSION = "PERFUSION"
    ANGIOGRAPHY = "ANGIOGRAPHY"
    DERIVED_IMAGE = "DERIVED_IMAGE"
    NOT_AXIAL = "NOT_AXIAL"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    COVERAGE_TOO_SMALL = "COVERAGE_TOO_SMALL"
    COVERAGE_TOO_LARGE = "COVERAGE_TOO_LARGE"
    TOO_THICK = "TOO_THICK"
    NO_GEOMETRY = "NO_GEOMETRY"
    NO_RESCALE = "NO_RESCALE"
    CONTRAST_ENHANCED = "CONTRAST_ENHANCED"
    BONE_KERNEL = "BONE_KERNEL"
    OTHER_SERIES_CHOSEN = "OTHER_SERIES_CHOSEN"
    NOT_JUDGED = "NOT_JUDGED"  # how close it is nobody knows


_NAMES = (
    (SkipCode.LOCALIZER, words.LOCALIZER),
    (SkipCode.DOSE_REPORT, words.DOSE),
    (SkipCode.RENDERED, words.RENDERED),
    (SkipCode.PERFUSION, words.PERFUSION),
    (SkipCode.ANGIOGRAPHY, words.ANGIOGRAPHY),
    (SkipCode.DERIVED_IMAGE, words.REFORMAT),
)


@dataclass(frozen=True)
class Rules:
    """What a site may change. Lengths in mm; coverage is that of the slices along their normal."""

    allow_derived: bool = False
    """Also take DERIVED\\SECONDARY images, thick axial reformats among them."""
    allow_contrast: bool = False
    """Take a contrast-enhanced head when there is no other."""
    min_slices: int = 12
    min_coverage_mm: float = 100.0
    max_coverage_mm: float = 260.0
    max_thickness_mm: float = 10.0
    max_tilt_deg: float = 30.0
    max_unstated_fov_mm: float = 320.0
    """Largest field of view taken for a head when no header field names the body part."""


@dataclass(frozen=True)
class Choice:
    """The series to analyse (None: none), why each other one is not, and remarks on the chosen one."""

    chosen: str | None
    skipped: Mapping[str, Reason] = field(default_factory=dict)
    notes: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    series_instance_uid: str
    name: str
    slices: int
    thickness_mm: float
    soft: bool | None
    enhanced: bool
    series_number: int
    notes: tuple[Reason, ...]


def choose(series: Mapping[str, Sequence[Instance]], rules: Rules = Rules()) -> Choice:
    """Choose among the series of one study, given as series UID → its instances."""
    assessed = {uid: _assess(uid, instances, rules) for uid, instances in sorted(series.items())}
    skipped = {uid: result for uid, result in assessed.items() if isinstance(result, Reason)}
    candidates = [result for result in assessed.values() if isinstance(result, _Candidate)]
    if not candidates:
        return Choice(None, skipped)
    best = min(candidates, key=_preference)
    for other in candidates:
        if other is not best:
            skipped[other.series_instance_uid] = _outdone(other, best)
    return Choice(best.series_instance_uid, skipped, best.notes)


def best_refused(choice: Choice, series: Mapping[str, Sequence[Instance]]) -> str | None:
    """The series that came closest to a readable head CT, when none was chosen.

    The *not analysed* report is written for it. None when a series was chosen, or when the study holds
    no CT image at all, so that there is nothing a reader would expect an answer about.
    """
    if choice.chosen is not None:
        return None
    closeness = {code.value: rank for rank, code in enumerate(SkipCode)}
    refused = [uid for uid, reason in choice.skipped.items() if reason.code != SkipCode.NOT_CT]
    return min(
        refused,
        key=lambda uid: (-closeness.get(choice.skipped[uid].code, 0), -_count(series.get(uid, ())), uid),
        default=None,
    )


def _count(instances: Sequence[Instance]) -> int:
    """Images, frames of multi-frame instances among them."""
    return sum(instance.frames for instance in instances)


def _preference(candidate: _Candidate) -> tuple[object, ...]:
    """Smallest is best: native, soft, 2.5 to 5 mm, then thinner, then thicker; ties by number and UID."""
    thickness = candidate.thickness_mm
    band = 0 if 2.45 <= thickness <= 5.05 else 1 if thickness < 2.45 else 2
    kernel = 0 if candidate.soft else 1
    distance = round(abs(thickness - 5.0), 1)
    order = (candidate.series_number, candidate.series_instance_uid)
    return (candidate.enhanced, kernel, band, distance, -candidate.slices, *order)


def _outdone(other: _Candidate, best: _Candidate) -> Reason:
    text = (
        f'series "{best.name}" ({best.slices} slices of {best.thickness_mm:g} mm) was chosen; '
        f"this one has {other.slices} of {other.thickness_mm:g} mm"
    )
    return Reason(SkipCode.OTHER_SERIES_CHOSEN.value, text)


def _reason(code: SkipCode, text: str) -> Reason:
    return Reason(code.value, text)


def _assess(uid: str, instances: Sequence[Instance], rules: Rules) -> _Candidate | Reason:
    """A candidate, or the first reason that speaks against the series."""
    slices = [slice_ for instance in instances for slice_ in instance.slices()]
    refusals = [refuse_slice(slice_, rules) for slice_ in slices]
    kept = [slice_ for slice_, reason in zip(slices, refusals, strict=True) if reason is None]
    refused = [reason for reason in refusals if reason is not None]
    if len(kept) < rules.min_slices and len(refused) >= len(kept):
        if not refused:
            return _reason(SkipCode.NOT_CT, "the series holds no instance")
        body = _body(slices[0], rules)
        main = Counter(refused).most_common(1)[0][0]
        is_image = main.code not in (SkipCode.NOT_CT, SkipCode.LOCALIZER, SkipCode.DOSE_REPORT)
        return body if is_image and body and body.code == SkipCode.NOT_HEAD else main
    return _assess_kept(uid, kept, refused, rules)


def _assess_kept(
    uid: str, kept: Sequence[Instance], refused: Sequence[Reason], rules: Rules
) -> _Candidate | Reason:
    """The same, from the slices with nothing in their own headers against them."""
    stack = [kept[index] for index in main_stack(kept)]
    first = stack[0]
    notes = []
    if refused:
        codes = ", ".join(sorted({reason.code for reason in refused}))
        text = f"{len(refused)} of {len(refused) + len(kept)} images are left out ({codes})"
        notes.append(Reason("INSTANCES_IGNORED", text))
    if len(stack) < len(kept):
        text = f"{len(kept)} images in several volumes; the one of {len(stack)} is read"
        notes.append(Reason("SEVERAL_VOLUMES", text))
    enhanced, contrast_note = _contrast(_usual_of(stack))
    body = _body(first, rules)
    result = (
        _refuse_words(first, rules)
        or (body if body is not None and body.code == SkipCode.NOT_HEAD else None)
        or _refuse_dynamic(kept)
        or _refuse_stack(stack, rules)
        or (contrast_note if enhanced and not rules.allow_contrast else None)
        or _bone(first)
    )
    if result is not None:
        return result
    notes += [note for note in (body, contrast_note) if note is not None]
    thickness = _thickness_mm(stack)
    number = first.series_number if first.series_number is not None else 1 << 31
    slices = len(set(_positions_mm(stack)))
    return _Candidate(uid, _name(first), slices, thickness, _is_soft(first), enhanced, number, tuple(notes))


def refuse_slice(instance: Instance, rules: Rules) -> Reason | None:
    """What its own header says against one instance, or one frame: then it is a slice of no scan."""
    kind = "\\".join(instance.image_type)
    enhanced = instance.sop_class_uid in ENHANCED_CT_IMAGES
    if instance.modality not in ("CT", "") or not (enhanced or instance.sop_class_uid == CT_IMAGE):
        text = f"not a CT image: modality {instance.modality or '(none)'}, SOP class {instance.sop_class_uid}"
        return _reason(SkipCode.NOT_CT, text)
    if (other := told(instance.image_type)) and not (other == DERIVED_IMAGE and rules.allow_derived):
        only = ": only source images are analysed" if other == DERIVED_IMAGE else ""
        return _reason(SkipCode(other), f"ImageType {kind}{only}")
    if instance.frames > 1 or (enhanced and instance.frame_number is None):
        text = f"{instance.frames} frames, but not one functional group for each: no frame has a place"
        return _reason(SkipCode.NO_GEOMETRY, text)
    if instance.position is None or instance.orientation is None or instance.pixel_spacing is None:
        text = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or unusable"
        return _reason(SkipCode.NO_GEOMETRY, text)
    tilt = math.degrees(math.acos(min(abs(slice_normal(instance.orientation)[2]), 1.0)))
    if tilt > rules.max_tilt_deg:
        text = (
            f"slices stand at {tilt:.0f} degrees to the axial plane, at most {rules.max_tilt_deg:g} allowed"
        )
        return _reason(SkipCode.NOT_AXIAL, text)
    if not instance.rescaled:
        return _reason(SkipCode.NO_RESCALE, "no RescaleSlope and RescaleIntercept: Hounsfield units unknown")
    return None


def _refuse_words(instance: Instance, rules: Rules) -> Reason | None:
    """What the name of the series says against it; the study's own name is that of all its series."""
    label = words.fold(_name(instance))
    for code, pattern in _NAMES:
        found = pattern.search(label)
        if found and not (code is SkipCode.DERIVED_IMAGE and rules.allow_derived):
            return _reason(code, f'the series is named "{_name(instance)}" ("{found.group()}")')
    return None


def _body(instance: Instance, rules: Rules) -> Reason | None:
    """NOT_HEAD; or a note that no field names the body part, or that two disagree; or None for a head.

    Where the header leaves a doubt the field of view must fit a head, and the worker looks at the image.
    """
    fields = {
        "BodyPartExamined": instance.body_part,
        "SeriesDescription": instance.series_description,
        "ProtocolName": instance.protocol_name,
        "StudyDescription": instance.study_description,
    }
    folded = {name: words.NO_HEAD_PHRASE.sub(" ", words.fold(text)) for name, text in fields.items()}
    head = {name for name, text in folded.items() if words.HEAD.search(text)}
    other = [name for name, text in folded.items() if name not in head and words.OTHER_PART.search(text)]
    named = "SeriesDescription" in head and not words.OTHER_PART.search(folded["SeriesDescription"])
    decisive = [name for name in other if name in ("BodyPartExamined", "SeriesDescription") or not head]
    if decisive and not (named and decisive == ["BodyPartExamined"]):
        return _reason(SkipCode.NOT_HEAD, f"{decisive[0]} {fields[decisive[0]]}: another body part")
    if head and not decisive:
        return None
    spacing, columns = instance.pixel_spacing, instance.columns
    fov = spacing[1] * columns if spacing and columns else 0.0
    if fov > rules.max_unstated_fov_mm:
        doubt = "the header fields disagree about the body part" if head else "no header field names the head"
        text = f"{doubt} and the field of view of {fov:.0f} mm is too wide for one"
        return _reason(SkipCode.NOT_HEAD, text)
    if head:
        text = f'BodyPartExamined {instance.body_part}, but the series is named "{_name(instance)}"'
        return Reason("BODY_PART_CONTRADICTED", text)
    return Reason("BODY_PART_UNSTATED", "no header field names the body part; taken for a head by its image")


def _refuse_dynamic(slices: Sequence[Instance]) -> Reason | None:
    count = len(set(_positions_mm(slices)))
    if len(slices) < 3 * count:
        return None
    return _reason(SkipCode.PERFUSION, f"{len(slices)} images at {count} positions: a dynamic scan")


def _refuse_stack(instances: Sequence[Instance], rules: Rules) -> Reason | None:
    """What the number, places and thickness of the slices say against the series."""
    positions = sorted(set(_positions_mm(instances)))
    count = len(positions)
    if count < rules.min_slices:
        text = f"{count} slice{'s' if count != 1 else ''}, at least {rules.min_slices} needed"
        return _reason(SkipCode.TOO_FEW_SLICES, text)
    steps = [high - low for low, high in pairwise(positions)]
    coverage = positions[-1] - positions[0] + median_low(steps)
    if coverage < rules.min_coverage_mm:
        text = f"the slices cover {coverage:.0f} mm, at least {rules.min_coverage_mm:g} mm needed"
        return _reason(SkipCode.COVERAGE_TOO_SMALL, text)
    if coverage > rules.max_coverage_mm:
        text = f"the slices cover {coverage:.0f} mm, more than the {rules.max_coverage_mm:g} mm of a head"
        return _reason(SkipCode.COVERAGE_TOO_LARGE, text)
    thickness = _thickness_mm(instances)
    if thickness > rules.max_thickness_mm:
        text = f"thickness {thickness:g} mm, at most {rules.max_thickness_mm:g} mm allowed"
        return _reason(SkipCode.TOO_THICK, text)
    return None


def _positions_mm(instances: Sequence[Instance]) -> list[float]:
    return [
        round(slice_position_mm(instance.position, instance.orientation), 1) + 0.0
        for instance in instances
        if instance.position is not None and instance.orientation is not None
    ]


def _thickness_mm(instances: Sequence[Instance]) -> float:
    """The usual SliceThickness, or the usual step where none is given."""
    stated = [instance.slice_thickness for instance in instances if instance.slice_thickness]
    if stated:
        return round(abs(median_low(stated)), 2)
    positions = sorted(set(_positions_mm(instances)))
    steps = [high - low for low, high in pairwise(positions)]
    return round(median_low(steps), 2) if steps else 0.0


def _contrast(instance: Instance) -> tuple[bool, Reason | None]:
    """Whether the series is enhanced, and the remark that goes with it.

    Technicians enter the agent once for the whole examination, so a series that calls itself native is
    believed, with a remark.
    """
    label, stated = words.fold(_name(instance)), words.names_agent(instance.contrast_agent)
    if words.NATIVE.search(label) and not (stated and words.BOTH.search(label)):
        text = f'ContrastBolusAgent "{instance.contrast_agent}", but the series is named "{_name(instance)}"'
        return False, Reason("CONTRAST_CONTRADICTED", text) if stated else None
    if stated:
        text = f'contrast-enhanced (ContrastBolusAgent "{instance.contrast_agent}")'
        return True, _reason(SkipCode.CONTRAST_ENHANCED, text)
    if words.ENHANCED.search(label) or words.PLUS_C.search(_name(instance)):
        text = f'contrast-enhanced (named "{_name(instance)}")'
        return True, _reason(SkipCode.CONTRAST_ENHANCED, text)
    return False, None


def _usual_of(stack: Sequence[Instance]) -> Instance:
    """A slice that says of a contrast agent what most of them say; one that names it where as many do."""
    stated = [slice_ for slice_ in stack if words.names_agent(slice_.contrast_agent)]
    if 2 * len(stated) >= len(stack):
        return stated[0]
    return next(slice_ for slice_ in stack if not words.names_agent(slice_.contrast_agent))


def _bone(instance: Instance) -> Reason | None:
    if _is_soft(instance) is not False:
        return None
    stated = f"kernel {instance.kernel}" if instance.kernel else f'named "{_name(instance)}"'
    return _reason(SkipCode.BONE_KERNEL, f"{stated}: too sharp, a soft-tissue kernel is needed")


def _is_soft(instance: Instance) -> bool | None:
    """True for a soft kernel, False for a sharp one, None when neither kernel nor name tells."""
    known = words.softness(instance.manufacturer, instance.kernel)
    return False if known is None and words.BONE.search(words.fold(_name(instance))) else known


def _name(instance: Instance) -> str:
    return instance.series_description or instance.protocol_name
