"""The first picture of the overlay series: the result in words. Never leaves open whether there is a result.

Drawn on black at the size of a viewport; holds no image of the patient and no name.
"""

from __future__ import annotations

import textwrap
from datetime import datetime

import numpy as np
from PIL import Image, ImageDraw

from node.domain.findings import CLASSES, ClassFinding, Consistency, Findings, Priority
from node.outputs.drawing import AMBER, BLACK, FAINT, RGB, TEXT, font, pixels, write
from node.outputs.wording import (
    CLASS_WORDS,
    CONSISTENCY_WORDS,
    EXPLANATIONS,
    HEADLINES,
    Verdict,
    comparison_words,
    measurement_words,
    millilitres,
    priority_words,
    probability_words,
    reason_words,
    segmentation_words,
    verdict,
)

BANNER = "RESEARCH USE ONLY  –  NOT FOR DIAGNOSIS"
_BOXES: dict[Verdict, tuple[RGB, RGB]] = {  # (background, ink); no green: nothing here is an all-clear
    Verdict.SUSPECTED: ((150, 20, 24), (255, 255, 255)),
    Verdict.INDETERMINATE: ((178, 112, 0), (255, 255, 255)),
    Verdict.NOT_DETECTED: ((48, 62, 80), (235, 240, 245)),
    Verdict.NOT_ANALYSED: ((255, 190, 60), (0, 0, 0)),
}
_GRID = 512
"""Lengths below are in pixels of a 512 x 512 picture."""
_LEFT, _RIGHT = 24, 488
_BAR, _WORDS = (170, 290), 346
_FOOTER = 447
_LEADING = 1.35


class _Page:
    """A cursor that moves down a square page."""

    def __init__(self, side_px: int) -> None:
        self.image = Image.new("RGB", (side_px, side_px), BLACK)
        self.pen = ImageDraw.Draw(self.image)
        self.unit = side_px / _GRID
        self.y = 22.0

    def px(self, length: float) -> int:
        return max(1, round(length * self.unit))

    def put(
        self, x: float, words: str, size: float, colour: RGB = TEXT, anchor: str = "la", bold: bool = False
    ) -> None:
        xy = (x * self.unit, self.y * self.unit)
        write(self.pen, xy, words, self.px(size), colour, anchor, bold)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        self.pen.rectangle([v * self.unit for v in (x0, y0, x1, y1)], fill=colour)

    def paragraph(self, words: str, size: float, colour: RGB = TEXT, lines: int = 9) -> None:
        """Wrapped between the margins, cut off with an ellipsis after so many lines."""
        mean = font(self.px(size)).getlength("abcdefghijklmnopqrstuvwxyz ") / 27
        columns = int((_RIGHT - _LEFT) * self.unit / mean)
        for line in textwrap.wrap(words, columns, max_lines=lines, placeholder=" …"):
            self.put(_LEFT, line, size, colour)
            self.y += size * _LEADING


def render(
    findings: Findings, made_at: datetime, software_version: str, origin: str, side_px: int
) -> np.ndarray:
    """(side, side, 3) uint8; `origin` says which series this is about."""
    page = _Page(side_px)
    page.put(_LEFT, "AI head CT triage  ·  intracranial haemorrhage", 14, FAINT)
    page.y += 28
    _headline(page, findings)
    if verdict(findings) is Verdict.NOT_ANALYSED:
        _refusal(page, findings)
    else:
        _table(page, findings)
        _remarks(page, findings)
    _footer(page, findings, made_at, software_version, origin)
    return pixels(page.image)


def _headline(page: _Page, findings: Findings) -> None:
    outcome = verdict(findings)
    background, ink = _BOXES[outcome]
    page.box(_LEFT, page.y, _RIGHT, page.y + 62, background)
    middle = ((_LEFT + _RIGHT) / 2 * page.unit, (page.y + 31) * page.unit)
    page.pen.text(middle, HEADLINES[outcome], fill=ink, font=font(page.px(27), True), anchor="mm")
    page.y += 72
    page.paragraph(EXPLANATIONS[outcome], 14)


