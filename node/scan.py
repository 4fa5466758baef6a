"""Accounts for every file of the spool at start: what a crash left is recorded, cleared away or reported.

A file without a record was written and not yet acknowledged: it is adopted, since its bytes are whole. A
record without its file is an incident that a person must see. What cannot be explained is left untouched.
"""

from __future__ import annotations

import logging
import os
import struct
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path

from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.domain.lifecycle import JobState
from node.fingerprint import file_digest, file_fingerprint, is_repeated
from node.headers import read_instance
from node.liveness import process_name
from node.spool import INCOMING, OUTGOING, PART, RESULTS, Spool
from node.store.arrivals import Recorded, StoredFile, check_recordable
from node.store.incidents import Code, Incident
from node.store.keeping import Held
from node.store.records import Records

log = logging.getLogger(__name__)

BATCH = 500
AT_REST_S = 600.0
"""A file of a job that is younger may be about to be recorded."""
OVER = (JobState.COMPOSED, JobState.SUPERSEDED, JobState.CANCELLED, None)


class Fate(StrEnum):
    """What the scan made of a file; each file has exactly one."""

    RECORDED = "recorded"
    ADOPTED = "adopted"  # it had no record, and has one now
    DUPLICATE = "duplicates removed"  # the same instance is recorded with another file
    KEPT = "kept beside"  # an older content of an instance that came again
    UNFINISHED = "unfinished removed"  # `.part`: nobody was told that it is safe
    LEFTOVER = "leftovers removed"  # of an attempt whose result is not used
    AT_WORK = "in work"
    UNKNOWN = "unknown"  # cannot be read or recorded; left where it is


MISSING = "records without a file"


