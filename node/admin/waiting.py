"""What lies on the disk of one machine alone and waits for the bucket, in words. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from node.store.held import Disk
from node.store.records import Records

LATE_S = 60.0
"""So long something may take to get into the bucket; after that a person should know."""
FEW = 3


@dataclass(frozen=True)
class Waiting:
    disks: tuple[Disk, ...]
    """The one that holds the oldest first."""
    troubles: tuple[str, ...]
    """What keeps uploaders from it, as they say."""
    age_s: float
    """Of the oldest; 0: nothing waits."""
    room_bytes: dict[str, int]
    """What the disk of each listener still takes, by its name."""

    @property
    def full(self) -> tuple[str, ...]:
        """Disks that take nothing more."""
        return tuple(name for name, room in self.room_bytes.items() if room <= 0)

    @property
    def is_late(self) -> bool:
        return self.age_s > LATE_S or bool(self.troubles or self.full)

    @property
    def instances(self) -> int:
        return sum(disk.instances for disk in self.disks)

    def words(self, now: float) -> str:
        """What waits where, since when and why."""
        parts = [
            f"{disk.instances} images of {_studies(disk.studies)} are on the disk {disk.name} alone, "
            f"the oldest for {_span(now - disk.oldest_at)}"
            for disk in self.disks[:FEW]
        ]
        if len(self.disks) > FEW:
            parts.append(f"more on {len(self.disks) - FEW} other disks")
        parts += [f"the disk {name} is full: nothing is accepted there" for name in self.full]
        hint = "is `ichnode listen` running on its machine?" if self.age_s > LATE_S else ""
        return "; ".join([*parts, *(self.troubles or ((hint,) if hint else ()))])


def uploading(records: Records, now: float) -> Waiting:
    """How it stands. Raises TransientError when the database is away."""
    disks = tuple(records.held.disks())
    said = [p["detail"] for p in records.views.processes(now) if p["role"] == "upload" and p["alive"]]
    troubles = dict.fromkeys(str(one["trouble"]) for one in said if one.get("trouble"))
    room = {str(one["disk"]): int(one["room_bytes"]) for one in said if "room_bytes" in one}
    age_s = max((now - disk.oldest_at for disk in disks), default=0.0)
    return Waiting(disks, tuple(troubles), age_s, room)


def _studies(count: int) -> str:
    return "1 study" if count == 1 else f"{count} studies"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
