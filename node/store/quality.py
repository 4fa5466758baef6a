"""Every query about how well the model does: one row an analysis, what readers said of it, what was drawn.

Holds nothing of a patient: rows outlive their jobs. Studies of the node's own tests never get a row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, case, func, select, update
from sqlalchemy import literal as constant

from node.domain.acquisition import Acquisition
from node.domain.findings import Findings, ModelIdentity, Priority
from node.domain.opinion import Opinion, Word, bits, judged
from node.quality.counts import Analysed, Said
from node.store.engine import insert_if_absent, reading, writing
from node.store.pair_days import changed
from node.store.tables import analyses, shadows, studies

Row = dict[str, Any]
_MEASURED = ("kvp", "slice_thickness_mm", "pixel_mm", "slices", "head_hu", "head_share")
_WITHDRAWN = dict.fromkeys(("told", "wrong", "opinion", "why", "opinion_by", "opinion_at"))
_VERDICTS = {
    Priority.STAT: "suspected",
    Priority.HIGH: "indeterminate",
    Priority.ROUTINE: "not_detected",
}


class Group(StrEnum):
    """By what the figures are told apart."""

    ALL = "all"
    SCANNER = "scanner"
    MODEL = "model"


_KEYS = {
    Group.ALL: (constant(""),),
    Group.SCANNER: (analyses.c.scanner,),
    Group.MODEL: (analyses.c.model_name, analyses.c.model_version),
}


class Quality:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def analysed(self, group: Group, since: float, until: float) -> dict[str, Analysed]:
        """How many analyses of each group ended then, by verdict."""
        with reading(self._engine) as connection:
            return _analysed(connection, group, since, until)

    def said(self, group: Group, since: float, until: float) -> dict[str, list[Said]]:
        """What readers said of the analyses that ended then, counted, by group."""
        with reading(self._engine) as connection:
            return _said(connection, group, since, until)

    def of_times(self, times: Sequence[tuple[float, float]]) -> list[tuple[Analysed, list[Said]]]:
        """Both of all analyses that ended in each of these times, in one look."""
        with reading(self._engine) as connection:
            return [
                (
                    _analysed(connection, Group.ALL, *time).get("", Analysed()),
                    _said(connection, Group.ALL, *time).get("", []),
                )
                for time in times
            ]

    def disagreements(self, since: float, until: float, limit: int = 50) -> list[Row]:
        """What readers disagreed with, the latest first."""
        ended = analyses.c.analysed_at + 0.0  # not by the index of times: few of these were disagreed with
        told = (analyses.c.opinion == Opinion.DISAGREE, analyses.c.opinion_at.is_not(None))
        query = _shown().where(*told, ended >= since, ended < until).order_by(analyses.c.opinion_at.desc())
        return self._rows(query.limit(limit))

    def draw(self, count: int, since: float, who: str, now: float, chance: random.Random) -> int:
        """Draw so many negatives by chance, whoever looked at them or not; returns how many there were.

        Of those that ended since then, were not drawn before, and whose images are still kept.
        """
        open_ones = (
            select(analyses.c.id, analyses.c.analysed_at)
            .join(studies, studies.c.study_instance_uid == analyses.c.study_instance_uid)
            .where(
                analyses.c.verdict == Priority.ROUTINE,
                analyses.c.analysed_at >= since,
                analyses.c.sampled_at.is_(None),
                studies.c.files_removed_at.is_(None),
            )
        )
        with writing(self._engine) as connection:
            found = connection.execute(open_ones.order_by(analyses.c.id)).all()
            drawn = chance.sample(found, min(count, len(found)))
            mine = update(analyses).where(analyses.c.id.in_([row.id for row in drawn]))
            connection.execute(mine.values(sampled_at=now, sampled_by=who))
            changed(connection, *(row.analysed_at for row in drawn))
        return len(drawn)

    def sample(self, limit: int = 50) -> list[Row]:
        """Drawn negatives that wait for a reader, the oldest draw first."""
        waiting = and_(analyses.c.sampled_at.is_not(None), analyses.c.opinion_at.is_(None))
        return self._rows(_shown().where(waiting).order_by(analyses.c.sampled_at, analyses.c.id).limit(limit))

    def export(self, since: float, until: float, limit: int) -> list[Row]:
        """Analyses that ended then, the latest first."""
        query = select(analyses).where(*_within(since, until)).order_by(analyses.c.analysed_at.desc())
        return self._rows(query.limit(limit))

    def first_by(self, model: ModelIdentity) -> float | None:
        """When the first analysis by these weights ended."""
        named = (analyses.c.model_name == model.name[:64], analyses.c.model_version == model.version[:64])
        mine = (*named, analyses.c.model_sha256 == model.sha256)
        query = select(analyses.c.analysed_at).where(*mine).order_by(analyses.c.analysed_at).limit(1)
        with reading(self._engine) as connection:
            return connection.execute(query).scalar()

    def latest_model(self) -> ModelIdentity | None:
        """Whose word the latest analysis is."""
        identity = (analyses.c.model_name, analyses.c.model_version, analyses.c.model_sha256)
        query = select(*identity).order_by(analyses.c.analysed_at.desc()).limit(1)
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return ModelIdentity(*row) if row else None

    def _rows(self, query: Select[Any]) -> list[Row]:
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def _analysed(connection: Connection, group: Group, since: float, until: float) -> dict[str, Analysed]:
    keys = _KEYS[group]
    counts = [func.sum(case((analyses.c.verdict == v, 1), else_=0)) for v in _VERDICTS]
    query = select(*keys, *counts).where(*_within(since, until)).group_by(*_grouping(group))
    rows = connection.execute(query).all()
    return {_name(row[: len(keys)]): Analysed(*(int(n or 0) for n in row[len(keys) :])) for row in rows}


def _said(connection: Connection, group: Group, since: float, until: float) -> dict[str, list[Said]]:
    keys = _KEYS[group]
    drawn = case((analyses.c.sampled_at.is_not(None), 1), else_=0)
    what = (analyses.c.verdict, analyses.c.present, analyses.c.told, analyses.c.wrong, drawn)
    query = (
        select(*keys, *what, func.count())
        .where(analyses.c.opinion_at.is_not(None), *_within(since, until))
        .group_by(*_grouping(group), *what)
    )
    found: dict[str, list[Said]] = {}
    for row in connection.execute(query):
        verdict, present, told, wrong, sampled, count = row[len(keys) :]
        said = Said(Priority(verdict), present, told, wrong, bool(sampled), count)
        found.setdefault(_name(row[: len(keys)]), []).append(said)
    return found


def record(
    connection: Connection, job: tuple[int, str], findings: Findings, acquired: Acquisition, now: float
) -> None:
    """An analysis of a job (id, Study Instance UID) has ended. It replaces an earlier one by the same model.

    What a reader said stays where the new word is the same.
    """
    if findings.priority is None or "any" not in findings.classes:
        return
    model = findings.model
    key = (analyses.c.job_id == job[0], analyses.c.model_sha256 == model.sha256)
    said = outcome(findings)
    present = said["present"]
    values: Row = {
        "analysed_at": now,
        "study_instance_uid": job[1],
        "model_name": model.name[:64],
        "model_version": model.version[:64],
        "scanner": acquired.scanner,
        **said,
        "kernel": acquired.kernel[:64],
        **{name: getattr(acquired, name) for name in _MEASURED},
    }
    before = connection.execute(select(analyses.c.analysed_at).where(*key)).scalar()
    changed(connection, now, *([] if before is None else [before]))
    insert_if_absent(connection, analyses, {"job_id": job[0], "model_sha256": model.sha256, **values})
    other_word = (analyses.c.present != present) | (analyses.c.verdict != findings.priority)
    connection.execute(update(analyses).where(*key, other_word).values(**_WITHDRAWN))
    connection.execute(update(analyses).where(*key).values(**values))


def outcome(findings: Findings) -> Row:
    """What a model made of a series, as columns; of findings with a priority and the class "any"."""
    taken = findings.timings_s
    before_masks = [taken[step] for step in ("load", "canonical", "prepare", "classify") if step in taken]
    return {
        "verdict": findings.priority,
        "any_probability": findings.classes["any"].probability,
        "present": bits(name for name, found in findings.classes.items() if found.present),
        "evaluated": bits(findings.classes),
        "volume_ml": findings.segmentation.volume_ml if findings.segmentation else None,
        "probabilities": {name: round(found.probability, 5) for name, found in findings.classes.items()},
        "classified_s": sum(before_masks) if "classify" in taken else None,
        "total_s": taken.get("total"),
    }


def say(connection: Connection, job_id: int, word: Word) -> None:
    """A reader's word on the newest analysis of a job."""
    row = connection.execute(select(analyses).where(analyses.c.id == _newest(job_id))).first()
    if row is None:
        return
    told = judged(Priority(row.verdict), row.present, row.evaluated, word)
    values = {"told": told.told, "wrong": told.wrong, "opinion": word.opinion, "why": word.wrong}
    values |= {"opinion_by": word.who, "opinion_at": word.at}
    connection.execute(update(analyses).where(analyses.c.id == row.id).values(**values))
    changed(connection, row.analysed_at)


