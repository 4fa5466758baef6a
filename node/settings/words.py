"""What is wrong with a setting, in words: of an unknown key, which one may be meant. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel


def words_of(error: Mapping[str, Any], settings: type[BaseModel]) -> str:
    """One of `ValidationError.errors()`."""
    if error["type"] != "extra_forbidden":
        return str(error["msg"])
    *place, key = error["loc"]
    known = sorted({name for model in _sections([settings], place) for name in model.model_fields})
    alike = get_close_matches(str(key), known, 1)
    hint = f"is {alike[0]} meant?" if alike else f"known are {', '.join(known)}"
    return f"there is no such setting; {hint}"


def _sections(models: Sequence[type[BaseModel]], place: Sequence[Any]) -> list[type[BaseModel]]:
    """The sections that may stand there. Numbers of a list, and names of a choice, are no fields."""
    for name in place:
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        models = [model for field in fields for model in _models(field.annotation)] or models
    return list(models)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
