"""Copies, on this machine's disk, of what lies in the bucket. Each may be thrown away at any moment.

Nothing here is the only one of its kind. Several processes of a machine share the folder: a file appears
whole, under its own name, and goes when it was not used for longest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from node.depot.volume import PART, files_below

IN_USE_S = 600.0
"""Whoever asked for a copy has read it by then."""
PRESSED_S = 60.0
"""…or, where the disk is about to be full, by then."""
STALE_S = 24 * 3600.0
"""What nobody asked for in a day goes: it may be of a study that was removed."""
TRIM_EVERY_S = 15.0
FOLDER_RACES = 20
"""An empty folder may be taken away as soon as it is made."""


@dataclass(frozen=True)
class Copy:
    path: str
    size_bytes: int
    used_at: float


def surplus(copies: Iterable[Copy], most_bytes: int, pressed: bool, now: float) -> list[Copy]:
    """Which copies go, the least used first. `pressed`: the disk needs room, whatever the limit says."""
    by_use = sorted(copies, key=lambda copy: copy.used_at)
    held, going = sum(copy.size_bytes for copy in by_use), []
    for copy in by_use:
        idle_s = now - copy.used_at
        too_much = held > most_bytes and idle_s > IN_USE_S
        if idle_s > STALE_S or too_much or (pressed and idle_s > PRESSED_S):
            going.append(copy)
            held -= copy.size_bytes
    return going


class Copies:
    """The folder of them."""

    def __init__(self, root: Path, most_bytes: int, is_pressed: Callable[[], bool]) -> None:
        """`is_pressed`: the volume has no room to spare."""
        self.root = root
        self._most_bytes = most_bytes
        self.is_pressed = is_pressed
        self._trim_at = 0.0

    def find(self, path: str) -> Path | None:
        """A copy, which counts as used from now on."""
        file = self.root / path
        try:
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def share(self, file: Path, path: str) -> Path | None:
        """A file of the same volume, under a name that stays when that of `file` goes; None without it."""
        target = self.root / path
        while file.exists():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            try:
                target.hardlink_to(file)
            except FileNotFoundError:  # it, or the folder, was taken away meanwhile
                continue
            except FileExistsError:
                pass
            except OSError:  # a volume that knows no second name
                return file
            if copy := self.find(path):
                return copy
        return self.find(path)

    def part(self, path: str) -> Path:
        """A name for a copy that is being made; its folder is there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        return file.with_name(f".{os.urandom(8).hex()}{PART}")

    def take(self, made: Path, path: str) -> Path:
        """A finished file of the same volume becomes the copy of `path`."""
        file = self.root / path
        for _ in range(FOLDER_RACES):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            with suppress(FileNotFoundError):
                os.utime(made)
                made.replace(file)
                break
        return file

    def drop(self, path: str) -> int:
        """Returns its bytes, 0 if there was none."""
        file = self.root / path
        try:
            size = file.stat().st_size
            file.unlink()
        except FileNotFoundError:
            return 0
        self._prune(file)
        return size

    def trim(self, now: float | None = None) -> int:
        """Throw away what is too much or too old, at most every few seconds. Returns how many."""
        if (elapsed := time.monotonic()) < self._trim_at:
            return 0
        self._trim_at = elapsed + TRIM_EVERY_S
        now = time.time() if now is None else now
        entries = files_below(self.root, "")
        copies = (Copy(e.path, e.size_bytes, e.modified_at) for e in entries)
        going = surplus(copies, self._most_bytes, self.is_pressed(), now)
        self._drop_parts(now)
        return sum(self._drop_unused(copy) for copy in going)

    def _drop_unused(self, copy: Copy) -> bool:
        """Unless somebody asked for it since it was looked at."""
        with suppress(FileNotFoundError):
            if (self.root / copy.path).stat().st_mtime == copy.used_at:
                return self.drop(copy.path) > 0
        return False

    def _drop_parts(self, now: float) -> None:
        """What a crash left half made."""
        for part in self.root.glob(f"**/.*{PART}"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < now - IN_USE_S:
                    part.unlink()

    def _prune(self, file: Path) -> None:
        for folder in file.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:  # not empty, or somebody else was quicker
                break
