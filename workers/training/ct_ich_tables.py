"""The tables beside the CT-ICH pictures: labels and files of every slice, loose boxes. Opens no picture.

`index.csv` has a row a slice, `boxes.csv` a row a box with its relative centre, width and height. Equal rows
count once; those that contradict one another are refused, since nobody can tell which is right.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES

INDEX, BOXES = "index.csv", "boxes.csv"
BOX_NAMES = dict(zip(("EDH", "IPH", "IVH", "SAH", "SDH"), SUBTYPES, strict=True))

Row = dict[str, str]
Slice = tuple[str, str]
"""Patient and slice number, as written."""

_INDEX = ("patient", "slice", "brain_path", "bone_path", "mask_path", *CLASSES)
_BOX = ("patient", "slice", "subtype", "xc", "yc", "w", "h")


def read_index(folder: Path) -> list[Row]:
    """By patient and slice. Raises PermanentError FILE_MISSING, LABELS_UNREADABLE or LABELS_CONFLICT."""
    table = folder / INDEX
    found: dict[Slice, Row] = {}
    for row in _rows(table, _INDEX, _check_slice):
        known = found.setdefault((row["patient"], row["slice"]), row)
        if known != row:
            text = f"{table}: slice {row['slice']} of patient {row['patient']} has two rows that differ"
            raise PermanentError("LABELS_CONFLICT", f"{text}; remove the wrong one")
    return sorted(found.values(), key=lambda row: (int(row["patient"]), int(row["slice"])))


def read_boxes(folder: Path) -> dict[Slice, list[Row]]:
    """Those of each slice that has any. Raises PermanentError FILE_MISSING or LABELS_UNREADABLE."""
    found: dict[Slice, list[Row]] = {}
    for row in _rows(folder / BOXES, _BOX, _check_box):
        found.setdefault((row["patient"], row["slice"]), []).append(row)
    return found


def _rows(table: Path, columns: tuple[str, ...], check: Callable[[Row], None]) -> list[Row]:
    if not table.is_file():
        text = f"{table} is not there; docs/training.md says what must be in it"
        raise PermanentError("FILE_MISSING", text)
    found = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            text = f"{table} has no column {', '.join(lacking)}; docs/training.md says what must be in it"
            raise PermanentError("LABELS_UNREADABLE", text)
        for row in reader:
            own = {name: row[name] or "" for name in columns}
            try:
                check(own)
            except ValueError as error:
                text = f"{table} line {reader.line_num}: {error}; correct it"
                raise PermanentError("LABELS_UNREADABLE", text) from error
            found.append(own)
    return found


def _check_slice(row: Row) -> None:
    """Raises ValueError."""
    int(row["patient"]), int(row["slice"])
    for name in CLASSES:
        if row[name] not in ("0", "1"):
            raise ValueError(f"{name} is {row[name]!r}, not 0 or 1")
    if not row["brain_path"]:
        raise ValueError("no brain_path")


def _check_box(row: Row) -> None:
    """Raises ValueError."""
    for name in ("xc", "yc", "w", "h"):
        float(row[name])
    if row["subtype"] not in BOX_NAMES:
        raise ValueError(f"no subtype {row['subtype']!r}: there are {', '.join(BOX_NAMES)}")
