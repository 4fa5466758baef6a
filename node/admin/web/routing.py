"""The page that tells which destination gets what and why, and tries rules on studies seen. Saves none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from node.admin.web.gate import Gate, Visitor, fields
from node.admin.web.site import Site
from node.domain.errors import SettingsError
from node.domain.routing import FINDINGS, Part
from node.routing import Ruled, Trial, try_out
from node.settings.routing import read_drafts, write_drafts

TRIED = 40


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/routing")
    def routing(request: Request, q: str = "", visitor: Visitor = gate.admin) -> Response:
        site.look(visitor, "routing", request)
        return shown(site, request, q.strip()[:128])

    @router.post("/routing")
    async def try_rules(request: Request, visitor: Visitor = gate.admin) -> Response:
        """The same page by the rules of the form; nothing is saved."""
        form = await fields(request)
        await run_in_threadpool(site.look, visitor, "routing", request, detail="tried rules")
        search, draft = form.get("q", "").strip()[:128], form.get("draft", "").replace("\r\n", "\n")
        return await run_in_threadpool(shown, site, request, search, draft)

    return router


def shown(site: Site, request: Request, search: str, draft: str | None = None) -> Response:
    destinations: Sequence[Ruled] = site.settings.destination
    error = ""
    if draft is not None:
        try:
            destinations = read_drafts(draft)
        except SettingsError as wrong:
            error = str(wrong)
    now = time.time()
    trials = try_out(destinations, site.records, now, TRIED, search)
    standing = try_out(site.settings.destination, site.records, now, TRIED, search) if draft else trials
    return site.page(
        request,
        "routing.html",
        status=400 if error else 200,
        names=[d.name for d in destinations],
        rows=[row_of(trial, before) for trial, before in zip(trials, standing, strict=True)],
        draft=write_drafts(site.settings.destination) if draft is None else draft,
        is_draft=draft is not None and not error,
        error=error,
        search=search,
        findings=FINDINGS,
    )


def row_of(trial: Trial, standing: Trial) -> dict[str, Any]:
    """A study with its facts in words, and for each destination what it gets, and whether that changes."""
    case = trial.case
    cells = {}
    for name, decision in trial.decisions.items():
        before = standing.decisions.get(name)
        cells[name] = {
            "send": parts(decision.send),
            "why": decision.why,
            "changed": before is None or before.send != decision.send,
            "before": parts(before.send) if before else "not a destination yet",
        }
    return {
        "job": trial.row,
        "findings": ", ".join(name.replace("_", " ") for name in FINDINGS if name in case.findings),
        "facts": [
            ("from", ", ".join(sorted(case.source_aes))),
            ("station", case.station),
            ("time", f"{case.time:%H:%M}" if case.time else ""),
            ("date", case.day.isoformat() if case.day else ""),
        ],
        "priority": case.priority,
        "cells": cells,
    }


def parts(send: frozenset[Part]) -> str:
    return " + ".join(part.value for part in Part if part in send) or "nothing"
