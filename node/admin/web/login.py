"""Logging in and out: a password against its hash, ever slower after failures, each try in the trail."""

from __future__ import annotations

import ipaddress
import time
import unicodedata
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from node.admin import passwords
from node.admin.web.gate import Gate, Visitor, fields
from node.admin.web.site import Site
from node.store.audit import Actor
from node.store.records import Records

LONGEST_WAIT_ADDRESS_S = 900.0
LONGEST_WAIT_USER_S = 60.0
"""Short, so that a stranger who guesses cannot lock a user out for long."""


@dataclass(frozen=True)
class Answer:
    """What came of a login; `words` are for the person; empty when it went well, for `user`."""

    status: int
    words: str = ""
    user: str = ""


def log_in(records: Records, name: str, password: str, address: str, now: float) -> Answer:
    """Look at one try. Neither the words nor the time taken tell whether there is such a user."""
    caps_s = {
        f"user:{unicodedata.normalize('NFC', name).casefold()}"[:160]: LONGEST_WAIT_USER_S,
        f"address:{_network(address)}": LONGEST_WAIT_ADDRESS_S,
    }
    if wait_s := records.people.try_login(caps_s, now):
        return Answer(429, f"Too many tries: wait {max(1, round(wait_s))} s, then try again.")
    user = records.people.get(name)
    if not passwords.matches(password, user.password if user else passwords.nobody()) or user is None:
        # what was typed as a name may be a password: only names that exist are written down
        actor = Actor(user.name if user else "unknown", "", address)
        records.audit.write(actor, "login-failed", now)
        return Answer(401, "Name or password is wrong.")
    records.people.succeeded(caps_s)
    records.audit.write(Actor(user.name, user.role, address), "login", now)
    return Answer(200, user=user.name)


def _network(address: str) -> str:
    """An IPv6 user has a whole /64 to call from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network(f"{ip}/64", strict=False))


def safe_target(path: str) -> str:
    """Where to go after a login: a path of this node, never another site."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and "\\" not in path
    return path if inside and path.isprintable() else "/"


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def page(request: Request, next: str = "/", visitor: Visitor = gate.anybody) -> Response:
        target = safe_target(next)
        if visitor.role is not None:
            return RedirectResponse(target, 303)
        return site.page(request, "login.html", target=target, problem="", name="")

    @router.post("/login")
    async def enter(request: Request, visitor: Visitor = gate.anybody) -> Response:
        form = await fields(request)
        name, target = form.get("name", "").strip(), safe_target(form.get("next", "/"))
        secret, now = form.get("password", ""), time.time()
        answer = await run_in_threadpool(log_in, site.records, name, secret, visitor.address, now)
        if answer.words:
            shown = {"target": target, "problem": answer.words, "name": name}
            return await run_in_threadpool(
                lambda: site.page(request, "login.html", status=answer.status, **shown)
            )
        await run_in_threadpool(gate.open_session, request, answer.user, now)
        return RedirectResponse(target, 303)

    @router.post("/logout")
    def leave(request: Request, visitor: Visitor = gate.viewer) -> Response:
        gate.close_session(request)
        site.note(visitor, "logout")
        return RedirectResponse("/login", 303)

    return router
