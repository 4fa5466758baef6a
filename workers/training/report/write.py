"""Puts an evaluation on disk: report.json, report.md, report.html and figures/*.png. Computes no figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.training.report import blocks, figures, text
from workers.training.report.case import Case


def write(
    folder: Path,
    title: str,
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    cases: Sequence[Case],
    *,
    about: str = "",
    limits: Sequence[str] = (),
) -> None:
    """Write the report of `summary`, which `summarise` made of these cases, replacing an older one.

    `about` says in a sentence who the patients are, `limits` what the reader must know of how the model
    was made and chosen; both stand at the beginning. `facts` (images/s, parameters, digest, ...) are
    printed as they are and must be JSON types. Raises ValueError for a fact that is NaN or infinite.
    """
    told = {"title": title, "about": about, "limits": list(limits), "facts": dict(facts), **summary}
    as_json = json.dumps(told, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    pictures = figures.draw(summary, cases)
    images = {one.name: one.png() for one in pictures}
    document = text.blocks(summary, facts, about, limits, {one.name: one.caption for one in pictures})
    kept = folder / "figures"
    kept.mkdir(parents=True, exist_ok=True)
    for old in kept.glob("*.png"):
        old.unlink()
    for name, png in images.items():
        (kept / f"{name}.png").write_bytes(png)
    (folder / "report.json").write_text(as_json, encoding="utf-8")
    (folder / "report.md").write_text(blocks.markdown(title, document), encoding="utf-8")
    (folder / "report.html").write_text(blocks.html(title, document, images), encoding="utf-8")
