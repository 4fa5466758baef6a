"""Durable files: temp → fsync → rename → fsync folder. Knows no DICOM; no peer's text becomes a path.

What is received is kept on this machine's disk. Everything else goes by a depot: the same disk, where all
machines share it, or a bucket.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from node.depot.contract import Depot
from node.depot.copies import Copies
from node.depot.volume import PART, SharedVolume
from node.domain.errors import TransientError
from node.liveness import is_gone, process_name
from node.settings import Settings

INCOMING, RESULTS, OUTGOING = "incoming", "results", "outgoing"
ABANDONED_S = 24 * 3600
IOV_MAX = 1024
RESERVE_INODES = 100
FOLDER_RACES = 20
VOLUME_S = 3600.0
"""For so long a volume that gives or takes no file is waited for; then a bad file costs its job."""
PRESSED_AT = 2
"""At so many times the reserve of free room, copies of what is in a bucket make way."""
_PLAIN_UID = re.compile(r"[0-9][0-9.]{0,63}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class SpoolFull(TransientError):
    """There is no room for another file; the sender must try again later (0xA700, PS3.4 B.2.3)."""


def is_of_the_volume(error: BaseException) -> bool:
    """The volume has no room, or an error of the operating system is why; that a file is gone is none."""
    cause = error if isinstance(error, OSError) else error.__cause__
    gone = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    of_the_system = isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, gone)
    return of_the_system or isinstance(error, SpoolFull)


class Troubled:
    """Jobs whose files the volume did not give or take, each since it was first seen. For one thread."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def waits(self, job_id: int, error: BaseException) -> bool:
        """Whether the files of a job may still turn out to be there, or to be taken."""
        now = time.monotonic()
        return is_of_the_volume(error) and now - self._since.setdefault(job_id, now) < VOLUME_S

    def is_over(self, job_id: int) -> None:
        self._since.pop(job_id, None)

    @property
    def jobs(self) -> list[int]:
        return list(self._since)


@lru_cache(1024)
def safe_name(uid: str) -> str:
    """`uid` itself when it is digits and dots, as PS3.5 9.1 wants it; else a name derived from its hash."""
    if _PLAIN_UID.fullmatch(uid):
        return uid
    return "x" + hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:40]


