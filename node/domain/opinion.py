"""What a reader's click says about each class. Decides nothing about the study, changes no result.

Classes travel as bits in the order of CLASSES, so that a database can count them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from node.domain.findings import CLASSES, Priority


class Opinion(StrEnum):
    AGREE = "AGREE"
    DISAGREE = "DISAGREE"


class Wrong(StrEnum):
    """Why somebody disagrees."""

    UNSPECIFIED = "UNSPECIFIED"
    NO_HAEMORRHAGE = "NO_HAEMORRHAGE"  # the images show none
    MISSED = "MISSED"  # the images show one that was not found
    SUBTYPE = "SUBTYPE"  # there is one, of another kind
    EXTENT = "EXTENT"  # the right kind, drawn or measured wrongly


WRONG_WORDS = {
    Wrong.UNSPECIFIED: "not said why",
    Wrong.NO_HAEMORRHAGE: "the images show no haemorrhage",
    Wrong.MISSED: "the images show a haemorrhage that was not found",
    Wrong.SUBTYPE: "the kind of haemorrhage is wrong",
    Wrong.EXTENT: "place or extent is wrong, the kind is right",
}


@dataclass(frozen=True)
class Word:
    """What a reader said: `actual` are the subtypes that the images show, where the reader named them."""

    opinion: Opinion
    who: str
    at: float
    why: Wrong = Wrong.UNSPECIFIED
    actual: tuple[str, ...] = ()

    @property
    def wrong(self) -> Wrong | None:
        return self.why if self.opinion is Opinion.DISAGREE else None


@dataclass(frozen=True)
class Judged:
    """Bits by class: on which classes the reader spoke, and which of them the model got wrong."""

    told: int
    wrong: int


def bits(names: Iterable[str]) -> int:
    """Class names as bits; an unknown name is a KeyError of the caller's making."""
    return sum(1 << CLASSES.index(name) for name in set(names))


def has(mask: int, name: str) -> bool:
    return bool(mask >> CLASSES.index(name) & 1)


ANY = bits(("any",))


def judged(verdict: Priority, present: int, evaluated: int, word: Word) -> Judged:
    """What the reader's word says about the classes that the model evaluated.

    A plain disagreement counts against "any", and says nothing of the subtypes. Agreement with an
    indeterminate result says nothing at all, nor does a plain disagreement with it.
    """
    shown = bits(word.actual) & evaluated & ~ANY
    if word.opinion is Opinion.AGREE:
        return Judged(0 if verdict is Priority.HIGH else evaluated, 0)
    match word.why:
        case Wrong.NO_HAEMORRHAGE:
            return Judged(evaluated, present)
        case Wrong.EXTENT:
            return Judged(evaluated, 0)
        case Wrong.MISSED | Wrong.SUBTYPE:
            return Judged(evaluated if shown else ANY, (present ^ (shown | ANY)) if shown else ANY & ~present)
    return Judged(0 if verdict is Priority.HIGH else ANY, 0 if verdict is Priority.HIGH else ANY)
