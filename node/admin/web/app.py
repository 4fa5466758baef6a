"""Puts the console together: middleware, pages, actions, JSON. Refuses to start with an unguarded route."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node import __version__
from node.admin.reach import allowed_hosts
from node.admin.web import (
    actions,
    api,
    canaries,
    drift,
    instances,
    login,
    metrics,
    missing,
    pages,
    pictures,
    quality,
    readers,
    routing,
    shadow,
)
from node.admin.web.addresses import KnownAddresses
from node.admin.web.forms import QUIET
from node.admin.web.gate import LONGEST_BODY, Gate, NotAllowed
from node.admin.web.site import HERE, Site, path
from node.domain.errors import IchnodeError, IllegalTransition, TransientError
from node.outputs import wording
from node.settings import Settings
from node.spool import spool_of
from node.store.records import Records

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
log = logging.getLogger(__name__)
TRANSPORT = "max-age=31536000"


def make_app(settings: Settings, records: Records) -> FastAPI:
    """The console of one node."""
    app = FastAPI(
        title="ichnode",
        version=__version__,
        description=wording.RESEARCH_USE,
        docs_url=None,  # these two pull scripts from a CDN
        redoc_url=None,
        openapi_url=None,  # served behind the login instead
    )
    gate = Gate(settings, records)
    site = Site(settings, records, gate, spool_of(settings))
    app.add_middleware(_SmallBodies)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(settings.web))
    app.add_middleware(KnownAddresses, web=settings.web, records=records)  # outermost: it comes first
    app.middleware("http")(_finisher(gate))
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    modules = (
        login,
        pages,
        pictures,
        instances,
        quality,
        drift,
        canaries,
        readers,
        shadow,
        missing,
        routing,
        actions,
        metrics,
        api,
    )
    parts = [module.routes(site, gate) for module in modules]
    app.state.parts = [*parts, api.description(app, gate)]
    for route in routes(app):
        if needs(route) == "nothing":
            raise AssertionError(f"{route.path} names no role it needs")
    for part in app.state.parts:
        app.include_router(part)
    _add_errors(app, site)
    return app


def routes(app: FastAPI) -> Iterator[APIRoute]:
    """Every route but the files under /static, which tell nothing of any node."""
    for part in app.state.parts:
        for route in part.routes:
            if not isinstance(route, APIRoute):
                raise AssertionError(f"{route} cannot name the role it needs")
            yield route


def needs(route: APIRoute) -> str:
    """The role a route asks for: admin, viewer, or anybody; `nothing` where it was forgotten."""

    def walk(dependant: Dependant) -> Iterator[Any]:
        yield dependant.call
        for inner in dependant.dependencies:
            yield from walk(inner)

    for call in walk(route.dependant):
        if hasattr(call, "needs"):
            return str(call.needs) if call.needs else "anybody"
    return "nothing"


def _finisher(gate: Gate) -> Callable[..., Awaitable[Response]]:
    async def finish(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        gate.remember(request, response)
        response.headers.update(HEADERS)
        if request.url.scheme == "https":
            response.headers["Strict-Transport-Security"] = TRANSPORT
        fixed = request.url.path.startswith("/static/")
        response.headers["Cache-Control"] = "no-cache" if fixed else "no-store"
        return response

    return finish


def _add_errors(app: FastAPI, site: Site) -> None:
    def is_page(request: Request) -> bool:
        return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")

    @app.exception_handler(NotAllowed)
    def refused(request: Request, error: NotAllowed) -> Response:
        wants_page = is_page(request) and "hx-request" not in request.headers
        if wants_page and error.status == 401 and request.method == "GET":
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={path(target)}", 303)
        if wants_page:
            visitor = getattr(request.state, "visitor", None)
            return HTMLResponse(site.refusal(visitor, error.status, str(error)), error.status)
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(HTTPException)
    def failed(request: Request, error: HTTPException) -> Response:
        if is_page(request) and "hx-request" not in request.headers:
            visitor = getattr(request.state, "visitor", None)
            nowhere = (error.status_code, error.detail) == (404, "Not Found")  # as Starlette says it
            text = f"There is no page {request.url.path}; is the address whole?" if nowhere else error.detail
            return HTMLResponse(site.refusal(visitor, error.status_code, str(text)), error.status_code)
        headers = {"Allow": _allowed(app, request)} if error.status_code == 405 else error.headers
        return JSONResponse({"detail": error.detail}, error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    def misread(request: Request, error: RequestValidationError) -> Response:
        """Without the input itself, which FastAPI would repeat: it may be no text at all."""
        if is_page(request) and "hx-request" not in request.headers and QUIET not in request.headers:
            visitor = getattr(request.state, "visitor", None)
            text = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
            return HTMLResponse(site.refusal(visitor, 422, f"The address is not right: {text}"), 422)
        wrong = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]
        return JSONResponse({"detail": wrong}, 422)

    @app.exception_handler(IllegalTransition)
    def too_late(request: Request, error: IllegalTransition) -> Response:
        if is_page(request) and "x-quiet" not in request.headers:
            visitor = getattr(request.state, "visitor", None)
            return HTMLResponse(site.refusal(visitor, 409, str(error)), 409)
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(DataError)
    def unfit(request: Request, error: DataError) -> Response:
        """PostgreSQL takes no NUL, no text and no number beyond its column, where SQLite finds nothing."""
        log.warning("%r cannot be asked of the database: %s", request.url.path, error.orig)
        text = "something in this request is too long, too large, or holds a character that no text has"
        if is_page(request):
            visitor = getattr(request.state, "visitor", None)
            return HTMLResponse(site.refusal(visitor, 400, text), 400)
        return JSONResponse({"detail": text}, 400)

    @app.exception_handler(TransientError)
    def unavailable(request: Request, error: TransientError) -> Response:
        if is_page(request):
            return HTMLResponse(site.unavailable(str(error)), 503)
        return JSONResponse({"detail": str(error)}, 503)


def _allowed(app: FastAPI, request: Request) -> str:
    """Every method of a path (RFC 9110 10.2.1); Starlette names those of the first route that has it."""
    mine = [route for route in routes(app) if route.path_regex.match(request.url.path)]
    return ", ".join(sorted({method for route in mine for method in route.methods or ()}))


class _TooLongError(IchnodeError):
    pass


class _SmallBodies:
    """Nobody sends the console anything long: a body beyond LONGEST_BODY is answered with 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0
        answered = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > LONGEST_BODY:
                raise _TooLongError
            return message

        async def noticed(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, noticed)
        except _TooLongError:
            if not answered:
                await JSONResponse({"detail": f"at most {LONGEST_BODY} bytes"}, 413)(scope, receive, send)