class Spool:
    """Files under one root. Paths handed out and taken back are relative to it."""

    def __init__(self, root: Path, reserve_bytes: int = 0, depot: Depot | None = None) -> None:
        """Without a `depot` whoever is to see the files shares this volume."""
        self.root = root
        self.depot: Depot = depot or SharedVolume(self)
        self.incoming = root / INCOMING
        self.reserve_bytes = reserve_bytes
        self.prefix = f"{root}/"
        """Before a path of a file, where a text is cheaper than a Path."""

    def instance_path(self, study_uid: str, series_uid: str, sop_uid: str, tag: str = "") -> str:
        """`tag` makes a name of its own for each time an instance comes: nothing received is written over."""
        name = f"{safe_name(sop_uid)}~{tag}" if tag else safe_name(sop_uid)
        return f"{self.series_folder(study_uid, series_uid)}/{name}.dcm"

    def series_folder(self, study_uid: str, series_uid: str) -> str:
        return f"{INCOMING}/{safe_name(study_uid)}/{safe_name(series_uid)}"

    def job_path(self, job_id: int, attempt: int, name: str) -> str:
        """A file of one attempt at a job; attempts never share a file, so a late one harms nothing."""
        return f"{RESULTS}/{job_id}/{attempt}/{name}"

    def object_path(self, job_id: int, sop_uid: str) -> str:
        return f"{OUTGOING}/{job_id}/{safe_name(sop_uid)}.dcm"

    def absolute(self, path: str) -> Path:
        """Where a file lies, or would, while it is on this machine's disk alone, or on a shared volume."""
        return self.root / path

    def fetch(self, paths: Sequence[str]) -> list[Path]:
        """Files to be read soon, wherever they are kept. Where there is none, opening it says so.

        Raises OutOfReach.
        """
        return self.depot.get(paths)

    def require_reach(self) -> None:
        """Raises OutOfReach where the files are kept elsewhere and were, and still are, out of reach."""
        self.depot.require_reach()

    def size_here(self, path: str) -> int | None:
        """Bytes of a file on this disk; None where there is none."""
        try:
            return self.absolute(path).stat().st_size
        except FileNotFoundError:
            return None

    def free_bytes(self) -> int:
        """Free space on the volume that holds the spool."""
        return _free_bytes(os.statvfs(self.root))

    def used_part(self) -> float:
        """How much of the volume is used, 0 to 1, of bytes or of inodes, whichever is scarcer."""
        volume = os.statvfs(self.root)
        bytes_part = 1 - volume.f_bavail / volume.f_blocks if volume.f_blocks else 0.0
        inodes_part = 1 - volume.f_favail / volume.f_files if volume.f_files else 0.0
        return max(bytes_part, inodes_part)

    def check_room(self, wanted_bytes: int = 0) -> None:
        """Raise SpoolFull when writing `wanted_bytes` would eat into the reserve, or no inode is left."""
        volume = os.statvfs(self.prefix)
        if (free := _free_bytes(volume)) - wanted_bytes < self.reserve_bytes:
            raise SpoolFull(
                f"{self.root}: {free // 2**20} MiB free, {self.reserve_bytes // 2**20} MiB are in reserve; "
                "free some space or lower spool.reserve_mb"
            )
        if volume.f_files and volume.f_favail < RESERVE_INODES:
            raise SpoolFull(f"{self.root}: {volume.f_favail} inodes are left; remove some files")

    def write(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write `parts` as one file that survives a power cut, and every machine sees it, once this returns.

        An existing file is replaced at once and whole. Raises OutOfReach, and SpoolFull without room.
        """
        self.depot.put(path, parts)

    def write_here(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        """As `write`, on this disk."""
        final = self.absolute(path)
        temporary = final.with_name(_passing_name(_tag()))
        try:
            descriptor = self.create(str(temporary))
            try:
                _write_all(descriptor, [memoryview(part).cast("B") for part in parts if len(part)])
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(final)
            _sync_folder(str(final.parent))
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            self.explain(error)
            raise

    def explain(self, error: BaseException) -> None:
        """Raises SpoolFull for an error that says that the volume is full."""
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise SpoolFull(f"{self.root}: {error.strerror}") from error

    def part(self) -> Part:
        """A file that grows while it is received. Raises SpoolFull when there is no room."""
        return Part(self)

    def remove(self, *paths: str) -> int:
        """Delete files wherever they are kept. Returns their bytes. Raises OutOfReach."""
        return self.depot.delete(paths)

    def discard(self, path: str) -> int:
        """Delete a file of this disk and the folders it leaves empty. Returns its bytes, 0 without any."""
        file = self.absolute(path)
        try:
            size = file.stat().st_size
            file.unlink()
        except FileNotFoundError:
            return 0
        for folder in file.parents:
            if folder == self.root or folder.parent == self.root:
                break
            try:
                folder.rmdir()
            except OSError:  # not empty, or somebody else was quicker
                break
        return size

    def remove_unfinished(self) -> int:
        """Delete the `.part` files a crash left; nobody was told that their bytes are safe.

        Other processes may be writing meanwhile, on this host or another: only what belongs to a
        process that is gone, or was not touched for a day, is taken away.
        """
        count = 0
        for part in self.root.glob(f"*/**/.*{PART}"):
            with suppress(FileNotFoundError):
                if (
                    is_gone(part.name[1:].partition("!")[0])
                    or part.stat().st_mtime < time.time() - ABANDONED_S
                ):
                    part.unlink()
                    count += 1
        return count

    def create(self, file: str) -> int:
        """A descriptor of a new file. Its folder may be taken away, being empty, as soon as it is made."""
        for _ in range(FOLDER_RACES):
            try:
                return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            except FileNotFoundError:
                pass
            with suppress(FileNotFoundError):
                self._make_folder(Path(file).parent)
        raise TransientError(f"{file}: others keep removing its folder")

    def rename(self, file: str, final: str) -> None:
        """Into a folder that is made where it is missing, and that others may take away meanwhile."""
        for _ in range(FOLDER_RACES):
            try:
                os.rename(file, final)  # noqa: PTH104 (a Path would cost more than the call)
                return
            except FileNotFoundError:
                pass
            with suppress(FileNotFoundError):
                self._make_folder(Path(final).parent)
        raise TransientError(f"{final}: others keep removing its folder")

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o750)
        _sync_folder(str(folder.parent))


def spool_of(settings: Settings) -> Spool:
    """The spool of this installation. Raises SettingsError where a bucket is wanted and boto3 is missing."""
    root, reserve_bytes = settings.data_dir.resolve() / "spool", settings.spool.reserve_mb * 2**20
    spool, s3 = Spool(root, reserve_bytes), settings.spool.s3
    if s3.wanted:
        from node.depot.bucket import S3, require_installed
        from node.depot.remote import COPIES, RemoteDepot

        require_installed()
        copies = Copies(
            root / COPIES, s3.cache_mb * 2**20, lambda: spool.free_bytes() < PRESSED_AT * reserve_bytes
        )
        spool.depot = RemoteDepot(spool, S3(s3), copies, s3.transfers)
    return spool


class Part:
    """A file under a passing name, until `keep` gives it its own. Nobody may rely on it before.

    A crash leaves it behind for `Spool.remove_unfinished`. Paths are texts: this runs for every image.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.tag = _tag()
        """Given to no other: good for a name of its own."""
        self._file = f"{spool.prefix}{INCOMING}/{_passing_name(self.tag)}"
        try:
            self._descriptor = spool.create(self._file)
        except OSError as error:
            spool.explain(error)
            raise

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Append. Raises SpoolFull when there is no room."""
        try:
            _write_all(self._descriptor, parts)
        except OSError as error:
            self._spool.explain(error)
            raise

    def stream(self) -> BinaryIO:
        """To read what was written so far; to be closed by the caller."""
        return Path(self._file).open("rb")

    def keep(self, path: str) -> None:
        """It is at `path`, and survives a power cut, once this returns. An existing file is replaced."""
        final = self._spool.prefix + path
        try:
            os.fdatasync(self._descriptor)
            self._spool.rename(self._file, final)
            self._close()
            _sync_folder(final.rpartition("/")[0])
        except BaseException as error:
            self.drop()
            self._spool.explain(error)
            raise

    def drop(self) -> None:
        """Nothing of it remains."""
        self._close()
        Path(self._file).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _free_bytes(volume: os.statvfs_result) -> int:
    return volume.f_bavail * volume.f_frsize


def _tag() -> str:
    return os.urandom(4).hex()


def _passing_name(tag: str) -> str:
    return f".{process_name()}!{tag}{PART}"


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    """`parts` of bytes. Nearly always one call takes them all."""
    at = 0
    while at < len(parts):
        some = parts[at : at + IOV_MAX]
        written, wanted = os.writev(descriptor, some), sum(map(len, some))
        if written < wanted:
            _write_rest(descriptor, some, written)
        at += IOV_MAX


def _write_rest(descriptor: int, parts: Sequence[bytes | memoryview], written: int) -> None:
    """Of `parts`, so many bytes of which are written."""
    for part in parts:
        rest = memoryview(part)[min(written, len(part)) :]
        written -= len(part) - len(rest)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
