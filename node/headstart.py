"""When the workers are asked to analyse a series that looks whole, before anybody knows that it is.

Decides nothing about the series: it stays RECEIVING, and what a worker finds is told to nobody until the
clock has made a job of it. Asking is a doorbell like any other; one that is lost costs time only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from node.broker import Doorbell
from node.domain.completeness import find_gaps
from node.domain.eligibility import Rules, choose
from node.domain.errors import TransientError
from node.domain.instance import Instance
from node.domain.lifecycle import SeriesState
from node.liveness import is_gone
from node.store.decisions import SeriesRow
from node.store.records import Records

log = logging.getLogger(__name__)

AFTER_RELEASE_S = 0.3
"""Silence after which a study looks whole, once every association that brought any of it is released…"""
STILL_OPEN_S = 1.5
"""…and where one is still open: a PACS may keep it for hours."""
UNDECIDED = (SeriesState.RECEIVING, SeriesState.COMPLETE)


class HeadStart:
    """Asks once for each state of a study."""

    def __init__(self, records: Records, doorbell: Doorbell, rules: Rules, by_bucket: bool = False) -> None:
        """`by_bucket`: a worker finds a file only once it was put there."""
        self._records = records
        self._by_bucket = by_bucket
        self._doorbell = doorbell
        self._rules = rules
        self._asked: dict[str, float] = {}
        """When the last instance of each undecided study had come by the time it was looked at."""

    def look(self, study_uid: str, now: float) -> None:
        """Ask for the series that would be chosen, were everything here now. Raises TransientError."""
        rows = [r for r in self._records.decisions.of_study(study_uid) if r.state in UNDECIDED]
        if not rows:
            return
        last_s = max(row.last_received_at for row in rows)
        if self._asked.get(study_uid) == last_s or not self._looks_whole(study_uid, now - last_s):
            return
        if self._by_bucket and self._records.held.is_held(study_uid):
            return
        self._asked[study_uid] = last_s
        if self._records.jobs.latest_of_study(study_uid):
            return  # what is analysed already stays so, and its late slices are rare
        gathered = {
            row.series_instance_uid: self._records.decisions.gather(row.series_instance_uid).instances
            for row in rows
        }
        chosen = worth_it(gathered, rows, self._rules)
        if chosen is not None:
            self._ask(chosen, now)

    def forget(self, study_uid: str) -> None:
        """The study is decided."""
        self._asked.pop(study_uid, None)

    def _looks_whole(self, study_uid: str, silent_s: float) -> bool:
        if silent_s >= STILL_OPEN_S:
            return True
        return silent_s >= AFTER_RELEASE_S and self._records.decisions.carriage(study_uid).said_all

    def _ask(self, row: SeriesRow, now: float) -> None:
        """The worker that has decoded it already, if it is alive; else any."""
        who = row.early_by or ""
        to = who if who and self._records.early.is_alive(who, now) and not is_gone(who) else ""
        try:
            self._doorbell.prepare(row.series_instance_uid, row.revision, to)
        except TransientError as error:
            log.warning("no head start for series %s: %s", row.series_instance_uid, error)


def worth_it(
    gathered: Mapping[str, Sequence[Instance]], rows: Sequence[SeriesRow], rules: Rules
) -> SeriesRow | None:
    """The series that would be chosen; None where it has gaps, since more of it will come."""
    chosen = choose(gathered, rules).chosen
    if chosen is None or find_gaps(gathered[chosen]):
        return None
    return next(row for row in rows if row.series_instance_uid == chosen)
