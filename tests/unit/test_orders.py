"""How urgent a study was ordered, and whose turn it is: the pure rules, and HL7 messages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from node.domain.errors import PermanentError
from node.domain.orders import (
    OrderPriority,
    Said,
    Source,
    Subject,
    Turn,
    Waiting,
    concerns,
    most_urgent,
    next_turn,
    read_priority,
)
from node.orders import messages
from node.settings import Hl7Orders, Orders

STAT, HIGH, ROUTINE = OrderPriority.STAT, OrderPriority.HIGH, OrderPriority.ROUTINE
USUAL = Hl7Orders().accession


@pytest.mark.parametrize(
    ("text", "priority"),
    [("STAT", STAT), (" s ", STAT), ("A", HIGH), ("P", HIGH), ("C", HIGH), ("T", OrderPriority.MEDIUM),
     ("R", ROUTINE), ("MED", OrderPriority.MEDIUM), ("LOW", OrderPriority.LOW), ("", None), ("17", None)],
)  # fmt: skip
def test_the_words_of_both_worlds_are_read(text: str, priority: OrderPriority | None) -> None:
    assert read_priority(text) is priority


def test_an_order_is_about_the_study_with_its_uid_or_its_number_and_patient() -> None:
    study = Subject("1.2", "ACC1", ("P1",))
    assert concerns(Subject("1.2"), study)
    assert concerns(Subject("", "ACC1", ("X", "P1")), study)
    assert concerns(Subject("", "ACC1"), study)
    assert not concerns(Subject("", "ACC1", ("P2",)), study), "a number of another hospital"
    assert not concerns(Subject("", "ACC2", ("P1",)), study)
    assert not concerns(Subject("", "", ("P1",)), study)
    assert not concerns(Subject("", ""), Subject("1.2")), "what is empty matches nothing"


def test_the_most_urgent_word_counts_whoever_said_it() -> None:
    about = Subject("1.2")
    words = [
        Said(Source.HEADER, ROUTINE, about, 1.0),
        Said(Source.HL7, STAT, about, 3.0, "later"),
        Said(Source.CALLER, STAT, about, 2.0, "first"),
    ]
    assert (most_urgent(words) or words[0]).reference == "first"
    assert most_urgent([]) is None


def test_stat_goes_first_and_what_aged_takes_turns_with_it() -> None:
    stat, fresh, old = Waiting(1, 900.0), Waiting(2, 950.0), Waiting(3, 100.0)
    assert next_turn(stat, fresh, 500.0, owed=True) == (stat, Turn.STAT)
    assert next_turn(stat, old, 500.0, owed=False) == (stat, Turn.STAT)
    assert next_turn(stat, old, 500.0, owed=True) == (old, Turn.AGED)
    assert next_turn(None, old, 500.0, owed=False) == (old, Turn.AGED)
    assert next_turn(None, fresh, 500.0, owed=True) == (fresh, Turn.ROUTINE)
    assert next_turn(None, None, 500.0, owed=True) is None


def message(*segments: str, kind: str = "ORM^O01", charset: str = "") -> bytes:
    msh = f"MSH|^~\\&|RIS|HOSP|ICHNODE||20261121120000||{kind}|M1|P|2.5{'|' * 6}{charset}"
    return "\r".join([msh, *segments]).encode() + b"\r"


PID = "PID|1||P1^^^HOSP~A77^^^OTHER||Doe^Jane"


def only(*segments: str, **options: str) -> messages.Order:
    (order,) = messages.orders(messages.parse(message(PID, *segments, **options)), USUAL)
    return order


def test_the_priority_is_found_where_each_version_of_hl7_keeps_it() -> None:
    assert only("ORC|NW|PL1|FI1", "OBR|1|PL1|FI1", "TQ1|1||||||||S").priority is STAT
    assert only("ORC|NW|PL1|FI1||||1^once^^^^S", "OBR|1|PL1|FI1").priority is STAT
    assert only("ORC|NW|PL1|FI1", f"OBR|1|PL1|FI1{'|' * 24}1^^^^^A").priority is HIGH
    assert only("ORC|NW|PL1|FI1", "OBR|1|PL1|FI1||S").priority is STAT
    plain = only("ORC|NW|PL1|FI1", "OBR|1|PL1|FI1")
    assert plain.priority is None and messages.said(plain, "M1", 5.0).priority is ROUTINE
    assert only("ORC|NW|PL1|FI1", "OBR|1|PL1|FI1", "TQ1|1||||||||??").raw_priority == "??"


def test_the_study_is_found_by_uid_number_and_every_id_of_the_patient() -> None:
    order = only("ORC|NW|PL1|FI1", f"OBR|1|PL1|FI1{'|' * 15}ACC9", "ZDS|1.2.3^^Application^DICOM")
    assert order.about == Subject("1.2.3", "ACC9", ("P1", "A77"), "PL1")
    assert only("ORC|NW|PL1|FI1^RIS", "OBR|1").about.accession_number == "FI1"
    assert only("ORC|NW", "OBR|1", "IPC|ACC3|RP1|1.2.4|SPS1", kind="OMI^O23").about == Subject(
        "1.2.4", "ACC3", ("P1", "A77")
    )


def test_a_message_may_bring_separators_of_its_own() -> None:
    own = message("PID|1||P1$$$HOSP#X@A77", "ORC|NW||FI1$RIS", "TQ1|1||||||||S$STAT", kind="ORM$O01")
    read = messages.parse(own.replace(b"^~\\&", b"$@!#"))
    assert messages.kind(read) == ("ORM", "O01")
    (order,) = messages.orders(read, USUAL)
    assert order.about == Subject("", "FI1", ("P1", "A77"))
    assert order.priority is STAT


def test_separators_that_stand_in_a_value_are_read_as_what_they_are() -> None:
    order = only(r"ORC|NW||A\T\1\F\2\E\3", "OBR|1")
    assert order.about.accession_number == r"A&1|2\3"
    assert only(r"ORC|NW||A\1", "OBR|1").about.accession_number == r"A\1", "no escape sequence"


def test_what_pads_a_value_is_no_part_of_it() -> None:
    """Old senders fill fields up with NUL, which PostgreSQL does not take, and which no study has."""
    order = only("ORC|NW|PL1\0\0|FI1\0", "OBR|1", "TQ1|1||||||||S\0")
    assert (order.about.accession_number, order.about.placer_order_number) == ("FI1", "PL1")
    assert order.priority is STAT


def test_a_field_that_is_emptied_says_nothing() -> None:
    """Two double quotes mean null (HL7 v2.5.1, 2.5.3)."""
    order = only("ORC|NW||FI1", f'OBR|1||{"|" * 15}""', 'ZDS|""', 'TQ1|1||||||||""')
    assert order.about == Subject("", "FI1", ("P1", "A77"))
    assert order.raw_priority == ""


def test_each_order_of_a_message_is_read_by_itself() -> None:
    raw = message(
        PID,
        "ORC|NW||A1",
        "OBR|1||A1",
        "TQ1|1||||||||S",
        "ORC|CA||A2",
        "OBR|2||A2",
        "ORC|XO||A3",
        "OBR|3||A3||R",
    )
    found = messages.orders(messages.parse(raw), USUAL)
    assert [(o.about.accession_number, o.priority, o.cancelled) for o in found] == [
        ("A1", STAT, False), ("A2", None, True), ("A3", ROUTINE, False)
    ]  # fmt: skip


def test_characters_beyond_ascii_are_read_as_the_message_says() -> None:
    raw = message("PID|1||Pä1", "ORC|NW||A1", charset="UNICODE UTF-8")
    assert messages.orders(messages.parse(raw), USUAL)[0].about.patient_ids == ("Pä1",)


@pytest.mark.parametrize("raw", [b"", b"MSH", b"PID|1", b"\x00\xff" * 40, b"MSH|^~\\&"])
def test_what_is_no_message_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(PermanentError, match=r"HL7|ORC"):
        messages.orders(messages.parse(raw), USUAL)


def test_an_order_that_names_no_study_is_refused_with_the_fields_looked_at() -> None:
    with pytest.raises(PermanentError, match="OBR-18"):
        only("ORC|NW", "OBR|1")
    with pytest.raises(PermanentError, match="no order"):
        messages.orders(messages.parse(message(PID)), USUAL)


def test_a_port_open_to_other_machines_names_who_may_connect() -> None:
    with pytest.raises(ValidationError, match=r"orders\.hl7\.addresses"):
        Hl7Orders(host="0.0.0.0", port=2575)
    assert Hl7Orders(host="0.0.0.0", port=2575, addresses=("10.0.0.0/8",)).port == 2575
    with pytest.raises(ValidationError, match=r"10\.0\.0\.0/24|ten"):
        Hl7Orders(addresses=("ten",))
    with pytest.raises(ValidationError, match="OBR-18"):
        Hl7Orders(accession=("OBR18",))


def test_what_goes_first_is_a_setting() -> None:
    assert Orders().rules.stat == (STAT,)
    assert Orders(stat_from="HIGH", age_min=5).rules.stat == (STAT, HIGH)
    assert Orders(age_min=5).rules.age_s == 300
