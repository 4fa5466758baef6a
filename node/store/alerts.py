"""Every query about alerts: one row for each thing told to a channel, with its next try. Sends nothing.

Rows are made by `tell`, in the transaction that stores the result they speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, Update, func, or_, select, update

from node.domain.announcing import (
    Announcement,
    Audience,
    Earlier,
    Occasion,
    Stage,
    Subject,
    announcement,
    is_news,
    withdrawals,
)
from node.domain.errors import IllegalTransition, TransientError
from node.domain.findings import Findings
from node.domain.instance import Instance
from node.domain.lifecycle import ALERTS, AlertEvent, AlertState, after, sources
from node.liveness import process_name
from node.store import pauses
from node.store.audit import Actor, add_entry
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import alerts, instances, jobs, series, studies

Row = dict[str, Any]
RACES = 5
LONGEST_STATUS = 32
UNSENT = (AlertState.PENDING, AlertState.FAILED)


@dataclass(frozen=True)
class DueAlert:
    """An alert whose time has come."""

    id: int
    channel: str
    study_instance_uid: str
    attempts: int
    created_at: float
    """Or when an admin had it tried again."""
    urgent: bool
    stage: str
    last_slice_at: float
    content: Row

    def announcement(self) -> Announcement:
        """Raises ValueError or KeyError for one that another version of the node wrote."""
        return Announcement.from_json(self.content)


class Alerts:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take_due(self, channel: str, now: float, lease_until: float) -> DueAlert | None:
        """The most urgent due alert of a channel, leased so that nobody else sends it.

        Of equals, the one that failed least often: what a receiver chokes on holds up no other. An alert
        waits while an earlier one of its study is on its way, so that no correction overtakes its alarm.
        """
        earlier = alerts.alias("earlier")
        on_its_way = (
            select(earlier.c.id)
            .where(
                earlier.c.channel == alerts.c.channel,
                earlier.c.study_instance_uid == alerts.c.study_instance_uid,
                earlier.c.number < alerts.c.number,
                earlier.c.lease_until >= now,
            )
            .exists()
        )
        due = (
            alerts.c.channel == channel,
            alerts.c.state == AlertState.PENDING,
            alerts.c.next_try_at <= now,
            or_(alerts.c.lease_until.is_(None), alerts.c.lease_until < now),
            ~on_its_way,
        )
        with reading(self._engine) as connection:  # the usual answer is "nothing", and locks nobody out
            if pauses.is_paused(connection, pauses.of_channel(channel)):
                return None
            if connection.execute(select(alerts.c.id).where(*due).limit(1)).first() is None:
                return None
        with writing(self._engine) as connection:
            row = connection.execute(
                select(alerts)
                .where(*due)
                .order_by(alerts.c.urgent.desc(), alerts.c.attempts, alerts.c.id)
                .limit(1)
                .with_for_update(skip_locked=True, of=alerts)
            ).first()
            if row is None:
                return None
            lease = {"lease_until": lease_until, "lease_owner": process_name()}
            connection.execute(update(alerts).where(alerts.c.id == row.id).values(**lease))
            return DueAlert(
                row.id,
                row.channel,
                row.study_instance_uid,
                row.attempts,
                row.due_since,
                bool(row.urgent),
                row.stage,
                row.last_slice_at,
                row.content,
            )

    def extend(self, alert_id: int, lease_until: float) -> None:
        """Keep the lease on an alert that is being told, if it is still this process's."""
        mine = (
            alerts.c.id == alert_id,
            alerts.c.lease_owner == process_name(),
            alerts.c.lease_until.is_not(None),
        )
        with writing(self._engine) as connection:
            connection.execute(update(alerts).where(*mine).values(lease_until=lease_until))

    def sent(self, due: DueAlert, status: str, receipt: str, now: float, actor: Actor) -> bool:
        """The channel took it; nobody said yet that it arrived."""
        values = {"sent_at": now, **_answered(status, receipt)}
        return self._over(due, AlertEvent.TAKEN, values, now, actor)

    def acknowledged(self, due: DueAlert, status: str, receipt: str, now: float, actor: Actor) -> bool:
        """The receiver has it."""
        values = {"sent_at": now, "acknowledged_at": now, **_answered(status, receipt)}
        return self._over(due, AlertEvent.RECEIPT_CAME, values, now, actor)

    def receipt_came(self, alert_id: int, receipt: str, now: float) -> bool:
        """For channels whose receivers acknowledge later, by another way."""
        values = {"acknowledged_at": now, "receipt": receipt}
        with writing(self._engine) as connection:
            statement = _move(alert_id, AlertEvent.RECEIPT_CAME)
            return connection.execute(statement.values(**values)).rowcount == 1

    def failed(self, due: DueAlert, error: str, status: str, next_try_at: float) -> bool:
        values = {"next_try_at": next_try_at, "last_error": error, "last_status": status[:LONGEST_STATUS]}
        with writing(self._engine) as connection:
            statement = _move(due.id, AlertEvent.ATTEMPT_FAILED)
            if connection.execute(
                statement.values(attempts=alerts.c.attempts + 1, **values, **_FREE)
            ).rowcount:
                return True
            connection.execute(update(alerts).where(alerts.c.id == due.id).values(**_FREE))
            return False

    def give_up(self, due: DueAlert, error: str, status: str, now: float, actor: Actor) -> bool:
        values = {"last_error": error, "last_status": status[:LONGEST_STATUS]}
        return self._over(due, AlertEvent.GIVEN_UP, values, now, actor)

    def hasten(self, channel: str, now: float) -> int:
        """The channel is back: what waited for its next try is due. Returns how many."""
        waiting = (
            alerts.c.channel == channel,
            alerts.c.state == AlertState.PENDING,
            alerts.c.next_try_at > now,
            alerts.c.last_status == "",  # no answer at all; what was refused keeps its own pace
        )
        with writing(self._engine) as connection:
            return connection.execute(update(alerts).where(*waiting).values(next_try_at=now)).rowcount

    def retry(self, alert_id: int, now: float) -> None:
        """At once, whether given up or waiting. Raises IllegalTransition for any other."""
        with writing(self._engine) as connection:
            state = connection.execute(select(alerts.c.state).where(alerts.c.id == alert_id)).scalar()
            if state is None:
                raise IllegalTransition(f"there is no alert {alert_id}; `ichnode alerts` lists them")
            if state == AlertState.PENDING:
                mine = update(alerts).where(alerts.c.id == alert_id)
                connection.execute(mine.values(next_try_at=now))
                return
            after(ALERTS, AlertState(state), AlertEvent.RETRIED_BY_ADMIN)
            statement = _move(alert_id, AlertEvent.RETRIED_BY_ADMIN)
            connection.execute(statement.values(next_try_at=now, due_since=now))

    def lease_owners(self) -> set[str]:
        """The processes that hold leases."""
        with reading(self._engine) as connection:
            query = select(alerts.c.lease_owner).where(alerts.c.lease_until.is_not(None)).distinct()
            return set(connection.execute(query).scalars()) - {None}

    def release(self, owner: str) -> int:
        """The owner is gone: what it held may be taken at once. Returns how many."""
        mine = (alerts.c.lease_owner == owner, alerts.c.lease_until.is_not(None))
        with writing(self._engine) as connection:
            return connection.execute(update(alerts).where(*mine).values(**_FREE)).rowcount

    def get(self, alert_id: int) -> Row | None:
        found = self._rows(_listed().where(alerts.c.id == alert_id))
        return found[0] if found else None

    def latest(self, limit: int = 100) -> list[Row]:
        """Without what they say, newest first."""
        return self._rows(_listed().order_by(alerts.c.id.desc()).limit(limit))

    def of_study(self, study_uid: str) -> list[Row]:
        """Without what they say, oldest first."""
        mine = alerts.c.study_instance_uid == study_uid
        return self._rows(_listed().where(mine).order_by(alerts.c.id))

    def unsent(self, state: AlertState, limit: int = 50, channel: str = "") -> list[Row]:
        """Alerts waiting or given up, positive results first, and the oldest of each first."""
        query = _listed().where(alerts.c.state == state)
        if channel:
            query = query.where(alerts.c.channel == channel)
        return self._rows(query.order_by(alerts.c.urgent.desc(), alerts.c.created_at).limit(limit))

    def oldest_unsent_positive(self) -> Row | None:
        query = _listed().where(alerts.c.state.in_(UNSENT), alerts.c.urgent == 1)
        found = self._rows(query.order_by(alerts.c.created_at).limit(1))
        return found[0] if found else None

    def channels(self, names: Sequence[str]) -> dict[str, Row]:
        """Backlog, last sending and last trouble of each channel, those with a backlog included."""
        backlog = (
            select(alerts.c.channel, alerts.c.state, alerts.c.urgent, func.count())
            .where(alerts.c.state.in_(UNSENT))
            .group_by(alerts.c.channel, alerts.c.state, alerts.c.urgent)
        )
        found = {name: _nothing() for name in names}
        with reading(self._engine) as connection:
            for name, state, urgent, count in connection.execute(backlog):
                of = found.setdefault(name, _nothing())
                of["pending" if state == AlertState.PENDING else "given_up"] += count
                of["urgent"] += count if urgent else 0
            for name, of in found.items():
                went = (alerts.c.channel == name, alerts.c.sent_at.is_not(None))
                last = select(alerts.c.sent_at).where(*went).order_by(alerts.c.id.desc()).limit(1)
                of["last_sent_at"] = connection.execute(
                    last
                ).scalar()  # of the newest; the latest takes a scan
                troubled = (
                    select(alerts.c.last_error)
                    .where(alerts.c.channel == name, alerts.c.state == AlertState.PENDING)
                    .where(alerts.c.last_error.is_not(None))
                    .limit(1)
                )
                of["error"] = connection.execute(troubled).scalar() or ""
        return found

    def times(self, since: float) -> list[Row]:
        """Channel and times of the first alert of each study told since then."""
        columns = (
            alerts.c.channel,
            alerts.c.last_slice_at,
            alerts.c.created_at,
            alerts.c.sent_at,
            alerts.c.acknowledged_at,
        )
        return self._rows(select(*columns).where(alerts.c.created_at >= since, alerts.c.number == 1))

    def first_of(self, study_uids: Sequence[str]) -> dict[str, Row]:
        """{study: {alerted_s, acknowledged_s}}: from the last slice to the first alert that went out."""
        query = (
            select(
                alerts.c.study_instance_uid,
                func.min(alerts.c.sent_at - alerts.c.last_slice_at).label("alerted_s"),
                func.min(alerts.c.acknowledged_at - alerts.c.last_slice_at).label("acknowledged_s"),
            )
            .where(alerts.c.study_instance_uid.in_(study_uids))
            .group_by(alerts.c.study_instance_uid)
        )
        return {row["study_instance_uid"]: row for row in self._rows(query)}

    def _rows(self, query: Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def _over(self, due: DueAlert, event: AlertEvent, values: Row, now: float, actor: Actor) -> bool:
        """The change and its line in the trail; what left the house leaves a trace, or did not leave."""
        with writing(self._engine) as connection:
            statement = _move(due.id, event).values(attempts=alerts.c.attempts + 1, **values, **_FREE)
            if connection.execute(statement).rowcount != 1:
                connection.execute(update(alerts).where(alerts.c.id == due.id).values(**_FREE))
                return False
            waited = f"{now - due.last_slice_at:.1f} s after the last slice"
            detail = f"alert {due.id} ({due.stage.lower()}), attempt {due.attempts + 1}, {waited}"
            add_entry(connection, actor, _TRAIL[event], now, study_uid=due.study_instance_uid, detail=detail)
            return True


_FREE = {"lease_until": None, "lease_owner": None}
_TRAIL = {
    AlertEvent.TAKEN: "alert-sent",
    AlertEvent.RECEIPT_CAME: "alert-acknowledged",
    AlertEvent.GIVEN_UP: "alert-given-up",
}


def tell(
    connection: Connection,
    job_id: int,
    findings: Findings,
    stage: Stage,
    audiences: Sequence[Audience],
    now: float,
) -> int:
    """Write down what each channel is to be told of these findings. Returns how many alerts were made.

    To be called in the transaction that stores the findings. What was told already makes no row, and what
    is still waiting gives way to the newer word. Raises TransientError when others keep getting in between.
    """
    return sum(_tell(connection, job_id, findings, stage, audience, now) for audience in audiences)


def _tell(
    connection: Connection, job_id: int, findings: Findings, stage: Stage, audience: Audience, now: float
) -> bool:
    study = connection.execute(select(jobs.c.study_instance_uid).where(jobs.c.id == job_id)).scalar_one()
    mine = (alerts.c.channel == audience.name, alerts.c.study_instance_uid == study)
    for _ in range(RACES):
        newest = select(alerts.c.number, alerts.c.content).where(*mine).order_by(alerts.c.number.desc())
        row = connection.execute(newest.limit(1)).first()
        last = _readable(row.content) if row else None
        occasion, number = _occasion(connection, job_id, audience, now), row.number + 1 if row else 1
        patient_id = occasion.subject.patient_id
        if not is_news(stage, findings, audience, last, patient_id):
            return False
        withdraws = withdrawals(_before(connection, mine), patient_id) if row else ()
        told = announcement(occasion, stage, findings, last, number, withdraws)
        if insert_if_absent(connection, alerts, _row(told, job_id, audience.name)):
            older = update(alerts).where(*mine, alerts.c.number < told.number)
            connection.execute(_moved(older, AlertEvent.NEWER_WORD))
            return True
    raise TransientError(f"study {study}: others keep announcing it to {audience.name}")


def _before(connection: Connection, mine: Sequence[ColumnElement[bool]]) -> list[Earlier]:
    """What can be read of all that the channel was told of the study, oldest first."""
    found = connection.execute(select(alerts).where(*mine).order_by(alerts.c.number))
    return [
        Earlier(told, row.attempts > 0 or row.lease_until is not None, row.sent_at is not None)
        for row in found
        if (told := _readable(row.content)) is not None
    ]


def _readable(content: Row) -> Announcement | None:
    """None for what another version of the node wrote: an old alert must keep no result from the table."""
    try:
        return Announcement.from_json(content)
    except (ValueError, KeyError, TypeError):
        return None


def _occasion(connection: Connection, job_id: int, audience: Audience, now: float) -> Occasion:
    """With the moment the last slice of what was analysed came: later ones make a job of their own."""
    row = connection.execute(
        select(jobs.c.created_at, jobs.c.series_instance_uid, series.c.last_received_at, studies)
        .join(series, series.c.series_instance_uid == jobs.c.series_instance_uid)
        .join(studies, studies.c.study_instance_uid == jobs.c.study_instance_uid)
        .where(jobs.c.id == job_id)
    ).one()
    newest = (
        select(instances.c.header)
        .where(instances.c.series_instance_uid == row.series_instance_uid)
        .where(func.coalesce(instances.c.header["patient_id"].as_string(), "") == row.patient_id)
        .order_by(instances.c.received_at.desc())
        .limit(1)
    )
    header = connection.execute(newest).scalar()
    image = Instance.from_json(header) if header else None  # None once retention took the files
    subject = Subject(
        patient_id=row.patient_id,
        issuer_of_patient_id=image.issuer_of_patient_id if image else "",
        patient_name=row.patient_name,
        patient_birth_date=image.patient_birth_date if image else "",
        accession_number=row.accession_number,
        study_date=row.study_date,
        study_time=image.study_time if image else "",
        study_description=row.description,
    )
    last_slice_at = min(row.last_received_at, row.created_at)
    return Occasion(audience.name, row.study_instance_uid, subject, last_slice_at, now)


def _row(told: Announcement, job_id: int, channel: str) -> Row:
    return {
        "channel": channel,
        "study_instance_uid": told.study_instance_uid,
        "job_id": job_id,
        "number": told.number,
        "identifier": told.identifier,
        "stage": told.stage,
        "priority": told.reading_priority,
        "urgent": int(told.urgent),
        "content": told.to_json(),
        "state": AlertState.PENDING,
        "attempts": 0,
        "last_slice_at": told.last_slice_at,
        "created_at": told.made_at,
        "due_since": told.made_at,
        "next_try_at": told.made_at,
    }


def _listed() -> Select[Any]:
    """Without what they say."""
    columns = [column for column in alerts.c if column.name != "content"]
    of_study = (studies.c.patient_id, studies.c.accession_number)
    return select(*columns, *of_study).join(
        studies, studies.c.study_instance_uid == alerts.c.study_instance_uid
    )


def _answered(status: str, receipt: str) -> Row:
    return {"last_status": status[:LONGEST_STATUS], "last_error": None, "receipt": receipt}


def _nothing() -> Row:
    return {"pending": 0, "given_up": 0, "urgent": 0, "last_sent_at": None, "error": ""}


def _move(alert_id: int, event: AlertEvent) -> Update:
    return _moved(update(alerts).where(alerts.c.id == alert_id), event)


def _moved(statement: Update, event: AlertEvent) -> Update:
    """Only from the states in which the table lists the event."""
    came_from = sources(ALERTS, event)
    return statement.where(alerts.c.state.in_(came_from)).values(state=ALERTS[came_from[0], event])
