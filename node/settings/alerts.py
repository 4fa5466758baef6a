"""The channels that raise the reading priority of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from node.settings.base import Section


class Alert(Section):
    """A channel that raises the reading priority."""

    type: Literal["hl7", "ups", "webhook"]

    @model_validator(mode="after")
    def _none_yet(self) -> Alert:
        raise ValueError(f"alert type {self.type!r} is not built yet: remove this [[alert]] section")
