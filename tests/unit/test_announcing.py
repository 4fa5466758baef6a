"""What is news to whom, and what is said then: never twice the same, never a priority lowered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from node.domain.announcing import (
    Announcement,
    Audience,
    Correction,
    Earlier,
    Occasion,
    Stage,
    Subject,
    Withdrawal,
    announcement,
    is_news,
    withdrawals,
)
from node.domain.findings import Findings, ModelIdentity, Priority, Reason, Status
from tests.site import SUBDURAL, findings

POSITIVE, STAT, ALL = Audience("a"), Audience("a", "stat"), Audience("a", "all")
ONCE = Audience("a", follow_up=False)
CLEAR, BORDERLINE = findings(), findings(priority=Priority.HIGH)
NOTHING = Findings(
    ModelIdentity("ichnode", "1", ""), "series", 1, Status.NOT_ANALYSED, Reason("NO_VOLUME", "no volume")
)
OCCASION = Occasion("a", "1.2", Subject("PID-7", patient_name="Doe^Jane"), 100.0, 110.0)
EARLY, FINAL, NONE = Stage.PRELIMINARY, Stage.FINAL, Stage.NOT_ANALYSED


def told(*words: tuple[Stage, Findings]) -> Announcement:
    """The last of these, told one after the other."""
    last: Announcement | None = None
    for number, (stage, found) in enumerate(words, start=1):
        last = announcement(OCCASION, stage, found, last, number)
    assert last
    return last


def revised(found: Findings, revision: int = 2) -> Findings:
    return replace(found, revision=revision)


@pytest.mark.parametrize(
    ("audience", "stage", "found", "news"),
    [
        (POSITIVE, EARLY, SUBDURAL, True),
        (POSITIVE, EARLY, BORDERLINE, True),
        (POSITIVE, EARLY, CLEAR, False),
        (POSITIVE, FINAL, CLEAR, False),
        (POSITIVE, NONE, NOTHING, False),
        (STAT, EARLY, SUBDURAL, True),
        (STAT, FINAL, BORDERLINE, False),
        (ALL, EARLY, CLEAR, True),
        (ALL, NONE, NOTHING, True),
    ],
)
def test_a_first_word_is_for_those_who_want_it(
    audience: Audience, stage: Stage, found: Findings, news: bool
) -> None:
    assert is_news(stage, found, audience, None) is news


@pytest.mark.parametrize(
    ("audience", "before", "stage", "found", "news"),
    [
        pytest.param(POSITIVE, (EARLY, SUBDURAL), EARLY, SUBDURAL, False, id="the job is done again"),
        pytest.param(POSITIVE, (EARLY, SUBDURAL), FINAL, SUBDURAL, True, id="follow-up"),
        pytest.param(ONCE, (EARLY, SUBDURAL), FINAL, SUBDURAL, False, id="no follow-up wanted"),
        pytest.param(ONCE, (EARLY, BORDERLINE), FINAL, SUBDURAL, True, id="raised"),
        pytest.param(POSITIVE, (FINAL, SUBDURAL), FINAL, SUBDURAL, False, id="the same again"),
        pytest.param(POSITIVE, (FINAL, SUBDURAL), EARLY, SUBDURAL, False, id="analysed again"),
        pytest.param(POSITIVE, (FINAL, SUBDURAL), EARLY, revised(CLEAR), False, id="early words lower none"),
        pytest.param(POSITIVE, (FINAL, SUBDURAL), FINAL, revised(CLEAR), True, id="taken back"),
        pytest.param(ONCE, (FINAL, SUBDURAL), FINAL, revised(CLEAR), True, id="taken back, no follow-up"),
        pytest.param(STAT, (FINAL, SUBDURAL), FINAL, revised(CLEAR), True, id="taken back, stat"),
        pytest.param(ALL, (FINAL, CLEAR), EARLY, revised(SUBDURAL), True, id="raised early"),
        pytest.param(POSITIVE, (FINAL, SUBDURAL), FINAL, revised(SUBDURAL), True, id="a new revision"),
        pytest.param(POSITIVE, (EARLY, SUBDURAL), NONE, NOTHING, True, id="failed after the alarm"),
        pytest.param(ALL, (NONE, NOTHING), NONE, revised(NOTHING), False, id="still not analysed"),
        pytest.param(ALL, (NONE, NOTHING), FINAL, revised(CLEAR), True, id="analysed after all"),
    ],
)
def test_after_a_word_only_another_one_is_news(
    audience: Audience, before: tuple[Stage, Findings], stage: Stage, found: Findings, news: bool
) -> None:
    assert is_news(stage, found, audience, told(before)) is news


@pytest.mark.parametrize(("patient", "news"), [("PID-7", False), ("PID-8", True)])
def test_what_was_told_of_another_patient_is_told_again(patient: str, news: bool) -> None:
    """Also to those who want no follow-up: the images were sent again with another PatientID."""
    last = told((FINAL, SUBDURAL))
    assert is_news(FINAL, revised(SUBDURAL), ONCE, last, patient) is news
    again = announcement(OCCASION, FINAL, revised(SUBDURAL), last, 2)
    assert again.corrects == Correction(1, 1, Priority.STAT)


def of(patient: str, *taken_back: str) -> Announcement:
    """What was told of a patient, and of whom it took something back."""
    last = told((FINAL, SUBDURAL))
    gone = tuple(Withdrawal(Subject(patient_id=one), SUBDURAL) for one in taken_back)
    return replace(last, subject=Subject(patient_id=patient), withdraws=gone)


@pytest.mark.parametrize(
    ("before", "patient", "standing"),
    [
        pytest.param([], "A", [], id="nothing was told"),
        pytest.param([Earlier(of("A"), True, True)], "A", [], id="of the same patient"),
        pytest.param([Earlier(of("A"), True, True)], "B", ["A"], id="of another"),
        pytest.param([Earlier(of("A"), True, False)], "B", ["A"], id="it may have arrived"),
        pytest.param([Earlier(of("A"), False, False)], "B", [], id="it never left"),
        pytest.param(
            [Earlier(of("A"), True, True), Earlier(of("B", "A"), True, True)],
            "B",
            [],
            id="taken back already",
        ),
        pytest.param(
            [Earlier(of("A"), True, True), Earlier(of("B", "A"), False, False)],
            "B",
            ["A"],
            id="the word that took it back never left",
        ),
        pytest.param(
            [Earlier(of("A"), True, True), Earlier(of("B", "A"), True, True)], "A", ["B"], id="and back again"
        ),
        pytest.param(
            [Earlier(of("A"), True, True), Earlier(of("B", "A"), True, False)], "C", ["A", "B"], id="a third"
        ),
    ],
)
def test_what_stands_under_the_wrong_patient_is_taken_back(
    before: list[Earlier], patient: str, standing: list[str]
) -> None:
    assert [one.subject.patient_id for one in withdrawals(before, patient)] == standing


def test_a_priority_is_never_lowered() -> None:
    last = told((EARLY, SUBDURAL), (FINAL, SUBDURAL), (FINAL, revised(CLEAR)))
    assert (last.reading_priority, last.findings.priority) == (Priority.STAT, Priority.ROUTINE)
    assert last.corrects == Correction(2, 1, Priority.STAT)
    assert last.urgent


def test_nothing_analysed_lowers_nothing_either() -> None:
    last = told((EARLY, SUBDURAL), (NONE, NOTHING))
    assert last.reading_priority is Priority.STAT and last.urgent
    assert last.corrects == Correction(1, 1, Priority.STAT)


def test_a_final_word_completes_the_preliminary_one() -> None:
    assert told((EARLY, SUBDURAL), (FINAL, SUBDURAL)).corrects is None
    assert told((EARLY, CLEAR), (FINAL, BORDERLINE)).corrects is None


def test_a_class_taken_back_is_a_correction() -> None:
    epidural = findings({"any": 0.9, "epidural": 0.8})
    assert told((EARLY, SUBDURAL), (FINAL, epidural)).corrects == Correction(1, 1, Priority.STAT)


def test_without_a_result_there_is_no_priority() -> None:
    last = told((NONE, NOTHING))
    assert last.reading_priority is None and not last.urgent


def test_it_reads_back_what_it_wrote() -> None:
    last = told((EARLY, SUBDURAL), (FINAL, revised(CLEAR)))
    for one in (last, of("A", "B")):
        assert Announcement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_what_an_older_version_wrote_takes_nothing_back() -> None:
    written = told((FINAL, SUBDURAL)).to_json()
    del written["withdraws"]
    assert Announcement.from_json(written).withdraws == ()


def test_the_identifier_is_short_and_of_its_own() -> None:
    first, second = told((EARLY, SUBDURAL)), told((EARLY, SUBDURAL), (FINAL, SUBDURAL))
    assert first.identifier != second.identifier
    assert len(first.identifier) == 20 and first.identifier == told((EARLY, SUBDURAL)).identifier
