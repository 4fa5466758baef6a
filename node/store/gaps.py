"""Every query about what archives hold and never came here: comparisons, gaps, and what came meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Update, delete, func, insert, or_, select, update

from node.domain.errors import IllegalTransition
from node.domain.lifecycle import GAPS, GapEvent, GapState, SeriesState, after, sources
from node.domain.reconciliation import Here, Kind, Missing, is_whole
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import comparisons, gaps, jobs, objects, series, studies

Row = dict[str, Any]
STANDING = (GapState.OPEN, GapState.WANTED, GapState.FETCHED, GapState.FAILED)
"""What is still missing, and not by somebody's will."""


@dataclass(frozen=True)
class Comparison:
    """One look at an archive. `since` and `until` are StudyDates (DA), both included."""

    id: int
    archive: str
    since: str
    until: str
    asked_by: str


@dataclass(frozen=True)
class Gap:
    """Something to fetch."""

    id: int
    archive: str
    study_instance_uid: str
    series_instance_uid: str
    expected: int | None
    attempts: int


class Gaps:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ask(self, archive: str, days: tuple[str, str], who: str, now: float, slot: str | None = None) -> bool:
        """Ask for a comparison. False when that of this `slot` was asked for already."""
        row = {"archive": archive, "since": days[0], "until": days[1], "asked_by": who, "asked_at": now}
        with writing(self._engine) as connection:
            return insert_if_absent(connection, comparisons, row | {"slot": slot})

    def take(self, owner: str, now: float, archives: Sequence[str]) -> Comparison | None:
        """The oldest comparison that waits; nobody else gets it."""
        waits = (comparisons.c.begun_at.is_(None), comparisons.c.archive.in_(archives))
        oldest = select(comparisons).where(*waits).order_by(comparisons.c.id).limit(1)
        with reading(self._engine) as connection:
            row = connection.execute(oldest).first()
        if row is None:
            return None
        with writing(self._engine) as connection:
            mine = (comparisons.c.id == row.id, comparisons.c.begun_at.is_(None))
            begun = update(comparisons).where(*mine).values(begun_at=now, owner=owner)
            if connection.execute(begun).rowcount != 1:
                return None
        return Comparison(row.id, row.archive, row.since, row.until, row.asked_by)

    def begin(self, archive: str, days: tuple[str, str], who: str, owner: str, now: float) -> Comparison:
        """One that its owner makes at once."""
        row = {"archive": archive, "since": days[0], "until": days[1], "asked_by": who, "asked_at": now}
        with writing(self._engine) as connection:
            made = connection.execute(insert(comparisons).values(**row, begun_at=now, owner=owner))
            (number,) = made.inserted_primary_key or (0,)
        return Comparison(number, archive, *days, who)

    def finish(self, comparison: Comparison, now: float, looked_at: int, found: int, error: str = "") -> None:
        values = {"finished_at": now, "studies": looked_at, "missing": found, "error": error or None}
        with writing(self._engine) as connection:
            mine = comparisons.c.id == comparison.id
            connection.execute(update(comparisons).where(mine).values(**values))

    def unfinished(self) -> list[tuple[Comparison, str, float]]:
        """Those that were begun, with their owners, and when."""
        query = select(comparisons).where(
            comparisons.c.begun_at.is_not(None), comparisons.c.finished_at.is_(None)
        )
        with reading(self._engine) as connection:
            return [
                (Comparison(r.id, r.archive, r.since, r.until, r.asked_by), r.owner or "", r.begun_at)
                for r in connection.execute(query)
            ]

    def latest(self, archives: Sequence[str]) -> dict[str, Row]:
        """The newest comparison of each archive, however it stands."""
        newest = (
            select(func.max(comparisons.c.id))
            .where(comparisons.c.archive.in_(archives))
            .group_by(comparisons.c.archive)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(select(comparisons).where(comparisons.c.id.in_(newest)))
            return {row.archive: dict(row._mapping) for row in rows}

    def here(self, study_uids: Sequence[str]) -> dict[str, Here]:
        """What came of these studies; strangers are left out."""
        with reading(self._engine) as connection:
            known = select(studies.c.study_instance_uid, studies.c.files_removed_at)
            removed = {
                row.study_instance_uid: row.files_removed_at is not None
                for row in connection.execute(known.where(studies.c.study_instance_uid.in_(study_uids)))
            }
            columns = (series.c.study_instance_uid, series.c.series_instance_uid, series.c.state)
            query = select(*columns, series.c.instance_count)
            rows = connection.execute(query.where(series.c.study_instance_uid.in_(study_uids))).all()
            results = select(jobs.c.study_instance_uid, objects.c.series_instance_uid).distinct()
            ours = results.join(jobs, jobs.c.id == objects.c.job_id)
            made_of = connection.execute(ours.where(jobs.c.study_instance_uid.in_(study_uids))).all()
        counts: dict[str, dict[str, int]] = {uid: {} for uid in removed}
        receiving: dict[str, set[str]] = {uid: set() for uid in removed}
        for row in rows:
            counts[row.study_instance_uid][row.series_instance_uid] = row.instance_count
            if row.state == SeriesState.RECEIVING:
                receiving[row.study_instance_uid].add(row.series_instance_uid)
        made: dict[str, set[str]] = {uid: set() for uid in removed}
        for study_uid, series_uid in made_of:
            made[study_uid].add(series_uid)
        return {
            uid: Here(counts[uid], frozenset(receiving[uid]), frozenset(made[uid]), gone)
            for uid, gone in removed.items()
        }

    def note(self, archive: str, looked_at: Iterable[str], found: Sequence[Missing], now: float) -> list[int]:
        """Write down what is missing of the studies `looked_at`; what is missing no longer is CLOSED.

        Returns the ids of what is missing.
        """
        by_study: dict[str, list[int]] = {uid: [] for uid in looked_at}
        with writing(self._engine) as connection:
            for one in found:
                ids = by_study.setdefault(one.study.study_instance_uid, [])
                ids.append(_noted(connection, archive, one, now))
            for uid, ids in by_study.items():
                mine = (gaps.c.archive == archive, gaps.c.study_instance_uid == uid, gaps.c.id.not_in(ids))
                connection.execute(_move(GapEvent.FILLED).where(*mine))
        return [number for ids in by_study.values() for number in ids]

    def arrived(self, archive: str, study_uids: Sequence[str]) -> int:
        """Something came of these studies: what was missing whole is CLOSED, and slices stay missing."""
        whole = (gaps.c.archive == archive, gaps.c.study_instance_uid.in_(study_uids))
        with writing(self._engine) as connection:
            filled = _move(GapEvent.FILLED).where(*whole, gaps.c.series_instance_uid == "")
            return connection.execute(filled).rowcount

    def forget_missing_there(self, archive: str, days: tuple[str, str], still: Sequence[str]) -> int:
        """What the archive held of these days and holds no longer cannot be fetched. Returns how many."""
        held = select(gaps.c.id, gaps.c.study_instance_uid).where(
            gaps.c.archive == archive,
            gaps.c.kind != Kind.PRIOR,
            gaps.c.study_date.between(*days),
            gaps.c.state.in_(sources(GAPS, GapEvent.FILLED)),
        )
        there = set(still)
        with writing(self._engine) as connection:
            gone = [row.id for row in connection.execute(held) if row.study_instance_uid not in there]
            text = "the archive holds it no longer"
            return connection.execute(
                _move(GapEvent.FILLED).where(gaps.c.id.in_(gone)).values(last_error=text)
            ).rowcount

    def want(self, ids: Sequence[int], who: str, now: float) -> int:
        """To be fetched at once. Returns how many could be asked for."""
        values = {"asked_by": who, "attempts": 0, "next_try_at": now, "last_error": None}
        with writing(self._engine) as connection:
            statement = _move(GapEvent.ASKED_FOR).where(gaps.c.id.in_(ids))
            return connection.execute(statement.values(**values)).rowcount

    def dismiss(self, gap_id: int) -> None:
        """Raises IllegalTransition for one that is not there, or not to be dismissed."""
        with writing(self._engine) as connection:
            state = connection.execute(select(gaps.c.state).where(gaps.c.id == gap_id)).scalar()
            if state is None:
                raise IllegalTransition(f"there is no gap {gap_id}; look at the page again")
            after(GAPS, GapState(state), GapEvent.DISMISSED_BY_ADMIN)
            connection.execute(_move(GapEvent.DISMISSED_BY_ADMIN).where(gaps.c.id == gap_id))

    def take_wanted(self, archives: Sequence[str], now: float, try_again_at: float) -> Gap | None:
        """The next one to fetch; it counts as tried, and is due again then unless something is told of it."""
        due = (gaps.c.state == GapState.WANTED, gaps.c.next_try_at <= now, gaps.c.archive.in_(archives))
        with reading(self._engine) as connection:
            row = connection.execute(select(gaps).where(*due).order_by(gaps.c.next_try_at).limit(1)).first()
        if row is None:
            return None
        with writing(self._engine) as connection:
            mine = (gaps.c.id == row.id, gaps.c.attempts == row.attempts, *due)
            taken = update(gaps).where(*mine).values(next_try_at=try_again_at, attempts=row.attempts + 1)
            if connection.execute(taken).rowcount != 1:
                return None
        uids = (row.study_instance_uid, row.series_instance_uid)
        return Gap(row.id, row.archive, *uids, row.expected, row.attempts + 1)

    def retrieved(self, gap: Gap, now: float) -> None:
        self._change(_move(GapEvent.RETRIEVED).where(gaps.c.id == gap.id), fetched_at=now, last_error=None)

    def failed(self, gap: Gap, error: str, next_try_at: float) -> None:
        statement = _move(GapEvent.ATTEMPT_FAILED).where(gaps.c.id == gap.id)
        self._change(statement, last_error=error[:2000], next_try_at=next_try_at)

    def give_up(self, gap: Gap, error: str) -> None:
        self._change(_move(GapEvent.GIVEN_UP).where(gaps.c.id == gap.id), last_error=error[:2000])

    def settle_fetched(self, patience_s: float, error: str, now: float) -> None:
        """FETCHED → CLOSED once it is here, or FAILED with that error when it never came."""
        with reading(self._engine) as connection:
            fetched = connection.execute(select(gaps).where(gaps.c.state == GapState.FETCHED)).all()
        if not fetched:
            return
        here = self.here(sorted({row.study_instance_uid for row in fetched}))
        came, lost = [], []
        for row in fetched:
            counts = here.get(row.study_instance_uid, Here()).instances
            one = counts.get(row.series_instance_uid, 0)
            if is_whole(row.expected, one if row.series_instance_uid else sum(counts.values())):
                came.append(row.id)
            elif row.fetched_at < now - patience_s:
                lost.append(row.id)
        self._change(_move(GapEvent.FILLED).where(gaps.c.id.in_(came)))
        self._change(_move(GapEvent.DID_NOT_COME).where(gaps.c.id.in_(lost)), last_error=error)

    def rows(self, states: Sequence[GapState] = STANDING, limit: int = 200, archive: str = "") -> list[Row]:
        """Newest studies first."""
        query = select(gaps).where(gaps.c.state.in_(states))
        if archive:
            query = query.where(gaps.c.archive == archive)
        query = query.order_by(gaps.c.study_date.desc(), gaps.c.id).limit(limit)
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def sweep(self, before: float) -> None:
        """Forget what was over before then: comparisons, and what is CLOSED.

        Of each archive the newest stays, and the newest that was due by the clock: its turn is over.
        """
        of_archive = (comparisons.c.archive, comparisons.c.slot.is_(None))
        newest = select(func.max(comparisons.c.id)).group_by(*of_archive)
        over = (comparisons.c.finished_at < before, comparisons.c.id.not_in(newest))
        fetched_long_ago = or_(gaps.c.fetched_at.is_(None), gaps.c.fetched_at < before)
        closed = (gaps.c.state == GapState.CLOSED, gaps.c.last_seen_at < before, fetched_long_ago)
        with writing(self._engine) as connection:
            connection.execute(delete(comparisons).where(*over))
            connection.execute(delete(gaps).where(*closed))

    def counts(self) -> dict[tuple[str, str], int]:
        """How much is missing, by archive and kind."""
        query = (
            select(gaps.c.archive, gaps.c.kind, func.count())
            .where(gaps.c.state.in_(STANDING))
            .group_by(gaps.c.archive, gaps.c.kind)
        )
        with reading(self._engine) as connection:
            return {(archive, kind): count for archive, kind, count in connection.execute(query)}

    def get(self, gap_id: int) -> Row | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(gaps).where(gaps.c.id == gap_id)).first()
            return dict(row._mapping) if row else None

    def _change(self, statement: Update, **values: Any) -> None:
        with writing(self._engine) as connection:
            connection.execute(statement.values(**values) if values else statement)


