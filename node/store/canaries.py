"""Every query about the node's own phantom studies: whose turn it is, what came of them, what is expected.

A study is a canary because its UID was written down here before anything was sent, and for no other cause:
no header and no calling AE title can make one of a patient's study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update

from node.domain.canary import GOOD, Outcome, State
from node.domain.findings import Findings
from node.domain.lifecycle import DeliveryState, JobState
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import canaries, canary_expectations, deliveries, jobs, studies

Row = dict[str, Any]
_OPEN = (State.WANTED, State.UNDER_WAY)


@dataclass(frozen=True)
class Progress:
    """How far a canary has come; times in seconds since the epoch."""

    job_state: JobState | None
    reason: str
    findings: Findings | None
    received_at: float | None
    analysed_at: float | None
    reported_at: float | None
    deliveries: tuple[DeliveryState, ...]
    sent_at: float | None


class Canaries:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ask(self, study_uid: str, who: str, now: float, slot: int | None = None) -> int | None:
        """Write a canary down before it is sent; None when another process has this turn."""
        row = {
            "slot": slot,
            "study_instance_uid": study_uid,
            "asked_by": who,
            "begun_at": now,
            "state": State.WANTED,
            "text": "",
            "model": "",
            "model_sha256": "",
        }
        study = {"study_instance_uid": study_uid, "patient_id": "", "patient_name": "", "canary": 1}
        study |= {"accession_number": "", "study_date": "", "description": "CANARY"}
        with writing(self._engine) as connection:
            if not insert_if_absent(connection, canaries, row):
                return None
            times = {"first_received_at": now, "last_received_at": now}
            connection.execute(insert(studies).values(**study, **times))
            mine = select(canaries.c.id).where(canaries.c.study_instance_uid == study_uid)
            number: int = connection.execute(mine).scalar_one()
            return number

    def take(self, canary_id: int, now: float) -> bool:
        """WANTED → UNDER_WAY; False when another process took it."""
        mine = update(canaries).where(canaries.c.id == canary_id, canaries.c.state == State.WANTED)
        with writing(self._engine) as connection:
            return connection.execute(mine.values(state=State.UNDER_WAY, sent_at=now)).rowcount == 1

    def open(self) -> list[Row]:
        """Those that were asked for or are under way, the oldest first."""
        return self._rows(select(canaries).where(canaries.c.state.in_(_OPEN)).order_by(canaries.c.id))

    def latest(self, limit: int = 20) -> list[Row]:
        """The newest first."""
        return self._rows(select(canaries).order_by(canaries.c.id.desc()).limit(limit))

    def last_finished(self) -> Row | None:
        found = self._rows(
            select(canaries)
            .where(canaries.c.finished_at.is_not(None))
            .order_by(canaries.c.finished_at.desc())
            .limit(1)
        )
        return found[0] if found else None

    def last_good(self) -> Row | None:
        found = self._rows(
            select(canaries)
            .where(canaries.c.finished_at.is_not(None), canaries.c.state.in_(GOOD))
            .order_by(canaries.c.finished_at.desc())
            .limit(1)
        )
        return found[0] if found else None

    def progress(self, study_uid: str) -> Progress:
        """What the records say of its way."""
        of_study = select(jobs).where(jobs.c.study_instance_uid == study_uid).order_by(jobs.c.id.desc())
        with reading(self._engine) as connection:
            received = connection.execute(
                select(studies.c.last_received_at).where(studies.c.study_instance_uid == study_uid)
            ).scalar()
            job = connection.execute(of_study.limit(1)).first()
            if job is None:
                return Progress(None, "", None, received, None, None, (), None)
            going = connection.execute(select(deliveries).where(deliveries.c.job_id == job.id)).all()
        sent = [row.sent_at for row in going if row.sent_at]
        return Progress(
            JobState(job.state),
            job.reason_text or "",
            Findings.from_json(job.findings) if job.findings else None,
            received,
            job.analysed_at,
            job.reported_at,
            tuple(DeliveryState(row.state) for row in going),
            max(sent, default=None),
        )

    def finish(
        self, canary_id: int, state: State, text: str, now: float, found: Findings | None, steps_s: Row
    ) -> None:
        """How it ended, and what came out."""
        values: Row = {"state": state, "text": text[:2000], "finished_at": now, "steps_s": steps_s}
        if found is not None:
            model = f"{found.model.name} {found.model.version}"[:140]
            values |= {"model": model, "model_sha256": found.model.sha256}
            values |= {"outcome": Outcome.of(found).to_json()}
        with writing(self._engine) as connection:
            connection.execute(update(canaries).where(canaries.c.id == canary_id).values(**values))

    def expected(self, model_sha256: str) -> Outcome | None:
        query = select(canary_expectations.c.outcome)
        with reading(self._engine) as connection:
            found = connection.execute(
                query.where(canary_expectations.c.model_sha256 == model_sha256)
            ).scalar()
        return Outcome.from_json(found) if found else None

    def expect(self, model_sha256: str, outcome: Outcome, who: str, now: float) -> None:
        """From now on this is what the model makes of the phantom."""
        values = {"outcome": outcome.to_json(), "recorded_at": now, "recorded_by": who}
        with writing(self._engine) as connection:
            row = {"model_sha256": model_sha256, **values}
            if not insert_if_absent(connection, canary_expectations, row):
                mine = canary_expectations.c.model_sha256 == model_sha256
                connection.execute(update(canary_expectations).where(mine).values(**values))

    def outdated(self, keep: int) -> list[Row]:
        """Finished ones beyond the newest `keep`."""
        query = select(canaries).where(canaries.c.finished_at.is_not(None))
        return self._rows(query.order_by(canaries.c.id.desc()).offset(keep).limit(100))

    def remove(self, canary_id: int) -> None:
        """Its study is gone."""
        with writing(self._engine) as connection:
            connection.execute(delete(canaries).where(canaries.c.id == canary_id))

    def _rows(self, query: Any) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]
