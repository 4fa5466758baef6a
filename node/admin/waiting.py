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

    @property
    def is_late(self) -> bool:
        return self.age_s > LATE_S or bool(self.troubles)

    @property
    def instances(self) -> int:
        return sum(disk.instances for disk in self.disks)

    def words(self, now: float) -> str:
        """What waits where, since when and why."""
        parts = [
            f"{disk.instances} images of {disk.studies} studies are on the disk {disk.name} alone, "
            f"the oldest for {_span(now - disk.oldest_at)}"
            for disk in self.disks[:FEW]
        ]
        if len(self.disks) > FEW:
            parts.append(f"more on {len(self.disks) - FEW} other disks")
        hint = "is `ichnode listen` running on its machine?" if self.age_s > LATE_S else ""
        return "; ".join([*parts, *(self.troubles or ((hint,) if hint else ()))])


def uploading(records: Records, now: float) -> Waiting:
    """How it stands. Raises TransientError when the database is away."""
    disks = tuple(records.held.disks())
    alive = (p for p in records.views.processes(now) if p["role"] == "upload" and p["alive"])
    troubles = dict.fromkeys(str(p["detail"]["trouble"]) for p in alive if p["detail"].get("trouble"))
    return Waiting(disks, tuple(troubles), max((now - disk.oldest_at for disk in disks), default=0.0))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
