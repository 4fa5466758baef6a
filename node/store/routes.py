"""Every query that routing needs: where a series came from, who was told of a study, studies already seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from node.domain.findings import Priority
from node.domain.instance import Instance
from node.domain.lifecycle import JobState
from node.store.engine import reading
from node.store.jobs import SOURCE, NewObject
from node.store.tables import associations, deliveries, instances, jobs, objects, studies
from node.store.worklist import matching, without_slices

Row = dict[str, Any]
_REPORTED = (JobState.COMPOSED, JobState.FAILED)


@dataclass(frozen=True)
class Origin:
    """Who brought a series, and what one of its headers says; None once its files are removed."""

    source_aes: frozenset[str] = frozenset()
    header: Instance | None = None


class Routes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def origin(self, series_uid: str) -> Origin:
        with reading(self._engine) as connection:
            return _origins(connection, [series_uid]).get(series_uid, Origin())

    def told(self, study_uid: str) -> frozenset[str]:
        """The destinations that results of this study were made out to."""
        query = (
            select(deliveries.c.destination)
            .join(jobs, jobs.c.id == deliveries.c.job_id)
            .join(objects, objects.c.sop_instance_uid == deliveries.c.sop_instance_uid)
            .where(jobs.c.study_instance_uid == study_uid, objects.c.output != SOURCE)
            .distinct()
        )
        with reading(self._engine) as connection:
            return frozenset(connection.execute(query).scalars())

    def sources(self, series_uid: str) -> list[NewObject]:
        """The received instances of a series, as objects to send, in the order of their arrival."""
        query = (
            select(instances)
            .where(instances.c.series_instance_uid == series_uid)
            .order_by(instances.c.received_at, instances.c.sop_instance_uid)
        )
        with reading(self._engine) as connection:
            return [
                NewObject(
                    row.sop_instance_uid,
                    row.header["sop_class_uid"],
                    row.series_instance_uid,
                    SOURCE,
                    row.path,
                    row.size_bytes,
                )
                for row in connection.execute(query)
            ]

    def seen(self, limit: int, search: str = "", priorities: Sequence[Priority] = ()) -> list[Row]:
        """The latest reported jobs with their study, findings without slices, origin, and routing."""
        with reading(self._engine) as connection:
            columns = [c for c in jobs.c if c.name not in ("findings", "maps_path")]
            query = (
                select(*columns, without_slices(connection).label("findings"))
                .add_columns(studies.c.patient_id, studies.c.accession_number, studies.c.last_received_at)
                .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
                .where(jobs.c.state.in_(_REPORTED), jobs.c.canary == 0)
                .order_by(jobs.c.id.desc())
                .limit(limit)
            )
            if search:
                query = query.where(matching(search))
            if priorities:
                query = query.where(jobs.c.priority.in_(priorities))
            found = [dict(row._mapping) for row in connection.execute(query)]
            origins = _origins(connection, [row["series_instance_uid"] for row in found])
        return [row | {"origin": origins.get(row["series_instance_uid"], Origin())} for row in found]


def _origins(connection: Connection, series_uids: Sequence[str]) -> dict[str, Origin]:
    """Of every series of which images are kept."""
    callers: dict[str, set[str]] = {}
    brought = (
        select(instances.c.series_instance_uid, associations.c.calling_ae)
        .join(associations, associations.c.id == instances.c.association_id)
        .where(instances.c.series_instance_uid.in_(series_uids))
        .distinct()
    )
    for uid, calling_ae in connection.execute(brought):
        callers.setdefault(uid, set()).add(calling_ae)
    first = (
        select(func.min(instances.c.sop_instance_uid))
        .where(instances.c.series_instance_uid.in_(series_uids))
        .group_by(instances.c.series_instance_uid)
    )
    headers = select(instances.c.series_instance_uid, instances.c.header).where(
        instances.c.sop_instance_uid.in_(first)
    )
    return {
        uid: Origin(frozenset(callers.get(uid, ())), Instance.from_json(header))
        for uid, header in connection.execute(headers)
    }
