"""The page of what archives hold and never came here, with buttons to compare, fetch and dismiss."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from node.admin.web.deeds import Deeds
from node.admin.web.forms import back, row_ids
from node.admin.web.gate import Gate, Visitor, fields
from node.admin.web.site import Site
from node.domain.lifecycle import GapState
from node.reconcile import default_days
from node.store.gaps import STANDING

SHOWN = 200
SHOWS = {"standing": STANDING, "dismissed": (GapState.DISMISSED,), "closed": (GapState.CLOSED,)}


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    deeds = Deeds(site)

    @router.get("/missing")
    def missing(
        request: Request, show: str = "standing", archive: str = "", visitor: Visitor = gate.viewer
    ) -> Response:
        site.look(visitor, "missing", request)
        return site.page(request, "missing.html", **gather(site, show, archive))

    @router.post("/comparisons")
    async def compare(request: Request, visitor: Visitor = gate.admin) -> Response:
        form = await fields(request)
        days = (form.get("since", "").replace("-", ""), form.get("until", "").replace("-", ""))
        await run_in_threadpool(deeds.compare, visitor, form.get("archive", ""), days)
        return await back(request)

    @router.post("/gaps/fetch")
    async def fetch(request: Request, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.fetch_gaps, visitor, row_ids(await fields(request)))
        return await back(request)

    @router.post("/gaps/dismiss")
    async def dismiss(request: Request, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.dismiss_gaps, visitor, row_ids(await fields(request)))
        return await back(request)

    return router


def gather(site: Site, show: str, archive: str) -> dict[str, Any]:
    names = [a.name for a in site.settings.archive]
    latest, now = site.records.gaps.latest(names), time.time()
    show = show if show in SHOWS else "standing"
    counts = site.records.gaps.counts()
    return {
        "archives": [
            {
                "settings": a,
                "last": latest.get(a.name),
                "days": default_days(a, now, site.settings.web.time_zone),
                "missing": sum(count for (name, _), count in counts.items() if name == a.name),
            }
            for a in site.settings.archive
        ],
        "rows": site.records.gaps.rows(SHOWS[show], SHOWN, archive),
        "show": show,
        "shows": list(SHOWS),
        "archive": archive,
        "shown": SHOWN,
    }
