"""The RSNA 2019 haemorrhage challenge as training series, one at a time. Draws no mask, keeps no cache.

Source: Flanders et al., Radiology: AI 2(3):e190211 (2020), doi:10.1148/ryai.2020190211; the terms of the
challenge apply. `stage_2_train.csv` has a row a slice and class (`ID_xxxxxxxxx_any,0`), `stage_2_train/`
a file a slice. A patient may have several series: they carry the same `Series.patient`, so a split must
go by patient and not by series. The public NIfTI set BHSD derives from these images and is not external.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import CTImageStorage

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.even import even_slices
from workers.load import read_dataset
from workers.preprocess import DEFAULT_VIEW, View
from workers.training.assemble import SliceTruth, assemble
from workers.training.datasets import Series
from workers.volume import build_volume

log = logging.getLogger(__name__)

TABLE, IMAGES = "stage_2_train.csv", "stage_2_train"
CORRUPT = frozenset({"ID_6431af929"})
"""Published with truncated pixel data (known since stage 1 of the challenge)."""

_UNSET = 255
_UNUSABLE = frozenset({"TOO_FEW_SLICES", "NO_GEOMETRY", "HEAD_NOT_FOUND"})
"""Of a single series among 21,744: said in the log, and the next one is read."""
_UNREADABLE = (BytesLengthException, EOFError, InvalidDicomError, LookupError, ValueError)

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one SeriesInstanceUID, which in this set is a study too."""

    series_instance_uid: str
    patient_id: str
    paths: tuple[Path, ...]


def rsna(folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
    """Every usable series in `folder`; a mask is known only where a class is absent (empty)."""
    labels = read_labels(folder / TABLE)
    for files in index(folder / IMAGES, labels):
        try:
            yield read_series(files, labels, view)
        except PermanentError as error:
            if error.code not in _UNUSABLE:
                raise PermanentError(error.code, f"series {files.series_instance_uid}: {error}") from error
            log.warning("series %s left out: %s (%s)", files.series_instance_uid, error, error.code)


def read_labels(table: Path) -> dict[str, Labels]:
    """Image id → six labels in the order of CLASSES; equal duplicates are dropped, the corrupt image too.

    Raises PermanentError FILE_MISSING, LABELS_UNREADABLE, LABELS_CONFLICT or LABELS_INCOMPLETE.
    """
    if not table.is_file():
        raise PermanentError(
            "FILE_MISSING", f"{table} is not there; unpack the challenge's archive beside it"
        )
    labels: dict[str, Labels] = {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != ["ID", "Label"]:
            raise PermanentError("LABELS_UNREADABLE", f"{table} does not begin with ID,Label; fetch it again")
        for row in rows:
            _note(labels, row, f"{table} line {rows.line_num}")
    for corrupt in CORRUPT & labels.keys():
        log.warning("image %s left out: its published file is corrupt", corrupt)
        del labels[corrupt]
    for image, known in labels.items():
        if (known == _UNSET).any():
            lacking = ", ".join(CLASSES[place] for place in np.flatnonzero(known == _UNSET))
            text = f"{table}: image {image} has no row for {lacking}; fetch the table again"
            raise PermanentError("LABELS_INCOMPLETE", text)
    return labels


def _note(labels: dict[str, Labels], row: list[str], place: str) -> None:
    """Enter one row of the table."""
    name, value = (row[0], row[1]) if len(row) == 2 else ("", "")
    image, _, label = name.rpartition("_")
    if label not in CLASSES or value not in ("0", "1"):
        raise PermanentError(
            "LABELS_UNREADABLE", f"{place}: {','.join(row)!r} is no ID_…_class,0|1; correct it"
        )
    known = labels.setdefault(image, np.full(len(CLASSES), _UNSET, np.uint8))
    channel = CLASSES.index(label)
    if known[channel] not in (_UNSET, int(value)):
        text = f"{place}: image {image} is labelled both 0 and 1 for {label}; remove the wrong row"
        raise PermanentError("LABELS_CONFLICT", text)
    known[channel] = int(value)


def index(images: Path, labels: Mapping[str, Labels]) -> list[SeriesFiles]:
    """The labelled files by series, in order of patient and series. Reads every header, no pixels.

    Raises PermanentError FILE_MISSING, LABELS_MISSING or FILE_UNREADABLE.
    """
    there = {path.stem: path for path in sorted(images.glob("ID_*.dcm")) if path.stem not in CORRUPT}
    missing = sorted(labels.keys() - there.keys())
    if missing:
        text = f"{images / missing[0]}.dcm is not there ({len(missing)} labelled images are missing); "
        raise PermanentError("FILE_MISSING", text + "unpack the archive again, or remove their rows")
    for image in sorted(there.keys() - labels.keys()):
        text = f"{there[image]} has no row in the table of labels; remove it, or fetch the table again"
        raise PermanentError("LABELS_MISSING", text)
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in there.values():
        groups.setdefault(_owner(path), []).append(path)
    return [SeriesFiles(uid, patient, tuple(paths)) for (patient, uid), paths in sorted(groups.items())]


def _owner(path: Path) -> tuple[str, str]:
    """PatientID and SeriesInstanceUID; in this set they read ID_…, which is no legal UID (PS3.5 9.1)."""
    try:
        with disable_value_validation():
            ds = dcmread(path, specific_tags=["PatientID", "SeriesInstanceUID"], stop_before_pixels=True)
            patient, series = str(ds.get("PatientID") or ""), str(ds.get("SeriesInstanceUID") or "")
    except _UNREADABLE as error:
        text = f"{path} cannot be read as DICOM ({error}); unpack it again"
        raise PermanentError("FILE_UNREADABLE", text) from error
    if not patient or not series:
        text = f"{path} lacks PatientID or SeriesInstanceUID; unpack it again"
        raise PermanentError("FILE_UNREADABLE", text)
    return patient, series


def read_series(files: SeriesFiles, labels: Mapping[str, Labels], view: View = DEFAULT_VIEW) -> Series:
    """One series with the labels of its slices, feet to head by geometry. Raises as `build_volume`."""
    datasets = [_complete(read_dataset(path)) for path in files.paths]
    with disable_value_validation():
        images = {str(ds.SOPInstanceUID): path.stem for ds, path in zip(datasets, files.paths, strict=True)}
    volume = build_volume(datasets)
    _say(files, volume.warnings)
    known = np.stack([labels[images[uid]] for uid in volume.sop_instance_uids])
    seen = even_slices(volume)
    truth = np.maximum.reduceat(volume.slices_from_canonical(known), seen.starts, axis=0)
    return assemble(
        f"rsna-{files.patient_id}",
        seen.hu,
        volume.spacing_mm,
        SliceTruth(truth, truth == 0),
        name=files.series_instance_uid,
        view=view,
    )


def _complete(ds: Dataset) -> Dataset:
    """The published files leave SOPClassUID out of the dataset; a CT image can be nothing else here."""
    if not ds.get("SOPClassUID") and ds.get("Modality") == "CT":
        ds.SOPClassUID = CTImageStorage
    return ds


def _say(files: SeriesFiles, warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.info("series %s: %s", files.series_instance_uid, warning)
