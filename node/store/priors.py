"""Every query about earlier head CTs of the same patient. Finds candidates; decides on none of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, func, select

from node.domain.findings import Comparison, Findings
from node.domain.instance import Instance
from node.domain.lifecycle import JobState
from node.domain.prior import Earlier
from node.store.engine import reading
from node.store.jobs import NewObject, object_of
from node.store.tables import instances, jobs, objects, series, studies

MOST = 200
"""So many analysed studies of one PatientID are looked at, the latest first."""
_DONE = (JobState.ANALYSED, JobState.COMPOSED)


class Priors:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def candidates(self, series_uid: str) -> tuple[Instance | None, list[Earlier]]:
        """A slice of this series, and the analysed series of other studies with the same PatientID."""
        with reading(self._engine) as connection:
            now = _a_slice(connection, series_uid)
            if now is None or not now.patient_id:
                return now, []
            newest = func.max(jobs.c.revision).over(partition_by=jobs.c.series_instance_uid)
            of_patient = (
                select(jobs.c.series_instance_uid, jobs.c.revision, jobs.c.findings, newest.label("newest"))
                .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
                .where(
                    studies.c.patient_id == now.patient_id,
                    studies.c.study_instance_uid != now.study_instance_uid,
                    jobs.c.state.in_(_DONE),
                    jobs.c.findings.is_not(None),
                )
                .order_by(studies.c.study_date.desc(), jobs.c.id.desc())
                .limit(MOST)
            )
            found = []
            for row in connection.execute(of_patient):
                instance = _a_slice(connection, row.series_instance_uid)
                if row.revision == row.newest and instance is not None:
                    found.append(Earlier(instance, Findings.from_json(row.findings)))
            return now, found

    def findings(self, comparison: Comparison) -> Findings | None:
        """What the earlier analysis said, if it is still kept."""
        with reading(self._engine) as connection:
            kept = connection.execute(select(jobs.c.findings).where(_meant(comparison))).scalar()
            return Findings.from_json(kept) if kept else None

    def report(self, comparison: Comparison, output: str) -> NewObject | None:
        """The report of the earlier analysis, once it is composed."""
        with reading(self._engine) as connection:
            row = connection.execute(
                select(objects)
                .join(jobs, jobs.c.id == objects.c.job_id)
                .where(_meant(comparison), objects.c.output == output)
                .order_by(objects.c.created_at.desc())
            ).first()
            return object_of(row) if row else None


def _meant(comparison: Comparison) -> ColumnElement[bool]:
    return and_(jobs.c.series_instance_uid == comparison.series_uid, jobs.c.revision == comparison.revision)


def a_header(series_uid: str) -> Select[Any]:
    """The header of one instance: patient and study are the same in all."""
    mine = select(instances.c.header).where(instances.c.series_instance_uid == series_uid)
    return mine.order_by(instances.c.sop_instance_uid).limit(1)


def _a_slice(connection: Connection, series_uid: str) -> Instance | None:
    """One instance of the series, also where retention took them all away."""
    header = connection.execute(a_header(series_uid)).scalar()
    if header is None:
        kept = select(series.c.kept_header).where(series.c.series_instance_uid == series_uid)
        header = connection.execute(kept).scalar()
    return Instance.from_json(header) if header else None
