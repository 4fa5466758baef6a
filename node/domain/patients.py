"""Whether the objects of a study belong to one patient. Compares headers; asks nobody, corrects nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from node.domain.errors import PermanentError
from node.domain.findings import Reason
from node.domain.instance import Instance
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


def require_one(instances: Iterable[Instance]) -> None:
    """Raises PermanentError PATIENTS_MIXED where what is about to be read belongs to several."""
    persons = {Person(instance.patient_id, instance.patient_name) for instance in instances}
    if not same_person(persons):
        reason = mixed(count(persons))
        raise PermanentError(reason.code, reason.text)


def count(persons: Collection[Person]) -> int:
    """How many they seem to be."""
    return len({person.patient_id or person.patient_name for person in persons})


def mixed(count: int) -> Reason:
    """Names nobody: the words go to the PACS with one of the patients."""
    text = f"the study's Study Instance UID is shared by {count} patients (Patient IDs differ)"
    return Reason(CODE, f"{text}; correct it in the PACS and send the study again")
