"""Every query about workitems: one for each job whose result should be read, taken and finished by readers.

They follow from the jobs, so that making them can be repeated; a change of state is decided by
node.domain.workitems in the transaction that writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, case, exists, func, or_, select, update

from node.domain.findings import Priority
from node.domain.lifecycle import JobState
from node.domain.workitems import (
    NOBODY_HEARS,
    SUCCESS,
    Event,
    Standing,
    StepState,
    change_state,
    request_cancel,
    set_attributes,
)
from node.store.audit import Actor, add_entry
from node.store.engine import insert_if_absent, reading, writing
from node.store.reviews import acknowledge
from node.store.subscriptions import born, report, state_report
from node.store.tables import instances, jobs, objects, studies, workitems
from node.store.worklist import without_slices

Values = dict[str, Any]
WORKITEM = "workitem"
"""What the audit trail calls it when a reader takes or finishes one."""
PROGRESS = "00741002"  # Procedure Step Progress Information Sequence
PERFORMED = "00741216"  # Unified Procedure Step Performed Procedure Sequence
REQUIRED_OF_PERFORMED = {
    "00404050": "PerformedProcedureStepStartDateTime",
    "00404051": "PerformedProcedureStepEndDateTime",
    "00404028": "PerformedStationNameCodeSequence",
    "00404019": "PerformedWorkitemCodeSequence",
}
"""Final state requirements of COMPLETED, PS3.4 Table CC.2.5-3."""
_TAKEN_BACK = (JobState.SUPERSEDED, JobState.CANCELLED)

_newer = workitems.alias("newer")
_same_study = _newer.c.study_instance_uid == workitems.c.study_instance_uid
_OUTDATED = (
    workitems.c.state == StepState.SCHEDULED,
    or_(
        exists().where(
            _newer.c.study_instance_uid == workitems.c.study_instance_uid,
            _newer.c.job_id > workitems.c.job_id,
        ),
        exists().where(jobs.c.id == workitems.c.job_id, jobs.c.state == JobState.CANCELLED),
    ),
)


@dataclass(frozen=True)
class Item:
    """A workitem with what is known of its study; `performed` is what N-SET brought, as DICOM JSON."""

    uid: str
    job_id: int
    study_instance_uid: str
    series_instance_uid: str
    state: StepState
    priority: Priority
    findings: Values | None
    performed: Values
    created_at: float
    changed_at: float
    claimed_by: str
    study: Values
    header: Values


class Workitems:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def make(
        self, priorities: Sequence[Priority], uid_of: Callable[[str, int], str], since: float, now: float
    ) -> int:
        """A SCHEDULED workitem for each job with such a priority that has none. Returns how many are new.

        One that nobody has taken is CANCELED once a newer one of its study is there, or an admin cancelled
        its job; never by an analysis that has no result yet, nor by one that alarms less.
        """
        lacking = (
            select(jobs.c.id, jobs.c.series_instance_uid, jobs.c.revision, jobs.c.study_instance_uid)
            .outerjoin(workitems, workitems.c.job_id == jobs.c.id)
            .where(workitems.c.job_id.is_(None), jobs.c.priority.in_(priorities), jobs.c.canary == 0)
            .where(jobs.c.state.not_in(_TAKEN_BACK), jobs.c.created_at >= since, jobs.c.canary == 0)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(lacking).all()
        if not rows and not self._outdated():
            return 0
        with writing(self._engine) as connection:
            made = 0
            for row in rows:
                item = {
                    "sop_instance_uid": uid_of(row.series_instance_uid, row.revision),
                    "job_id": row.id,
                    "study_instance_uid": row.study_instance_uid,
                    "state": StepState.SCHEDULED,
                    "performed": {},
                    "created_at": now,
                    "changed_at": now,
                }
                if insert_if_absent(connection, workitems, item):
                    made += 1
                    born(connection, item["sop_instance_uid"], now)
            outdated = connection.execute(select(workitems.c.sop_instance_uid).where(*_OUTDATED)).scalars()
            for uid in outdated.all():
                _move(connection, uid, StepState.CANCELED, now)
            return made

    def _outdated(self) -> bool:
        with reading(self._engine) as connection:
            found = connection.execute(select(workitems.c.job_id).where(*_OUTDATED).limit(1))
            return found.first() is not None

    def listed(self, since: float, limit: int) -> list[Item]:
        """Workitems changed since then, the most urgent and then the oldest first."""
        return self._items(workitems.c.changed_at >= since, limit)

    def get(self, uid: str) -> Item | None:
        found = self._items(workitems.c.sop_instance_uid == uid, 1)
        return found[0] if found else None

    def _items(self, condition: ColumnElement[bool], limit: int) -> list[Item]:
        first_instance = (
            select(func.min(instances.c.sop_instance_uid))
            .where(instances.c.series_instance_uid == jobs.c.series_instance_uid)
            .correlate(jobs)
            .scalar_subquery()
        )
        urgency = case({p: rank for rank, p in enumerate(Priority)}, value=jobs.c.priority)
        with reading(self._engine) as connection:
            query = (
                select(workitems, jobs.c.series_instance_uid, jobs.c.priority)
                .add_columns(without_slices(connection).label("findings"), instances.c.header)
                .add_columns(studies.c.patient_id, studies.c.patient_name, studies.c.accession_number)
                .join(jobs, jobs.c.id == workitems.c.job_id)
                .join(studies, studies.c.study_instance_uid == workitems.c.study_instance_uid)
                .outerjoin(instances, instances.c.sop_instance_uid == first_instance)
                .where(condition)
                .order_by(urgency, workitems.c.created_at)
                .limit(limit)
            )
            return [_item(row) for row in connection.execute(query)]

    def inputs(self, item: Item) -> tuple[list[tuple[str, str]], dict[str, list[tuple[str, str]]]]:
        """The source instances of a workitem, and the reports made for it by series: (class, instance)."""
        source = select(instances.c.header, instances.c.sop_instance_uid).where(
            instances.c.series_instance_uid == item.series_instance_uid
        )
        made = select(objects).where(objects.c.job_id == item.job_id, objects.c.output.in_(("sr", "csr")))
        with reading(self._engine) as connection:
            slices = [
                (row.header["sop_class_uid"], row.sop_instance_uid)
                for row in connection.execute(source.order_by(instances.c.received_at))
            ]
            reports: dict[str, list[tuple[str, str]]] = {}
            for row in connection.execute(made):
                reports.setdefault(row.series_instance_uid, []).append(
                    (row.sop_class_uid, row.sop_instance_uid)
                )
        return slices, reports

    def change(
        self, uid: str, wanted: StepState, transaction_uid: str, reader: Actor, now: float
    ) -> int | None:
        """N-ACTION Change UPS State: its status; None for a stranger.

        What is done stands in the audit trail, and COMPLETED acknowledges the word of the study, in the
        same transaction.
        """
        with writing(self._engine) as connection:
            row = _locked(connection, uid)
            if row is None:
                return None
            status = change_state(_standing(row), wanted, transaction_uid)
            if status != SUCCESS:
                return status
            values: Values = {"transaction_uid": transaction_uid}
            if wanted is StepState.IN_PROGRESS:
                values |= {"claimed_by": reader.name[:64], "claimed_at": now}
            _move(connection, uid, wanted, now, **values)
            if wanted is StepState.COMPLETED:
                acknowledge(connection, row.job_id, f"AE {reader.name}"[:64], now)
            detail = f"job {row.job_id}: {row.state} to {wanted.value}"
            study_uid = row.study_instance_uid
            add_entry(connection, reader, WORKITEM, now, study_uid=study_uid, detail=detail)
            return status

    def set(
        self, uid: str, transaction_uid: str, merge: Callable[[Values], Values], now: float
    ) -> int | None:
        """N-SET: its status; None for a stranger. `merge` makes of what was set what is set now."""
        with writing(self._engine) as connection:
            row = _locked(connection, uid)
            if row is None:
                return None
            status = set_attributes(_standing(row), transaction_uid)
            if status == SUCCESS:
                mine = update(workitems).where(workitems.c.sop_instance_uid == uid)
                performed = merge(row.performed)
                connection.execute(mine.values(performed=performed, changed_at=now))
                if performed.get(PROGRESS) != row.performed.get(PROGRESS):
                    content = {PROGRESS: performed[PROGRESS]}
                    report(connection, uid, Event.PROGRESS, content, now)
            return status

    def request_cancel(
        self, uid: str, why: Values, progress: Values, watcher: Actor, now: float
    ) -> int | None:
        """N-ACTION Request UPS Cancel (PS3.4 CC.2.2): its status; None for a stranger.

        What nobody took is CANCELED, by way of IN PROGRESS, with `progress` as its progress. Of what somebody
        took, subscribers are told the request with `why`, and nothing else happens.
        """
        with writing(self._engine) as connection:
            row = _locked(connection, uid)
            if row is None:
                return None
            status = request_cancel(StepState(row.state))
            if status != SUCCESS:
                return status
            if row.state == StepState.IN_PROGRESS:
                told = report(connection, uid, Event.CANCEL_REQUESTED, why, now)
                return SUCCESS if told else NOBODY_HEARS
            _move(connection, uid, StepState.IN_PROGRESS, now)
            _move(connection, uid, StepState.CANCELED, now, performed={**row.performed, PROGRESS: progress})
            detail = f"job {row.job_id}: {row.state} to {StepState.CANCELED.value} on request"
            add_entry(connection, watcher, WORKITEM, now, study_uid=row.study_instance_uid, detail=detail)
            return SUCCESS

    def of_studies(self, study_uids: Sequence[str]) -> dict[str, Values]:
        """The newest workitem that somebody took, by study."""
        query = (
            select(workitems)
            .where(workitems.c.study_instance_uid.in_(study_uids), workitems.c.claimed_by.is_not(None))
            .order_by(workitems.c.changed_at)
        )
        with reading(self._engine) as connection:
            return {row.study_instance_uid: dict(row._mapping) for row in connection.execute(query)}


def _move(connection: Connection, uid: str, state: StepState, now: float, **values: Any) -> None:
    """Into another state, and subscribers are told."""
    mine = update(workitems).where(workitems.c.sop_instance_uid == uid)
    connection.execute(mine.values(state=state, changed_at=now, **values))
    report(connection, uid, Event.STATE, state_report(state), now)


def _locked(connection: Connection, uid: str) -> Row | None:
    query = select(workitems).where(workitems.c.sop_instance_uid == uid)
    return connection.execute(query.with_for_update()).first()


def _standing(row: Row) -> Standing:
    return Standing(StepState(row.state), row.transaction_uid or "", is_complete(row.performed))


def is_complete(performed: Values) -> bool:
    """Whether the performer said what COMPLETED requires (DICOM JSON, PS3.18 F.2)."""
    items = (performed.get(PERFORMED) or {}).get("Value") or []
    return any(all((item.get(tag) or {}).get("Value") for tag in REQUIRED_OF_PERFORMED) for item in items)


def _item(row: Row) -> Item:
    study = {"patient_id": row.patient_id, "patient_name": row.patient_name}
    return Item(
        uid=row.sop_instance_uid,
        job_id=row.job_id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        state=StepState(row.state),
        priority=Priority(row.priority),
        findings=row.findings,
        performed=row.performed,
        created_at=row.created_at,
        changed_at=row.changed_at,
        claimed_by=row.claimed_by or "",
        study=study | {"accession_number": row.accession_number},
        header=row.header or {},
    )
