"""Puts what this machine received into the bucket, so that every other machine finds it. Receives nothing.

Success was answered for what lies on this disk; the record says so (`instances.held_by`) until the bucket has
it. Whatever happens in between, the same is done again: the same bytes are put under the same key.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from node.contained import contained
from node.depot.contract import Entry
from node.depot.remote import DISK, RemoteDepot
from node.depot.volume import SharedVolume
from node.domain.errors import OutOfReach, SettingsError, TransientError
from node.domain.instance import Instance
from node.liveness import process_name
from node.scan import Fate, Scan, batches, sop_uid_in
from node.settings import Settings
from node.spool import INCOMING, OUTGOING, RESULTS, Spool
from node.store.arrivals import StoredFile
from node.store.held import HeldFile
from node.store.incidents import Code, Incident
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.2
LONGEST_PAUSE_S = 15.0
SCAN_EVERY_S = 24 * 3600.0
LOCK = "upload.lock"
BATCHES_OF_TRANSFERS = 8
"""So many rounds of transfers, then what arrived is written down, and the oldest are looked for anew."""


class Uploader:
    """One for each disk at work: of several processes of a machine the first one does it."""

    def __init__(self, settings: Settings, records: Records, spool: Spool, pool: ThreadPoolExecutor) -> None:
        """Raises SettingsError where there is no bucket."""
        if not isinstance(spool.depot, RemoteDepot):
            raise SettingsError("there is no bucket to upload to: set [spool.s3]")
        self._records = records
        self._spool = spool
        self._depot: RemoteDepot = spool.depot
        self._pool = pool
        self._at_once = settings.spool.s3.transfers * BATCHES_OF_TRANSFERS
        self._lock: int | None = None
        self._scan = HomeScan(records, spool)
        self._next_scan = time.monotonic()
        self.trouble = ""
        """Why the last round failed; empty while all is well."""

    def standing(self) -> dict[str, Any]:
        """For the heartbeat."""
        room = self._spool.free_bytes() - self._spool.reserve_bytes
        said = {"disk": self._depot.disk, "room_bytes": room}
        return said | ({"trouble": self.trouble} if self.trouble else {})

    def round(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Upload the oldest of what waits. Returns how many files every machine finds by now.

        Raises TransientError when the database, or the bucket, is away, or nothing got there.
        """
        if not self._is_mine():
            return 0
        if time.monotonic() >= self._next_scan:
            with contained(log, "the scan of what is on this disk alone broke; it is done again in a day"):
                self._scan.run(stopping)
            self._next_scan = time.monotonic() + SCAN_EVERY_S
        self._depot.trim()
        waiting = self._records.held.of(self._depot.disk, self._at_once)
        if not waiting:
            return 0
        outcomes = list(self._pool.map(self._upload, waiting))
        there = [file for file, error in zip(waiting, outcomes, strict=True) if error is None]
        self._records.held.let_go(self._depot.disk, there)
        for file in there:
            self._depot.release(file.path)
        errors = [error for error in outcomes if error is not None]
        if errors and not there:
            raise errors[0]
        for error in errors[:1]:
            log.error("uploading goes on, but for some: %s", error)
        return len(there)

    def _upload(self, file: HeldFile) -> TransientError | None:
        """What keeps it from getting there. A file that is lost is told of, and keeps nobody waiting."""
        try:
            self._depot.upload(file.path)
        except FileNotFoundError:
            return self._lost(file)
        except OSError as error:
            return TransientError(f"{file.path} cannot be read: {error.strerror or error}")
        except TransientError as error:
            return error
        return None

    def _lost(self, file: HeldFile) -> TransientError | None:
        try:
            if self._depot.missing([file.path]):
                self._require_no_namesake()
                note_missing(self._records, file)
        except TransientError as error:
            return error
        return None

    def _require_no_namesake(self) -> None:
        """What is lost here may lie on another machine, whose data_dir is a copy of this one."""
        mine, now = f"upload@{process_name()}", time.time()
        for other in self._records.views.processes(now):
            if (
                other["alive"]
                and other["process"] != mine
                and other["detail"].get("disk") == self._depot.disk
            ):
                raise TransientError(
                    f"{other['process']} calls its disk {self._depot.disk}, too: was a data_dir copied? "
                    f"Remove {self._spool.root / DISK} on the machine that got the copy"
                )

    def _is_mine(self) -> bool:
        """Whether this process is the one that uploads from this disk; it stays so until it ends."""
        if self._lock is None:
            self._spool.root.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = os.open(self._spool.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True


def note_missing(records: Records, file: HeldFile) -> None:
    """For a person to see; whoever reads the series says so too, since it waits no longer."""
    text = f"the file of instance {file.sop_instance_uid} is gone from the spool; send it again"
    log.error("%s: %s", Code.FILE_MISSING.value, text)
    uids = (file.study_instance_uid, file.series_instance_uid, file.sop_instance_uid)
    records.incidents.note(Incident(Code.FILE_MISSING, *uids, "", text), time.time())


class HomeScan(Scan):
    """Accounts for every file that may be on this disk alone."""

    def __init__(self, records: Records, spool: Spool, now: Callable[[], float] = time.time) -> None:
        super().__init__(records, spool, now)
        assert isinstance(spool.depot, RemoteDepot)
        self._bucket: RemoteDepot = spool.depot
        self._depot = SharedVolume(spool)
        self.held_by = self._bucket.disk

    def _steps(self) -> Iterable[Callable[[], Iterable[str]]]:
        return (self._unfinished, self._received, self._made)

    def _keep(self, began: float, counts: dict[str, int]) -> None:
        """What is shown is the scan of the bucket; this one is in the log, and its finds are incidents."""

    def _received(self) -> Iterator[str]:
        for files in batches(self._depot.files(INCOMING)):
            holders = self._records.held.holders({sop_uid_in(file) for file in files})
            of_all = [f for f in files if holders.get(sop_uid_in(f)) == (f.path, None)]
            self._look_there(of_all)
            for file in files:
                path, _ = holders.get(sop_uid_in(file), ("", None))
                fate = Fate.RECORDED if path == file.path else self._without_record(file)
                if fate == Fate.KEPT:
                    self._to_the_others(file.path)
                if fate:
                    yield fate

    def _adopt(self, instance: Instance, found: StoredFile) -> str:
        """Not what came before the files of its study were removed."""
        file = self._spool.absolute(found.path)
        if self._records.keeping.was_removed(instance.study_instance_uid, file.stat().st_mtime):
            self._spool.discard(found.path)
            return Fate.LEFTOVER
        return super()._adopt(instance, found)

    def _look_there(self, files: Collection[Entry]) -> None:
        """What every machine should find: a crash came before it was a copy. Or the bucket lacks it: it is
        a new one, or lost something.
        """
        missing = self._bucket.missing_there([file.path for file in files])
        for file in files:
            if file.path in missing:
                self._records.held.take_over(str(self.held_by), sop_uid_in(file), file.path)
            else:
                self._bucket.release(file.path)
        if missing:
            log.warning("%d images are here and not in the bucket; they are put there", len(missing))

    def _to_the_others(self, path: str) -> None:
        """An older content of an instance that came again: kept until the files of its study go."""
        self._bucket.upload(path)
        self._bucket.release(path)

    def _made(self) -> Iterator[str]:
        """Results from before there was a bucket: since then none is kept here."""
        for kind in (RESULTS, OUTGOING):
            for file in self._depot.files(kind):
                with suppress(FileNotFoundError):
                    self._to_the_others(file.path)
                    yield Fate.RECORDED


def run(uploader: Uploader, stopping: Callable[[float], bool]) -> None:
    """Upload until `stopping(seconds)` says so. What goes wrong is tried again, ever more slowly."""
    wait_s, pause_s = TICK_S, TICK_S
    while not stopping(wait_s):
        try:
            wait_s = 0.0 if uploader.round(lambda: stopping(0)) else TICK_S
            if uploader.trouble:
                log.info("what waited for the bucket goes there again")
            uploader.trouble, pause_s = "", 1.0
        except TransientError as error:
            if not isinstance(error, OutOfReach) or uploader.trouble != str(error):
                log.error("uploading waits: %s", error)
            uploader.trouble = str(error)
            wait_s, pause_s = pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
        except Exception:
            log.exception("uploading broke; it goes on")
            wait_s, pause_s = pause_s, min(2 * pause_s, LONGEST_PAUSE_S)


def serve(
    settings: Settings,
    records: Records,
    spool: Spool,
    stopping: Callable[[float], bool],
    beating: Callable[[Callable[[], dict[str, Any]]], AbstractContextManager[None]] | None = None,
) -> None:
    """As `run`, with what it needs; `beating` tells the others how it stands meanwhile."""
    with ThreadPoolExecutor(settings.spool.s3.transfers, "upload") as pool:
        uploader = Uploader(settings, records, spool, pool)
        with beating(uploader.standing) if beating else nullcontext():
            run(uploader, stopping)
