"""How a series was acquired, in the few facts by which drift is noticed. Holds them; reads no file."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_SCANNER = "unknown scanner"
LONGEST_SCANNER = 200


@dataclass(frozen=True)
class Acquisition:
    """Of the slices that were analysed; absent or unreadable values are None or empty.

    `manufacturer`, `model` and `station` name the scanner (PS3.3 C.7.5.1), `kernel` and `kvp` the way the
    image was made (PS3.3 C.8.2.1). `head_hu` is the median HU within the skull, `head_share` the part of the
    scanned length that shows it, both as the worker measured them.
    """

    manufacturer: str = ""
    model: str = ""
    station: str = ""
    kernel: str = ""
    kvp: float | None = None
    slice_thickness_mm: float | None = None
    pixel_mm: float | None = None
    slices: int | None = None
    head_hu: float | None = None
    head_share: float | None = None

    @property
    def scanner(self) -> str:
        """One name of the scanner for lists and statistics."""
        parts = [" ".join(part.split()) for part in (self.manufacturer, self.model, self.station)]
        return " · ".join(filter(None, parts))[:LONGEST_SCANNER] or UNKNOWN_SCANNER
