"""What changes workitems: one for each job whose result should be read, taken and finished by readers.

They follow from the jobs, so that making them can be repeated; a change of state is decided by
node.domain.workitems in the transaction that writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    Row,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
    union_all,
    update,
)

from node.domain.errors import IllegalTransition
from node.domain.findings import Priority
from node.domain.lifecycle import JobState
from node.domain.workitems import (
    NOBODY_HEARS,
    SUCCESS,
    Ended,
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
from node.store.steps import AT_ONCE, Item, Values, items, parts, urgency
from node.store.subscriptions import alone, born, report, served, state_report
from node.store.tables import instances, jobs, objects, reviews, workitems

WORKITEM = "workitem"
"""What the audit trail calls it when a reader takes or finishes one."""
PROGRESS = "00741002"  # Procedure Step Progress Information Sequence
_REASON, _CANCELLED_AT = "00741238", "00404052"
"""Reason For Cancellation, Procedure Step Cancellation DateTime"""
PERFORMED = "00741216"  # Unified Procedure Step Performed Procedure Sequence
REQUIRED_OF_PERFORMED = {
    "00404050": "PerformedProcedureStepStartDateTime",
    "00404051": "PerformedProcedureStepEndDateTime",
    "00404028": "PerformedStationNameCodeSequence",
    "00404019": "PerformedWorkitemCodeSequence",
}
"""Final state requirements of COMPLETED, PS3.4 Table CC.2.5-3."""
NODE = Actor("ichnode", "node", "")
"""Who acts where nobody pressed a button."""
UNDIGESTED = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What Python raises on rows that hold something else than they should."""
_STANDING = [state for state in JobState if state is not JobState.CANCELLED]


@dataclass(frozen=True)
class Terms:
    """Which jobs are offered (of these priorities, made since then), and how."""

    priorities: Sequence[Priority]
    since: float
    uid_of: Callable[[str, int, int], str]
    """Of a series, its revision and how many times it was offered, this one included."""
    matches: Callable[[Item, str, Values], bool]
    """Whether a workitem matches the keys of a subscriber (its AE title), given as DICOM JSON."""
    claim_s: float = 0.0
    """For how long nothing may be heard of what a reader took; 0: for ever."""
    is_due: Callable[[str], bool] = lambda name: True
    """Whether it is this one's turn: what broke the last time may be left alone for a while."""


@dataclass(frozen=True)
class Broken:
    """A job that could not be offered, or a workitem that could not be ended, for an unforeseen reason."""

    name: str
    study_instance_uid: str
    error: Exception


@dataclass(frozen=True)
class Made:
    new: int
    broken: tuple[Broken, ...] = ()


