"""The rules by which a destination gets the results of a study, its source images, or nothing."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from datetime import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from node.domain.errors import SettingsError
from node.domain.findings import Priority
from node.domain.routing import FINDINGS, Part, Rule
from node.settings.base import Section

if TYPE_CHECKING:
    from node.settings.destinations import Destination

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
    BeforeValidator(_listed),
    Field(max_length=64),
]
"""One name or several; * and ? stand for any letters."""


class Route(Section):
    """One rule of a destination. What is left out does not matter; the first rule that fits decides."""

    finding: Names = ()
    """Classes that are present, `none` (analysed, no class present), `not_analysed`."""
    priority: Annotated[tuple[Priority, ...], BeforeValidator(_listed)] = ()
    source_ae: Names = ()
    """Calling AE titles of whoever sent the series."""
    station: Names = ()
    """StationName (0008,1010) of the images."""
    time: str = Field("", pattern=r"^$|^\d{2}:\d{2}-\d{2}:\d{2}$")
    """StudyTime (0008,0030) as the modality wrote it: "17:00-07:30" goes over midnight."""
    days: Annotated[tuple[Day, ...], BeforeValidator(_listed)] = ()
    """Of StudyDate (0008,0020)."""
    older_than_days: float | None = Field(None, ge=0)
    """StudyDate lies further back than this when the result is routed: a prior that was fetched, say."""
    send: Annotated[tuple[Part, ...], BeforeValidator(_listed)] = (Part.RESULTS,)
    """`results`, `source` (the analysed series as it came), both, or an empty list: nothing."""

    @field_validator("finding")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in FINDINGS:
                raise ValueError(f"unknown finding {name!r}: choose from {', '.join(FINDINGS)}")
        return names

    @field_validator("time")
    @classmethod
    def _is_a_span(cls, text: str) -> str:
        if text:
            begin, end = _span(text)
            if begin == end:
                raise ValueError(f"{text!r} begins and ends at once: leave it out for the whole day")
        return text

    @property
    def rule(self) -> Rule:
        """As the domain decides by it."""
        return Rule(
            frozenset(self.send),
            self.finding,
            self.priority,
            self.source_ae,
            self.station,
            _span(self.time) if self.time else None,
            self.days,
            self.older_than_days,
        )


def _span(text: str) -> tuple[time, time]:
    """ "17:00-07:30" → its ends. Raises ValueError for an hour that no clock shows."""
    begin, end = (time(int(hour), int(minute)) for hour, minute in re.findall(r"(\d{2}):(\d{2})", text))
    return begin, end


class Draft(BaseModel):
    """A destination as far as rules go: what else its section says is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str = Field(min_length=1, max_length=64)
    rules: tuple[Route, ...] = ()

    @property
    def routing(self) -> tuple[Rule, ...]:
        return tuple(route.rule for route in self.rules)


class _Drafts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    destination: tuple[Draft, ...] = Field(min_length=1, max_length=64)


def read_drafts(text: str) -> tuple[Draft, ...]:
    """The `[[destination]]` sections of a text, to be tried out. Raises SettingsError that names the key."""
    try:
        found = tomllib.loads(text)
        if "destination" not in found:
            raise SettingsError("there is no [[destination]]: write one with its name and rules")
        return _Drafts.model_validate(found).destination
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"this is no TOML: {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from None


def write_drafts(destinations: Iterable[Destination]) -> str:
    """The rules as they stand, as TOML that `read_drafts` takes."""
    parts = []
    for destination in destinations:
        rules = "".join(f"  {_inline(route)},\n" for route in destination.rules)
        parts.append(f"[[destination]]\nname = {json.dumps(destination.name)}\nrules = [\n{rules}]\n")
    return "\n".join(parts)


def _inline(route: Route) -> str:
    """A TOML inline table; strings and lists are written as JSON writes them."""
    given = route.model_dump(mode="json", exclude_defaults=True)
    fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    return f"{{ {fields} }}" if fields else "{}"
