"""Which destination gets what: each condition, the order of rules, what is not known, and their settings."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, time
from typing import Any

import pytest
from pydantic import ValidationError

from node.domain.errors import SettingsError
from node.domain.findings import Priority
from node.domain.routing import Case, Part, Rule, decide, findings_of, read_date, read_time
from node.settings import Destination, Route
from node.settings.routing import read_drafts, write_drafts
from tests import factories

SERIES = factories.ct_series(2, 8)
BOTH = frozenset({Part.RESULTS, Part.SOURCE})
RESULTS = frozenset({Part.RESULTS})
NOTHING: frozenset[Part] = frozenset()
NIGHT = (time(17, 0), time(7, 30))
CASE = Case(
    frozenset({"any", "subdural"}),
    Priority.STAT,
    frozenset({"ER_CT"}),
    "CT1",
    time(23, 10),
    date(2026, 11, 21),  # a Saturday
    0.0,
)
UNKNOWN = Case(frozenset({"none"}), None)


def test_without_rules_a_destination_gets_every_result() -> None:
    assert decide((), UNKNOWN).send == RESULTS
    assert decide((), replace(CASE, findings=frozenset({"not_analysed"}))).send == RESULTS


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        (Rule(finding=("subdural", "epidural")), {"findings": frozenset({"any", "subarachnoid"})}),
        (Rule(priority=(Priority.STAT, Priority.HIGH)), {"priority": Priority.ROUTINE}),
        (Rule(source_ae=("er_*",)), {"source_aes": frozenset({"WARD_CT"})}),
        (Rule(station=("CT?",)), {"station": "CT12"}),
        (Rule(hours=NIGHT), {"time": time(7, 30)}),
        (Rule(hours=NIGHT), {"time": time(16, 59)}),
        (Rule(hours=(time(20), time(23, 30))), {"time": time(23, 30)}),
        (Rule(days=("sat", "sun")), {"day": date(2026, 11, 20)}),
        (Rule(older_than_days=-1.0), {"age_days": -1.0}),
    ],
)
def test_each_condition_fits_and_fails(rule: Rule, changed: dict[str, Any]) -> None:
    assert decide([rule], CASE).send == RESULTS
    decision = decide([rule], replace(CASE, **changed))
    assert (decision.send, decision.rule) == (NOTHING, None)
    assert decision.why.startswith("no rule fits: rule 1 wants ")


def test_the_night_lasts_over_midnight() -> None:
    for hour, sent in ((17, True), (23, True), (0, True), (7, True), (8, False), (16, False)):
        assert bool(decide([Rule(hours=NIGHT)], replace(CASE, time=time(hour))).send) is sent


def test_the_first_rule_that_fits_decides_and_says_why() -> None:
    rules = (
        Rule(NOTHING, older_than_days=7),
        Rule(BOTH, finding=("any",), hours=NIGHT),
        Rule(RESULTS, finding=("any",)),
    )
    night = decide(rules, CASE)
    assert (night.send, night.rule) == (BOTH, 2)
    assert night.why == "rule 2: finding any (is any, subdural); time 17:00-07:30 (is 23:10)"
    assert decide(rules, replace(CASE, time=time(12))).rule == 3
    assert decide(rules, replace(CASE, age_days=8.0)).send == NOTHING
    assert decide(rules, replace(CASE, findings=frozenset({"none"}))).rule is None


@pytest.mark.parametrize(
    "condition",
    [
        {"priority": (Priority.STAT,)},
        {"source_ae": ("X",)},
        {"station": ("X",)},
        {"hours": NIGHT},
        {"days": ("mon",)},
        {"older_than_days": 7.0},
    ],
)
def test_what_nobody_knows_is_taken_in_favour_of_sending(condition: dict[str, Any]) -> None:
    sends = decide([Rule(**condition)], UNKNOWN)
    assert sends.send == RESULTS and "(not known)" in sends.why
    withheld = decide([Rule(NOTHING, **condition), Rule(BOTH)], UNKNOWN)
    assert (withheld.send, withheld.rule) == (BOTH, 2)


def test_who_was_told_before_is_told_the_rest() -> None:
    rules = [Rule(BOTH, finding=("any",))]
    corrected = replace(CASE, findings=frozenset({"none"}))
    assert decide(rules, corrected).send == NOTHING
    again = decide(rules, corrected, told_before=True)
    assert again.send == RESULTS and "before" in again.why
    assert decide(rules, CASE, told_before=True).why.startswith("rule 1")


def test_the_names_of_a_result() -> None:
    positive = factories.analysed(SERIES, {"any": 0.9, "subdural": 0.8})
    assert findings_of(positive) == {"any", "subdural"}
    assert findings_of(factories.analysed(SERIES)) == {"none"}
    assert findings_of(factories.not_analysed(SERIES)) == findings_of(None) == {"not_analysed"}


def test_times_and_dates_of_headers() -> None:
    assert read_time("231059.123") == time(23, 10)
    assert read_time("23") == time(23, 0)
    assert read_date("20261121") == date(2026, 11, 21)
    for junk in ("", "x", "9999", "261121", "-1"):
        assert read_date(junk) is None
    assert [read_time(junk) for junk in ("", "ab", "25", "1299")] == [None] * 4


def test_settings_become_rules_and_name_what_is_wrong() -> None:
    route = Route(finding="any", time="17:00-07:30", send=["results", "source"], days="sat")  # type: ignore[arg-type]
    assert route.rule == Rule(BOTH, ("any",), hours=NIGHT, days=("sat",))
    assert Route(send=()).rule.send == NOTHING
    for wrong, text in (
        ({"finding": "bleed"}, "choose from any, epidural"),
        ({"time": "25:00-07:00"}, "hour must be"),
        ({"time": "07:00-07:00"}, "leave it out"),
        ({"time": "night"}, "pattern"),
        ({"send": "images"}, "source"),
        ({"priority": "URGENT"}, "STAT"),
        ({"colour": "red"}, "colour"),
    ):
        with pytest.raises(ValidationError, match=text):
            Route(**wrong)  # type: ignore[arg-type]


def test_drafts_are_read_as_they_are_written() -> None:
    routes = (
        Route(finding=("any",), station=('CT "1"',), time="17:00-07:30", send=tuple(Part)),
        Route(older_than_days=7, send=()),
        Route(),
    )
    whole = Destination(name="on-call", ae_title="VIEWER", rules=routes)
    (draft,) = read_drafts(write_drafts([whole]))
    assert (draft.name, draft.rules, draft.routing) == ("on-call", routes, whole.routing)
    assert read_drafts('[[destination]]\nname = "a"\nhost = "x"')[0].rules == ()
    for wrong, told in (
        ("x =", "no TOML"),
        ("", r"there is no \[\[destination\]\]"),
        ('[[destination]]\nname=""', "name"),
    ):
        with pytest.raises(SettingsError, match=told):
            read_drafts(wrong)
