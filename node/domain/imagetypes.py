"""What the ImageType of a CT image says it is, besides a slice as it was scanned. Knows no rule of a site."""

from __future__ import annotations

from collections.abc import Sequence

LOCALIZER, DOSE_REPORT, RENDERED = "LOCALIZER", "DOSE_REPORT", "RENDERED"
PERFUSION, DERIVED_IMAGE = "PERFUSION", "DERIVED_IMAGE"

_VALUES = (
    (LOCALIZER, {"LOCALIZER", "SCOUT", "TOPOGRAM"}),
    (DOSE_REPORT, {"DOSE_INFO", "DOSE", "SCREEN SAVE", "PATIENT_PROTOCOL"}),
    (RENDERED, {"MIP", "MINIP", "MAX_IP", "MIN_IP", "VRT", "VOLREN", "CSA MIP"}),
    (RENDERED, {"MAXIMUM", "MINIMUM", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"}),
    (PERFUSION, {"PERFUSION", "CT_PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX"}),
    (DERIVED_IMAGE, {"MPR", "CSA MPR", "REFORMATTED", "MULTI_PLANAR"}),
)
"""Values that tell (PS3.3 C.8.2.1.1.1, C.8.16.1, and what vendors add)."""


def told(image_type: Sequence[str]) -> str:
    """One of the names above, the farthest from a slice as it was scanned; empty for such a slice."""
    for name, values in _VALUES:
        if values.intersection(image_type):
            return name
    return DERIVED_IMAGE if tuple(image_type[:2]) == ("DERIVED", "SECONDARY") else ""
