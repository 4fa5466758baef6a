"""Prepared series on disk, so that a set is read once for every view and a large one need not fit in memory.

A cache is a folder: raw pictures and masks that are mapped into memory, and their facts. It is written
beside its place and moved there whole, by the first of several runs; a folder that is there is complete,
and a `.part` is what a killed run left. Refuses nothing else: who changes a data set removes its cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from workers.preprocess import MARGIN, STEP_MM, View
from workers.training.datasets import Series

VERSION = 1
"""Counts up when prepared series come out differently."""
PICTURES, MASKS, ARRAYS, FACTS = "pictures.u8", "masks.u8", "arrays.npz", "facts.json"
_SLICEWISE = ("labels", "known", "told", "by_hand")


def key(name: str, view: View) -> str:
    """Name of the folder for a set seen through a view: it changes with whatever decides the pictures."""
    facts = json.dumps([VERSION, asdict(view), MARGIN, STEP_MM])
    return f"{name}-{view.size}px-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def cached(folder: Path, series: Iterable[Series]) -> list[Series]:
    """The series kept in `folder`; where there are none, `series` are read to the end and kept first."""
    if not (folder / FACTS).exists():
        write(folder, series)
    return read(folder)


def write(folder: Path, series: Iterable[Series]) -> None:
    """Keep the series, holding one at a time. Raises PermanentError SET_EMPTY when there is none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    part.chmod(0o755)
    try:
        if not _write(part, series):
            raise PermanentError("SET_EMPTY", f"no series for {folder.name}; check the folder of the data")
        if not (folder / FACTS).exists():  # another run may have been faster, and be reading it
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, series: Iterable[Series]) -> int:
    """How many series there were."""
    facts: list[dict[str, Any]] = []
    arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in _SLICEWISE}
    shape: tuple[int, ...] = ()
    with (part / PICTURES).open("wb") as pictures, (part / MASKS).open("wb") as masks:
        for one in series:
            pictures.write(one.pictures.tobytes())
            masks.write(one.masks.tobytes())
            shape = one.pictures.shape[1:]
            for name in _SLICEWISE:
                arrays[name].append(getattr(one, name))
            facts.append(_facts(one))
    if not facts:
        return 0
    joined = {name: np.concatenate(values) for name, values in arrays.items()}
    np.savez(part / ARRAYS, **joined)  # type: ignore[arg-type]
    (part / FACTS).write_text(json.dumps({"shape": shape, "series": facts}), encoding="utf-8")
    return len(facts)


def _facts(one: Series) -> dict[str, Any]:
    names = ("patient", "name", "step_mm", "cell_mm", "study")
    return {"slices": len(one.pictures), **{name: getattr(one, name) for name in names}}


def read(folder: Path) -> list[Series]:
    """What `write` kept; pictures and masks stay on disk until they are looked at.

    Raises PermanentError CACHE_UNREADABLE.
    """
    try:
        return _read(folder)
    except (BadZipFile, EOFError, LookupError, OSError, ValueError) as error:
        text = f"{folder} cannot be read ({error}); remove it, and the set is prepared anew"
        raise PermanentError("CACHE_UNREADABLE", text) from error


def _read(folder: Path) -> list[Series]:
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    total = sum(one["slices"] for one in facts["series"])
    windows, *size = facts["shape"]
    pictures = np.memmap(folder / PICTURES, np.uint8, "r", shape=(total, windows, *size))
    masks = np.memmap(folder / MASKS, np.uint8, "r", shape=(total, *size))
    with np.load(folder / ARRAYS) as file:
        arrays = {name: file[name] for name in _SLICEWISE}
    found: list[Series] = []
    start = 0
    for one in facts["series"]:
        stop = start + one.pop("slices")
        own = {name: values[start:stop] for name, values in arrays.items()}
        for name in ("cell_mm", "study"):
            one[name] = None if one[name] is None else tuple(one[name])
        found.append(Series(pictures=pictures[start:stop], masks=masks[start:stop], **own, **one))
        start = stop
    return found


def patients(series: Sequence[Series]) -> list[str]:
    """Every patient once, in order of appearance."""
    return list(dict.fromkeys(one.patient for one in series))
