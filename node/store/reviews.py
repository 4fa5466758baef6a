"""What people said about the node's word: acknowledged, agreed, disagreed. Changes no word."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, insert, select, update

from node.domain.errors import IllegalTransition
from node.domain.opinion import Word
from node.store import quality
from node.store.engine import writing
from node.store.tables import jobs, reviews


class Reviews:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acknowledge(self, job_id: int, who: str, now: float, read: float | None = None) -> bool:
        """False when somebody did so before, and the word has not changed since; `read` as below."""
        with writing(self._engine) as connection:
            return acknowledge(connection, job_id, who, now, read)

    def judge(self, job_id: int, word: Word, read: float | None = None) -> None:
        """Agree or disagree; who judges has read, so it acknowledges too. The last judgement counts."""
        values = {"opinion": word.opinion, "opinion_by": word.who, "opinion_at": word.at, "wrong": word.wrong}
        with writing(self._engine) as connection:
            acknowledge(connection, job_id, word.who, word.at, read)
            connection.execute(update(reviews).where(reviews.c.job_id == job_id).values(**values))
            quality.say(connection, job_id, word)

    def withdraw(self, job_id: int) -> bool:
        """Back to unread. False when it was."""
        with writing(self._engine) as connection:
            quality.withdraw(connection, job_id)
            return connection.execute(delete(reviews).where(reviews.c.job_id == job_id)).rowcount == 1


def acknowledge(connection: Connection, job_id: int, who: str, now: float, read: float | None = None) -> bool:
    """False when somebody did so before, and the word has not changed since.

    `read` is when the result that was read had been analysed, 0 for one that was not; None: nobody says.
    Raises IllegalTransition when the job was analysed again after that: nobody may have seen what stands now.
    """
    one_at_a_time = select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()
    connection.execute(one_at_a_time).all()
    word = connection.execute(
        select(jobs.c.analysed_at, reviews.c.acknowledged_at)
        .outerjoin(reviews, reviews.c.job_id == jobs.c.id)
        .where(jobs.c.id == job_id)
    ).first()
    if word is None:
        raise IllegalTransition(f"there is no job {job_id}; look at the study again")
    if read is not None and (word.analysed_at or 0) > read:
        raise IllegalTransition(f"job {job_id} was analysed again meanwhile; look at its result as it is now")
    if word.acknowledged_at is not None and word.acknowledged_at >= (word.analysed_at or 0):
        return False
    connection.execute(delete(reviews).where(reviews.c.job_id == job_id))
    row = {"job_id": job_id, "acknowledged_by": who, "acknowledged_at": now}
    connection.execute(insert(reviews).values(**row))
    return True