def withdraw(connection: Connection, job_id: int) -> None:
    """A reader took the word back."""
    mine = analyses.c.id == _newest(job_id)
    at = connection.execute(select(analyses.c.analysed_at).where(mine)).scalar()
    if at is not None:
        connection.execute(update(analyses).where(mine).values(**_WITHDRAWN))
        changed(connection, at)


def forget(connection: Connection, study_uids: Sequence[str]) -> None:
    """The studies are forgotten; what was counted stays, and no longer says of whom it is."""
    mine = update(analyses).where(analyses.c.study_instance_uid.in_(study_uids))
    connection.execute(mine.values(study_instance_uid=None))
    in_silence = update(shadows).where(shadows.c.study_instance_uid.in_(study_uids))
    connection.execute(in_silence.values(study_instance_uid=None, series_instance_uid=None))


def _newest(job_id: int) -> Any:
    other = analyses.alias("other")
    return (
        select(other.c.id)
        .where(other.c.job_id == job_id)
        .order_by(other.c.analysed_at.desc(), other.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )


def _shown() -> Select[Any]:
    """With what a list shows of the study."""
    return select(
        analyses, studies.c.patient_id, studies.c.accession_number, studies.c.files_removed_at
    ).outerjoin(studies, studies.c.study_instance_uid == analyses.c.study_instance_uid)


def _within(since: float, until: float) -> tuple[Any, ...]:
    return analyses.c.analysed_at >= since, analyses.c.analysed_at < until


def _grouping(group: Group) -> tuple[Any, ...]:
    return () if group is Group.ALL else _KEYS[group]


def _name(key: Sequence[Any]) -> str:
    return " ".join(map(str, key))