class Workitems:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def make(self, terms: Terms, now: float) -> Made:
        """A SCHEDULED workitem for each job with such a priority that has none. What breaks stays as it was.

        What nobody took is CANCELED once a newer one of its study is there, an admin cancelled its job, or
        somebody read the study in the console; never by an analysis that has no result yet, nor by one that
        alarms less. What was taken, and of which nothing was heard for `terms.claim_s`, is taken back.
        """
        with reading(self._engine) as connection:
            if not any(connection.execute(query.limit(1)).first() for query in _due(terms, now)):
                return Made(0)
        with writing(self._engine) as connection:
            alone(connection)
            outdated, read, silent, lacking = _due(terms, now)
            each = _Each(connection, terms.is_due)
            new = each.does(lacking, lambda row: _offer(connection, row, terms, now))
            each.does(
                outdated, lambda row: _end(connection, row, Ended.NEWER, "replaced by a newer result", now)
            )
            each.does(
                read, lambda row: _end(connection, row, Ended.READ, "read in the console of the node", now)
            )
            each.does(silent, lambda row: _take_back(connection, row, terms.claim_s / 3600, now))
            return Made(new, tuple(each.broken))

    def listed(self, since: float, state: StepState | None = None) -> Iterator[Item]:
        """Workitems changed since then or locked, the most urgent and then the oldest first; of one state."""
        wanted = and_(served(since), workitems.c.state == state) if state else served(since)
        with reading(self._engine) as connection:
            found = parts(connection, wanted)
        for part in found:
            with reading(self._engine) as connection:
                some = items(connection, part, AT_ONCE)
            yield from some

    def get(self, uid: str) -> Item | None:
        with reading(self._engine) as connection:
            found = items(connection, workitems.c.sop_instance_uid == uid, 1)
            return found[0] if found else None

    def taken(self, limit: int) -> list[Item]:
        """What readers took and did not finish, the longest silent first."""
        with reading(self._engine) as connection:
            silent = select(workitems.c.sop_instance_uid).where(workitems.c.state == StepState.IN_PROGRESS)
            uids = connection.execute(silent.order_by(workitems.c.changed_at).limit(limit)).scalars().all()
            found = items(connection, workitems.c.sop_instance_uid.in_(uids), limit)
            return sorted(found, key=lambda item: item.changed_at)

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        query = select(workitems.c.state, func.count()).group_by(workitems.c.state)
        with reading(self._engine) as connection:
            return {row.state: row[1] for row in connection.execute(query)}

    def take_back(self, uid: str, why: str, now: float) -> None:
        """From the reader who took it: it is CANCELED, and its job is offered again with another UID.

        Raises IllegalTransition where nobody has it.
        """
        with writing(self._engine) as connection:
            row = _locked(connection, uid)
            if row is None or row.state != StepState.IN_PROGRESS:
                raise IllegalTransition(f"nobody has workitem {uid} any more; look at the study again")
            _end(connection, row, Ended.TAKEN_BACK, why, now)

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


class _Each:
    """Does something with each row of a query; what breaks is undone, and holds up no other."""

    def __init__(self, connection: Connection, is_due: Callable[[str], bool]) -> None:
        self._connection = connection
        self._is_due = is_due
        self.broken: list[Broken] = []

    def does(self, query: Select[Any], act: Callable[[Row], bool]) -> int:
        """Returns with how many it did something. Raises what the database raises."""
        count = 0
        for row in self._connection.execute(query).all():
            name = f"job {row.id}" if "id" in row._mapping else f"workitem {row.sop_instance_uid}"
            if not self._is_due(name):
                continue
            try:
                with self._connection.begin_nested():
                    count += act(row)
            except UNDIGESTED as error:
                self.broken.append(Broken(name, row.study_instance_uid, error))
        return count


def _due(terms: Terms, now: float) -> tuple[Select[Any], Select[Any], Select[Any], Select[Any]]:
    """Workitems that are outdated, that were read elsewhere, that a reader forgot; and jobs without one."""
    newer, its_job, my_job = workitems.alias("newer"), jobs.alias("its_job"), jobs.alias("my_job")
    mine = workitems.c.state == StepState.SCHEDULED
    outdated = or_(
        exists().where(
            newer.c.study_instance_uid == workitems.c.study_instance_uid,
            newer.c.job_id > workitems.c.job_id,
            _counts(newer, its_job),
            my_job.c.id == workitems.c.job_id,
            urgency(its_job) <= urgency(my_job),
        ),
        exists().where(jobs.c.id == workitems.c.job_id, jobs.c.state == JobState.CANCELLED),
    )
    forgotten = workitems.c.changed_at < (now - terms.claim_s if terms.claim_s else 0.0)
    offered = workitems.c.job_id == jobs.c.id
    later = jobs.alias("later_word")
    made_way = jobs.c.state == JobState.SUPERSEDED  # its word stands until a later one speaks
    spoken = exists().where(
        later.c.study_instance_uid == jobs.c.study_instance_uid,
        later.c.id > jobs.c.id,
        later.c.priority.is_not(None),
        later.c.state != JobState.CANCELLED,
    )
    of_job = (jobs.c.id, jobs.c.series_instance_uid, jobs.c.revision, jobs.c.study_instance_uid)
    lacking = select(*of_job).where(
        jobs.c.priority.in_(terms.priorities),
        jobs.c.canary == 0,
        jobs.c.state.in_(_STANDING),
        ~(made_way & spoken),
        jobs.c.id.in_(_recent(terms.since)),
        ~exists().where(offered, workitems.c.ended.is_(None)),
        ~exists().where(
            newer.c.study_instance_uid == jobs.c.study_instance_uid,
            newer.c.job_id > jobs.c.id,
            _counts(newer, its_job),
        ),
        ~_was_read(jobs.c.study_instance_uid, jobs.c.id),
    )
    standing = select(*(column for column in workitems.c if column.name != "performed"))
    return (
        standing.where(mine, outdated),
        standing.where(mine, _was_read(workitems.c.study_instance_uid, workitems.c.job_id)),
        standing.where(workitems.c.state == StepState.IN_PROGRESS, forgotten),
        lacking,
    )


