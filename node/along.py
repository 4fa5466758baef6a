"""When an idle worker is asked to decode a series while it still arrives. Decides nothing about the series.

Asking is a doorbell that may be lost: whoever hears it writes down that it is at the series, and until then
the clock asks again. A worker that dies over a series is not followed by another: the series may be why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from node.broker import Doorbell
from node.domain.eligibility import Rules, choose
from node.domain.errors import TransientError
from node.headstart import UNDECIDED
from node.store.decisions import SeriesRow
from node.store.records import Records

log = logging.getLogger(__name__)

FROM_SLICES = 8
"""Of what comes as fewer instances, multi-frame objects say, hardly anything could be done early."""
GROWN = 2.0
"""A study is weighed again once so many times the instances are there."""
ARRIVING_S = 3.0
"""Silence after which a series is no longer arriving: what looks whole gets a head start."""
ASK_AGAIN_S = 2.0


@dataclass(frozen=True)
class _Weighed:
    """What was thought of a study when so many series and instances of it were there."""

    series: int
    instances: int
    chosen: str | None


class Along:
    """Asks for the series of each study that would be chosen, were all of it like what is there."""

    def __init__(self, records: Records, doorbell: Doorbell, rules: Rules) -> None:
        self._records = records
        self._doorbell = doorbell
        self._rules = replace(rules, min_slices=FROM_SLICES, min_coverage_mm=0.0)
        self._weighed: dict[str, _Weighed] = {}
        self._asked: dict[str, float] = {}
        """When each series was last asked for."""

    def look(self, receiving: Sequence[SeriesRow], now: float) -> None:
        """`receiving`: every series that is not complete. Raises TransientError when the database is away."""
        studies = {row.study_instance_uid for row in receiving}
        self._weighed = {uid: known for uid, known in self._weighed.items() if uid in studies}
        uids = {row.series_instance_uid for row in receiving}
        self._asked = {uid: at for uid, at in self._asked.items() if uid in uids}
        for row in receiving:
            if self._is_due(row, now) and self._would_be_chosen(row):
                self._ask(row, now)

    def _is_due(self, row: SeriesRow, now: float) -> bool:
        return (
            row.early_by is None
            and row.instance_count >= FROM_SLICES
            and now - row.last_received_at < ARRIVING_S
            and now - self._asked.get(row.series_instance_uid, 0.0) >= ASK_AGAIN_S
        )

    def _would_be_chosen(self, row: SeriesRow) -> bool:
        rows = [r for r in self._records.decisions.of_study(row.study_instance_uid) if r.state in UNDECIDED]
        there = sum(one.instance_count for one in rows)
        known = self._weighed.get(row.study_instance_uid)
        if known is None or known.series != len(rows) or there >= GROWN * known.instances:
            known = _Weighed(len(rows), there, self._choose(row.study_instance_uid, rows))
            self._weighed[row.study_instance_uid] = known
        return known.chosen == row.series_instance_uid

    def _choose(self, study_uid: str, rows: Sequence[SeriesRow]) -> str | None:
        if self._records.jobs.latest_of_study(study_uid):
            return None  # what is analysed already stays so, and its late slices are rare
        uids = [row.series_instance_uid for row in rows]
        gathered = {uid: self._records.decisions.gather(uid).instances for uid in uids}
        return choose(gathered, self._rules).chosen

    def _ask(self, row: SeriesRow, now: float) -> None:
        self._asked[row.series_instance_uid] = now
        try:
            self._doorbell.along(row.series_instance_uid)
        except TransientError as error:
            log.warning("nobody decodes series %s early: %s", row.series_instance_uid, error)
