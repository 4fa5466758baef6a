"""Every query about series that two models read: the active one, and one in the shadow. Changes neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, or_, select

from node.domain.opinion import ANY
from node.quality.counts import Paired
from node.store.engine import reading
from node.store.pair_days import DAY_S, WHOSE, PairDays, Parts, joined, parts, summed, within
from node.store.tables import analyses, pair_days, shadows, studies

Row = dict[str, Any]
_SAID = ("verdict", "any_probability", "present", "evaluated", "volume_ml", "probabilities")
_TOOK = ("classified_s", "total_s")
_NEWEST = (analyses.c.analysed_at.desc(), analyses.c.id.desc())


@dataclass(frozen=True)
class Asked:
    """Which pairs: of these two models, analysed then, on this scanner. Empty: of any."""

    active_sha256: str
    shadow_sha256: str
    since: float = 0.0
    until: float = 1e12
    scanner: str = ""


class Pairs:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._days = PairDays(engine)

    def count_days(self, now: float) -> int:
        """Keep the summary by day; returns how many days were counted."""
        return self._days.count(now)

    def which(self) -> list[Row]:
        """The pairs of models that read the same series, the latest first; how often, and the last time."""
        names = [f"{who}_{what}" for who in ("active", "shadow") for what in WHOSE]
        found = self._summed(Asked("", ""), names)
        return sorted(found, key=lambda row: row["last_at"] or 0.0, reverse=True)

    def scanners(self, asked: Asked) -> list[str]:
        """Of these pairs, whatever scanner was asked for."""
        return sorted(row["scanner"] for row in self._summed(replace(asked, scanner=""), ["scanner"]))

    def counted(self, asked: Asked) -> list[Paired]:
        """Everything the tables need, counted by the database."""
        names = [field.name for field in fields(Paired) if field.name != "count"]
        return [Paired(*(row[name] for name in (*names, "count"))) for row in self._summed(asked, names)]

    def latest(self, asked: Asked, limit: int) -> list[Row]:
        """The latest pairs, with a patient's identifiers where the study is still known."""
        return self._rows(_shown().where(*_wanted(asked)).order_by(*_NEWEST).limit(limit))

    def dots(self, asked: Asked, limit: int) -> list[Row]:
        """Of the latest pairs, what a plot shows."""
        columns = [
            table.c[name].label(f"{who}_{name}")
            for who, table in (("active", analyses), ("shadow", shadows))
            for name in ("any_probability", "present")
        ]
        more = (analyses.c.told, analyses.c.wrong, analyses.c.study_instance_uid)
        query = joined(*columns, *more).where(*_wanted(asked)).order_by(*_NEWEST)
        return self._rows(query.limit(limit))

    def times(self, asked: Asked, limit: int) -> list[Row]:
        """Of the latest pairs, how many seconds each model took."""
        columns = [
            table.c[name].label(f"{who}_{name}")
            for who, table in (("active", analyses), ("shadow", shadows))
            for name in _TOOK
        ]
        query = joined(*columns).where(*_wanted(asked)).order_by(analyses.c.analysed_at.desc())
        return self._rows(query.limit(limit))

    def differing(self, asked: Asked, limit: int) -> tuple[list[Row], int]:
        """The latest pairs that differ in a class both evaluated, "any" first; and how many there are."""
        with reading(self._engine) as connection:
            split = parts(connection, asked.since, asked.until)
            by_day = _differing_days(connection, asked, split)
            live = joined(func.count()).where(*_wanted(asked), _differ(), split.uncounted)
            count = int(connection.execute(live).scalar_one()) + sum(sum(of) for of in by_day.values())
            where = or_(split.uncounted, within(_latest_days(by_day, limit)))
            any_differs = analyses.c.present.bitwise_and(ANY) != shadows.c.present.bitwise_and(ANY)
            order = (case((any_differs, 0), else_=1), *_NEWEST)
            query = _shown().where(*_wanted(asked), _differ(), where).order_by(*order).limit(limit)
            return [dict(row._mapping) for row in connection.execute(query)], count

    def _summed(self, asked: Asked, names: Sequence[str]) -> list[Row]:
        """How many there are of each, from the days that are counted and from the rows of the others."""
        columns = [pair_days.c[name] for name in names]
        totals = (func.sum(pair_days.c.count).label("count"), func.max(pair_days.c.last_at).label("last_at"))
        with reading(self._engine) as connection:
            split = parts(connection, asked.since, asked.until)
            query = select(*columns, *totals).where(split.counted, *_wanted_of_day(asked)).group_by(*columns)
            rows = list(connection.execute(query).mappings()) if split.end else []
            live = summed(and_(split.uncounted, *_wanted(asked)), "last_at", *names)
            rows += connection.execute(live).mappings()
        found: dict[tuple[Any, ...], Row] = {}
        for row in rows:
            key = tuple(row[name] for name in names)
            before = found.get(key, {"count": 0, "last_at": None})
            last = max((at for at in (before["last_at"], row["last_at"]) if at is not None), default=None)
            found[key] = {**row, "count": before["count"] + int(row["count"]), "last_at": last}
        return list(found.values())

    def _rows(self, query: Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _differing_days(connection: Connection, asked: Asked, split: Parts) -> dict[int, tuple[int, int]]:
    """Of the counted days: how many pairs differ in "any", and how many in another class alone."""
    if not split.end:
        return {}
    of = pair_days.c
    both = of.active_evaluated.bitwise_and(of.shadow_evaluated)
    differ = of.active_present.bitwise_and(both) != of.shadow_present.bitwise_and(both)
    any_differs = of.active_present.bitwise_and(ANY) != of.shadow_present.bitwise_and(ANY)
    in_any = func.sum(case((any_differs, of.count), else_=0))
    query = select(of.day, in_any, func.sum(of.count)).where(split.counted, *_wanted_of_day(asked), differ)
    rows = connection.execute(query.group_by(of.day))
    return {day: (int(first), int(total) - int(first)) for day, first, total in rows}


def _latest_days(by_day: Mapping[int, tuple[int, int]], limit: int) -> list[tuple[float, float]]:
    """Times that hold the latest `limit` that differ in "any", and the latest of the others that follow."""
    days: set[int] = set()
    for which in (0, 1):
        left = limit
        for day in sorted((day for day, of in by_day.items() if of[which]), reverse=True):
            if left <= 0:
                break
            days.add(day)
            left -= by_day[day][which]
    return [(day * DAY_S, (day + 1) * DAY_S) for day in sorted(days)]


def _shown() -> Select[Any]:
    """Both words side by side: `active_…` and `shadow_…`."""
    both = [
        table.c[name].label(f"{who}_{name}")
        for who, table in (("active", analyses), ("shadow", shadows))
        for name in (*_SAID, *_TOOK)
    ]
    of_analysis = [c for c in analyses.c if c.name not in (*_SAID, *_TOOK)]
    of_shadow = [shadows.c.model_name, shadows.c.model_version, shadows.c.model_sha256]
    named = [column.label(f"shadow_{column.name}") for column in of_shadow]
    return (
        joined(*of_analysis, *named, *both)
        .add_columns(studies.c.patient_id, studies.c.accession_number)
        .outerjoin(studies, studies.c.study_instance_uid == analyses.c.study_instance_uid)
    )


def _wanted(asked: Asked) -> list[ColumnElement[bool]]:
    return [
        analyses.c.analysed_at >= asked.since,
        analyses.c.analysed_at < asked.until,
        *_of(asked, analyses.c.model_sha256, shadows.c.model_sha256, analyses.c.scanner),
    ]


def _wanted_of_day(asked: Asked) -> list[ColumnElement[bool]]:
    """Of a row of `pair_days`, whatever its day."""
    return _of(asked, pair_days.c.active_sha256, pair_days.c.shadow_sha256, pair_days.c.scanner)


def _of(asked: Asked, active: Any, shadow: Any, scanner: Any) -> list[ColumnElement[bool]]:
    pairs = (
        (active, asked.active_sha256),
        (shadow, asked.shadow_sha256),
        (scanner, asked.scanner),
    )
    return [column == wanted for column, wanted in pairs if wanted]


def _differ() -> ColumnElement[bool]:
    """In a class that both evaluated: the bits differ under the mask of both."""
    both = analyses.c.evaluated.bitwise_and(shadows.c.evaluated)
    mine, theirs = analyses.c.present.bitwise_and(both), shadows.c.present.bitwise_and(both)
    different: ColumnElement[bool] = mine != theirs
    return different