def _noted(connection: Connection, archive: str, one: Missing, now: float) -> int:
    study = one.study
    key = {
        "archive": archive,
        "study_instance_uid": study.study_instance_uid,
        "series_instance_uid": one.series_instance_uid,
    }
    seen = {
        "kind": one.kind,
        "patient_id": study.patient_id[:128],
        "accession_number": study.accession_number[:64],
        "study_date": study.study_date[:32],
        "description": one.description,
        "expected": one.expected,
        "here": one.here,
        "note": one.note,
        "last_seen_at": now,
    }
    fresh = {"state": GapState.OPEN, "first_seen_at": now, "attempts": 0}
    insert_if_absent(connection, gaps, {**key, **seen, **fresh})
    mine = [gaps.c[name] == value for name, value in key.items()]
    known = connection.execute(select(gaps.c.id, gaps.c.expected, gaps.c.here).where(*mine)).one()
    connection.execute(update(gaps).where(gaps.c.id == known.id).values(**seen))
    anew = {"first_seen_at": now, "asked_by": None, "attempts": 0, "last_error": None}
    grew = (one.expected or 0) - one.here > (known.expected or 0) - known.here
    events = (GapEvent.SEEN_AGAIN, *((GapEvent.GREW,) if grew and one.kind is Kind.SLICES else ()))
    for event in events:  # a study or series that is not wanted is not wanted however large
        connection.execute(_move(event).where(gaps.c.id == known.id).values(**anew))
    return int(known.id)


def _move(event: GapEvent) -> Update:
    """An UPDATE of gaps that may take this event, to the states that the table names."""
    came_from = sources(GAPS, event)
    return update(gaps).where(_any_of(came_from)).values(state=GAPS[came_from[0], event])


def _any_of(states: Sequence[GapState]) -> ColumnElement[bool]:
    return or_(*(gaps.c.state == state for state in states))
