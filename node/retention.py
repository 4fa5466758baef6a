"""Makes room: removes the files of the oldest studies whose results were delivered. Touches no other study.

What is undecided, unanalysed or undelivered stays, whatever the disk says; a C-STORE is refused with
0xA700 (spool.reserve_mb) before the disk is full. The records stay, so that a later study finds its prior.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from node.depot.contract import Entry
from node.settings import Settings
from node.spool import INCOMING, Spool, safe_name
from node.store.keeping import Removable, Removal
from node.store.records import Records

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
IN_FLIGHT_S = 600.0
"""A file without a record that is younger may be about to get one."""
MOST_STUCK = 100
"""Once files of so many studies could not be deleted, it is the volume: giving up more makes no room."""


class Retention:
    """One round after another; several processes may run it at once."""

    def __init__(self, settings: Settings, records: Records, spool: Spool) -> None:
        self._settings = settings
        self._keeping = records.keeping
        self._spool = spool
        self._committing = {d.name for d in settings.destination if d.commitment}
        self._told_full = False
        self._told_stuck: set[int] = set()

    def round(
        self, now: float, used: Callable[[], float] | None = None, by_age: bool = True
    ) -> list[Removal]:
        """Remove what is too old, then what stands in the way; returns what was removed.

        `used` tells which part of the volume is used; without `by_age` nothing is too old. Raises
        TransientError when the database is away.
        """
        used = used or self._spool.used_part
        self.finish()
        removed = self._too_old(now) if by_age else []
        removed += self._in_the_way(now, used)
        if by_age:
            self._forget(now)
        return removed

    def finish(self) -> None:
        """Delete what is left of removals that were cut off."""
        for removal in self._keeping.unfinished():
            self._delete(removal)

    def _forget(self, now: float) -> None:
        days = self._settings.spool.keep_records_days
        if days and (count := self._keeping.forget(now - days * DAY_S)):
            log.info("the records of %d studies are forgotten (spool.keep_records_days)", count)

    def _too_old(self, now: float) -> list[Removal]:
        if not (days := self._settings.spool.keep_days):
            return []
        removed: list[Removal] = []
        while studies := self._keeping.removable(now - days * DAY_S, self._committing):
            batch = [self._remove(study, "age", now) for study in studies]
            removed += [removal for removal in batch if removal]
            if not any(batch):
                break
        return removed

    def _in_the_way(self, now: float, used: Callable[[], float]) -> list[Removal]:
        """From the high watermark down to the low one."""
        spool = self._settings.spool
        if (
            spool.s3.wanted or used() < spool.high_watermark
        ):  # a bucket is never full; copies make way themselves
            self._told_full = False
            return []
        removed: list[Removal] = []
        quiet_since = now - self._settings.completeness.max_wait_s

        def wants_room() -> bool:
            return used() > spool.low_watermark and len(self._keeping.unfinished()) < MOST_STUCK

        while wants_room():
            studies = self._keeping.removable(quiet_since, self._committing, limit=10)
            batch = [r for study in studies if wants_room() for r in self._removed(study, now)]
            if not batch:
                self._say_full(used())
                break
            removed += batch
        return removed

    def _removed(self, study: Removable, now: float) -> list[Removal]:
        removal = self._remove(study, "watermark", now)
        return [removal] if removal else []

    def _say_full(self, part: float) -> None:
        """Once, until it is better: only what may not go is left."""
        if not self._told_full:
            text = "%.0f %% of the spool's volume is used, and no delivered study is left to remove"
            log.error(text + "; make room, or see `ichnode deliveries`", part * 100)
        self._told_full = True

    def _remove(self, study: Removable, cause: str, now: float) -> Removal | None:
        beside = self._beside(study.study_instance_uid, now)
        removal = self._keeping.begin(study, self._committing, cause, beside, now)
        if removal is not None:
            self._delete(removal)
        return removal

    def _beside(self, study_uid: str, now: float) -> list[str]:
        """Files in the study's own folder, older ones of instances that came again among them."""
        found = self._spool.depot.files(f"{INCOMING}/{safe_name(study_uid)}")
        return [file.path for file in found if file.path.endswith(".dcm") and _at_rest(file, now)]

    def _delete(self, removal: Removal) -> None:
        """A file that cannot be deleted is told once and tried again each round; no other waits for it."""
        try:
            self._spool.remove(*removal.paths)
        except OSError as error:
            if removal.id not in self._told_stuck:
                text = "files of study %s cannot be deleted: %s; look at the volume of data_dir"
                log.error(text, removal.study_instance_uid, error)
            self._told_stuck.add(removal.id)
            return
        self._keeping.finish(removal, time.time())
        text = "removed %d files (%.1f MB) of study %s, whose results were delivered: %s"
        reasons = {"age": "spool.keep_days", "watermark": "spool.high_watermark", "canary": "canary.keep"}
        why = reasons[removal.cause]
        log.info(text, len(removal.paths), removal.size_bytes / 1e6, removal.study_instance_uid, why)


def _at_rest(file: Entry, now: float) -> bool:
    return file.modified_at < now - IN_FLIGHT_S
