"""Every query about series that two models read: the active one, and one in the shadow. Only reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, case, func, select

from node.domain.lifecycle import ShadowState
from node.domain.opinion import ANY
from node.quality.counts import Paired
from node.store.engine import reading
from node.store.tables import analyses, shadows, studies

Row = dict[str, Any]
_SAID = ("verdict", "any_probability", "present", "evaluated", "volume_ml", "probabilities")
_TOOK = ("classified_s", "total_s")


@dataclass(frozen=True)
class Asked:
    """Which pairs: of these two models, analysed then, on this scanner (empty: on any)."""

    active_sha256: str
    shadow_sha256: str
    since: float = 0.0
    until: float = 1e12
    scanner: str = ""


class Pairs:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def which(self) -> list[Row]:
        """The pairs of models that read the same series, the latest first; how often, and the last time."""
        of_active = (analyses.c.model_name, analyses.c.model_version, analyses.c.model_sha256)
        of_shadow = (shadows.c.model_name, shadows.c.model_version, shadows.c.model_sha256)
        names = [f"{who}_{what}" for who in ("active", "shadow") for what in ("name", "version", "sha256")]
        columns = [column.label(name) for column, name in zip((*of_active, *of_shadow), names, strict=True)]
        last = func.max(shadows.c.finished_at)
        query = (
            _joined(*columns, func.count().label("count"), last.label("last_at"))
            .group_by(*of_active, *of_shadow)
            .order_by(last.desc())
        )
        return self._rows(query)

    def scanners(self, asked: Asked) -> list[str]:
        """Of these pairs, whatever scanner was asked for."""
        any_scanner = Asked(asked.active_sha256, asked.shadow_sha256, asked.since, asked.until)
        query = _joined(analyses.c.scanner).where(*_wanted(any_scanner)).distinct()
        return sorted(row["scanner"] for row in self._rows(query))

    def counted(self, asked: Asked) -> list[Paired]:
        """Everything the tables need, counted by the database."""
        drawn = case((analyses.c.sampled_at.is_not(None), 1), else_=0)
        what = (
            analyses.c.present,
            analyses.c.evaluated,
            shadows.c.present,
            shadows.c.evaluated,
            analyses.c.told,
            analyses.c.wrong,
            drawn,
        )
        query = _joined(*what, func.count()).where(*_wanted(asked)).group_by(*what)
        with reading(self._engine) as connection:
            return [Paired(*row) for row in connection.execute(query)]

    def latest(self, asked: Asked, limit: int) -> list[Row]:
        """The latest pairs, with a patient's identifiers where the study is still known."""
        newest = (analyses.c.analysed_at.desc(), analyses.c.id.desc())
        return self._rows(_shown().where(*_wanted(asked)).order_by(*newest).limit(limit))

    def times(self, asked: Asked, limit: int) -> list[Row]:
        """Of the latest pairs, how many seconds each model took."""
        columns = [
            table.c[name].label(f"{who}_{name}")
            for who, table in (("active", analyses), ("shadow", shadows))
            for name in _TOOK
        ]
        query = _joined(*columns).where(*_wanted(asked)).order_by(analyses.c.analysed_at.desc())
        return self._rows(query.limit(limit))

    def differing(self, asked: Asked, limit: int) -> tuple[list[Row], int]:
        """The latest pairs that differ in a class both evaluated, "any" first; and how many there are."""
        differ = _differ()
        any_differs = analyses.c.present.bitwise_and(ANY) != shadows.c.present.bitwise_and(ANY)
        first = case((any_differs, 0), else_=1)
        order = (first, analyses.c.analysed_at.desc(), analyses.c.id.desc())
        rows = self._rows(_shown().where(*_wanted(asked), differ).order_by(*order).limit(limit))
        with reading(self._engine) as connection:
            count = connection.execute(_joined(func.count()).where(*_wanted(asked), differ)).scalar_one()
        return rows, int(count)

    def _rows(self, query: Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _joined(*columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .select_from(shadows)
        .join(analyses, analyses.c.job_id == shadows.c.job_id)
        .where(shadows.c.state == ShadowState.DONE, analyses.c.model_sha256 != shadows.c.model_sha256)
    )


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
        _joined(*of_analysis, *named, *both)
        .add_columns(studies.c.patient_id, studies.c.accession_number)
        .outerjoin(studies, studies.c.study_instance_uid == analyses.c.study_instance_uid)
    )


def _wanted(asked: Asked) -> list[ColumnElement[bool]]:
    wanted = [
        analyses.c.model_sha256 == asked.active_sha256,
        shadows.c.model_sha256 == asked.shadow_sha256,
        analyses.c.analysed_at >= asked.since,
        analyses.c.analysed_at < asked.until,
    ]
    return [*wanted, analyses.c.scanner == asked.scanner] if asked.scanner else wanted


def _differ() -> ColumnElement[bool]:
    """In a class that both evaluated: the bits differ under the mask of both."""
    both = analyses.c.evaluated.bitwise_and(shadows.c.evaluated)
    mine, theirs = analyses.c.present.bitwise_and(both), shadows.c.present.bitwise_and(both)
    different: ColumnElement[bool] = mine != theirs
    return different
