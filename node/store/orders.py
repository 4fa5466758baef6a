"""Every query about how urgent studies were ordered: what was said, what it says of a study, what was asked.

`studies.order_priority` is the most urgent of the words that concern a study; it is brought up to date in
the transaction that writes down a word, so whoever looks at the queue sees it at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, insert, or_, select, update

from node.domain.orders import (
    MOST_URGENT_FIRST,
    OrderPriority,
    Said,
    Source,
    Subject,
    are_same,
    concerns,
    most_urgent,
    read_priority,
)
from node.store.engine import reading, writing
from node.store.tables import associations, inquiries, instances, jobs, orders, series, studies


@dataclass(frozen=True)
class ToAsk:
    """A study of which the worklist is to be asked; `study_date` as in DA."""

    about: Subject
    study_date: str
    attempts: int


class Orders:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def say(self, said: Said, *, keeps_priority: bool = False) -> list[str]:
        """Write a word down in place of the earlier one of its source. Returns the studies it concerns.

        With `keeps_priority` it speaks of none: that of the earlier word stays, where there is one.
        """
        with writing(self._engine) as connection:
            before = most_urgent(_forget(connection, said.source, said.about))
            if keeps_priority and before is not None:
                said = replace(said, priority=before.priority)
            _write(connection, said)
            return _weigh_all(connection, said.about)

    def withdraw(self, source: Source, about: Subject) -> list[str]:
        """The order is cancelled: its word counts no more."""
        with writing(self._engine) as connection:
            _forget(connection, source, about)
            return _weigh_all(connection, about)

    def weigh(
        self, study_uid: str, stat_callers: Collection[str], now: float
    ) -> tuple[OrderPriority | None, Source | None]:
        """The word that counts of a study, once who sent it and what its headers say is written down."""
        with writing(self._engine) as connection:
            for said in _own_words(connection, study_uid, stat_callers, now):
                _forget(connection, said.source, said.about)
                _write(connection, said)
            counts = _weigh(connection, study_uid)
        return (counts.priority, counts.source) if counts else (None, None)

    def of_study(self, study_uid: str) -> list[Said]:
        """Every word about a study, the one that counts first."""
        with reading(self._engine) as connection:
            words = _words(connection, _subject(connection, study_uid))
        first = most_urgent(words)
        return [first, *(word for word in words if word is not first)] if first else []

    def to_ask(
        self, received_since: float, ask_again_before: float, most_attempts: int, limit: int = 20
    ) -> list[ToAsk]:
        """Studies the worklist was not asked about, or did not answer about; the latest first."""
        unanswered = and_(
            inquiries.c.answered == 0,
            inquiries.c.attempts < most_attempts,
            inquiries.c.asked_at < ask_again_before,
        )
        query = (
            select(studies, inquiries.c.attempts)
            .outerjoin(inquiries, inquiries.c.study_instance_uid == studies.c.study_instance_uid)
            .where(studies.c.last_received_at >= received_since, studies.c.canary == 0)
            .where(or_(inquiries.c.study_instance_uid.is_(None), unanswered))
            .order_by(studies.c.last_received_at.desc())
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [
                ToAsk(_subject_of(row), row.study_date, row.attempts or 0)
                for row in connection.execute(query)
            ]

    def asked(self, study_uid: str, answered: bool, text: str, now: float) -> None:
        """Write down what came of asking."""
        with writing(self._engine) as connection:
            mine = inquiries.c.study_instance_uid == study_uid
            attempts = connection.execute(select(inquiries.c.attempts).where(mine)).scalar() or 0
            connection.execute(delete(inquiries).where(mine))
            row = {"study_instance_uid": study_uid, "asked_at": now, "attempts": attempts + 1}
            connection.execute(
                insert(inquiries).values(**row, answered=int(answered), text=text.replace("\0", "")[:2000])
            )

    def inquiry(self, study_uid: str) -> dict[str, Any] | None:
        """What came of asking the worklist about a study; None when it was not asked."""
        query = select(inquiries).where(inquiries.c.study_instance_uid == study_uid)
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None

    def last_inquiry(self) -> dict[str, Any] | None:
        """The latest of all studies."""
        query = select(inquiries).order_by(inquiries.c.asked_at.desc()).limit(1)
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return dict(row._mapping) if row else None

    def forget(self, before: float) -> int:
        """Drop words and inquiries from before then. Returns how many; a study keeps what they made of it."""
        with writing(self._engine) as connection:
            connection.execute(delete(inquiries).where(inquiries.c.asked_at < before))
            return connection.execute(delete(orders).where(orders.c.said_at < before)).rowcount


def _write(connection: Connection, said: Said) -> None:
    connection.execute(
        insert(orders).values(
            source=said.source,
            study_instance_uid=said.about.study_instance_uid,
            accession_number=said.about.accession_number[:64],
            patient_ids=list(said.about.patient_ids),
            placer_order_number=said.about.placer_order_number,
            priority=said.priority,
            reference=said.reference[:128],
            said_at=said.said_at,
        )
    )


def _forget(connection: Connection, source: Source, about: Subject) -> list[Said]:
    """What the same source said before about the same order; it is gone then."""
    rows = connection.execute(select(orders).where(orders.c.source == source, _may_concern(about)))
    known = [row for row in rows if are_same(_said(row).about, about)]
    connection.execute(delete(orders).where(orders.c.id.in_([row.id for row in known])))
    return [_said(row) for row in known]


def _own_words(
    connection: Connection, study_uid: str, stat_callers: Collection[str], now: float
) -> list[Said]:
    """What the study itself says: by who sent it, and in its headers."""
    about = Subject(study_uid)
    callers = connection.execute(
        select(associations.c.calling_ae)
        .join(instances, instances.c.association_id == associations.c.id)
        .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
        .where(series.c.study_instance_uid == study_uid)
        .distinct()
    ).scalars()
    named = {title.strip() for title in stat_callers}
    words = [Said(Source.CALLER, OrderPriority.STAT, about, now, ae) for ae in callers if ae.strip() in named]
    written = connection.execute(
        select(instances.c.header["requested_priority"].as_string())
        .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
        .where(series.c.study_instance_uid == study_uid)
        .distinct()
    ).scalars()
    read = {priority for text in written if (priority := read_priority(text or ""))}
    if read:
        words.append(Said(Source.HEADER, min(read, key=MOST_URGENT_FIRST.index), about, now))
    return words


def _weigh_all(connection: Connection, about: Subject) -> list[str]:
    """Bring every study up to date that such an order concerns. Returns their UIDs."""
    concerned = []
    for row in connection.execute(select(studies).where(_is_of(about))).all():
        if concerns(about, _subject_of(row)):
            _weigh(connection, row.study_instance_uid)
            concerned.append(row.study_instance_uid)
    return concerned


def _weigh(connection: Connection, study_uid: str) -> Said | None:
    counts = most_urgent(_words(connection, _subject(connection, study_uid)))
    ordered = counts.priority if counts else ""
    connection.execute(update(jobs).where(jobs.c.study_instance_uid == study_uid).values(ordered=ordered))
    connection.execute(
        update(studies)
        .where(studies.c.study_instance_uid == study_uid)
        .values(
            order_priority=counts.priority if counts else None, order_source=counts.source if counts else None
        )
    )
    return counts


def _words(connection: Connection, study: Subject) -> list[Said]:
    rows: Sequence[Row] = connection.execute(
        select(orders).where(_may_concern(study)).order_by(orders.c.said_at, orders.c.id)
    ).all()
    return [said for row in rows if concerns((said := _said(row)).about, study)]


def _may_concern(study: Subject) -> Any:
    """A condition on `orders` that an index answers; `concerns` has the last word."""
    by_uid = and_(orders.c.study_instance_uid == study.study_instance_uid, orders.c.study_instance_uid != "")
    by_number = and_(orders.c.accession_number == study.accession_number, orders.c.accession_number != "")
    return or_(by_uid, by_number)


def _is_of(order: Subject) -> Any:
    """The same on `studies`."""
    by_uid = and_(
        studies.c.study_instance_uid == order.study_instance_uid, studies.c.study_instance_uid != ""
    )
    by_number = and_(studies.c.accession_number == order.accession_number, studies.c.accession_number != "")
    return or_(by_uid, by_number)


def _subject(connection: Connection, study_uid: str) -> Subject:
    row = connection.execute(select(studies).where(studies.c.study_instance_uid == study_uid)).first()
    return _subject_of(row) if row else Subject(study_uid)


def _subject_of(row: Row) -> Subject:
    known = (row.patient_id,) if row.patient_id else ()
    return Subject(row.study_instance_uid, row.accession_number, known)


def _said(row: Row) -> Said:
    about = Subject(
        row.study_instance_uid, row.accession_number, tuple(row.patient_ids), row.placer_order_number
    )
    return Said(Source(row.source), OrderPriority(row.priority), about, row.said_at, row.reference)
