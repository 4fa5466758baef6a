"""Which images of a series belong to one volume, and which volume of several is read. Opens no pixels.

A series may hold an axial scan beside its reformats and projections, and a multi-frame object several
stacks, points in time or reconstructions. Slices of two volumes are never mixed. The position of a slice
matters in two cases: a scan that was repeated, since the patient moved say, lies between the slices of the
first one, and one with contrast agent lies where the native one does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from node.domain import vocabulary as words
from node.domain.geometry import SAME_POSITION_MM, slice_position_mm
from node.domain.imagetypes import told
from node.domain.instance import Instance, Vector

ORIENTATION_TOLERANCE = 0.01
"""Direction cosines of one stack may differ by the jitter of the last digits that scanners write."""
SPACING_TOLERANCE_MM = 0.001
SEVERAL = 3
"""Slices of one scan between those of another: fewer are no second scan."""


def stacks(slices: Sequence[Instance]) -> list[list[int]]:
    """Indices of slices alike in kind, matrix, orientation, spacing, stack and sharpness.

    Each in the order of `_turn`, whatever order they come in: the first one tells the sharpness, if any does.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(slices)), key=lambda index: _turn(slices[index])):
        group = next((group for group in groups if _alike(slices[group[0]], slices[index])), None)
        if group is None:
            groups.append(group := [])
        group.append(index)
    return groups


def _turn(slice_: Instance) -> tuple[object, ...]:
    """Smallest goes first: soft ones, sharp ones, and those that do not tell; each as acquired."""
    sharpness = {True: 0, False: 1, None: 2}[_is_soft(slice_)]
    numbers = (slice_.acquisition_number or 0, slice_.instance_number or 0, slice_.frame_number or 0)
    return sharpness, *numbers, slice_.sop_instance_uid


def main_stack(slices: Sequence[Instance]) -> list[int]:
    """Indices of the stack to read: as scanned, not too sharp, then the most slices, then the earliest.

    Of scans that lie between one another's slices, that of the most slices, then the earliest. Native slices
    count twice as much as enhanced ones beside them. The order in which slices are given decides nothing.
    """

    def rank(group: list[int]) -> tuple[bool, bool, int, str]:
        first = slices[group[0]]
        return bool(told(first.image_type)), _is_soft(first) is False, -len(group), first.stack

    return _one_scan(slices, _one_contrast(slices, min(stacks(slices), key=rank, default=[])))


def _one_contrast(slices: Sequence[Instance], stack: list[int]) -> list[int]:
    """The indices of a stack without its enhanced slices, or its native ones, where both lie in one place."""
    native: list[int] = []
    enhanced: list[int] = []
    for index in stack:
        (enhanced if words.names_agent(slices[index].contrast_agent) else native).append(index)
    places = [_places_mm([slices[index] for index in scan]) for scan in (native, enhanced)]
    if min(map(len, _in_common(*places))) < SEVERAL:
        return stack
    return native if 2 * len(native) >= len(enhanced) else enhanced


def _one_scan(slices: Sequence[Instance], stack: list[int]) -> list[int]:
    """The indices of a stack without those of a repeated scan.

    Acquisitions that follow one another along the body are one scan (a step, or a part of it, each), and
    what lies at the very places of another one is sorted out by place.
    """
    scans: dict[int | None, list[int]] = {}
    for index in stack:
        scans.setdefault(slices[index].acquisition_number, []).append(index)
    if len(scans) < 2:
        return stack
    places = {number: _places_mm([slices[index] for index in scan]) for number, scan in scans.items()}
    several = [number for number in scans if len(places[number]) >= SEVERAL]
    kept: list[int | None] = []
    for number in sorted(several, key=lambda number: (-len(places[number]), number or 0)):
        if not any(_lie_between(places[number], places[other]) for other in kept):
            kept.append(number)
    left_out = set(several) - set(kept)
    return [index for index in stack if slices[index].acquisition_number not in left_out]


def _lie_between(one: Sequence[float], other: Sequence[float]) -> bool:
    """Each has several places of its own where both have been, and one of them has hardly been elsewhere."""
    ours, theirs = _in_common(one, other)
    if 2 * len(ours) < len(one) and 2 * len(theirs) < len(other):
        return False  # parts of one scan that overlap
    own = sum(not _is_among(other, place) for place in ours)
    others = sum(not _is_among(one, place) for place in theirs)
    return min(own, others) >= SEVERAL


def _in_common(one: Sequence[float], other: Sequence[float]) -> tuple[list[float], list[float]]:
    """The places of each where both have been."""
    if not one or not other:
        return [], []
    low, high = max(one[0], other[0]), min(one[-1], other[-1])
    within = [[place for place in places if low <= place <= high] for places in (one, other)]
    return within[0], within[1]


def _is_among(places: Sequence[float], place: float) -> bool:
    at = bisect_left(places, place - SAME_POSITION_MM)
    return at < len(places) and places[at] <= place + SAME_POSITION_MM


def _places_mm(slices: Sequence[Instance]) -> list[float]:
    """Along the normal of the first, in order; those that say where they lie."""
    found = [(one.position, one.orientation) for one in slices if one.position and one.orientation]
    return sorted(slice_position_mm(position, found[0][1]) for position, _ in found)


def parallel(one: Vector, other: Vector) -> bool:
    """The same orientation but for jitter."""
    return _close(one, other, ORIENTATION_TOLERANCE)


def _alike(one: Instance, other: Instance) -> bool:
    return (
        (one.rows, one.columns, one.stack) == (other.rows, other.columns, other.stack)
        and told(one.image_type) == told(other.image_type)
        and _close(one.orientation, other.orientation, ORIENTATION_TOLERANCE)
        and _close(one.pixel_spacing, other.pixel_spacing, SPACING_TOLERANCE_MM)
        and {_is_soft(one), _is_soft(other)} != {True, False}
    )


def _is_soft(slice_: Instance) -> bool | None:
    return words.softness(slice_.manufacturer, slice_.kernel)


def _close(one: Vector | None, other: Vector | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))
