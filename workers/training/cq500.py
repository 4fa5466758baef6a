"""The CQ500 studies with the votes of their three readers, for evaluation. Makes no slice label of them.

Source: Chilamkurthy et al., Lancet 392:2388 (2018), doi:10.1016/S0140-6736(18)31645-3; CC BY-NC-SA 4.0.
The readers judged whole studies, so a `Study` is no `Series` and cannot be trained on slice by slice.
`reads.csv` has a row a study; its files lie in `CQ500CTn CQ500CTn/Unknown Study/<series>/*.dcm`, there
or one folder lower (`qct01/…`, as the mirrors pack them).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.domain.eligibility import Rules, choose
from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from node.domain.instance import Instance
from node.headers import read_instance
from workers.even import even_slices
from workers.load import load_volume
from workers.preprocess import DEFAULT_VIEW, STEP_MM, Spacing, View
from workers.training.datasets import Series, cell_mm, quantise

log = logging.getLogger(__name__)

TABLE = "reads.csv"
READERS = ("R1", "R2", "R3")
DEFAULT_RULES = Rules()
_COLUMNS = dict(zip(CLASSES, ("ICH", "EDH", "IPH", "IVH", "SAH", "SDH"), strict=True))


@dataclass(frozen=True)
class Study:
    """One patient's chosen series with what the readers said of the whole study.

    `pictures` (n, windows, size, size) uint8, feet to head; `votes` (6,) in the order of CLASSES, how
    many of the three readers saw the class; `cell_mm` the size of a picture's cell.
    """

    patient: str
    series_instance_uid: str
    pictures: NDArray[np.uint8]
    votes: NDArray[np.uint8]
    cell_mm: Spacing

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The majority (6,). Each class by itself, as published: "any" need not be their union."""
        return (2 * self.votes > len(READERS)).astype(np.uint8)

    @property
    def unanimous(self) -> NDArray[np.bool_]:
        """Where all readers agree (6,)."""
        return (self.votes == 0) | (self.votes == len(READERS))

    def series(self) -> Series:
        """The study as a series of which no slice is told, only the majority about the whole."""
        none = np.zeros((len(self.pictures), len(CLASSES)), bool)
        return Series(
            self.patient,
            self.pictures,
            none.astype(np.uint8),
            np.zeros((len(self.pictures), *self.pictures.shape[2:]), np.uint8),
            known=none,
            told=none,
            by_hand=none[:, 0],
            name=self.series_instance_uid,
            step_mm=self.cell_mm[0] or STEP_MM,
            cell_mm=self.cell_mm,
            study=tuple(int(label) for label in self.labels),
        )


def cq500_series(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """Every study of `cq500` as a `Series`, for evaluation."""
    return (study.series() for study in cq500(folder, view=view))


def cq500(folder: Path, rules: Rules = DEFAULT_RULES, view: View = DEFAULT_VIEW) -> Iterator[Study]:
    """Every study of reads.csv with a series the node would analyse; any other is named in the log.

    Raises PermanentError as `read_votes` does, FILE_MISSING, or what is wrong with the chosen files.
    """
    for name, votes in read_votes(folder / TABLE).items():
        try:
            study = _study(name, _place(folder, name), votes, rules, view)
        except PermanentError as error:
            raise PermanentError(error.code, f"study {name}: {error}") from error
        if study is not None:
            yield study


def read_votes(table: Path) -> dict[str, NDArray[np.uint8]]:
    """Study name → votes (6,) in the order of CLASSES.

    Raises PermanentError FILE_MISSING, READS_UNREADABLE or READS_CONFLICT.
    """
    if not table.is_file():
        raise PermanentError("FILE_MISSING", f"{table} is not there; fetch it from the set's page")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        needed = ["name", *(f"{reader}:{short}" for reader in READERS for short in _COLUMNS.values())]
        lacking = [column for column in needed if column not in (rows.fieldnames or ())]
        if lacking:
            text = f"{table} has no column {', '.join(lacking)}; fetch it again"
            raise PermanentError("READS_UNREADABLE", text)
        votes: dict[str, NDArray[np.uint8]] = {}
        for row in rows:
            place, name = f"{table} line {rows.line_num}", row["name"]
            own = _votes(row, place)
            if not np.array_equal(votes.setdefault(name, own), own):
                text = f"{place}: {name} has other votes than in the row before; remove the wrong row"
                raise PermanentError("READS_CONFLICT", text)
        return votes


def _votes(row: dict[str, str], place: str) -> NDArray[np.uint8]:
    votes = np.zeros(len(CLASSES), np.uint8)
    for reader in READERS:
        for channel, short in enumerate(_COLUMNS.values()):
            value = row[f"{reader}:{short}"]
            if value not in ("0", "1"):
                text = f"{place}: {row['name']} has {value!r} for {reader}:{short}; write 0 or 1"
                raise PermanentError("READS_UNREADABLE", text)
            votes[channel] += int(value)
    return votes


def _place(folder: Path, name: str) -> Path:
    """The folder of CQ500-CT-n."""
    number = name.replace("-", "")
    lower = sorted(folder.glob(f"*/{number} {number}"))
    return lower[0] if lower else folder / f"{number} {number}"


def _study(name: str, folder: Path, votes: NDArray[np.uint8], rules: Rules, view: View) -> Study | None:
    """The study with its chosen series, or None where the node would analyse none of them."""
    paths = sorted(folder.rglob("*.dcm"))
    if not paths:
        text = f"{folder} holds no .dcm file; unpack the study there, or remove its row from {TABLE}"
        raise PermanentError("FILE_MISSING", text)
    files: dict[str, list[Path]] = {}
    series: dict[str, list[Instance]] = {}
    for path in paths:
        instance = _named(read_instance(path), path)
        files.setdefault(instance.series_instance_uid, []).append(path)
        series.setdefault(instance.series_instance_uid, []).append(instance)
    choice = choose(series, rules)
    if choice.chosen is None:
        reasons = "; ".join(f"{uid}: {reason.text}" for uid, reason in choice.skipped.items())
        log.warning("study %s left out, no series can be analysed: %s", name, reasons)
        return None
    volume = load_volume(files[choice.chosen])
    source = view.prepare(even_slices(volume).hu, volume.spacing_mm)
    cell = cell_mm(source, volume.spacing_mm)
    return Study(name.lower(), choice.chosen, quantise(source.pictures), votes, cell)


def _named(instance: Instance, path: Path) -> Instance:
    """A series without a name of its own is called by its folder, which is what the set names it by."""
    if instance.series_description or instance.protocol_name:
        return instance
    return replace(instance, series_description=path.parent.name)
