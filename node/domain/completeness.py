"""Whether a series has arrived whole, judged by evidence alone. Asks no network, trusts no InstanceNumber.

DICOM has no "series finished" message. Three things together come close: the associations that carried
the series have ended well, its slices leave no gap, and nothing has come for a while. Where one of them
stays away, the series is taken as it is after `max_wait_s`, with a note that says what was missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

from node.domain.findings import Reason
from node.domain.geometry import SAME_POSITION_MM, slice_position_mm
from node.domain.instance import Instance
from node.domain.stacks import parallel

GAP_RATIO = 1.6
"""A step this much longer than its like is a gap: between 1 (none missing) and 2 (one missing)."""
_EQUAL = 0.1
_RUN = 3


@dataclass(frozen=True)
class Evidence:
    """What is known of one series. Times are UNIX seconds.

    `associations_open` counts associations that carried the series, are still open, and have not moved
    on to another series: a PACS may keep one association for hours. `aborted` says that the last of them
    broke off, so the sender may try again. `expected_instances` is a count from elsewhere (C-FIND), if any.
    `sender_is_done`: nothing more is to be expected of whoever sent the series (node.domain.sender).
    """

    last_received_at: float
    associations_open: int
    instances: Sequence[Instance]
    aborted: bool = False
    expected_instances: int | None = None
    sender_is_done: bool = False


@dataclass(frozen=True)
class Complete:
    """Take the series; `notes` say what was not as it should be."""

    notes: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Wait:
    """Look again at `until` (UNIX seconds), or sooner when an instance arrives or an association ends."""

    until: float
    why: Reason


@dataclass(frozen=True)
class Gap:
    """Slices are missing between two positions along the slice normal, in mm."""

    from_mm: float
    to_mm: float


def completeness(
    evidence: Evidence, now: float, quiet_s: float, max_wait_s: float, sure_quiet_s: float = math.inf
) -> Complete | Wait:
    """Complete when released, gapless and quiet for `quiet_s`; after `max_wait_s` complete in any case.

    Where nothing speaks against it and the sender is done, or all that are expected are there, being quiet
    for `sure_quiet_s` is enough, where that is shorter.
    """
    doubts = _doubts(evidence)
    counted = evidence.expected_instances is not None
    is_sure = not doubts and (evidence.sender_is_done or counted)
    wait_s = min(quiet_s, sure_quiet_s) if is_sure else quiet_s
    quiet_until = evidence.last_received_at + wait_s
    if now < quiet_until:
        return Wait(
            quiet_until, Reason("QUIET", f"waiting until {wait_s:g} s have passed without an instance")
        )
    deadline = max(evidence.last_received_at + max_wait_s, quiet_until)
    if doubts and now < deadline:
        return Wait(deadline, doubts[0])
    return Complete(doubts)


def _doubts(evidence: Evidence) -> tuple[Reason, ...]:
    doubts = []
    count, expected = len(evidence.instances), evidence.expected_instances
    if evidence.associations_open > 0:
        text = f"{evidence.associations_open} association(s) that carried the series are still open"
        doubts.append(Reason("ASSOCIATION_OPEN", text))
    if evidence.aborted and expected is None:
        doubts.append(Reason("ASSOCIATION_ABORTED", "the association that carried the series broke off"))
    if expected is not None and count < expected:
        doubts.append(Reason("COUNT", f"{count} of {expected} expected instances arrived"))
    gaps = find_gaps(evidence.instances) if expected is None or count < expected else ()
    if gaps:
        where = ", ".join(f"{gap.from_mm:.1f} to {gap.to_mm:.1f} mm" for gap in gaps[:5])
        doubts.append(Reason("GAPS", f"{len(gaps)} gap(s) between slices, at {where} along the slice normal"))
    return tuple(doubts)


def find_gaps(instances: Sequence[Instance]) -> tuple[Gap, ...]:
    """Gaps in every stack of parallel slices among the instances; those without geometry are ignored.

    Frames of a multi-frame instance count as slices.
    """
    stacks: list[tuple[Instance, list[tuple[float, float | None]]]] = []
    for slice_ in (slice_ for instance in instances for slice_ in instance.slices()):
        position, orientation = slice_.position, slice_.orientation
        if position is None or orientation is None or slice_.frames > 1:
            continue
        stack = next((stack for stack in stacks if _same_stack(stack[0], slice_)), None)
        if stack is None:
            stacks.append(stack := (slice_, []))
        place = slice_position_mm(position, stack[0].orientation or ())
        stack[1].append((place, slice_.slice_thickness or None))
    gaps = [gap for _, slices in stacks for gap in _stack_gaps(slices)]
    return tuple(sorted(gaps, key=lambda gap: (gap.from_mm, gap.to_mm)))


def _same_stack(one: Instance, other: Instance) -> bool:
    return one.stack == other.stack and parallel(one.orientation or (), other.orientation or ())


def _stack_gaps(slices: list[tuple[float, float | None]]) -> list[Gap]:
    """Gaps of one stack, given (position, thickness) in mm.

    Steps are compared with those between slices of the same pair of thicknesses: a stack of 4 mm slices
    that goes on with 7 mm ones has no gap, neither where the two overlap. A step that comes `_RUN` times
    in a row is a way of scanning. Where steps are uneven altogether, the thickness must fall short too.
    """
    stack = _distinct(slices)
    steps = [high[0] - low[0] for low, high in pairwise(stack)]
    pairs = [(low[1], high[1]) for low, high in pairwise(stack)]
    alike: dict[tuple[float | None, float | None], list[float]] = {}
    for step, pair in zip(steps, pairs, strict=True):
        alike.setdefault(pair, []).append(step)
    usual = {pair: _usual(same) for pair, same in alike.items() if len(same) >= _RUN}
    gaps = []
    for index, (step, pair) in enumerate(zip(steps, pairs, strict=True)):
        thickness = (pair[0] + pair[1]) / 2 if pair[0] and pair[1] else 0.0
        nearby = [*steps[max(index - 2, 0) : index], *steps[index + 1 : index + 3]]
        if pair in usual:
            middle, regular = usual[pair]
            typical = min(middle, max(nearby))
        else:
            typical = max([thickness, *nearby])
            regular = True
        covered = not regular and step <= 1.05 * thickness
        if typical and step > GAP_RATIO * typical and not covered and not _in_run(steps, index):
            gaps.append(Gap(stack[index][0], stack[index + 1][0]))
    return gaps


def _usual(steps: list[float]) -> tuple[float, bool]:
    """The middle one of steps alike, and whether most are like it. Once for all: a stack may be long."""
    middle = median_low(steps)
    return middle, sum(_equal(step, middle) for step in steps) >= 0.8 * len(steps)


def _distinct(slices: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Sorted along the normal, one slice a position."""
    stack: list[tuple[float, float | None]] = []
    for item in sorted(slices, key=lambda item: (item[0], item[1] or 0.0)):
        if not stack or item[0] - stack[-1][0] > SAME_POSITION_MM:
            stack.append(item)
    return stack


def _in_run(steps: list[float], index: int) -> bool:
    """Whether the step belongs to at least `_RUN` equal steps one after another."""
    first = last = index
    while first > 0 and _equal(steps[first - 1], steps[index]):
        first -= 1
    while last + 1 < len(steps) and _equal(steps[last + 1], steps[index]):
        last += 1
    return last - first + 1 >= _RUN


def _equal(step: float, other: float) -> bool:
    return abs(step - other) <= _EQUAL * other
