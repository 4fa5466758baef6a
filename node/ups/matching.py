"""Attribute matching of a C-FIND (PS3.4 C.2.2.2) on datasets at hand. Asks no database, changes nothing.

A DT without an offset from UTC is in the zone of who asks (PS3.5 6.2): that of TimezoneOffsetFromUTC in the
question, else the one the node is given.
"""

from __future__ import annotations

import fnmatch
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

RANGED = ("DA", "TM")
_OFFSET = r"[+-]\d{4}"
_DT = rf"\d{{8,14}}(?:\.\d{{1,6}})?(?:{_OFFSET})?|\d{{4,7}}"
WILD = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
NOT_KEYS = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")


def matches(identifier: Dataset, candidate: Dataset, zone: tzinfo | None = UTC) -> bool:
    """Whether every key of the identifier holds of the candidate. `zone` None: the machine's own."""
    zone = _zone(str(identifier.get("TimezoneOffsetFromUTC") or "").strip(), zone)
    return all(_holds(key, candidate, zone) for key in identifier if key.keyword not in NOT_KEYS)


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


def _holds(key: DataElement, candidate: Dataset, zone: tzinfo | None) -> bool:
    found = candidate.get(key.tag)
    if key.VR == "SQ":
        return _sequence_holds(key, found, zone)
    if key.is_empty:  # universal matching
        return True
    if found is None or found.is_empty:
        return _texts(key) == ["*"]
    if key.VR == "DT":
        return any(_time_holds(wanted, value, zone) for wanted in _texts(key) for value in _texts(found))
    return any(_value_holds(key.VR, wanted, value) for wanted in _texts(key) for value in _texts(found))


def _sequence_holds(key: DataElement, found: DataElement | None, zone: tzinfo | None) -> bool:
    wanted = key.value[0] if key.value else None
    if wanted is None or all(_is_universal(element) for element in wanted):
        return True
    return found is not None and found.VR == "SQ" and any(matches(wanted, item, zone) for item in found.value)


def _is_universal(element: DataElement) -> bool:
    if element.VR == "SQ":
        return not element.value or all(_is_universal(inner) for inner in element.value[0])
    return bool(element.is_empty)


def _texts(element: DataElement) -> list[str]:
    value: Any = element.value
    return [str(v).strip() for v in (value if isinstance(value, (MultiValue, list)) else [value])]


def _value_holds(vr: str, wanted: str, value: str) -> bool:
    if vr in RANGED and "-" in wanted:
        low, _, high = (part.strip() for part in wanted.partition("-"))
        return _is_between(low, value, high)
    if vr == "PN":
        wanted, value = wanted.casefold().rstrip("^="), value.casefold().rstrip("^=")
    if vr in WILD and ("*" in wanted or "?" in wanted):
        pattern = fnmatch.translate(wanted.replace("[", "[[]"))
        return re.match(pattern, value) is not None
    return value.startswith(wanted) if vr in RANGED else value == wanted


def _is_between(low: str, value: str, high: str) -> bool:
    """`a-`, `-b` and `a-b`, ends included; a shorter end stands for all it begins."""
    return (not low or value >= low) and (not high or value[: len(high)] <= high)


def _time_holds(wanted: str, value: str, zone: tzinfo | None) -> bool:
    """Of a DT; a key may end in an offset from UTC such as -0500, which makes no range (PS3.5 6.2)."""
    wanted = wanted.replace(" ", "")
    if re.fullmatch(_DT, wanted):
        plain, offset = _parted(wanted)
        return _seen_from(value, _zone(offset, zone)).startswith(plain)
    ends = re.fullmatch(f"({_DT})?-({_DT})?", wanted)
    if ends is None:
        return False
    low, low_offset = _parted(ends[1] or "")
    high, high_offset = _parted(ends[2] or "")
    return _is_between(low, _seen_from(value, _zone(low_offset, zone)), "") and _is_between(
        "", _seen_from(value, _zone(high_offset, zone)), high
    )


def _parted(text: str) -> tuple[str, str]:
    """A DT, and its offset from UTC; the latter empty where it has none."""
    offset = re.search(rf"{_OFFSET}$", text)
    return (text[:-5], offset[0]) if offset else (text, "")


def _seen_from(value: str, zone: tzinfo | None) -> str:
    """A DT without its offset, as clocks show it in that zone; one without is left as it is."""
    plain, offset = _parted(value)
    if not re.match(r"\d{14}", plain):
        return plain
    try:
        at = datetime.strptime(plain[:14] + offset, "%Y%m%d%H%M%S%z").astimezone(zone)
    except (ValueError, OverflowError):
        return plain
    return at.strftime("%Y%m%d%H%M%S") + plain[14:]


def _zone(offset: str, otherwise: tzinfo | None) -> tzinfo | None:
    """Of an offset such as +0900; the other one for anything else."""
    if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", offset) is None:
        return otherwise
    away = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
    return timezone(-away if offset[0] == "-" else away)
