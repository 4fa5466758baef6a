"""Who is asking, and what they may do. Every route names the role it needs; unsafe ones need a token as well.

A browser carries one signed cookie; a login binds a session in the database to it. The anti-forgery token is
a function of that cookie, so another site can neither read nor guess it. Nothing here looks at a password.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from node.admin.passwords import digest, new_token
from node.admin.reach import LOCAL, is_loopback
from node.domain.admission import is_inside, networks
from node.domain.errors import IchnodeError
from node.domain.permissions import Role
from node.settings import Settings
from node.store.audit import Actor
from node.store.records import Records

COOKIE = "ichnode"
SAFE = ("GET", "HEAD", "OPTIONS")
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
LONGEST_BODY = 64 * 1024


RowId = Annotated[int, Field(ge=0, lt=2**31)]
"""A number of a job or another row, as the database's columns hold it; else 422."""


class NotAllowed(IchnodeError):
    """401: nobody knows who asks; 403: they may not."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Visitor:
    """Who asks; `role` is None for somebody who has not logged in."""

    name: str
    role: Role | None
    address: str
    how: str
    """session, proxy, token, local, or nobody"""

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def sees_names(self) -> bool:
        """Patients' names are for people who said who they are."""
        return self.how in ("session", "proxy", "token")

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.role or "", self.address)


class Gate:
    def __init__(self, settings: Settings, records: Records) -> None:
        self._web = settings.web
        self._proxies = networks(settings.web.proxy.addresses)
        self._people = records.people
        self._is_loopback = is_loopback(settings.web.host)
        self._key: bytes | None = None
        self.viewer = Depends(self._needs(Role.VIEWER))
        self.admin = Depends(self._needs(Role.ADMIN))
        self.anybody = Depends(self._needs(None))

    def _needs(self, role: Role | None) -> Any:
        async def check(request: Request) -> Visitor:
            visitor = await run_in_threadpool(self.who, request)
            request.state.visitor = visitor
            if role is not None:
                if visitor.role is None:
                    raise NotAllowed(401, "log in first, or send an API token")
                if not visitor.role.may(role):
                    raise NotAllowed(403, f"this needs the role {role}; {visitor.name} is {visitor.role}")
            if request.method not in SAFE and visitor.how != "token":
                await self._check_forgery(request)
            return visitor

        check.needs = role  # type: ignore[attr-defined]  # a test walks all routes and reads it
        return check

    def who(self, request: Request) -> Visitor:
        """Raises NotAllowed for an API token that is none."""
        address = request.client.host if request.client else ""
        now = time.time()
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if found := self._people.of_token(digest(token.strip()), now):
                return Visitor(*found, address, "token")
            raise NotAllowed(401, "the API token is unknown, revoked or too old")
        if name := self._named_by_proxy(request, address):
            user = self._people.get(name)
            known = (user.name, user.role) if user else (name, Role(self._web.proxy.role))
            return Visitor(*known, address, "proxy")
        cookie = self.visit(request)
        if cookie and (found := self._people.of_session(digest(cookie), now)):
            return Visitor(*found, address, "session")
        if self.is_open:
            return Visitor(LOCAL, Role.ADMIN, address, "local")
        return Visitor("", None, address, "nobody")

    @property
    def is_open(self) -> bool:
        """Only this machine can ask, and nobody has a login: whoever sits here is the admin."""
        return self._is_loopback and not self._web.proxy.user_header and not self._people.any()

    def _named_by_proxy(self, request: Request, address: str) -> str:
        if not self._is_proxy(address):
            return ""
        return _as_written(request.headers.get(self._web.proxy.user_header, "")).strip()[:64]

    def _is_proxy(self, address: str) -> bool:
        """No address given: there is none that could be believed."""
        proxy = self._web.proxy
        return bool(proxy.user_header and self._proxies) and is_inside(address, self._proxies)

    def visit(self, request: Request) -> str:
        """The token in the browser's cookie; empty when there is none, or none of ours."""
        token, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        return token if token and _is_same(signature, self._sign("visit", token)) else ""

    def csrf(self, request: Request) -> str:
        """The anti-forgery token for the forms of a page; gives the browser its cookie where it has none."""
        token = self.visit(request)
        if not token:
            token = getattr(request.state, "new_visit", "") or new_token()
            request.state.new_visit = token
        return self._sign("csrf", token)

    async def _check_forgery(self, request: Request) -> None:
        """The visitor's own page sent this. Raises NotAllowed else."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise NotAllowed(403, "another site sent this request; it is refused")
        token = await run_in_threadpool(self.visit, request)
        given = request.headers.get(CSRF_HEADER) or (await fields(request)).get(CSRF_FIELD, "")
        if not token or not _is_same(given, self._sign("csrf", token)):
            raise NotAllowed(403, "the page is too old, or not from this node: load it again")

    def remember(self, request: Request, response: Response) -> None:
        """Hand the browser its new cookie, where a page or a login made one."""
        if token := getattr(request.state, "new_visit", ""):
            response.set_cookie(
                COOKIE,
                f"{token}.{self._sign('visit', token)}",
                max_age=round(self._web.session_h * 3600),
                httponly=True,
                samesite="lax",  # a link in the RIS may open a study; a form elsewhere may not act
                secure=self._is_secure(request),
                path="/",
            )

    def _is_secure(self, request: Request) -> bool:
        address = request.client.host if request.client else ""
        forwarded = request.headers.get("x-forwarded-proto", "") if self._is_proxy(address) else ""
        return request.url.scheme == "https" or forwarded == "https"

    def open_session(self, request: Request, name: str, now: float) -> None:
        """After a login: under a new cookie, so that one planted before is worth nothing."""
        token = new_token()
        self._people.open_session(digest(token), name, now, now + self._web.session_h * 3600)
        request.state.new_visit = token

    def close_session(self, request: Request) -> None:
        if token := self.visit(request):
            self._people.close_session(digest(token))
        request.state.new_visit = new_token()

    def _sign(self, purpose: str, token: str) -> str:
        if self._key is None:
            self._key = self._people.key()
        return hmac.new(self._key, f"{purpose}:{token}".encode(), hashlib.sha256).hexdigest()


def _is_same(given: str, wanted: str) -> bool:
    """In a time that does not tell how much of it is; `given` may hold any letters."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _as_written(header: str) -> str:
    """A header that Starlette read as ISO 8859-1 (RFC 9110 5.5), and that most proxies write as UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return header


async def fields(request: Request) -> dict[str, str]:
    """A urlencoded form; empty for anything else. Values given twice are joined by a comma."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return {}
    body = (await request.body()).decode("utf-8", "replace")
    try:
        read = parse_qs(body, keep_blank_values=True, max_num_fields=2000)
    except ValueError as error:
        raise NotAllowed(403, f"this form cannot be read: {error}") from error
    return {name: ",".join(values) for name, values in read.items()}
