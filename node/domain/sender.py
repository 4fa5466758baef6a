"""Whether the sender of a study has done its work, judged by how it sent this one and those before. Pure.

DICOM knows no "series finished", but whoever releases the only association of a study has said in it all that
it wanted to say. Some use an association for each series, each batch or each image; so only a sender that was
seen to send studies whole, and lately nothing in pieces, is trusted. A new one is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KNOWN_AFTER = 3
"""Studies, each sent whole, after which a sender is trusted."""


@dataclass(frozen=True)
class Peer:
    """Who called, as associations are recorded."""

    calling_ae: str
    address: str


@dataclass(frozen=True)
class Carriage:
    """How a study came: from whom, over how many associations, and how many of these the peer released."""

    peers: frozenset[Peer]
    associations: int
    released: int

    @property
    def said_all(self) -> bool:
        """Nothing that brought any of it is open, and nothing broke off."""
        return 0 < self.associations == self.released


@dataclass(frozen=True)
class Habit:
    """What lately came from a peer: over how many associations each study of several instances came."""

    associations_a_study: Sequence[int] = ()

    @property
    def is_whole(self) -> bool:
        """It sends a study over one association, as far as anybody saw."""
        counts = self.associations_a_study
        return len(counts) >= KNOWN_AFTER and max(counts) == 1


def is_done(carriage: Carriage, habit: Habit) -> bool:
    """The peer released the only association of the study, and is one that sends studies whole."""
    return carriage.said_all and carriage.associations == 1 and habit.is_whole