class Scan:
    """One look at everything. Others may receive, analyse and remove meanwhile."""

    def __init__(self, records: Records, spool: Spool, now: Callable[[], float] = time.time) -> None:
        self._records = records
        self._spool = spool
        self._now = now
        self._association = ""
        self._counts: Counter[str] = Counter()

    def run(self, stopping: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """The number of files of each fate, and of records without a file; also recorded and logged.

        Raises TransientError when the database is away.
        """
        began = self._now()
        steps = (self._unfinished, self._received, self._of_jobs, self._missing)
        for step in steps:
            for fate in step():
                self._counts[fate] += 1
                if stopping():
                    return {}
        if self._association:
            self._records.arrivals.close_association(self._association, "aborted", self._now())
        counts = dict(self._counts)
        self._records.keeping.scanned(process_name(), began, self._now(), counts)
        level = logging.WARNING if counts.get(Fate.UNKNOWN) or counts.get(MISSING) else logging.INFO
        log.log(level, "%s (%.1f s)", summary(counts), self._now() - began)
        return counts

    def _unfinished(self) -> Iterator[str]:
        for _ in range(self._spool.remove_unfinished()):
            yield Fate.UNFINISHED

    def _received(self) -> Iterator[str]:
        for files in _batches(_files(self._spool.absolute(INCOMING))):
            uids = {file: file.stem.partition("~")[0] for file in files}
            recorded = self._records.keeping.paths_of(set(uids.values()))
            for file in files:
                path = str(file.relative_to(self._spool.root))
                known = recorded.get(uids[file]) == path
                fate = Fate.RECORDED if known else self._without_record(file, path)
                if fate:
                    yield fate

    def _without_record(self, file: Path, path: str) -> str | None:
        """Adopt it, or say why not. None for one that is gone meanwhile."""
        try:
            instance = read_instance(file)
            check_recordable(instance)
            found = StoredFile(path, file.stat().st_size, file_fingerprint(file))
            return self._adopt(instance, found)
        except FileNotFoundError:
            return None
        except (PermanentError, struct.error) as error:
            study, series = file.parts[-3:-1]
            text = f"{path} is left where it is, and is not analysed: {error}"
            self._note(Code.FILE_UNKNOWN, Held(path, file.stem[:128], series, study), text)
            return Fate.UNKNOWN

    def _adopt(self, instance: Instance, found: StoredFile) -> str:
        arrivals, uid = self._records.arrivals, instance.sop_instance_uid
        known = arrivals.known(uid)
        if known.file is None and not known.own:
            outcome = arrivals.record(instance, found, self._recovered(), self._now())
            log.warning("%s of series %s is adopted (%s)", uid, instance.series_instance_uid, outcome.value)
            return Fate.ADOPTED if outcome in (Recorded.NEW, Recorded.SAME) else Fate.KEPT
        if known.own or known.file is None:
            self._spool.remove(found.path)
            return Fate.DUPLICATE
        if known.file.path == found.path:  # recorded since the batch was asked for
            return Fate.RECORDED
        if not self._is_twin(known.file, found):
            return Fate.KEPT
        if self._spool.size(known.file.path) is None:
            self._records.keeping.repoint(uid, known.file.path, found.path)
            return Fate.ADOPTED
        self._spool.remove(found.path)
        return Fate.DUPLICATE

    def _is_twin(self, known: StoredFile, found: StoredFile) -> bool:
        digest = file_digest(self._spool.absolute(found.path))
        return is_repeated(known.fingerprint, self._spool.absolute(known.path), found.fingerprint, digest)

    def _recovered(self) -> str:
        """The association that stands for those a crash cut off: nobody knows whether all was sent."""
        if not self._association:
            self._association = str(uuid.uuid4())
            peer = ("(recovered)", "")
            self._records.arrivals.open_association(self._association, process_name(), peer, self._now())
        return self._association

    def _of_jobs(self) -> Iterator[str]:
        for kind in (RESULTS, OUTGOING):
            for folder in _folders(self._spool.absolute(kind)):
                if not folder.name.isdecimal():
                    continue
                state, named = self._records.keeping.job_files(int(folder.name))
                for file in _files(folder):
                    path = str(file.relative_to(self._spool.root))
                    yield Fate.RECORDED if path in named else self._of_no_use(file, path, state)

    def _of_no_use(self, file: Path, path: str, state: JobState | None) -> str:
        try:
            young = file.stat().st_mtime > self._now() - AT_REST_S
        except FileNotFoundError:
            return Fate.LEFTOVER
        if young or state not in OVER:
            return Fate.AT_WORK
        self._spool.remove(path)
        return Fate.LEFTOVER

    def _missing(self) -> Iterator[str]:
        yield from self._lost(self._records.keeping.unsent_files(), self._still_unsent)
        after = ""
        while held := self._records.keeping.received_files(after, BATCH):
            yield from self._lost(held, self._still_recorded)
            after = held[-1].sop_instance_uid

    def _lost(self, held: Iterable[Held], still: Callable[[Held], bool]) -> Iterator[str]:
        for one in held:
            if self._spool.size(one.path) is None and still(one):
                text = f"the file of instance {one.sop_instance_uid} is gone from the spool; send it again"
                self._note(Code.FILE_MISSING, one, text)
                yield MISSING

    def _still_recorded(self, one: Held) -> bool:
        """Retention may have taken both away since we looked."""
        return self._records.keeping.paths_of([one.sop_instance_uid]).get(one.sop_instance_uid) == one.path

    def _still_unsent(self, one: Held) -> bool:
        return one in self._records.keeping.unsent_files()

    def _note(self, code: Code, held: Held, text: str) -> None:
        log.error("%s: %s", code.value, text)
        uids = (held.study_instance_uid, held.series_instance_uid, held.sop_instance_uid)
        self._records.incidents.note(Incident(code, *uids, "", text), self._now())


def summary(counts: dict[str, int]) -> str:
    """One line: how many files, what became of them, and what is missing."""
    fates = [fate.value for fate in Fate]
    removed = (Fate.DUPLICATE, Fate.UNFINISHED, Fate.LEFTOVER)
    files = sum(counts.get(fate, 0) for fate in fates)
    words = ", ".join(f"{counts[fate]} {fate}" for fate in fates if counts.get(fate)) or "none"
    left = files - sum(counts.get(fate, 0) for fate in removed)
    return f"spool: {left} files are there: {words}; {counts.get(MISSING, 0)} {MISSING}"


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []


def _files(folder: Path) -> Iterator[Path]:
    """Every finished file below; folders may vanish meanwhile."""
    for root, _, names in os.walk(folder):
        whole = sorted(name for name in names if not (name[0] == "." and name.endswith(PART)))
        yield from (Path(root) / name for name in whole)


def _batches(files: Iterator[Path]) -> Iterator[list[Path]]:
    while batch := list(islice(files, BATCH)):
        yield batch
