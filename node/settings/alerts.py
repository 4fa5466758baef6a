"""The channels that raise the reading priority of a study: one class a type, and what they have in common.

A new type is a class here, named in AnyAlert, and a channel in node.channels.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from node.domain.announcing import Audience, When
from node.settings.base import PeerTls, SecretPlace, Section, is_private


class Alert(Section):
    """What every channel has."""

    type: str
    name: str = Field("", max_length=64)
    """Empty: the type. Two channels of one type need names."""
    when: When = "positive"
    """`positive`: STAT and HIGH; `stat`; `all`: every result, and what was not analysed."""
    follow_up: bool = True
    """Tell what was told once more, in full, when the analysis is complete."""
    timeout_s: float = Field(10, gt=0, le=300)
    """One attempt, from connecting to the answer."""
    retry_base_s: float = Field(2, gt=0)
    retry_max_s: float = Field(300, gt=0)
    give_up_h: float = Field(24, gt=0)
    """An alert that alarms nobody is given up after this long; a positive one never is."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            return {**values, "name": values.get("type") or cls.model_fields["type"].default}
        return values

    @property
    def audience(self) -> Audience:
        return Audience(self.name, self.when, self.follow_up)


class Webhook(Alert):
    """A JSON document by HTTP POST, signed."""

    type: Literal["webhook"] = "webhook"
    url: str
    secret: SecretPlace = ""
    """Where the key of the signature stands; empty: not signed."""
    patient_data: bool = False
    """Also send Patient ID, name, birth date and accession number."""
    tls: PeerTls = PeerTls()

    @field_validator("url")
    @classmethod
    def _is_private(cls, url: str) -> str:
        return web_address(url)


def web_address(url: str) -> str:
    """Raises ValueError unless it is a URL at which nobody can read along."""
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^#\s]*)?", url):
        raise ValueError(f"{url!r} is no address: write https://host:port/path")
    if not is_private(url):
        raise ValueError(f"{url} would be read by others on the way: use https (http on this machine only)")
    return url


AnyAlert = Annotated[Webhook, Field(discriminator="type")]
