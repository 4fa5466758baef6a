"""Series that two models read, counted by day, so that a page about years need not read every series.

Whoever changes what is counted notes the day in the same transaction (`changed`); a day with such a note, or
that was not counted yet, is counted anew by who asks. So a sum is always that of a recount. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    case,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from node.domain.lifecycle import ShadowState
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import analyses, pair_changes, pair_days, pair_summary, shadows

DAY_S = 86400.0
MOST_CHANGED = 40
"""With more days in question, one look at all of them costs less than one at each."""
MOST_AT_ONCE = 400
_NAME = "pairs"
WHOSE = ("name", "version", "sha256")
WHAT = {
    **{f"active_{name}": analyses.c[f"model_{name}"] for name in WHOSE},
    **{f"shadow_{name}": shadows.c[f"model_{name}"] for name in WHOSE},
    "scanner": analyses.c.scanner,
    "active_present": analyses.c.present,
    "active_evaluated": analyses.c.evaluated,
    "shadow_present": shadows.c.present,
    "shadow_evaluated": shadows.c.evaluated,
    "told": analyses.c.told,
    "wrong": analyses.c.wrong,
    "sampled": case((analyses.c.sampled_at.is_not(None), 1), else_=0),
}
"""What a day is counted by, and where it stands."""
LAST = func.max(shadows.c.finished_at)


@dataclass(frozen=True)
class Parts:
    """A time as days that are counted (`first` to before `end`, but for `without`) and times that are not."""

    first: int
    end: int
    without: tuple[int, ...]
    times: tuple[tuple[float, float], ...]

    @property
    def counted(self) -> ColumnElement[bool]:
        """Of a row of `pair_days`."""
        days = and_(pair_days.c.day >= self.first, pair_days.c.day < self.end)
        return and_(days, pair_days.c.day.not_in(self.without)) if self.without else days

    @property
    def uncounted(self) -> ColumnElement[bool]:
        """Of a row of `analyses`."""
        return within(self.times)


class PairDays:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def count(self, now: float, most: int = MOST_AT_ONCE) -> int:
        """Count the days that ended since, and those that changed. Returns how many."""
        today = day_of(now)
        with reading(self._engine) as connection:
            until = _until(connection)
            changed = connection.execute(select(pair_changes.c.day).distinct()).scalars().all()
            first = connection.execute(select(func.min(analyses.c.analysed_at))).scalar()
        begin = max(until, day_of(first)) if first is not None else today
        due = sorted({day for day in changed if day < until} | set(range(begin, today)))[:most]
        for day in due:
            self._count(day)
        if not due and today > until:
            self._count(today - 1)  # nothing was ever read: from here on
        return len(due)

    def _count(self, day: int) -> None:
        """One day, and that it is counted. What changes meanwhile leaves a note that stays."""
        with writing(self._engine) as connection:
            insert_if_absent(connection, pair_summary, {"name": _NAME, "until_day": 0})
            mine = pair_summary.c.name == _NAME
            until = connection.execute(
                select(pair_summary.c.until_day).where(mine).with_for_update()
            ).scalar()
            connection.execute(delete(pair_changes).where(pair_changes.c.day == day))
            connection.execute(delete(pair_days).where(pair_days.c.day == day))
            times = (day * DAY_S, (day + 1) * DAY_S)
            rows = connection.execute(summed(within([times]), "last_at", *WHAT)).mappings()
            if found := [{**row, "day": day} for row in rows]:
                connection.execute(insert(pair_days), found)
            ended = max(until or 0, day + 1)
            connection.execute(update(pair_summary).where(mine).values(until_day=ended))


def day_of(at: float) -> int:
    """Of 86,400 s since the epoch."""
    return math.floor(at / DAY_S)


def changed(connection: Connection, *times: float) -> None:
    """Something about series analysed at these times changes in this transaction."""
    days = sorted({day_of(at) for at in times})
    if days:
        connection.execute(insert(pair_changes), [{"day": day} for day in days])


def parts(connection: Connection, since: float, until: float) -> Parts:
    """What of this time is counted."""
    first, end = math.ceil(since / DAY_S), min(day_of(until), _until(connection))
    query = select(pair_changes.c.day).where(pair_changes.c.day >= first, pair_changes.c.day < end)
    without = tuple(sorted(connection.execute(query.distinct()).scalars()))
    if first >= end or len(without) > MOST_CHANGED:
        return Parts(0, 0, (), ((since, until),))
    times = [(since, first * DAY_S), *((d * DAY_S, (d + 1) * DAY_S) for d in without), (end * DAY_S, until)]
    return Parts(first, end, without, tuple((a, b) for a, b in times if a < b))


def joined(*columns: Any) -> Select[Any]:
    """Series that two models read."""
    return (
        select(*columns)
        .select_from(shadows)
        .join(analyses, analyses.c.job_id == shadows.c.job_id)
        .where(shadows.c.state == ShadowState.DONE, analyses.c.model_sha256 != shadows.c.model_sha256)
    )


def summed(condition: ColumnElement[bool], last: str, *names: str) -> Select[Any]:
    """Of series: how many there are of each, as `count`, and when the last was read."""
    what = [WHAT[name].label(name) for name in names]
    return joined(*what, func.count().label("count"), LAST.label(last)).where(condition).group_by(*what)


def within(times: Sequence[tuple[float, float]]) -> ColumnElement[bool]:
    """Of a row of `analyses`; of none where there is no time."""
    return or_(false(), *(and_(analyses.c.analysed_at >= a, analyses.c.analysed_at < b) for a, b in times))


def _until(connection: Connection) -> int:
    query = select(pair_summary.c.until_day).where(pair_summary.c.name == _NAME)
    return connection.execute(query).scalar() or 0
