"""The report on disk: JSON that loads, HTML that is whole and self-contained, Markdown with its pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from node.domain.findings import CLASSES
from tests.unit.reports import case, patients
from workers.training import report
from workers.training.report.blocks import Image as Picture
from workers.training.report.blocks import Table, Words, html, markdown
from workers.training.report.numbers import fact, shown

AT = dict.fromkeys(CLASSES, 0.4)
COARSE = 40
"""Dots per inch where nobody looks at the pictures."""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Fails where an element is closed that was not open, and keeps words and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    cases = patients()
    summary = report.summarise(cases, AT, draws=50)
    facts = {"parameters": 1861790, "images_per_s": 31.25, "name": "<b>default</b>"}
    report.write(
        folder, "A model & its <figures>", facts, summary, cases, about="Made up.", limits=["Not real."]
    )
    return folder


def test_the_json_holds_everything_that_was_told(written: Path) -> None:
    told = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert told["facts"]["parameters"] == 1861790 and told["limits"] == ["Not real."]
    assert told["slice"] == report.summarise(patients(), AT, draws=50)["slice"]


def test_the_page_is_whole_and_asks_nobody_for_anything(written: Path) -> None:
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    assert len(page.addresses) == len(list((written / "figures").glob("*.png"))) == 7
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "<b>default</b>" in page.words and "A model & its <figures>" in page.words


def test_it_begins_with_who_what_is_not_known_and_the_limits(written: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (written / name).read_text(encoding="utf-8")
        opening = ("Research use only", "Who was looked at", "What is not known", "Limits", "In short")
        places = [text.index(words) for words in opening]
        assert places == sorted(places)
        assert "Made up. 24 patients, 192 slices." in text and "Not real." in text
        assert "pseudo-masks" in text and "no mL can be said" in text


def test_the_markdown_names_pictures_that_are_there(written: Path) -> None:
    named = re.findall(r"\]\((figures/[^)]+)\)", (written / "report.md").read_text(encoding="utf-8"))
    assert len(named) == 7
    for name in named:
        with Image.open(written / name) as picture:
            grey = np.asarray(picture.convert("L"))
        assert min(grey.shape) > 400 and grey.std() > 5


def test_an_older_report_is_replaced(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.training.report.picture.DPI", COARSE)
    (written / "figures" / "stale.png").write_bytes(b"old")
    cases = [case(f"p{index}") for index in range(3)]
    report.write(written, "Small", {}, report.summarise(cases, {"any": 0.5}, draws=5), cases)
    assert "stale" not in {one.stem for one in (written / "figures").iterdir()}
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    assert "No mask could be judged" in page.words and "Model and run" not in page.words


@pytest.mark.parametrize("kind", ["studies only", "all negative", "one class", "one patient"])
def test_cases_that_lack_nearly_everything_still_make_a_report(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.report.picture.DPI", COARSE)
    clean: dict[str, Any] = {
        name: np.zeros(shape, np.float32) for name, shape in (("slices", (3, 6)), ("series", 6))
    }
    cases = {
        "studies only": [case(f"p{i}", study_labels=np.full(6, i % 2, np.uint8)) for i in range(6)],
        "all negative": [case(f"p{i}", labels=np.zeros((3, 6), np.uint8), **clean) for i in range(4)],
        "one class": [replace(one, truth=None, drawn=None, explanation=None) for one in patients(8)],
        "one patient": [case()],
    }[kind]
    classes = ["any"] if kind == "one class" else CLASSES
    summary = report.summarise(cases, {} if kind == "one class" else AT, classes=classes, draws=10)
    report.write(tmp_path, kind, {}, summary, cases)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "nan" not in (tmp_path / "report.md").read_text(encoding="utf-8").lower().split()


def test_a_fact_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    cases = [case()]
    with pytest.raises(ValueError, match="JSON"):
        report.write(tmp_path, "x", {"loss": float("nan")}, report.summarise(cases, AT, draws=5), cases)


def test_recipes_side_by_side() -> None:
    summary = report.summarise(patients(60), AT, draws=50)
    bare = report.summarise([case(str(index)) for index in range(3)], AT, draws=5)
    lines = report.compare(
        [("a|b", summary, {"parameters": 1000, "images_per_s": [3.04, 2.0, 4.0]}), ("bare", bare, {})]
    ).splitlines()
    assert len(lines) == 4 and all(line.replace("\\|", "").count("|") == 12 for line in lines)
    assert "a\\|b" in lines[2] and "1,000" in lines[2] and "3.0 (2.0–4.0)" in lines[2]
    assert shown(summary["slice"]["any"]["auc"]) in lines[2]
    assert re.search(r"n = \d+ slices of \d+ patients", lines[2])
    assert lines[3].startswith("| bare | – |")


def test_figures_in_words() -> None:
    assert shown([0.5, 0.25, 0.75], 2) == "0.50 (0.25–0.75)"
    assert shown([-1.0, -2.0, 0.5], 1) == "−1.0 (−2.0 to 0.5)"
    assert shown([1.0, 1.0, 1.0], 1) == "1.0 (no spread)"
    assert shown([0.5, None, None], 1) == "0.5 (no interval)"
    assert shown([None, None, None]) == shown(None) == "–"
    assert [fact(value) for value in (True, None, 12345, 0.5, [1, 2], {"a": 1})] == [
        "yes", "–", "12,345", "0.5", "1, 2", "a: 1",
    ]  # fmt: skip


def test_text_is_escaped_in_both_forms() -> None:
    blocks = [Words("a < b & c"), Table(("x",), [("<i>|",)]), Picture("p", 'said "so"')]
    page = html("t", blocks, {"p": b"png"})
    Page(page)
    assert "<i>" not in page and "a &lt; b &amp; c" in page
    assert "&lt;i>\\|" in markdown("t", blocks)


def test_seeds_stand_each_alone_with_their_spread(tmp_path: Path) -> None:
    def one(seed: int, auc: float) -> dict[str, object]:
        return {"recipe": "rim", "seed": seed, "slice_auc": auc, "study_auc": 0.9, "sensitivity": None,
                "specificity": 0.8, "dice_pooled": None}  # fmt: skip

    cases = patients(6)
    summary = report.summarise(cases, {"any": 0.5}, draws=20)
    report.write(tmp_path / "single", "t", {}, summary | {"seeds": [one(1, 0.93)]}, cases)
    assert "Seeds" not in (tmp_path / "single" / "report.md").read_text(encoding="utf-8")
    report.write(
        tmp_path / "three", "t", {}, summary | {"seeds": [one(1, 0.93), one(2, 0.91), one(3, 0.94)]}, cases
    )
    told = (tmp_path / "three" / "report.md").read_text(encoding="utf-8")
    assert "| rim, seed 2 | 0.910 | 0.900 | – | 0.800 | – |" in told
    assert "| rim, lowest to highest | 0.910 to 0.940 | 0.900 to 0.900 | – | 0.800 to 0.800 | – |" in told
