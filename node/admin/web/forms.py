"""Where a form leads once it has acted. Acts itself on nothing."""

from __future__ import annotations

import re

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from node.admin.web.gate import NotAllowed, fields
from node.admin.web.login import safe_target

QUIET = "x-quiet"
"""Header of a page that stays where it is: it wants no redirection."""


def row_ids(form: dict[str, str]) -> list[int]:
    """The rows that a form chose. Raises NotAllowed for what is no number of a row."""
    texts = form["ids"].split(",") if form.get("ids") else []
    if not all(re.fullmatch(r"\d{1,10}", text, re.ASCII) and int(text) < 2**31 for text in texts):
        raise NotAllowed(400, "a number in this form is too long, too large, or none; load the page again")
    return [int(text) for text in texts]


def when(form: dict[str, str], name: str) -> float | None:
    """A moment in UNIX seconds, None where the form has none. Raises NotAllowed for what is no number."""
    text = form.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"\d{1,10}(\.\d{1,12})?", text, re.ASCII):
        raise NotAllowed(400, f"{name} in this form is no moment; load the page again")
    return float(text)


async def back(request: Request) -> Response:
    """204 for a page that refreshes itself, else the way back to it."""
    if QUIET in request.headers:
        return Response(status_code=204)
    return RedirectResponse(safe_target((await fields(request)).get("next", "/")), 303)
