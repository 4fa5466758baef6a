"""The canary on the page Quality: what came of the last ones; send one, accept what the last one brought."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from node import canary
from node.admin.web.forms import back
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site

SHOWN = 10
Row = dict[str, Any]


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.post("/canary/run")
    async def send(request: Request, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(run_now, site, visitor)
        return await back(request)

    @router.post("/canary/accept")
    async def take(request: Request, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(accept, site, visitor)
        return await back(request)

    return router


def add_to(router: APIRouter, site: Site, gate: Gate) -> None:
    """The JSON of the same."""

    @router.get("/canaries", tags=["quality"])
    def canaries(_: Visitor = gate.viewer) -> list[Row]:
        """The latest canaries, newest first, with what came out and the seconds each step took."""
        return site.records.canaries.latest(100)


def gather(site: Site, now: float) -> Row:
    return {
        "canaries": site.records.canaries.latest(SHOWN),
        "canary_trouble": canary.trouble(site.settings, site.records, now),
    }


def run_now(site: Site, visitor: Visitor) -> None:
    """Asked for here, sent by the clock within seconds."""
    site.note(visitor, "canary-run")
    site.records.canaries.ask(canary.new_uid(), visitor.name, time.time())


def accept(site: Site, visitor: Visitor) -> None:
    site.note(visitor, "canary-accept")
    canary.accept(site.records, visitor.name, time.time())
