"""A depot in a bucket, with copies on this machine's disk. What was received here stays until it is there.

Two folders, never mixed: below the spool's own root lies what may be the only one of its kind; below `copies`
what is in the bucket too, and may go at any moment.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

from node.depot.bucket import S3
from node.depot.contract import Entry
from node.depot.copies import Copies
from node.depot.volume import Local, copied
from node.domain.errors import OutOfReach, TransientError

COPIES, DISK = "copies", "disk"
LONGEST_DISK = 64


class RemoteDepot:
    """A `Depot`."""

    def __init__(self, local: Local, bucket: S3, copies: Copies, transfers: int) -> None:
        self._local = local
        self.bucket = bucket
        self._copies = copies
        self._transfers = transfers
        self._disk: str | None = None

    @property
    def disk(self) -> str:
        if self._disk is None:
            self._disk = name_of_disk(self._local.root)
        return self._disk

    def require_reach(self) -> None:
        self.bucket.require_reachable()

    def put(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        """Into the bucket, and kept as a copy: nothing is left to be done, should this machine be lost."""
        part = self._copies.part(path)
        try:
            with part.open("wb") as stream:
                stream.writelines(parts)
                stream.flush()
                os.fdatasync(stream.fileno())
            self.bucket.put(path, part)
            if not self._copies.is_pressed():
                self._copies.take(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._copies.trim()

    def get(self, paths: Sequence[str]) -> list[Path]:
        """As the contract has it; raises PermanentError FILE_DAMAGED for what is not what was put there."""
        found = [self._at_hand(path) for path in paths]
        absent = [path for path, file in zip(paths, found, strict=True) if file is None]
        if absent:
            self._copies.trim()
            with ThreadPoolExecutor(min(self._transfers, len(absent))) as pool:
                fetched = dict(zip(absent, pool.map(self._fetch, absent), strict=True))
            found = [file or fetched[path] for path, file in zip(paths, found, strict=True)]
        return [file for file in found if file is not None]

    def export(self, path: str, file: Path) -> bool:
        """Past the copies: what is exported is not about to be read here."""
        return copied(self._local.root / path, file) or self.bucket.get(path, file)

    def missing(self, paths: Sequence[str]) -> set[str]:
        """By a list of each folder: what is asked for together mostly lies together."""
        return self.missing_there([path for path in paths if self._local.size_here(path) is None])

    def missing_there(self, paths: Sequence[str]) -> set[str]:
        """Those that are not in the bucket."""
        left = set(paths)
        for folder in sorted({str(PurePosixPath(path).parent) for path in left}):
            left -= {entry.path for entry in self.bucket.list(folder)}
        return left

    def delete(self, paths: Sequence[str]) -> int:
        """In the bucket first: while that is away, nothing else goes either."""
        with ThreadPoolExecutor(self._transfers) as pool:
            list(pool.map(self.bucket.delete, paths))
        return sum(max(self._copies.drop(path), self._local.discard(path)) for path in paths)

    def files(self, folder: str) -> Iterator[Entry]:
        return self.bucket.list(folder)

    def upload(self, path: str) -> None:
        """Put what was received here into the bucket; it stays here, too. Raises FileNotFoundError."""
        self.bucket.put(path, self._local.root / path)

    def release(self, path: str) -> None:
        """What is in the bucket, and known to be, is a copy from now on."""
        with suppress(FileNotFoundError):
            self._copies.take(self._local.root / path, path)
        self._local.discard(path)

    def trim(self) -> int:
        """Make room: throw copies away that are too many. Returns how many."""
        return self._copies.trim()

    def _at_hand(self, path: str) -> Path | None:
        """Always among the copies: what was received here is moved there while somebody reads it."""
        return self._copies.find(path) or self._copies.share(self._local.root / path, path)

    def _fetch(self, path: str) -> Path:
        try:
            self._local.check_room()
        except TransientError as error:
            raise OutOfReach(f"no room for a copy: {error}") from error
        part = self._copies.part(path)
        try:
            if self.bucket.get(path, part):
                return self._copies.take(part, path)
        finally:
            part.unlink(missing_ok=True)
        return self._at_hand(path) or self._copies.root / path  # it may have come meanwhile


def name_of_disk(root: Path) -> str:
    """A name for the disk below `root`, given once: it stays when the machine gets another name, or the disk
    another machine.
    """
    file = root / DISK
    with suppress(FileNotFoundError):
        return file.read_text(encoding="ascii").strip()
    root.mkdir(parents=True, exist_ok=True, mode=0o750)
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[: LONGEST_DISK - 9]
    made = root / f".{DISK}-{os.urandom(8).hex()}"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.write(descriptor, f"{host}-{os.urandom(4).hex()}\n".encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with suppress(FileExistsError):  # another process was quicker: its name counts
        os.link(made, file)
    made.unlink()
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return file.read_text(encoding="ascii").strip()
