"""What a depot is. It keeps files under the paths of the spool, whole or not at all, and knows no DICOM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A finished file."""

    path: str
    size_bytes: int
    modified_at: float
    """Seconds since the epoch, by the clock of whoever keeps it."""


class Depot(Protocol):
    """Each method raises OutOfReach while the depot is away. An OSError is of this machine's own disk."""

    @property
    def disk(self) -> str | None:
        """The disk that alone holds what was just received here; None where everybody sees it at once."""

    def require_reach(self) -> None:
        """Costs nothing while all is well."""

    def put(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        """One file, which every machine sees and no crash undoes once this returns. The last one counts."""

    def get(self, paths: Sequence[str]) -> list[Path]:
        """A file of this machine for each, to be read soon. Where there is none, opening it says so."""

    def export(self, path: str, file: Path) -> bool:
        """Its bytes into a file somewhere else. False where there is none."""

    def missing(self, paths: Sequence[str]) -> set[str]:
        """Those of which there is no file."""

    def delete(self, paths: Sequence[str]) -> int:
        """Returns their bytes as far as they are known here. What was not there is no matter."""

    def files(self, folder: str) -> Iterator[Entry]:
        """Every finished file below a folder, in the order of paths or folder by folder."""
