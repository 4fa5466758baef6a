"""The web page and its JSON: what came in, what was found, what waits. Only shows; changes nothing.

There is no login yet, so it answers safe methods only, shows no patient names, and on a loopback address
answers only to that machine's own names (a web page elsewhere could otherwise read it by DNS rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.middleware.trustedhost import TrustedHostMiddleware

from node import __version__
from node.domain.errors import TransientError
from node.domain.findings import Findings, Priority
from node.domain.lifecycle import JobState, SeriesState
from node.outputs import wording
from node.settings import Settings
from node.store.records import Records

Row = Mapping[str, Any]
HERE = Path(__file__).parent
STUDIES_SHOWN = 50
FINISHED_JOBS_SHOWN = 15
ALARMS_FOR_S = 12 * 3600
GONE_SHOWN_FOR_S = 24 * 3600
WITHOUT = {  # what stands still when no process of the role is alive
    "listen": "nothing can be received",
    "settle": "no series is decided on",
    "worker": "nothing is analysed",
    "deliver": "no result is sent",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
Limit = Annotated[int, Query(ge=1, le=500)]


def make_app(settings: Settings, records: Records) -> FastAPI:
    """The pages of one node."""
    app = FastAPI(
        title="ichnode",
        version=__version__,
        description=wording.RESEARCH_USE,
        docs_url=None,  # these two pull scripts from a CDN
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(settings.web.host))
    app.middleware("http")(_add_headers)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    templates = _environment(settings)
    _add_pages(app, Board(settings, records), templates)
    _add_api(app, Board(settings, records))

    @app.exception_handler(TransientError)
    def unavailable(request: Request, error: TransientError) -> Response:
        if request.url.path in ("/", "/live"):
            page = templates.get_template("unavailable.html").render(error=str(error))
            return HTMLResponse(page, status_code=503)
        return JSONResponse({"detail": str(error)}, status_code=503)

    return app


def _add_pages(app: FastAPI, board: Board, templates: Environment) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return templates.get_template("page.html").render(board.everything(time.time()))

    @app.get("/live", response_class=HTMLResponse, include_in_schema=False)
    def live() -> str:
        """What the page fetches again every few seconds."""
        return templates.get_template("live.html").render(board.everything(time.time()))


def _add_api(app: FastAPI, board: Board) -> None:
    views = board.records.views

    @app.get("/api/studies")
    def studies(limit: Limit = 100) -> list[dict[str, Any]]:
        """The latest studies with their series, the job that speaks for each, and a derived status."""
        return [_without(study, "patient_name") for study in views.studies(limit)]

    @app.get("/api/jobs")
    def jobs(limit: Limit = 100) -> list[dict[str, Any]]:
        """The latest jobs, newest first."""
        return views.jobs(limit)

    @app.get("/api/deliveries")
    def deliveries(limit: Limit = 200) -> list[dict[str, Any]]:
        """The latest deliveries, newest first."""
        return views.deliveries(limit)

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        """The processes, and how many series, jobs and deliveries stand in each state."""
        return board.status(time.time())

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """This process runs and the database answers; else 503."""
        views.processes(time.time())
        return {"status": "ok"}


async def _add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers.update(HEADERS)
    fixed = request.url.path.startswith("/static/")
    response.headers["Cache-Control"] = "no-cache" if fixed else "no-store"
    return response


def allowed_hosts(bound_to: str) -> list[str]:
    """The Host headers to answer to: any, unless bound to a loopback address."""
    try:
        loopback = bound_to == "localhost" or ipaddress.ip_address(bound_to).is_loopback
    except ValueError:
        loopback = False
    return ["127.0.0.1", "localhost", "[::1]", bound_to] if loopback else ["*"]


class Board:
    """Gathers what the pages show. Asks the views only."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self._settings = settings
        self.records = records

    def status(self, now: float) -> dict[str, Any]:
        views, scp = self.records.views, self._settings.scp
        processes = views.processes(now)
        first = views.undelivered(1)
        oldest = first[0]["created_at"] if first and first[0]["urgent"] else None
        return {
            "ae_title": scp.ae_title,
            "host": scp.host,
            "port": scp.port,
            "version": __version__,
            "time": now,
            "roles": roles(processes, now),
            "processes": processes,
            "counts": views.counts(),
            "oldest_undelivered_positive_at": oldest,
            "destinations": [d.name for d in self._settings.destination],
        }

    def everything(self, now: float) -> dict[str, Any]:
        """The context of the templates."""
        views = self.records.views
        alarms = [{**row, "result": result(row["state"], row)} for row in views.alarms(now - ALARMS_FOR_S)]
        found = [_shown(study) for study in views.studies(STUDIES_SHOWN)]
        finished = [job for job in views.jobs(FINISHED_JOBS_SHOWN) if job["state"] not in _OPEN]
        return {
            "now": now,
            "node": self.status(now),
            "alarms": alarms,
            "alarmed": {row["study_instance_uid"] for row in alarms},
            "studies": found,
            "queue": views.queue(),
            "finished": finished,
            "undelivered": views.undelivered(),
        }


_OPEN = (JobState.QUEUED, JobState.RUNNING, JobState.ANALYSED)


