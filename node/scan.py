"""Accounts for every file of the spool at start: what a crash left is recorded, cleared away or reported.

A file without a record was written and not yet acknowledged: it is adopted, since its bytes are whole. A
record without its file is an incident that a person must see. What cannot be explained is left untouched.
"""

from __future__ import annotations

import logging
import struct
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from itertools import groupby, islice
from pathlib import PurePosixPath

from node.depot.contract import Depot, Entry
from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.domain.lifecycle import JobState
from node.fingerprint import file_digest, file_fingerprint, is_repeated
from node.headers import read_instance
from node.liveness import process_name
from node.spool import INCOMING, OUTGOING, RESULTS, Spool
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

    held_by: str | None = None
    """The disk that alone has what is adopted; None where every machine finds it."""

    def __init__(self, records: Records, spool: Spool, now: Callable[[], float] = time.time) -> None:
        self._records = records
        self._spool = spool
        self._depot: Depot = spool.depot
        self._now = now
        self._association = ""
        self._counts: Counter[str] = Counter()

    def run(self, stopping: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """The number of files of each fate, and of records without a file; also recorded and logged.

        May be run again, and is where it was cut off. Raises TransientError when the database is away.
        """
        began = self._now()
        self._close_recovered()
        self._counts.clear()
        try:
            for step in self._steps():
                for fate in step():
                    self._counts[fate] += 1
                    if stopping():
                        return {}
        finally:
            self._close_recovered()
        counts = dict(self._counts)
        self._keep(began, counts)
        level = logging.WARNING if counts.get(Fate.UNKNOWN) or counts.get(MISSING) else logging.INFO
        log.log(level, "%s (%.1f s)", summary(counts), self._now() - began)
        return counts

    def _steps(self) -> Iterable[Callable[[], Iterable[str]]]:
        return (self._unfinished, self._received, self._of_jobs, self._missing)

    def _keep(self, began: float, counts: dict[str, int]) -> None:
        self._records.keeping.scanned(process_name(), began, self._now(), counts)

    def adopt_of(self, listener: str) -> None:
        """Files without a record, in the folders of the series that its open associations carried."""
        for association_id, study_uid, series_uid in self._records.arrivals.carried_by(listener):
            self._association = association_id
            deque(self._those_in(self._spool.series_folder(study_uid, series_uid)), maxlen=0)

    def _unfinished(self) -> Iterator[str]:
        for _ in range(self._spool.remove_unfinished()):
            yield Fate.UNFINISHED

    def _received(self) -> Iterator[str]:
        return self._those_in(INCOMING)

    def _those_in(self, folder: str) -> Iterator[str]:
        for files in batches(self._depot.files(folder)):
            recorded = self._records.keeping.paths_of({sop_uid_in(file) for file in files})
            leaving = self._records.keeping.leaving()  # after what is recorded, which it may have been
            for file in files:
                if file.path in leaving:
                    continue
                known = recorded.get(sop_uid_in(file)) == file.path
                fate = Fate.RECORDED if known else self._without_record(file)
                if fate:
                    yield fate

    def _without_record(self, entry: Entry) -> str | None:
        """Adopt it, or say why not. None for one that is gone meanwhile."""
        try:
            (file,) = self._depot.get([entry.path])
            instance = read_instance(file)
            check_recordable(instance)
            found = StoredFile(entry.path, entry.size_bytes, file_fingerprint(file), self.held_by)
            return self._adopt(instance, found)
        except FileNotFoundError:
            return None
        except (PermanentError, OSError, struct.error) as error:
            name = PurePosixPath(entry.path)
            study, series = (*name.parts[-3:-1], "", "")[:2]
            text = f"{name} is left where it is, and is not analysed: {error}"
            self._note(Code.FILE_UNKNOWN, Held(entry.path, name.stem[:128], series, study), text)
            return Fate.UNKNOWN

    def _adopt(self, instance: Instance, found: StoredFile) -> str:
        arrivals, uid = self._records.arrivals, instance.sop_instance_uid
        known = arrivals.known(uid)
        if known.file is None and not known.own:
            outcome = arrivals.record(instance, found, self._recovered(), self._now())
            log.warning("%s of series %s is adopted (%s)", uid, instance.series_instance_uid, outcome.value)
            return Fate.ADOPTED if outcome in (Recorded.NEW, Recorded.SAME) else Fate.KEPT
        if known.own or known.file is None:
            self._depot.delete([found.path])
            return Fate.DUPLICATE
        if known.file.path == found.path:  # recorded since the batch was asked for
            return Fate.RECORDED
        if not self._is_twin(known.file, found):
            return Fate.KEPT
        if self._is_lost(known.file):
            self._records.keeping.repoint(uid, known.file.path, found.path, self.held_by)
            return Fate.ADOPTED
        self._depot.delete([found.path])
        return Fate.DUPLICATE

    def _is_lost(self, file: StoredFile) -> bool:
        """Whether the file that a record names is nowhere."""
        return file.held_by is None and bool(self._spool.depot.missing([file.path]))

    def _is_twin(self, known: StoredFile, found: StoredFile) -> bool:
        (here,) = self._depot.get([found.path])
        (there,) = self._spool.fetch([known.path])
        return is_repeated(known.fingerprint, there, found.fingerprint, lambda: file_digest(here))

    def _recovered(self) -> str:
        """The association that stands for those a crash cut off: nobody knows whether all was sent."""
        if not self._association:
            self._association = str(uuid.uuid4())
            peer = ("(recovered)", "")
            self._records.arrivals.open_association(self._association, process_name(), peer, self._now())
        return self._association

    def _close_recovered(self) -> None:
        """Or its series would be waited for. With the database away the next run of this scan does it."""
        if self._association:
            self._records.arrivals.close_association(self._association, "aborted", self._now())
            self._association = ""

    def _of_jobs(self) -> Iterator[str]:
        for kind in (RESULTS, OUTGOING):
            for job, files in groupby(self._depot.files(kind), key=_job_in):
                if not job.isdecimal():
                    continue
                state, named = self._records.keeping.job_files(int(job))
                for file in files:
                    yield Fate.RECORDED if file.path in named else self._of_no_use(file, state)

    def _of_no_use(self, file: Entry, state: JobState | None) -> str:
        if file.modified_at > self._now() - AT_REST_S or state not in OVER:
            return Fate.AT_WORK
        self._depot.delete([file.path])
        return Fate.LEFTOVER

    def _missing(self) -> Iterator[str]:
        yield from self._lost(self._records.keeping.unsent_files(), self._still_unsent)
        after = ""
        while held := self._records.keeping.received_files(after, BATCH):
            yield from self._lost(held, self._still_recorded)
            after = held[-1].sop_instance_uid

    def _lost(self, held: Collection[Held], still: Callable[[Held], bool]) -> Iterator[str]:
        missing = self._depot.missing([one.path for one in held])
        for one in held:
            if one.path in missing and still(one):
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


def close_associations_of(listener: str, records: Records, spool: Spool) -> None:
    """A listener is gone: what it had answered, and not recorded yet, is recorded; then all of it is over.

    Raises TransientError when the database is away; then nothing is over yet. On a disk that nobody else
    sees there is nothing of the kind (`node.scp.later_s`).
    """
    if spool.depot.disk is None:
        Scan(records, spool).adopt_of(listener)
    records.arrivals.close_associations_of(listener, time.time())


def summary(counts: dict[str, int]) -> str:
    """One line: how many files, what became of them, and what is missing."""
    fates = [fate.value for fate in Fate]
    removed = (Fate.DUPLICATE, Fate.UNFINISHED, Fate.LEFTOVER)
    files = sum(counts.get(fate, 0) for fate in fates)
    words = ", ".join(f"{counts[fate]} {fate}" for fate in fates if counts.get(fate)) or "none"
    left = files - sum(counts.get(fate, 0) for fate in removed)
    return f"spool: {left} files are there: {words}; {counts.get(MISSING, 0)} {MISSING}"


def sop_uid_in(file: Entry) -> str:
    """What the name of a received file says (`Spool.instance_path`)."""
    return PurePosixPath(file.path).stem.partition("~")[0]


def _job_in(file: Entry) -> str:
    """The number of the job that a file is of (`Spool.job_path`, `Spool.object_path`)."""
    return PurePosixPath(file.path).parts[1]


def batches(files: Iterator[Entry]) -> Iterator[list[Entry]]:
    while batch := list(islice(files, BATCH)):
        yield batch
