"""The buttons of the pages: forms that act and lead back to where they stood. Shows nothing itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from node.admin.web.deeds import Deeds
from node.admin.web.forms import back, row_ids, when
from node.admin.web.gate import Gate, RowId, Visitor, fields
from node.admin.web.quality import period_start
from node.admin.web.site import Site
from node.domain.findings import SUBTYPES
from node.domain.opinion import Opinion, Wrong


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    deeds = Deeds(site)

    def on_job(path: str, act: Callable[[Visitor, int], None], needed: Visitor) -> None:
        @router.post(f"{path}/{{number}}")
        async def press(request: Request, number: RowId, visitor: Visitor = needed) -> Response:
            await run_in_threadpool(act, visitor, number)
            return await back(request)

    def on_result(path: str, act: Callable[[Visitor, int, float | None], None]) -> None:
        @router.post(f"{path}/{{number}}")
        async def press(request: Request, number: RowId, visitor: Visitor = gate.viewer) -> Response:
            await run_in_threadpool(act, visitor, number, when(await fields(request), "read"))
            return await back(request)

    on_result("/acknowledge", deeds.acknowledge)
    on_result("/agree", lambda who, job, read: deeds.judge(who, job, Opinion.AGREE, read=read))
    on_job("/unread", deeds.mark_unread, gate.viewer)
    on_job("/jobs/retry", deeds.retry_job, gate.admin)
    on_job("/jobs/cancel", deeds.cancel, gate.admin)
    on_job("/jobs/reanalyse", deeds.reanalyse, gate.admin)
    on_job("/deliveries/retry", deeds.retry_delivery, gate.admin)
    on_job("/alerts/retry", deeds.retry_alert, gate.admin)

    @router.post("/disagree/{number}")
    async def disagree(request: Request, number: RowId, visitor: Visitor = gate.viewer) -> Response:
        """With what is wrong, where the form says so."""
        form = await fields(request)
        why = Wrong(form["why"]) if form.get("why") in tuple(Wrong) else Wrong.UNSPECIFIED
        actual = [name for name in form.get("actual", "").split(",") if name in SUBTYPES]
        read = when(form, "read")
        await run_in_threadpool(deeds.judge, visitor, number, Opinion.DISAGREE, why, actual, read)
        return await back(request)

    @router.post("/quality/sample")
    async def draw(request: Request, visitor: Visitor = gate.admin) -> Response:
        form = await fields(request)
        count = int(form["count"]) if re.fullmatch(r"\d{1,4}", form.get("count", ""), re.ASCII) else 0
        since = period_start(form.get("within", ""), time.time())
        await run_in_threadpool(deeds.draw_sample, visitor, count, since)
        return await back(request)

    @router.post("/deliveries/retry")
    async def retry_many(request: Request, visitor: Visitor = gate.admin) -> Response:
        form = await fields(request)
        destination = form.get("destination", "")
        await run_in_threadpool(deeds.retry_deliveries, visitor, destination, row_ids(form))
        return await back(request)

    @router.post("/pause/{name:path}")
    async def pause(request: Request, name: str, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.pause, visitor, name)
        return await back(request)

    @router.post("/resume/{name:path}")
    async def resume(request: Request, name: str, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.resume, visitor, name)
        return await back(request)

    @router.post("/echo/{name:path}")
    async def echo(request: Request, name: str, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.echo, visitor, name)
        return await back(request)

    @router.post("/probe/{name:path}")
    async def probe(request: Request, name: str, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.probe, visitor, name)
        return await back(request)

    return router
