"""The volume that the spool itself lies on: what is written there, whoever mounts it sees."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from node.depot.contract import Entry

PART = ".part"


class Local(Protocol):
    """What is needed of a spool."""

    root: Path

    def write_here(self, path: str, parts: Sequence[bytes | memoryview]) -> None: ...

    def size_here(self, path: str) -> int | None: ...

    def discard(self, path: str) -> int: ...

    def check_room(self, wanted_bytes: int = 0) -> None: ...


class SharedVolume:
    """A `Depot` of plain files."""

    disk: str | None = None

    def __init__(self, local: Local) -> None:
        self._local = local

    def require_reach(self) -> None:
        """It is mounted, or nothing runs here."""

    def put(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        self._local.write_here(path, parts)

    def get(self, paths: Sequence[str]) -> list[Path]:
        return [self._local.root / path for path in paths]

    def export(self, path: str, file: Path) -> bool:
        return copied(self._local.root / path, file)

    def missing(self, paths: Sequence[str]) -> set[str]:
        return {path for path in paths if self._is_gone(path)}

    def _is_gone(self, path: str) -> bool:
        """What the disk does not show is not gone."""
        try:
            return self._local.size_here(path) is None
        except OSError:
            return False

    def delete(self, paths: Sequence[str]) -> int:
        """What cannot be deleted is left for last: the first such error is raised then."""
        size, troubles = 0, list[OSError]()
        for path in paths:
            try:
                size += self._local.discard(path)
            except OSError as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]
        return size

    def files(self, folder: str) -> Iterator[Entry]:
        return files_below(self._local.root, folder)


def copied(source: Path, target: Path) -> bool:
    """False where there is nothing to be copied."""
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return False
    return True


def files_below(root: Path, folder: str) -> Iterator[Entry]:
    """Finished files below `root`/`folder`; files and folders may vanish meanwhile.

    Of one that the disk does not show the size is 0, and it was modified at no time that is over.
    """
    for place, _, names in os.walk(root / folder):
        for name in sorted(names):
            if name.startswith(".") and name.endswith(PART):
                continue
            file = Path(place) / name
            path = str(file.relative_to(root))
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            except OSError:
                yield Entry(path, 0, math.inf)
                continue
            yield Entry(path, stat.st_size, stat.st_mtime)
