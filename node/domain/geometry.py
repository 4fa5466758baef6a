"""Where a slice lies, by ImagePositionPatient and ImageOrientationPatient alone. Knows no series."""

from __future__ import annotations

import math

from node.domain.instance import Vector

SAME_POSITION_MM = 0.01


def slice_position_mm(position: Vector, orientation: Vector) -> float:
    """ImagePositionPatient along the slice normal, row × column direction (PS3.3 C.7.6.2.1.1)."""
    return sum(p * n for p, n in zip(position, slice_normal(orientation), strict=True))


def slice_normal(orientation: Vector) -> Vector:
    """Unit normal of a slice in patient LPS: row direction × column direction."""
    a, b, c, d, e, f = orientation
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal) or 1.0
    return tuple(value / length for value in normal)
