"""Which earlier head CT is compared with, what is expansion, and what is said of a doubtful comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from node.domain.findings import (
    Comparison,
    Findings,
    ModelIdentity,
    SegmentationFinding,
    SliceFinding,
    Status,
)
from node.domain.instance import Instance
from node.domain.prior import OTHER_PERSON, Earlier, compare, is_same_person, latest

MODEL = ModelIdentity("test-model", "1.2.3", "ab" * 32)
NOW = Instance(
    "1.9.1", "1.2", "1.9", "1", "",
    patient_id="P1", patient_name="Müller^Jörg", patient_birth_date="19600101",
    study_date="20260102", study_time="101500",
)  # fmt: skip


def earlier(study: str = "2", volume_ml: float | None = 10.0, **header: Any) -> Earlier:
    instance = replace(
        NOW,
        **{
            "study_instance_uid": study,
            "study_date": "20260101",
            "series_instance_uid": f"{study}.1",
            **header,
        },
    )
    return Earlier(instance, findings(volume_ml, f"{study}.1"))


def findings(volume_ml: float | None, series: str = "1.9", **changes: Any) -> Findings:
    slices = tuple(SliceFinding(f"1.{k}", 5.0 * k, {}) for k in range(30))
    mask = None if volume_ml is None else SegmentationFinding(volume_ml, ("1.3",) if volume_ml else ())
    analysed = Findings(MODEL, series, 1, Status.ANALYSED, slices=slices, segmentation=mask)
    return replace(analysed, **changes)


def compared(before_ml: float | None, after_ml: float | None, **changes: Any) -> Comparison:
    found = compare(findings(after_ml, **changes), earlier(volume_ml=before_ml))
    assert found
    return found


def test_the_latest_earlier_study_is_taken() -> None:
    candidates = [
        earlier("2", study_date="20251224"),
        earlier("3", study_date="20260102", study_time="101459"),
        earlier("4", study_date="20260102", study_time="101500"),
        earlier("5", study_date="20260103"),
        earlier("1"),
    ]
    found = latest(NOW, candidates).found
    assert found and found.instance.study_instance_uid == "3"


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ({"study_date": "20260102", "study_time": ""}, False),  # the same day, at an unknown time
        ({"study_date": ""}, False),
        ({"study_date": "2026.01.01", "study_time": "10:15:00"}, True),  # as before DICOM
        ({"study_date": "20260102", "study_time": "0900"}, True),
        ({"study_date": "20260102", "study_time": "101459.999"}, True),
        ({"patient_id": "P2"}, False),
        ({"issuer_of_patient_id": "ELSEWHERE"}, True),  # nothing is known of the issuer now
    ],
)
def test_it_must_surely_be_earlier_and_of_this_patient(header: dict[str, str], taken: bool) -> None:
    assert (latest(NOW, [earlier(**header)]).found is not None) is taken


@pytest.mark.parametrize(("issuer", "taken"), [("HERE", True), ("", True), ("ELSEWHERE", False)])
def test_another_issuer_is_another_patient(issuer: str, taken: bool) -> None:
    now = replace(NOW, issuer_of_patient_id="HERE")
    assert (latest(now, [earlier(issuer_of_patient_id=issuer)]).found is not None) is taken


@pytest.mark.parametrize("nobody", ["", "0", "Anonymous", "UNKNOWN", "n/a"])
def test_an_id_that_many_share_is_none(nobody: str) -> None:
    assert latest(replace(NOW, patient_id=nobody), [earlier(patient_id=nobody)]).found is None


def test_a_study_without_a_date_has_no_earlier_one() -> None:
    assert latest(replace(NOW, study_date=""), [earlier(study_date="19990101")]).found is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Müller^Jörg", "MUELLER^JOERG", True),
        ("Müller^Jörg", "Muller^Jorg", True),
        ("Müller^Jörg", "Müller^J", True),
        ("Müller^Jörg", "Müller-Lüdenscheidt^Jörg^^Dr.", True),
        ("Müller^Jörg", "Müller", True),
        ("Müller^Jörg", "", True),
        ("Müller^Jörg", "Müller^Anna", False),
        ("Müller^Jörg", "Schmidt^Jörg", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田^太郎", True),
        ("Yamada^Tarou=山田^太郎", "Suzuki^Tarou=鈴木^太郎", False),
        ("山田^太郎", "鈴木^太郎", False),
    ],
)
def test_names_that_contradict(one: str, other: str, same: bool) -> None:
    a, b = replace(NOW, patient_name=one), replace(NOW, patient_name=other)
    assert is_same_person(a, b) is is_same_person(b, a) is same


@pytest.mark.parametrize(("birth", "same"), [("19600101", True), ("", True), ("19600102", False)])
def test_birth_dates_that_contradict(birth: str, same: bool) -> None:
    assert is_same_person(NOW, replace(NOW, patient_birth_date=birth)) is same


def test_somebody_else_under_the_same_id_is_passed_over_and_told() -> None:
    stranger, own = earlier("2", patient_name="Schmidt^Eva"), earlier("3", study_date="20250101")
    assert latest(NOW, [stranger]).found is None
    assert latest(NOW, [stranger]).remark == OTHER_PERSON
    found = latest(NOW, [stranger, own])
    assert found.found is own and found.remark == OTHER_PERSON
    assert latest(NOW, [own]).remark is None


@pytest.mark.parametrize(
    ("before_ml", "after_ml", "expansion"),
    [
        (10.0, 13.29, False),
        (10.0, 13.31, True),
        (30.0, 36.0, False),
        (30.0, 36.01, True),
        (30.0, 20.0, False),
        (30.0, 0.0, False),
        (0.0, 5.0, False),
        (0.0, 6.5, True),
        (0.02, 0.05, False),
    ],
)
def test_expansion_is_more_than_a_third_or_six_millilitres(
    before_ml: float, after_ml: float, expansion: bool
) -> None:
    assert compared(before_ml, after_ml).expansion is expansion


def test_the_change_in_millilitres_and_percent() -> None:
    found = compared(20.0, 25.0)
    assert (found.before_ml, found.change_ml, found.change_percent) == (20.0, 5.0, 25.0)
    assert (found.study_uid, found.series_uid, found.revision) == ("2", "2.1", 1)
    assert (found.study_date, found.study_time) == ("20260101", "101500")
    assert found.remarks == ()
    assert compared(0.0, 5.0).change_percent is None


@pytest.mark.parametrize(
    ("before_ml", "after_ml", "changes", "words"),
    [
        (0.0, 5.0, {}, "nothing was segmented on the earlier CT"),
        (5.0, 0.0, {}, "nothing was segmented on the present CT"),
        (0.3, 0.6, {}, "below 1 mL"),
        (5.0, 6.0, {"model": replace(MODEL, version="2")}, "another model (test-model 1.2.3)"),
        (
            5.0,
            6.0,
            {"slices": tuple(SliceFinding("1", 5.0 * k, {}) for k in range(20))},
            "95 mm now, 145 mm then",
        ),
        (5.0, 6.0, {"slices": tuple(SliceFinding("1", 1.0 * k, {}) for k in range(146))}, "1.0 mm apart now"),
    ],
)
def test_a_doubtful_comparison_says_why(
    before_ml: float, after_ml: float, changes: dict[str, Any], words: str
) -> None:
    (remark,) = compared(before_ml, after_ml, **changes).remarks
    assert words in remark


def test_nothing_to_compare_without_a_segmentation_on_both() -> None:
    assert compare(findings(None), earlier()) is None
    assert compare(findings(1.0), earlier(volume_ml=None)) is None