def _refusal(page: _Page, findings: Findings) -> None:
    page.y += 14
    page.put(_LEFT, "NOT ANALYSED because:", 16, AMBER, bold=True)
    page.y += 26
    page.paragraph(reason_words(findings), 16, lines=8)  # the report holds them all
    page.y += 8
    page.put(_LEFT, f"Reason code: {findings.reason.code if findings.reason else 'UNKNOWN'}", 12, FAINT)
    page.y += 34
    page.paragraph(
        "Haemorrhage is neither suspected nor excluded. Read the study as if there were no AI.", 16
    )


def _table(page: _Page, findings: Findings) -> None:
    if findings.priority:
        colour = TEXT if findings.priority is Priority.ROUTINE else AMBER
        page.put(_LEFT, priority_words(findings, since=False), 14, colour)
        page.y += 18
    page.y += 8
    page.put(_LEFT, "AI probability", 11, FAINT)
    parts_ml = findings.segmentation.subtypes_ml if findings.segmentation else {}
    if parts_ml:
        page.put(_RIGHT, "segmented", 11, FAINT, anchor="ra")
    page.y += 16
    for name in CLASSES:
        if name in findings.not_evaluated:
            page.put(_LEFT, CLASS_WORDS[name], 13, FAINT)
            page.put(_WORDS, "not evaluated", 13, FAINT)
        elif finding := findings.classes.get(name):
            _row(page, name, finding)
            if name in parts_ml:
                page.put(_RIGHT, millilitres(parts_ml[name]), 13, TEXT, anchor="ra")
        page.y += 20
    page.y += 6


def _row(page: _Page, name: str, finding: ClassFinding) -> None:
    colour = AMBER if finding.present else TEXT
    share = min(1.0, max(0.0, float(finding.probability)))
    page.put(_LEFT, CLASS_WORDS[name], 13, colour, bold=name == "any")
    first, last = _BAR
    page.box(first, page.y + 3, last, page.y + 13, (40, 43, 48))
    page.box(
        first, page.y + 3, first + (last - first) * share, page.y + 13, colour if finding.present else FAINT
    )
    page.put(_WORDS - 12, probability_words(share), 13, colour, anchor="ra")
    page.put(
        _WORDS, "suspected" if finding.present else "not detected", 13, colour if finding.present else FAINT
    )


def _remarks(page: _Page, findings: Findings) -> None:
    """As many as there is room for: the report holds them all."""
    agree = findings.consistency is Consistency.AGREE
    comparison = findings.comparison
    lines = [(segmentation_words(findings), 13, TEXT)]
    if sizes := measurement_words(findings, by_subtype=False):
        lines.append((" ".join(sizes), 13, TEXT))
    for words in comparison_words(findings):
        lines.append(
            (words, 13, AMBER if comparison and (comparison.expansion or comparison.remarks) else TEXT)
        )
    if findings.consistency:
        lines.append((CONSISTENCY_WORDS[findings.consistency], 12, FAINT if agree else AMBER))
    lines += [(f"Note: {warning}", 12, AMBER) for warning in findings.warnings]
    for number, (words, size, colour) in enumerate(lines):
        is_last = number == len(lines) - 1
        room = int((_FOOTER - 2 - page.y) / (size * _LEADING)) - (not is_last)
        if room < 1:
            page.paragraph("… more remarks in the report", 11, AMBER)
            return
        page.paragraph(words, size, colour, lines=room)


def _footer(page: _Page, findings: Findings, made_at: datetime, version: str, origin: str) -> None:
    model = findings.model
    page.y = _FOOTER
    page.put(_LEFT, f"{origin}  ·  {made_at:%Y-%m-%d %H:%M %Z}", 10, FAINT)
    page.y += 13
    weights = f"weights {model.sha256[:12] or 'none'}"
    page.paragraph(f"Model {model.name} {model.version}, {weights}  ·  ichnode {version}", 10, FAINT, 2)
    page.y = 498
    page.put(_GRID / 2, BANNER, 14, AMBER, anchor="ms", bold=True)
