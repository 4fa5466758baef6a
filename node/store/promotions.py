"""Every query about which model was made the active one. Rows are added, and never changed."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, Row, select

from node.domain import choice
from node.domain.choice import Active, Promotion
from node.domain.errors import IllegalTransition
from node.domain.findings import ModelIdentity
from node.store.audit import Actor, add_entry
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import promotions


@dataclass(frozen=True)
class Wish:
    """What is to be the active model from now on, and what was until now."""

    pipeline: str
    model: ModelIdentity
    settings_pipeline: str
    before_pipeline: str
    before: ModelIdentity
    reason: str


class Promotions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def last(self) -> Promotion | None:
        found = self.history(1)
        return found[0] if found else None

    def active(self, settings_pipeline: str) -> Active:
        """What a worker with this `[model] pipeline` is to load."""
        return choice.active(settings_pipeline, self.last())

    def history(self, limit: int = 50) -> list[Promotion]:
        """The newest first."""
        query = select(promotions).order_by(promotions.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_promotion(row) for row in connection.execute(query)]

    def add(self, wish: Wish, actor: Actor, action: str, after_id: int, now: float) -> int:
        """With its line in the trail. Raises IllegalTransition when one came after `after_id` (0: none)."""
        row = {
            "at": now,
            "who": actor.name[:64],
            "reason": wish.reason,
            "pipeline": wish.pipeline,
            **_columns("model", wish.model),
            "settings_pipeline": wish.settings_pipeline,
            "before_pipeline": wish.before_pipeline,
            **_columns("before", wish.before),
        }
        said = f"{_said(wish.model)} in place of {_said(wish.before)}: {wish.reason}"
        number = after_id + 1  # of two who promote at once one finds it taken
        with writing(self._engine) as connection:
            if not insert_if_absent(connection, promotions, {"id": number, **row}):
                raise IllegalTransition("somebody chose another model just now; look at the page again")
            add_entry(connection, actor, action, now, detail=said)
        return number


def _said(model: ModelIdentity) -> str:
    return f"{model.name} {model.version} {model.sha256[:12]}"


def _columns(prefix: str, model: ModelIdentity) -> dict[str, str]:
    named = {"name": model.name[:64], "version": model.version[:64], "sha256": model.sha256[:64]}
    return {f"{prefix}_{key}": text for key, text in named.items()}


def _promotion(row: Row) -> Promotion:
    return Promotion(
        row.id,
        row.at,
        row.who,
        row.reason,
        row.pipeline,
        ModelIdentity(row.model_name, row.model_version, row.model_sha256),
        row.settings_pipeline,
        row.before_pipeline,
        ModelIdentity(row.before_name, row.before_version, row.before_sha256),
    )
