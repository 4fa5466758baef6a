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
    engines = _engines(pipeline)
    return sum(engine.busy.seconds() for engine in engines) if engines else None


def runs_on_gpu(pipeline: Pipeline) -> bool:
    return any(engine.device.type == "cuda" for engine in _engines(pipeline))


def _engines(pipeline: Pipeline) -> list[Engine]:
    found: list[Engine] = getattr(pipeline, "engines", list)()
    return list({id(engine): engine for engine in found}.values())


class Share:
    """Which share of the time between two looks something was busy."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def of(self, busy_s: float | None, now_s: float) -> float | None:
        """0 to 1; None at the first look, and where a new pipeline began to count anew."""
        last, self._last = self._last, None if busy_s is None else (busy_s, now_s)
        if busy_s is None or last is None or busy_s < last[0] or now_s <= last[1]:
            return None
        return min((busy_s - last[0]) / (now_s - last[1]), 1.0)
