"""The page in words: what is measured, what changed, what was not evaluated; all of it above the footer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import ImageDraw

from node.domain.findings import (
    SUBTYPES,
    Consistency,
    Findings,
)
from node.outputs import summary
from node.outputs.wording import millilitres, moment, priority_words, probability_words
from tests.factories import GROWN, MADE_AT, MEASURED, analysed, ct_series, not_analysed


def positive(**changes: Any) -> Findings:
    return analysed(ct_series(2, 16), {"any": 0.999, "subdural": 0.81}, **changes)


def page(monkeypatch: pytest.MonkeyPatch, findings: Findings) -> list[tuple[str, float]]:
    """What is written, and at which height of 512."""
    said: list[tuple[str, float]] = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda _, xy, words, *a, **k: said.append((words, xy[1]))
    )
    summary.render(findings, MADE_AT, "0.1.0", "Series 2", 512)
    return said


def text_of(said: list[tuple[str, float]]) -> str:
    return " ".join(words for words, _ in said)


def test_measurements_and_volumes_by_subtype(monkeypatch: pytest.MonkeyPatch) -> None:
    said = page(monkeypatch, positive(segmentation=MEASURED))
    text = text_of(said)
    assert "Segmented volume: 12.3 mL on 3 slices, left." in text
    assert "Largest axial diameter 41 mm; 2 separate parts." in text
    assert "10.5 mL (40 x 22 x 24 mm)." in text
    heights = dict(said)
    assert heights["9.1 mL"] == heights["Subdural"] and heights["3.2 mL"] == heights["Subarachnoid"]
    assert ">0.99" in text and "1.00" not in text


def test_expansion_is_told_beside_the_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(page(monkeypatch, positive(segmentation=MEASURED, comparison=GROWN)))
    assert "Proposed reading priority: STAT - haematoma expansion" in text
    assert (
        "HAEMATOMA EXPANSION since the CT of 2026-11-19 22:15: 8.0 mL before, change +4.3 mL, +54 %." in text
    )
    assert "unreliable" not in text


def test_a_doubtful_comparison_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = replace(
        GROWN, expansion=False, change_ml=-1.0, change_percent=None, remarks=("another model",)
    )
    text = text_of(page(monkeypatch, positive(segmentation=MEASURED, comparison=doubtful)))
    assert "Comparison unreliable: another model." in text
    assert "EXPANSION" not in text and "change -1.0 mL." in text


def test_what_the_model_cannot_tell_is_not_called_undetected(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = positive(segmentation=None, consistency=None)
    only = replace(findings, classes={"any": findings.classes["any"]}, not_evaluated=SUBTYPES)
    words = [said for said, _ in page(monkeypatch, only)]
    assert words.count("not evaluated") == len(SUBTYPES)
    assert "not detected" not in words


@pytest.mark.parametrize("remarks", [0, 1, 6])
def test_remarks_end_above_the_footer_and_say_when_there_are_more(
    monkeypatch: pytest.MonkeyPatch, remarks: int
) -> None:
    warnings = tuple(
        f"remark number {n} of some length about the geometry of the series" for n in range(remarks)
    )
    findings = positive(
        segmentation=MEASURED,
        comparison=replace(GROWN, remarks=("another model", "other slices")),
        consistency=Consistency.SUBTYPE_DISAGREEMENT,
        warnings=warnings,
    )
    said = page(monkeypatch, findings)
    footer = next(height for words, height in said if words.startswith("Series 2"))
    after = [words for words, height in said if height > footer]
    assert all(words.startswith(("Model", "RESEARCH")) for words in after), after
    assert ("… more remarks in the report" in text_of(said)) == (remarks > 0)


def test_a_long_reason_ends_above_the_footer(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = not_analysed(ct_series(2, 16), text="pixel data of one image cannot be decoded, " * 20)
    said = page(monkeypatch, findings)
    footer = next(height for words, height in said if words.startswith("Series 2"))
    (*_, last) = [height for words, height in said if words.endswith(("AI.", "…"))]
    assert last + 16 <= footer


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "<0.01"),
        (0.009, "<0.01"),
        (0.01, "0.01"),
        (0.5, "0.50"),
        (0.99, "0.99"),
        (0.994, ">0.99"),
        (1.0, ">0.99"),
    ],
)
def test_no_probability_is_certain(probability: float, words: str) -> None:
    assert probability_words(probability) == words


@pytest.mark.parametrize(
    ("volume_ml", "words"),
    [(0.0, "0.0 mL"), (0.003, "0.01 mL"), (0.42, "0.42 mL"), (1.04, "1.0 mL"), (25, "25.0 mL")],
)
def test_small_volumes_do_not_read_as_none(volume_ml: float, words: str) -> None:
    assert millilitres(volume_ml) == words


@pytest.mark.parametrize(
    ("date", "time", "words"), [("20261119", "221500", "2026-11-19 22:15"), ("20261119", "", "2026-11-19")]
)
def test_moments_as_far_as_they_are_known(date: str, time: str, words: str) -> None:
    assert moment(replace(GROWN, study_date=date, study_time=time)) == words


def test_a_comparison_changes_no_priority() -> None:
    shrunk = replace(GROWN, expansion=False, change_ml=-5.0)
    assert priority_words(positive(comparison=shrunk)) == "Proposed reading priority: STAT"
    assert priority_words(positive(priority=None)) == ""
