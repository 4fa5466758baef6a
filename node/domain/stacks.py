"""Which images of a series belong to one volume, and which volume of several is read. Opens no pixels.

A series may hold an axial scan beside its reformats and projections, and a multi-frame object several
stacks, points in time or reconstructions. Slices of two volumes are never mixed; the position of a slice
plays no part here.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.domain import vocabulary as words
from node.domain.imagetypes import told
from node.domain.instance import Instance, Vector

ORIENTATION_TOLERANCE = 0.01
"""Direction cosines of one stack may differ by the jitter of the last digits that scanners write."""
SPACING_TOLERANCE_MM = 0.001


def stacks(slices: Sequence[Instance]) -> list[list[int]]:
    """Indices of slices alike in kind, matrix, orientation, spacing, stack and sharpness, as they come."""
    groups: list[list[int]] = []
    for index, slice_ in enumerate(slices):
        group = next((group for group in groups if _alike(slices[group[0]], slice_)), None)
        if group is None:
            groups.append(group := [])
        group.append(index)
    return groups


def main_stack(slices: Sequence[Instance]) -> list[int]:
    """Indices of the stack to read: as scanned, not too sharp, then the most slices, then the earliest."""

    def rank(group: list[int]) -> tuple[bool, bool, int, str]:
        first = slices[group[0]]
        return bool(told(first.image_type)), _is_soft(first) is False, -len(group), first.stack

    return min(stacks(slices), key=rank, default=[])


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
