"""Where a form leads once it has acted. Acts itself on nothing."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from node.admin.web.gate import fields
from node.admin.web.login import safe_target

QUIET = "x-quiet"
"""Header of a page that stays where it is: it wants no redirection."""


async def back(request: Request) -> Response:
    """204 for a page that refreshes itself, else the way back to it."""
    if QUIET in request.headers:
        return Response(status_code=204)
    return RedirectResponse(safe_target((await fields(request)).get("next", "/")), 303)
