"""Readers beyond the console: workitems they took, and who subscribed to hear of them. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydicom.dataset import Dataset

from node.admin.web.deeds import Deeds
from node.admin.web.forms import back
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site
from node.store.steps import Item
from node.store.subscriptions import Standing

MOST_TAKEN = 50
SHOWN = 10
Row = dict[str, Any]


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    deeds = Deeds(site)

    @router.post("/workitems/{uid}/take-back")
    async def take_back(request: Request, uid: str, visitor: Visitor = gate.admin) -> Response:
        await run_in_threadpool(deeds.take_back, visitor, uid)
        return await back(request)

    return router


def add_to(router: APIRouter, site: Site, gate: Gate) -> None:
    """The JSON of the same."""
    deeds = Deeds(site)

    @router.get("/workitems", tags=["reading"])
    def workitems(request: Request, visitor: Visitor = gate.viewer) -> list[Row]:
        """What readers took by UPS Pull and did not finish, the longest silent first."""
        site.look(visitor, "api-workitems", request, often=True)
        return [taken_row(item) for item in site.records.workitems.taken(MOST_TAKEN)]

    @router.get("/subscribers", tags=["reading"])
    def subscribers(_: Visitor = gate.viewer) -> list[Row]:
        """Each `[[ups.watcher]]`: what it subscribed to, what it is still to be told, and how that goes."""
        return [asdict(one) for one in standing(site)]

    @router.post("/workitems/{uid}/take-back", tags=["reading"])
    def take_back(uid: str, visitor: Visitor = gate.admin) -> Row:
        """Take a workitem from the reader who took it; it is offered again. 409 where nobody has it."""
        deeds.take_back(visitor, uid)
        return {"ok": True}


def standing(site: Site) -> list[Standing]:
    """In the order of the settings."""
    return site.records.subscriptions.standing([w.ae_title for w in site.settings.ups.watcher])


def gather(site: Site) -> Row:
    """For the queue's page; `subscribers` is empty where nobody may subscribe."""
    taken = site.records.workitems.taken(SHOWN)
    return {
        "most_taken": SHOWN,
        "taken": [taken_row(item) for item in taken],
        "subscribers": [(one, hears(one)) for one in standing(site)],
        "claim_h": site.settings.ups.claim_h,
    }


def taken_row(item: Item) -> Row:
    return {
        "uid": item.uid,
        "job_id": item.job_id,
        "study_instance_uid": item.study_instance_uid,
        "patient_id": item.study["patient_id"],
        "accession_number": item.study["accession_number"],
        "priority": item.priority,
        "claimed_by": item.claimed_by,
        "claimed_at": item.claimed_at,
        "changed_at": item.changed_at,
    }


def hears(one: Standing) -> str:
    """What a subscriber hears of, in words."""
    if one.to_all:
        return f"every workitem; {one.workitems} so far"
    if one.matching is not None:
        keys = Dataset.from_json(one.matching)
        told = ", ".join(f"{e.keyword or e.tag} {'' if e.VR == 'SQ' else e.value}".strip() for e in keys)
        return f"workitems that match {told}; {one.workitems} so far"
    return f"{one.workitems} workitems, one by one" if one.workitems else "not subscribed"


def metrics(site: Site) -> Iterator[tuple[str, str, list[tuple[str, dict[str, str], float]]]]:
    """For Prometheus; nothing where no workitem is served."""
    if not site.settings.ups.port:
        return
    counts = site.records.workitems.counts()
    states = [("", {"state": state.lower().replace(" ", "_")}, float(n)) for state, n in counts.items()]
    yield "workitems", "Workitems for readers, by state.", states
    subscribers = standing(site)
    waiting = [("", {"ae": one.ae_title}, float(one.waiting)) for one in subscribers]
    yield "ups_events_waiting", "What subscribers to workitems are still to be told.", waiting
    failing = [("", {"ae": one.ae_title}, float(one.failing_since is not None)) for one in subscribers]
    yield "ups_subscriber_failing", "1 while a subscriber is away or takes no event.", failing
