"""Workitems with what is known of their studies. Reads alone; who changes them is in node.store.workitems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Case, ColumnElement, Connection, Row, case, func, select

from node.domain.findings import Priority
from node.domain.workitems import StepState
from node.store.tables import instances, jobs, series, studies, workitems
from node.store.worklist import without_slices

Values = dict[str, Any]
AT_ONCE = 200


@dataclass(frozen=True)
class Item:
    """A workitem with what is known of its study; `performed` is what N-SET brought, as DICOM JSON."""

    uid: str
    job_id: int
    study_instance_uid: str
    series_instance_uid: str
    revision: int
    state: StepState
    priority: Priority
    findings: Values | None
    performed: Values
    created_at: float
    changed_at: float
    claimed_by: str
    claimed_at: float | None
    offer: int
    study: Values
    header: Values


def urgency(of: Any) -> Case[int]:
    """The rank of a job's priority: 0 is the most urgent."""
    return case({p: rank for rank, p in enumerate(Priority)}, value=of.c.priority)


_ORDER = (urgency(jobs), workitems.c.created_at)


def items(connection: Connection, condition: ColumnElement[bool], limit: int) -> list[Item]:
    """Workitems of which this holds, the most urgent and then the oldest first."""
    first_instance = (
        select(func.min(instances.c.sop_instance_uid))
        .where(instances.c.series_instance_uid == jobs.c.series_instance_uid)
        .correlate(jobs)
        .scalar_subquery()
    )
    query = (
        select(workitems, jobs.c.series_instance_uid, jobs.c.revision, jobs.c.priority)
        .add_columns(without_slices(connection).label("findings"), instances.c.header, series.c.kept_header)
        .add_columns(studies.c.patient_id, studies.c.patient_name, studies.c.accession_number)
        .join(jobs, jobs.c.id == workitems.c.job_id)
        .join(studies, studies.c.study_instance_uid == workitems.c.study_instance_uid)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .outerjoin(instances, instances.c.sop_instance_uid == first_instance)
        .where(condition)
        .order_by(*_ORDER)
        .limit(limit)
    )
    return [_item(row) for row in connection.execute(query)]


def parts(connection: Connection, condition: ColumnElement[bool]) -> Iterator[ColumnElement[bool]]:
    """Conditions for `items` that together give every workitem of which this holds, in its order.

    However many there are, few are in memory: each comes with its findings.
    """
    query = select(workitems.c.sop_instance_uid).join(jobs, jobs.c.id == workitems.c.job_id)
    uids = connection.execute(query.where(condition).order_by(*_ORDER)).scalars().all()
    return (workitems.c.sop_instance_uid.in_(uids[i : i + AT_ONCE]) for i in range(0, len(uids), AT_ONCE))


def _item(row: Row) -> Item:
    study = {"patient_id": row.patient_id, "patient_name": row.patient_name}
    header = row.header or row.kept_header or {}
    is_theirs = (header.get("patient_id") or "") == row.patient_id  # of several patients, one is the study's
    return Item(
        uid=row.sop_instance_uid,
        job_id=row.job_id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        revision=row.revision,
        state=StepState(row.state),
        priority=Priority(row.priority),
        findings=row.findings,
        performed=row.performed,
        created_at=row.created_at,
        changed_at=row.changed_at,
        claimed_by=row.claimed_by or "",
        claimed_at=row.claimed_at,
        offer=row.offer,
        study=study | {"accession_number": row.accession_number},
        header=header if is_theirs else {},
    )
