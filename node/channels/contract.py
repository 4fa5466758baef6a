"""What a channel is. Holds no channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.domain.announcing import Announcement
from node.domain.errors import PermanentError


@dataclass(frozen=True)
class Receipt:
    """The receiver took it. `status` in its own terms (HTTP 200, AA), at most 32 characters.

    `acknowledged` where that means that it has it and will not lose it; else the alert stays SENT.
    """

    acknowledged: bool
    status: str
    text: str = ""


class Rejected(PermanentError):
    """The receiver read the message and does not want it; the same message again will hardly fare better."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__("REJECTED", message)
        self.status = status


class Channel(Protocol):
    """Something that can be told about a study. Used by one thread at a time."""

    def check(self) -> None:
        """Raises SettingsError when certificates, secrets or templates cannot be used."""

    def probe(self) -> str:
        """Whether anybody answers there, without telling anything; in words.

        Raises TransientError when nobody does.
        """

    def send(self, told: Announcement) -> Receipt:
        """Tell once. Raises TransientError when it did not get through, Rejected when it was refused."""
