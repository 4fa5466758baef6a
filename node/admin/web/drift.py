"""What the page Quality says of drift, and the page of one scanner with its plots. Judges nothing itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response

from node.admin.web import plots
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site
from node.quality.counts import FEATURES, NUMBERS
from node.watch import STILL_USED_S, reference_start

MOST_PLOTTED = 4000
Row = dict[str, Any]


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/quality/scanner")
    def scanner(request: Request, name: str = "", visitor: Visitor = gate.viewer) -> Response:
        found = courses(site, name)
        if found is None:
            raise HTTPException(404, "nothing of such a scanner was analysed here")
        return site.page(request, "scanner.html", scanner=name, features=found)

    return router


def add_to(router: APIRouter, site: Site, gate: Gate) -> None:
    """The JSON of the same."""

    @router.get("/quality/drift", tags=["quality"])
    def drift(_: Visitor = gate.viewer) -> list[Row]:
        """Each watched feature of each scanner in use, as last looked at; `drifted_since` where it drifts."""
        return site.records.drifts.all()


def gather(site: Site, now: float) -> Row:
    """How each scanner in use stands, and each feature that drifts."""
    rows, drift = site.records.drifts.all(), site.settings.drift
    used = site.records.drifts.scanners(now - STILL_USED_S)
    since_begin = site.records.drifts.scanners(reference_start(drift))
    return {
        "drifts": [row for row in rows if row["drifted_since"]],
        "scanners": [
            _standing(name, count, since_begin.get(name, 0), rows)
            for name, count in sorted(used.items(), key=lambda item: (-item[1], item[0]))
        ],
        "needed": drift.reference_studies + drift.recent_studies,
        "looked_at": max((row["looked_at"] for row in rows), default=None),
        "features_words": FEATURES,
    }


def _standing(scanner: str, recent: int, in_all: int, rows: list[Row]) -> Row:
    mine = [row for row in rows if row["scanner"] == scanner]
    drifting = sum(1 for row in mine if row["drifted_since"])
    return {"name": scanner, "recent": recent, "in_all": in_all, "watched": len(mine), "drifting": drifting}


def courses(site: Site, scanner: str) -> list[Row] | None:
    """Every watched feature of a scanner over time; None for a stranger."""
    rows = site.records.drifts.values(scanner, MOST_PLOTTED)
    if not rows:
        return None
    shifts = {row["feature"]: row for row in site.records.drifts.all() if row["scanner"] == scanner}
    drift = site.settings.drift
    sizes = (drift.reference_studies, drift.recent_studies)
    sides = site.records.drifts.sides(scanner, sizes, reference_start(drift))
    return [
        {
            "name": feature,
            "words": what,
            "shift": shifts.get(feature),
            "course": _course(feature, rows, sides[0][feature] if sides else []),
        }
        for feature, what in FEATURES.items()
    ]


def _course(feature: str, rows: list[Row], reference: list[Any]) -> plots.Course | None:
    if feature not in NUMBERS:
        return None
    values = [(row["analysed_at"], float(row[feature])) for row in rows if row[feature] is not None]
    known = [value for value in reference if value is not None]
    return plots.course(values, np.quantile(known, (0.25, 0.5, 0.75)).tolist() if known else ())
