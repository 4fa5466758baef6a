"""`ichnode analyse`: a folder of DICOM files in, findings and objects out. Needs no network."""

from __future__ import annotations

import filecmp
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from node import __version__
from node.domain.eligibility import Choice, Rules, best_refused, choose
from node.domain.errors import PermanentError
from node.domain.findings import Findings, ModelIdentity, Reason, Status
from node.domain.instance import Instance
from node.domain.patients import CODE, Person, same_person
from node.gathering import made_at, read_source
from node.headers import read_instance
from node.outputs.catalogue import NAMES, build_all
from node.outputs.context import Context
from node.outputs.encoding import encode
from node.outputs.source import Source
from node.pixels import hounsfield
from node.settings import Settings
from workers.analyse import Analysis, analyse, with_loading
from workers.load import load_head
from workers.models.contract import Pipeline
from workers.models.runtime import load_pipeline
from workers.selection import wish_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folder:
    """The readable DICOM files of a folder, by series; `strangers` are files that are not DICOM."""

    paths: Mapping[str, Sequence[Path]]
    instances: Mapping[str, Sequence[Instance]]
    strangers: tuple[Path, ...]


@dataclass(frozen=True)
class Result:
    findings: Findings
    files: Mapping[str, Sequence[Path]]


def read_folder(folder: Path) -> Folder:
    """Copies of a file count once.

    Raises PermanentError when the folder holds no DICOM file, more than one study or patient, or files that
    differ and say that they are the same SOP instance.
    """
    paths: dict[str, list[Path]] = {}
    instances: dict[str, list[Instance]] = {}
    by_uid: dict[str, Path] = {}
    persons: dict[Person, Path] = {}
    strangers = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            instance = read_instance(path)
        except PermanentError:
            strangers.append(path)
            continue
        if (known := by_uid.setdefault(instance.sop_instance_uid, path)) is not path:
            _require_copy(known, path)
            continue
        persons.setdefault(Person(instance.patient_id, instance.patient_name), path)
        paths.setdefault(instance.series_instance_uid, []).append(path)
        instances.setdefault(instance.series_instance_uid, []).append(instance)
    studies = {i.study_instance_uid for group in instances.values() for i in group}
    if not studies:
        raise PermanentError(
            "NO_DICOM", f"{folder} holds no DICOM file; give a folder with one head CT study"
        )
    if len(studies) > 1:
        raise PermanentError(
            "SEVERAL_STUDIES", f"{folder} holds {len(studies)} studies; give a folder with one of them"
        )
    _require_one_patient(persons)
    return Folder(paths, instances, tuple(strangers))


def _require_one_patient(persons: Mapping[Person, Path]) -> None:
    """By the headers of the whole folder: also of series that nobody would read."""
    if not same_person(persons.keys()):
        whose: dict[str, Path] = {}
        for person, file in persons.items():
            whose.setdefault(person.patient_id.strip() or person.patient_name or "no patient ID", file)
        named = ", ".join(f"{name} ({file})" for name, file in whose.items())
        text = f"the folder holds images of several patients: {named}; give a folder with one of them"
        raise PermanentError(CODE, text)


def _require_copy(known: Path, path: Path) -> None:
    """Which of two that differ is right nobody can tell."""
    if not filecmp.cmp(known, path, shallow=False):
        text = f"{known} and {path} differ, and bear the same SOP Instance UID; keep one of them"
        raise PermanentError("CONTENT_DIFFERS", text)


def analyse_folder(folder: Path, out: Path, settings: Settings, say: Say) -> Result:
    """Choose a series, analyse it and write findings.json, sr.dcm, seg.dcm and sc/*.dcm to `out`."""
    say("reading headers")
    read = read_folder(folder)
    eligibility = settings.eligibility
    rules = Rules(allow_derived=eligibility.allow_derived, allow_contrast=eligibility.allow_contrast)
    say("loading the model")
    pipeline = load_pipeline(settings.model.pipeline, wish_of(settings.model))
    findings, analysis = _first_readable(read, rules, pipeline, say)
    say("building the objects")
    source = read_source(read.paths[findings.series_instance_uid])
    return Result(findings, _write(findings, analysis, source, out))


def _first_readable(
    read: Folder, rules: Rules, pipeline: Pipeline, say: Say
) -> tuple[Findings, Analysis | None]:
    """The best series that can be analysed; else why the best of all cannot."""
    left, failed = dict(read.instances), list[Findings]()
    while uid := (choice := choose(left, rules)).chosen:
        notes = [note.text for note in choice.notes]
        notes += [f"a better series could not be read: {f.reason.text}" for f in failed if f.reason]
        try:
            analysis = with_loading(*_analyse(read.paths[uid], uid, pipeline, say), notes)
            return analysis.findings, analysis
        except PermanentError as error:
            failed.append(_refused(pipeline.identity, uid, Reason(error.code, str(error))))
            del left[uid]
    if failed:
        return failed[0], None
    uid = best_refused(choice, read.instances) or next(iter(read.paths))
    return _refused(pipeline.identity, uid, _why(choice, uid)), None


def _analyse(paths: Sequence[Path], uid: str, pipeline: Pipeline, say: Say) -> tuple[Analysis, float]:
    """The analysis, and how many seconds reading took."""
    say("reading pixels")
    began = time.perf_counter()
    volume = load_head(paths)
    load_s = time.perf_counter() - began
    say(f"analysing {len(volume.positions_mm)} slices")
    return analyse(volume, pipeline, series_instance_uid=uid, revision=1), load_s


def _why(choice: Choice, uid: str) -> Reason:
    return choice.skipped.get(uid) or Reason("NOT_CT", "the folder holds no CT image")


def _refused(model: ModelIdentity, uid: str, reason: Reason) -> Findings:
    return Findings(model, uid, 1, Status.NOT_ANALYSED, reason)


def _write(
    findings: Findings, analysis: Analysis | None, datasets: Sequence[Dataset], out: Path
) -> dict[str, list[Path]]:
    context = Context(
        findings=findings,
        source=Source.ordered(datasets, findings, hounsfield),
        made_at=made_at(int(time.time()), None, datasets),
        software_version=__version__,
        masks=analysis.masks if analysis else None,
        heat=analysis.heat if analysis else None,
        subtypes=analysis.subtypes if analysis else {},
    )
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    report = out / "findings.json"
    report.write_text(json.dumps(findings.to_json(), indent=2) + "\n", encoding="utf-8")
    files: dict[str, list[Path]] = {"findings": [report]}
    for name, built in build_all(context).items():
        for index, ds in enumerate(built, start=1):
            path = out / f"{name}.dcm" if name != "sc" else out / "sc" / f"{index:03d}.dcm"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode(ds))
            files.setdefault(name, []).append(path)
    return files


def _clear(out: Path) -> None:
    """Take out what an earlier analysis left: an object of somebody else would pass for this patient's."""
    objects = [out / f"{name}.dcm" for name in NAMES if name != "sc"]
    for path in (out / "findings.json", *objects, *out.glob("sc/[0-9][0-9][0-9]*.dcm")):
        path.unlink(missing_ok=True)
