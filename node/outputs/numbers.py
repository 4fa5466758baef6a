"""The numbers of the report as NUM items (TID 300), each with method and unit. Decides on none of them."""

from __future__ import annotations

import highdicom as hd
from pydicom.sr.coding import Code

from node.domain.findings import ClassFinding, Comparison, Findings, SegmentationFinding
from node.outputs import codes
from node.outputs.wording import Verdict, verdict


def probability(findings: Findings, finding: ClassFinding | None) -> hd.sr.Measurement:
    """Empty and qualified where there is none: `content.finish` takes the zero out of the finished tree."""
    if finding is not None and verdict(findings) is not Verdict.NOT_ANALYSED:
        return hd.sr.Measurement(codes.PROBABILITY, round(float(finding.probability), 4), codes.NO_UNITS)
    return hd.sr.Measurement(codes.PROBABILITY, 0.0, codes.NO_UNITS, qualifier=codes.qualifier(findings))


def volume(volume_ml: float) -> hd.sr.Measurement:
    return _number(codes.VOLUME, volume_ml, codes.MILLILITER, codes.VOXELS_SUMMED)


def of_mask(segmentation: SegmentationFinding) -> list[hd.sr.Measurement]:
    """Volume first; what was not measured is left out."""
    items = [volume(segmentation.volume_ml)]
    if segmentation.diameter_mm is not None:
        items.append(_number(codes.LONG_AXIS, segmentation.diameter_mm, codes.MILLIMETER))
    if segmentation.abc2 is not None:
        estimate = segmentation.abc2.volume_ml
        items.append(_number(codes.ELLIPSOID_VOLUME, estimate, codes.MILLILITER, codes.ABC2))
    if segmentation.components is not None:
        items.append(_number(codes.LESION_COUNT, segmentation.components, codes.NO_UNITS))
    if segmentation.slices:
        items.append(_number(codes.SLICE_COUNT, len(segmentation.slices), codes.NO_UNITS))
    return items


def of_change(comparison: Comparison) -> list[hd.sr.Measurement]:
    items = [
        _number(codes.PRIOR_VOLUME, comparison.before_ml, codes.MILLILITER),
        _number(codes.CHANGE, comparison.change_ml, codes.MILLILITER),
    ]
    if comparison.change_percent is not None:
        items.append(_number(codes.RELATIVE_CHANGE, comparison.change_percent, codes.PERCENT))
    return items


def _number(name: Code, value: float, unit: Code, method: Code | None = None) -> hd.sr.Measurement:
    if isinstance(value, int):
        return hd.sr.Measurement(name, value, unit, method=method)
    digits = 1 if unit in (codes.MILLIMETER, codes.PERCENT) else 2
    return hd.sr.Measurement(name, round(float(value), digits), unit, method=method)
