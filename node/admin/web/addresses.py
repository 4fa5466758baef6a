"""Lets only the addresses of `web.addresses` near the console. Looks at no cookie, token or path.

Behind a proxy the address that counts is the proxy's: headers that name another one are not believed here.
"""

from __future__ import annotations

import logging
import time

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from node.domain.admission import RefusalNotes, is_inside, networks
from node.domain.errors import TransientError
from node.settings import Web
from node.store.audit import REFUSED_VISITOR, Actor
from node.store.records import Records

log = logging.getLogger(__name__)
CODE = "ADDRESS_NOT_ALLOWED"


class KnownAddresses:
    """ASGI middleware: 403 for everybody else, written down at most once a minute for each address."""

    def __init__(self, app: ASGIApp, web: Web, records: Records) -> None:
        self._app = app
        self._networks = networks(web.addresses)
        self._records = records
        self._notes = RefusalNotes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        address = str(client[0]) if client else ""
        if scope["type"] == "lifespan" or is_inside(address, self._networks):
            await self._app(scope, receive, send)
            return
        if count := self._notes.count(address, CODE, time.monotonic()):
            await run_in_threadpool(self._note, address, count)
        if scope["type"] == "http":
            answer = JSONResponse({"detail": "this address may not use the console (web.addresses)"}, 403)
            await answer(scope, receive, send)

    def _note(self, address: str, count: int) -> None:
        times = f" ({count} times since the last note)" if count > 1 else ""
        log.warning("the console refused %s: it is not in web.addresses%s", address, times)
        try:
            detail = f"{CODE}: not in web.addresses{times}"
            self._records.audit.write(
                Actor("unknown", "", address), REFUSED_VISITOR, time.time(), detail=detail
            )
        except TransientError as error:
            log.error("the refusal is not in the audit trail: %s", error)