def _shown(study: dict[str, Any]) -> dict[str, Any]:
    tally = [(state, sum(s["state"] == state for s in study["series"])) for state in SeriesState]
    words = ", ".join(f"{count} {state.lower()}" for state, count in tally if count)
    return {**study, "result": result(study["status"], study["job"]), "series_words": words}


@dataclass(frozen=True)
class Result:
    """What is known of a study, in words; `kind` is a Verdict's name, or WAITING."""

    kind: str
    headline: str
    classes: tuple[tuple[str, str, bool], ...] = ()
    """(words, probability, present)"""
    notes: tuple[str, ...] = ()


WAITING_WORDS = {
    "RECEIVING": "Images are still arriving.",
    "DECIDING": "Complete; the series to analyse is being chosen.",
    "QUEUED": "Waits for a worker.",
    "RUNNING": "Is being analysed.",
    "SUPERSEDED": "More images came; the analysis starts again.",
}


def result(status: str, job: Row | None) -> Result:
    """The result of a study in this derived status. Never lets a missing result look like a negative one."""
    if job is None and status == "NOTHING TO ANALYSE":
        reason = "No series fits the analysis; open the series for the reason of each."
        return _no_result(reason)
    reason = (job or {}).get("reason_text") or ""
    if job is not None and job["findings"]:
        return _of_findings(job["findings"], reason)
    if job is not None and job["priority"] == Priority.STAT:
        then = "the analysis failed after it" if job["state"] == JobState.FAILED else "the analysis goes on"
        early = f"First word of the classifier; {then}."
        notes = (early, reason) if reason else (early,)
        verdict = wording.Verdict.SUSPECTED
        return Result(verdict.name, wording.HEADLINES[verdict], notes=notes)
    if job is not None and job["state"] == JobState.FAILED:
        return _no_result(reason or "No reason was recorded.")
    if status == JobState.CANCELLED:
        return _no_result("Cancelled by an admin.")
    note = f"Last attempt: {reason}" if reason else ""
    return Result("WAITING", WAITING_WORDS.get(status, status.capitalize()), notes=(note,) if note else ())


def _no_result(reason: str) -> Result:
    verdict = wording.Verdict.NOT_ANALYSED
    return Result(verdict.name, wording.HEADLINES[verdict], notes=(reason, wording.NOT_NEGATIVE))


def _of_findings(data: Row, reason: str) -> Result:
    try:
        findings = Findings.from_json(data)
    except ValueError as error:
        return _no_result(str(error))
    verdict = wording.verdict(findings)
    if verdict is wording.Verdict.NOT_ANALYSED:
        return _no_result(wording.reason_words(findings))
    classes = tuple(
        (wording.CLASS_WORDS.get(name, name), probability(found.probability), found.present)
        for name, found in findings.classes.items()
        if found.present or name == "any"
    )
    agreement = wording.CONSISTENCY_WORDS[findings.consistency] if findings.consistency else ""
    notes = (wording.segmentation_words(findings), agreement, *findings.warnings, reason)
    return Result(verdict.name, wording.HEADLINES[verdict], classes, tuple(note for note in notes if note))


def probability(value: float) -> str:
    """Two decimals that never round to certainty."""
    return "<0.01" if value < 0.01 else ">0.99" if value > 0.99 else f"{value:.2f}"


def roles(processes: Sequence[Row], now: float) -> list[dict[str, Any]]:
    """How each role stands: how many processes live, which are gone and were not replaced."""
    names = [*WITHOUT, *sorted({p["role"] for p in processes} - {*WITHOUT})]
    found = []
    for name in names:
        mine = [p for p in processes if p["role"] == name]
        alive = [p for p in mine if p["alive"]]
        gone = [p for p in mine if not p["alive"] and now - p["seen_at"] < GONE_SHOWN_FOR_S]
        lost = [p["process"] for p in gone if not any(_replaces(q, p) for q in alive)]
        last = max((p["seen_at"] for p in mine), default=None)
        found.append(
            {
                "role": name,
                "alive": len(alive),
                "lost": lost,
                "last_seen_at": last,
                "without": WITHOUT.get(name, ""),
                "detail": alive[0]["detail"] if alive else {},
            }
        )
    return found


def _replaces(alive: Row, gone: Row) -> bool:
    """Started on the same host after the other fell silent."""
    same_host = _host(alive["process"]) == _host(gone["process"])
    return same_host and alive["started_at"] >= gone["seen_at"]


def _host(process: str) -> str:
    """role@host:pid → host"""
    return process.partition("@")[2].rpartition(":")[0]


def _without(row: Row, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _environment(settings: Settings) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "iso": iso, "span": span, "anchor": anchor}
    environment.globals |= {
        "research_use": "Research use only – not for diagnosis",
        "version": __version__,
        "settings": settings,
        "refresh": "every 2s",
    }
    return environment


def clock(seconds: float, now: float | None = None) -> str:
    """Local time with its zone; without the date when `now` is the same day."""
    then = datetime.fromtimestamp(seconds).astimezone()
    today = now is not None and then.date() == datetime.fromtimestamp(now).astimezone().date()
    return then.strftime("%H:%M:%S %Z" if today else "%Y-%m-%d %H:%M:%S %Z")


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def span(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min, 2 h 05 min, 4 d."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d"


def anchor(uid: str) -> str:
    """A name that may stand in an id attribute, whatever the sender put into its UID."""
    return "s" + hashlib.sha256(uid.encode()).hexdigest()[:16]
