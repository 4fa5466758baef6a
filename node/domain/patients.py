"""Whether the objects of a study belong to one patient. Compares headers; asks nobody, corrects nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from node.domain.findings import Reason
from node.domain.vocabulary import fold

CODE = "PATIENTS_MIXED"


@dataclass(frozen=True)
class Person:
    """Who the patient is, as headers name them (PS3.3 C.7.1.1)."""

    patient_id: str
    patient_name: str


def same_person(persons: Collection[Person]) -> bool:
    """One Patient ID; where none is given at all, one name. A name alone may be corrected between objects."""
    if ids := {person.patient_id.strip() for person in persons} - {""}:
        return len(ids) == 1
    return len({fold(person.patient_name) for person in persons} - {""}) <= 1


def mixed(count: int) -> Reason:
    """Names nobody: the words go to the PACS with one of the patients."""
    text = f"the study's Study Instance UID is shared by {count} patients (Patient IDs differ)"
    return Reason(CODE, f"{text}; correct it in the PACS and send the study again")