def _counts(newer: Any, its_job: Any) -> ColumnElement[bool]:
    """Of a workitem and its job: it takes the place of older ones of its study.

    That of a cancelled job does where a reader has it, or ended it: he was shown the study.
    """
    in_hand = and_(newer.c.state != StepState.SCHEDULED, newer.c.ended.is_(None))
    return and_(its_job.c.id == newer.c.job_id, or_(its_job.c.state != JobState.CANCELLED, in_hand))


def _recent(since: float) -> CompoundSelect[Any]:
    """Jobs made since then, and those of workitems that ended since and may be offered again; by indexes."""
    made, ended = jobs.alias("made"), workitems.alias("ended_one")
    return union_all(
        select(made.c.id).where(made.c.state.in_(_STANDING), made.c.created_at >= since),
        select(ended.c.job_id).where(ended.c.changed_at >= since, ended.c.ended.is_not(None)),
    )


def _was_read(study: ColumnElement[str], job: ColumnElement[int]) -> ColumnElement[bool]:
    """Somebody acknowledged the word of this job of a study, or of a later one, as it is now."""
    later = jobs.alias("later")
    return exists().where(
        later.c.study_instance_uid == study,
        later.c.id >= job,
        reviews.c.job_id == later.c.id,
        reviews.c.acknowledged_at >= func.coalesce(later.c.analysed_at, 0),
    )


def _offer(connection: Connection, job: Row, terms: Terms, now: float) -> bool:
    """False when another process was quicker."""
    before = select(func.count()).where(workitems.c.job_id == job.id)
    offer = int(connection.execute(before).scalar_one()) + 1
    uid = terms.uid_of(job.series_instance_uid, job.revision, offer)
    row = {
        "sop_instance_uid": uid,
        "job_id": job.id,
        "study_instance_uid": job.study_instance_uid,
        "state": StepState.SCHEDULED,
        "performed": {},
        "created_at": now,
        "changed_at": now,
        "offer": offer,
    }
    if not insert_if_absent(connection, workitems, row):
        return False
    (item,) = items(connection, workitems.c.sop_instance_uid == uid, 1)
    born(connection, item, terms.matches, now)
    return True


def _end(connection: Connection, row: Row, ended: Ended, why: str, now: float) -> bool:
    """By the node itself: CANCELED, by way of IN PROGRESS (PS3.4 CC.2.2.3), and says why.

    False when a reader was quicker: it is not as `row` says any more.
    """
    uid = row.sop_instance_uid
    present = _locked(connection, uid)
    if present is None or (present.state, present.changed_at) != (row.state, row.changed_at):
        return False
    if row.state == StepState.SCHEDULED:
        _move(connection, uid, StepState.IN_PROGRESS, now)
    at = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    said = {_REASON: {"vr": "LT", "Value": [why]}, _CANCELLED_AT: {"vr": "DT", "Value": [at]}}
    performed = {**present.performed, PROGRESS: {"vr": "SQ", "Value": [said]}}
    _move(connection, uid, StepState.CANCELED, now, performed=performed, ended=ended)
    return True


def _take_back(connection: Connection, row: Row, hours: float, now: float) -> bool:
    """From a reader of whom nothing was heard for so long."""
    why = f"taken back from AE {row.claimed_by}: nothing was heard of it for {hours:g} h"
    if not _end(connection, row, Ended.TAKEN_BACK, why, now):
        return False
    add_entry(connection, NODE, WORKITEM, now, study_uid=row.study_instance_uid, detail=why)
    return True


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
