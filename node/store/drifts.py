"""Every query about drift: what is held against what, what came of it, and values over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select

from node.quality.counts import FEATURES, SCORE, Shift
from node.store.engine import reading, writing
from node.store.tables import analyses, drifts

Row = dict[str, Any]
Columns = dict[str, list[Any]]
_COLUMNS = tuple(analyses.c[name] for name in FEATURES)
_MODEL = (analyses.c.model_name, analyses.c.model_version)


class Drifts:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def scanners(self, since: float) -> dict[str, int]:
        """How many analyses there are of each scanner since then."""
        query = select(analyses.c.scanner, func.count()).where(analyses.c.analysed_at >= since)
        with reading(self._engine) as connection:
            return dict(connection.execute(query.group_by(analyses.c.scanner)).all())

    def sides(self, scanner: str, sizes: tuple[int, int], since: float) -> tuple[Columns, Columns] | None:
        """The features of the first and of the latest analyses, of which there are so many (`sizes`).

        The scores are those of the model that spoke last. None until there are enough of both.
        """
        mine = (analyses.c.scanner == scanner, analyses.c.analysed_at >= since)
        with reading(self._engine) as connection:
            recent = _some(connection, mine, sizes[1], latest=True)
            reference = _some(connection, mine, sizes[0])
            if len(reference) < sizes[0] or len({r.id for r in reference} & {r.id for r in recent}):
                return None
            model = (recent[0].model_name, recent[0].model_version)
            same = (*mine, *(column == value for column, value in zip(_MODEL, model, strict=True)))
            first = _some(connection, same, sizes[0])
        taken = {row.id for row in first}
        before, after = _by_column(reference), _by_column(recent)
        before[SCORE] = [row.any_probability for row in first] if len(first) == sizes[0] else []
        by_model = [row for row in recent if (row.model_name, row.model_version) == model]
        after[SCORE] = [row.any_probability for row in by_model if row.id not in taken]
        return before, after

    def store(self, scanner: str, found: Sequence[Shift], now: float) -> None:
        """What came of a look at a scanner, in place of the last one; remembers since when it drifts."""
        with writing(self._engine) as connection:
            mine = drifts.c.scanner == scanner
            since = dict(
                connection.execute(select(drifts.c.feature, drifts.c.drifted_since).where(mine)).all()
            )
            connection.execute(delete(drifts).where(mine))
            for shift in found:
                began = (since.get(shift.feature) or now) if shift.drifted else None
                row = asdict(shift) | {"scanner": scanner, "drifted_since": began, "looked_at": now}
                connection.execute(insert(drifts).values(**row))

    def forget_others(self, scanners: Sequence[str]) -> None:
        """Scanners that nothing comes from any more are no longer judged."""
        with writing(self._engine) as connection:
            connection.execute(delete(drifts).where(drifts.c.scanner.not_in(scanners)))

    def all(self) -> list[Row]:
        """As last looked at, what drifts first."""
        order = (drifts.c.drifted_since.is_(None), drifts.c.scanner, drifts.c.feature)
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(select(drifts).order_by(*order))]

    def drifting(self) -> list[Row]:
        """What drifts, as last looked at."""
        query = select(drifts).where(drifts.c.drifted_since.is_not(None))
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(drifts.c.scanner, drifts.c.feature))
            return [dict(row._mapping) for row in rows]

    def values(self, scanner: str, limit: int) -> list[Row]:
        """The latest analyses of a scanner, oldest first: when, by which model, and every feature."""
        query = (
            select(analyses.c.analysed_at, *_MODEL, *_COLUMNS)
            .where(analyses.c.scanner == scanner)
            .order_by(analyses.c.analysed_at.desc())
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)][::-1]


def _some(
    connection: Connection, conditions: Sequence[Any], count: int, latest: bool = False
) -> Sequence[Any]:
    order = analyses.c.analysed_at.desc() if latest else analyses.c.analysed_at
    query = select(analyses.c.id, *_MODEL, *_COLUMNS).where(*conditions)
    return connection.execute(query.order_by(order, analyses.c.id).limit(count)).all()


def _by_column(rows: Sequence[Any]) -> Columns:
    return {name: [getattr(row, name) for row in rows] for name in FEATURES}
