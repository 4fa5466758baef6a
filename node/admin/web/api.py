"""The JSON of what the pages show and do, under /api/v1, with the same roles. Holds no rule of its own."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from node import __version__
from node.admin.web import board, canaries, drift, quality, readers, shadow
from node.admin.web.deeds import Deeds
from node.admin.web.gate import Gate, RowId, Visitor
from node.admin.web.pages import audit_queue, wanted_of, with_takers
from node.admin.web.site import Site
from node.domain.errors import SettingsError
from node.domain.lifecycle import AlertState, DeliveryState
from node.domain.opinion import Opinion, Wrong
from node.routing import trial_json, try_out
from node.settings.routing import read_drafts
from node.store.worklist import Reading, Shown

PREFIX = "/api/v1"
TAKEN = ("state", "claimed_by", "claimed_at", "changed_at", "ended")
"""Of a workitem; its Transaction UID is nobody's but its performer's."""


def _whole(number: object) -> object:
    """In JSON 1.0 is as much an integer as 1; a text, or true, is none."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


StrictRowId = Annotated[RowId, Field(strict=True), BeforeValidator(_whole)]
Limit = Annotated[int, Query(ge=1, le=500)]
Subtype = Literal["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]
Offset = Annotated[int, Query(ge=0, le=100_000)]


class Done(BaseModel):
    """The deed was done."""

    done: Literal[True] = True


class Many(BaseModel):
    """So many were changed."""

    changed: int


class Chosen(BaseModel):
    """Which given-up deliveries to try again: these, else all of a destination, else all."""

    model_config = ConfigDict(extra="forbid")
    ids: list[StrictRowId] = []
    destination: str = ""


class Said(BaseModel):
    """Agree or disagree, and why; `actual`: the subtypes that the images show; `read`: see *acknowledge*."""

    model_config = ConfigDict(extra="forbid")
    opinion: Opinion
    why: Wrong = Wrong.UNSPECIFIED
    actual: list[Subtype] = []
    read: float | None = None


class Asked(BaseModel):
    """Which archive to compare, by StudyDate, as in 2026-11-20."""

    model_config = ConfigDict(extra="forbid")
    archive: str
    since: str
    until: str


class Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ids: list[StrictRowId] = Field(max_length=5000)


class Rules(BaseModel):
    """Rules to be tried out."""

    model_config = ConfigDict(extra="forbid")
    toml: str = Field(max_length=40_000)
    q: str = Field("", max_length=128)
    limit: int = Field(40, ge=1, le=500)


class Echoed(BaseModel):
    """What came of a C-ECHO, in words."""

    text: str


class Refusal(BaseModel):
    """Why not, in words."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": words}
    for status, words in {
        400: "The request cannot be read, or means nothing here",
        401: "No login, or an API token that is unknown, revoked or too old",
        403: "The role does not suffice, or a browser sent no anti-forgery token",
        404: "There is no such thing here",
        409: "Not possible any more: its state has changed",
        413: "The body is too long",
        503: "The database does not answer; try again",
    }.items()
}
"""What every request may be answered besides what it asks for."""


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(prefix=PREFIX, responses=REFUSALS)
    _reading(router, site, gate)
    _reviewing(router, Deeds(site), gate)
    quality.add_to(router, site, gate)
    drift.add_to(router, site, gate)
    canaries.add_to(router, site, gate)
    shadow.add_to(router, site, gate)
    readers.add_to(router, site, gate)
    _administering(router, Deeds(site), gate)
    return router


def _reading(router: APIRouter, site: Site, gate: Gate) -> None:
    @router.get("/studies", tags=["studies"])
    def studies(
        show: Shown = Shown.ALL,
        read: Reading = Reading.BOTH,
        within: str = "24h",
        q: str = "",
        limit: Limit = 100,
        offset: Offset = 0,
        visitor: Visitor = gate.viewer,
    ) -> list[dict[str, Any]]:
        """The reading worklist, suspected haemorrhage first; findings without slices.

        `within`: 24h, 3d, 30d, all.
        """
        rows, _ = site.records.worklist.page(wanted_of(show, read, within, q, time.time()), limit, offset)
        site.note(visitor, "api-studies", detail=f"{len(rows)} studies")
        return [_study(row, visitor) for row in with_takers(site, rows)]

    @router.get("/studies/{uid}", tags=["studies"])
    def study(uid: str, visitor: Visitor = gate.viewer) -> dict[str, Any]:
        """One study with its series, objects, deliveries, orders, and jobs with their whole findings."""
        row = site.records.worklist.study(uid)
        site.note(visitor, "api-study", uid)
        if row is None:
            raise HTTPException(404, "there is no such study here")
        ids = [job["id"] for job in row["jobs"]]
        made, forwarded = site.records.worklist.objects(ids), site.records.worklist.forwarded(ids)
        for job in row["jobs"]:
            whole = site.records.jobs.get(job["id"])
            job["findings"] = whole.findings.to_json() if whole and whole.findings else None
        said = [
            {"priority": s.priority, "source": s.source, "reference": s.reference, "said_at": s.said_at}
            for s in site.records.orders.of_study(uid)
        ]
        told = site.records.alerts.of_study(uid)
        more = {"objects": made, "forwarded": forwarded, "jobs": row["jobs"], "orders": said, "alerts": told}
        (row,) = with_takers(site, [row])
        return _study(row, visitor) | more

    @router.get("/jobs", tags=["queue"])
    def jobs(request: Request, limit: Limit = 100, visitor: Visitor = gate.viewer) -> list[dict[str, Any]]:
        """The latest jobs, newest first."""
        site.look(visitor, "api-jobs", request, often=True)
        return site.records.views.jobs(limit)

    @router.get("/deliveries", tags=["queue"])
    def deliveries(
        request: Request,
        state: DeliveryState | None = None,
        limit: Limit = 200,
        visitor: Visitor = gate.viewer,
    ) -> list[dict[str, Any]]:
        """The latest deliveries; of one state, positive results and the oldest first."""
        site.look(visitor, "api-deliveries", request, often=True)
        if state is None:
            return site.records.views.deliveries(limit)
        return site.records.console.unsent(state, limit)

    @router.get("/alerts", tags=["queue"])
    def alerts(
        request: Request,
        state: AlertState | None = None,
        limit: Limit = 200,
        visitor: Visitor = gate.viewer,
    ) -> list[dict[str, Any]]:
        """The latest alerts, without what they say; of one state, positive results and the oldest first."""
        site.look(visitor, "api-alerts", request, often=True)
        if state is None:
            return site.records.alerts.latest(limit)
        return site.records.alerts.unsent(state, limit)

    @router.get("/status", tags=["queue"])
    def status(_: Visitor = gate.viewer) -> dict[str, Any]:
        """Processes, counts, destinations, what is paused, the disk, and the oldest undelivered positive."""
        now = time.time()
        names = [d.name for d in site.settings.destination]
        return {
            "ae_title": site.settings.scp.ae_title,
            "version": __version__,
            "time": now,
            "roles": board.roles(site, now),
            "counts": site.records.console.counts(),
            "destinations": site.records.console.destinations(names),
            "channels": site.records.alerts.channels([alert.name for alert in site.settings.alert]),
            "paused": site.records.pauses.all(),
            "oldest_undelivered_positive": site.records.console.oldest_unsent_positive(),
            "disk": board.disk(site, now),
        }

    @router.get("/missing", tags=["missing"])
    def missing(archive: str = "", limit: Limit = 200, visitor: Visitor = gate.viewer) -> dict[str, Any]:
        """What archives hold and never came here, and the last comparison with each."""
        site.note(visitor, "api-missing")
        return {
            "comparisons": site.records.gaps.latest([a.name for a in site.settings.archive]),
            "missing": site.records.gaps.rows(limit=limit, archive=archive),
        }

    @router.get("/routing", tags=["routing"])
    def routing(q: str = "", limit: Limit = 40, visitor: Visitor = gate.admin) -> list[dict[str, Any]]:
        """Which destination gets what of the latest reported studies, by the rules of the settings."""
        site.note(visitor, "api-routing")
        found = try_out(site.settings.destination, site.records, time.time(), limit, q)
        return [trial_json(trial) for trial in found]

    @router.post("/routing", tags=["routing"])
    def try_rules(draft: Rules, visitor: Visitor = gate.admin) -> list[dict[str, Any]]:
        """The same by other rules: TOML, `[[destination]]` with `name` and `rules`. Saves nothing."""
        site.note(visitor, "api-routing", detail="tried rules")
        try:
            drafts = read_drafts(draft.toml)
        except SettingsError as error:
            raise HTTPException(400, str(error)) from None
        found = try_out(drafts, site.records, time.time(), draft.limit, draft.q)
        return [trial_json(trial) for trial in found]

    @router.get("/audit", tags=["audit"])
    def audit(
        limit: Limit = 100,
        before: RowId | None = None,
        who: str = "",
        study: str = "",
        _: Visitor = gate.admin,
    ) -> list[dict[str, Any]]:
        """The audit trail, newest first; go on with the smallest id as `before`."""
        return site.records.audit.entries(limit, before, who, study)

    @router.get("/audit/queue", tags=["audit"])
    def queue(limit: Limit = 100, _: Visitor = gate.admin) -> dict[str, Any] | None:
        """What waits for the audit repository, oldest first; null without a repository and messages."""
        return audit_queue(site, limit)


def _study(row: dict[str, Any], visitor: Visitor) -> dict[str, Any]:
    """A study without its bulky parts; the patient's name is for people who logged in."""
    left_out = {"jobs", "word", "current"} | (set() if visitor.sees_names else {"patient_name"})
    kept = {key: value for key, value in row.items() if key not in left_out}
    if row.get("taken"):
        kept["taken"] = {key: row["taken"][key] for key in TAKEN}
    return kept | {"job": row["word"], "current_job": row["current"]}


def _reviewing(router: APIRouter, deeds: Deeds, gate: Gate) -> None:
    @router.post("/jobs/{number}/acknowledge", tags=["reading"])
    def acknowledge(number: RowId, read: float | None = None, visitor: Visitor = gate.viewer) -> Done:
        """The result was read; `read` is the `analysed_at` it had: 409 when there is a newer one."""
        deeds.acknowledge(visitor, number, read)
        return Done()

    @router.post("/jobs/{number}/opinion", tags=["reading"])
    def judge(number: RowId, said: Said, visitor: Visitor = gate.viewer) -> Done:
        """Agree or disagree with the result; acknowledges it too."""
        deeds.judge(visitor, number, said.opinion, said.why, said.actual, said.read)
        return Done()

    @router.post("/jobs/{number}/unread", tags=["reading"])
    def unread(number: RowId, visitor: Visitor = gate.viewer) -> Done:
        """Back to unread."""
        deeds.mark_unread(visitor, number)
        return Done()


def _administering(router: APIRouter, deeds: Deeds, gate: Gate) -> None:
    @router.post("/jobs/{number}/retry", tags=["queue"])
    def retry(number: RowId, visitor: Visitor = gate.admin) -> Done:
        """Queue a failed or cancelled job again; 409 for another."""
        deeds.retry_job(visitor, number)
        return Done()

    @router.post("/jobs/{number}/reanalyse", tags=["queue"])
    def reanalyse(number: RowId, visitor: Visitor = gate.admin) -> Done:
        """Analyse a composed job again, for example with a newer model."""
        deeds.reanalyse(visitor, number)
        return Done()

    @router.post("/jobs/{number}/cancel", tags=["queue"])
    def cancel(number: RowId, visitor: Visitor = gate.admin) -> Done:
        """Cancel a job that is not composed yet."""
        deeds.cancel(visitor, number)
        return Done()

    @router.post("/deliveries/{number}/retry", tags=["queue"])
    def retry_delivery(number: RowId, visitor: Visitor = gate.admin) -> Done:
        """Send a waiting or given-up delivery at once."""
        deeds.retry_delivery(visitor, number)
        return Done()

    @router.post("/alerts/{number}/retry", tags=["queue"])
    def retry_alert(number: RowId, visitor: Visitor = gate.admin) -> Done:
        """Send a waiting or given-up alert at once."""
        deeds.retry_alert(visitor, number)
        return Done()

    @router.post("/channels/{name}/probe", tags=["queue"])
    def probe(name: str, visitor: Visitor = gate.admin) -> Echoed:
        """Ask whether anybody answers at a channel; tells it nothing."""
        return Echoed(text=deeds.probe(visitor, name))

    @router.post("/deliveries/retry", tags=["queue"])
    def retry_deliveries(chosen: Chosen, visitor: Visitor = gate.admin) -> Many:
        """Try given-up deliveries again."""
        return Many(changed=deeds.retry_deliveries(visitor, chosen.destination, chosen.ids))

    @router.put("/pauses/{name}", tags=["queue"])
    def pause(name: str, visitor: Visitor = gate.admin) -> Done:
        """Pause `queue`, `destination:NAME` or `alert:NAME`, until it is resumed."""
        deeds.pause(visitor, name)
        return Done()

    @router.delete("/pauses/{name}", tags=["queue"])
    def resume(name: str, visitor: Visitor = gate.admin) -> Done:
        deeds.resume(visitor, name)
        return Done()

    @router.post("/comparisons", tags=["missing"])
    def compare(asked: Asked, visitor: Visitor = gate.admin) -> Done:
        """Have an archive compared with what came; `GET /missing` tells what came of it."""
        deeds.compare(visitor, asked.archive, (asked.since.replace("-", ""), asked.until.replace("-", "")))
        return Done()

    @router.post("/missing/fetch", tags=["missing"])
    def fetch(chosen: Numbers, visitor: Visitor = gate.admin) -> Many:
        """Have these fetched from their archives."""
        return Many(changed=deeds.fetch_gaps(visitor, chosen.ids))

    @router.post("/missing/dismiss", tags=["missing"])
    def dismiss(chosen: Numbers, visitor: Visitor = gate.admin) -> Many:
        """These are not wanted; 409 for one that cannot be dismissed any more."""
        return Many(changed=deeds.dismiss_gaps(visitor, chosen.ids))

    @router.post("/destinations/{name}/echo", tags=["queue"])
    def echo(name: str, visitor: Visitor = gate.admin) -> Echoed:
        """Send a C-ECHO now."""
        return Echoed(text=deeds.echo(visitor, name)[1])


def description(app: FastAPI, gate: Gate) -> APIRouter:
    """Where the OpenAPI description lies."""
    router = APIRouter(prefix=PREFIX, include_in_schema=False)

    @router.get("/openapi.json")
    def openapi(response: Response, _: Visitor = gate.viewer) -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            token = {"type": "http", "scheme": "bearer", "description": "`ichnode users token NAME`"}
            schema.setdefault("components", {})["securitySchemes"] = {"token": token}
            schema["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    return router
