"""Attribute matching of a C-FIND (PS3.4 C.2.2.2) on datasets at hand. Asks no database, changes nothing."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

RANGED = ("DA", "TM", "DT")
WILD = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
NOT_KEYS = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")


def matches(identifier: Dataset, candidate: Dataset) -> bool:
    """Whether every key of the identifier holds of the candidate."""
    return all(_holds(key, candidate) for key in identifier if key.keyword not in NOT_KEYS)


def answer(identifier: Dataset, candidate: Dataset) -> Dataset:
    """The keys of the identifier with the candidate's values; what it does not have comes back empty."""
    ds = Dataset()
    for key in identifier:
        found = candidate.get(key.tag)
        if found is not None:
            ds[key.tag] = found
        else:
            ds.add_new(key.tag, key.VR, [] if key.VR == "SQ" else None)
    ds.SpecificCharacterSet = candidate.get("SpecificCharacterSet")
    ds.SOPClassUID, ds.SOPInstanceUID = candidate.SOPClassUID, candidate.SOPInstanceUID
    return ds


def _holds(key: DataElement, candidate: Dataset) -> bool:
    found = candidate.get(key.tag)
    if key.VR == "SQ":
        return _sequence_holds(key, found)
    if key.is_empty:  # universal matching
        return True
    if found is None or found.is_empty:
        return _texts(key) == ["*"]
    return any(_value_holds(key.VR, wanted, value) for wanted in _texts(key) for value in _texts(found))


def _sequence_holds(key: DataElement, found: DataElement | None) -> bool:
    wanted = key.value[0] if key.value else None
    if wanted is None or all(_is_universal(element) for element in wanted):
        return True
    return found is not None and found.VR == "SQ" and any(matches(wanted, item) for item in found.value)


def _is_universal(element: DataElement) -> bool:
    if element.VR == "SQ":
        return not element.value or all(_is_universal(inner) for inner in element.value[0])
    return bool(element.is_empty)


def _texts(element: DataElement) -> list[str]:
    value: Any = element.value
    return [str(v).strip() for v in (value if isinstance(value, (MultiValue, list)) else [value])]


def _value_holds(vr: str, wanted: str, value: str) -> bool:
    if vr in RANGED and re.search(r"-", _without_offset(wanted)):
        return _in_range(vr, wanted, value)
    if vr == "PN":
        wanted, value = wanted.casefold().rstrip("^="), value.casefold().rstrip("^=")
    if vr in WILD and ("*" in wanted or "?" in wanted):
        pattern = fnmatch.translate(wanted.replace("[", "[[]"))
        return re.match(pattern, value) is not None
    return value.startswith(wanted) if vr in RANGED else value == wanted


def _without_offset(text: str) -> str:
    """A DT may end in an offset from UTC such as -0500, which makes no range (PS3.5 6.2)."""
    return re.sub(r"^(\d{8,}(\.\d+)?)-\d{4}$", r"\1", text)


def _in_range(vr: str, wanted: str, value: str) -> bool:
    """`a-`, `-b` and `a-b`, ends included; a shorter end stands for all it begins. Offsets do not count."""
    plain = re.sub(r"[+]\d{4}", "", wanted)
    low, _, high = (part.strip() for part in plain.partition("-"))
    text = re.sub(r"[+-]\d{4}$", "", value) if vr == "DT" else value
    return (not low or text >= low) and (not high or text[: len(high)] <= high)
