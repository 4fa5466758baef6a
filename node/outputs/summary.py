"""The first picture of the overlay series: the result in words. Never leaves open whether there is a result.

Drawn on black at the size of a viewport; holds no image of the patient and no name.
"""

from __future__ import annotations

import textwrap
from datetime import datetime

import numpy as np
from PIL import Image, ImageDraw

from node.domain.findings import CLASSES, Findings
from node.outputs.drawing import AMBER, BLACK, FAINT, RGB, TEXT, font, pixels, write
from node.outputs.wording import (
    CLASS_WORDS,
    CONSISTENCY_WORDS,
    EXPLANATIONS,
    HEADLINES,
    Verdict,
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
            self.y += size * 1.4


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
    page.y += 74
    page.paragraph(EXPLANATIONS[outcome], 14)
    page.y += 4


def _refusal(page: _Page, findings: Findings) -> None:
    page.y += 14
    page.put(_LEFT, "NOT ANALYSED because:", 16, AMBER, bold=True)
    page.y += 26
    page.paragraph(reason_words(findings), 16)
    page.y += 8
    page.put(_LEFT, f"Reason code: {findings.reason.code if findings.reason else 'UNKNOWN'}", 12, FAINT)
    page.y += 34
    page.paragraph(
        "Haemorrhage is neither suspected nor excluded. Read the study as if there were no AI.", 16
    )


def _table(page: _Page, findings: Findings) -> None:
    if findings.priority:
        page.put(_LEFT, "Proposed reading priority:", 14)
        page.put(
            236, str(findings.priority), 15, AMBER if findings.priority != "ROUTINE" else TEXT, bold=True
        )
    page.y += 30
    page.put(_LEFT, "AI probability", 11, FAINT)
    page.y += 18
    for name in CLASSES:
        if finding := findings.classes.get(name):
            colour = AMBER if finding.present else TEXT
            share = min(1.0, max(0.0, float(finding.probability)))
            page.put(_LEFT, CLASS_WORDS[name], 14, colour, bold=name == "any")
            page.box(188, page.y + 4, 328, page.y + 14, (40, 43, 48))
            page.box(188, page.y + 4, 188 + 140 * share, page.y + 14, colour if finding.present else FAINT)
            page.put(376, f"{share:.2f}", 14, colour, anchor="ra")
            page.put(
                392,
                "suspected" if finding.present else "not detected",
                13,
                colour if finding.present else FAINT,
            )
            page.y += 22 if name != "any" else 26
    page.y += 6


def _remarks(page: _Page, findings: Findings) -> None:
    page.paragraph(segmentation_words(findings), 14)
    if findings.consistency:
        agree = findings.consistency == "agree"
        page.paragraph(CONSISTENCY_WORDS[findings.consistency], 12, FAINT if agree else AMBER)
    for warning in findings.warnings[:2]:
        page.paragraph(f"Note: {warning}", 12, AMBER, lines=2)


def _footer(page: _Page, findings: Findings, made_at: datetime, version: str, origin: str) -> None:
    model = findings.model
    page.y = 430
    page.put(_LEFT, origin, 11, FAINT)
    page.y += 16
    page.put(
        _LEFT, f"Model {model.name} {model.version}  ·  weights {model.sha256[:12] or 'none'}", 11, FAINT
    )
    page.y += 16
    page.put(_LEFT, f"ichnode {version}  ·  {made_at:%Y-%m-%d %H:%M %Z}", 11, FAINT)
    page.y = 498
    page.put(_GRID / 2, BANNER, 14, AMBER, anchor="ms", bold=True)
