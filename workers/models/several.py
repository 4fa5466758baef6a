"""Several series at once, for pipelines that can: slices of all of them go through the networks together.

One that cannot is asked series by series, so that whoever calls need not know. Changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from workers.models.contract import Classification, Pipeline, Spacing, Volume
from workers.models.engine import Engine


class Sized(Protocol):
    """What a pipeline made of a volume beforehand."""

    @property
    def size_bytes(self) -> int: ...


@runtime_checkable
class TakesSeveral(Protocol):
    """Splits `classify` in two: what may be done in any thread, and what the networks do."""

    def prepare(self, hu: Volume, spacing_mm: Spacing) -> Any:
        """All that comes before the networks. Raises PermanentError as `classify` does."""
        ...

    def classify_all(self, prepared: Sequence[Any]) -> list[Classification]:
        """What `classify` says of each. What is wrong with one of them is raised for all."""
        ...


@dataclass(frozen=True, eq=False)
class Unprepared:
    """The volume itself, which is held by whoever read it."""

    hu: Volume
    spacing_mm: Spacing
    size_bytes: int = 0


def prepare(pipeline: Pipeline, hu: Volume, spacing_mm: Spacing) -> Sized:
    """See `TakesSeveral.prepare`."""
    if isinstance(pipeline, TakesSeveral):
        made: Sized = pipeline.prepare(hu, spacing_mm)
        return made
    return Unprepared(hu, spacing_mm)


def classify_all(pipeline: Pipeline, prepared: Sequence[Any]) -> list[Classification]:
    """See `TakesSeveral.classify_all`."""
    if isinstance(pipeline, TakesSeveral):
        return pipeline.classify_all(prepared)
    return [pipeline.classify(one.hu, one.spacing_mm) for one in prepared]


def busy_s(pipeline: Pipeline) -> float | None:
    """For how long its networks were at work since it was loaded; None for one that has no engine."""
    engines: list[Engine] = getattr(pipeline, "engines", list)()
    distinct = {id(engine): engine for engine in engines}
    return sum(engine.busy.seconds() for engine in distinct.values()) if distinct else None
