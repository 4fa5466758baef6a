"""What every page needs: the templates, the records, the clock, and a line in the audit trail. No route."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from node import __version__, canary, promotion
from node.admin.waiting import uploading
from node.admin.web import words
from node.admin.web.gate import Gate, Visitor
from node.admin.web.looks import Looks
from node.domain.errors import OutOfReach, PermanentError
from node.domain.opinion import WRONG_WORDS
from node.outputs import wording
from node.settings import Settings
from node.spool import Spool
from node.store import pauses
from node.store.records import Records

HERE = Path(__file__).parent
ALARMS_FOR_S = 24 * 3600
"""Suspected haemorrhages of this time count in the window's title."""


class Site:
    def __init__(self, settings: Settings, records: Records, gate: Gate, spool: Spool) -> None:
        self.settings = settings
        self.records = records
        self.spool = spool
        self.clock = words.Clock(settings.web.time_zone)
        self._gate = gate
        self._looks = Looks()
        self._templates = self._environment()

    def file(self, path: str) -> Path:
        """A file of the spool, at hand. Raises OutOfReach, and PermanentError where it is damaged."""
        (file,) = self.spool.fetch([path])
        if self.spool.depot.disk and not file.exists() and (disk := self.records.held.disk_of(path)):
            raise OutOfReach(f"It is on the disk {disk} alone, and is shown once it is in the bucket.")
        return file

    def file_to_show(self, path: str) -> Path:
        """As `file`; 404 and the reason for one that is damaged."""
        try:
            return self.file(path)
        except PermanentError as error:
            raise HTTPException(404, str(error)) from error

    def page(self, request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
        """A rendered page, or its inside alone where the page refreshes itself."""
        visitor: Visitor = request.state.visitor
        context = {
            "visitor": visitor,
            "csrf": self._gate.csrf(request),
            "now": time.time(),
            "here": request.url.path,
            "url": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "fragment": request.headers.get("hx-request") == "true",
            "unread": 0,
            **shown,
        }
        if visitor.role is not None:
            context |= self._standing(context["now"])
        return HTMLResponse(self._templates.get_template(template).render(context), status)

    def _standing(self, now: float) -> dict[str, Any]:
        """What must be seen on every page: who is missing, what is paused, how many alarms nobody read."""
        records = self.records
        processes = records.views.processes(now)
        return {
            "roles": words.roles(processes, now, self.settings.idle_roles),
            "model_trouble": promotion.trouble(self.settings, records, processes, now),
            "paused": records.pauses.all(),
            "upload_trouble": self._upload_trouble(now),
            "canary_trouble": canary.trouble(self.settings, records, now),
            "unread": records.worklist.unread_alarms(now - ALARMS_FOR_S),
        }

    def _upload_trouble(self, now: float) -> str:
        """What waits for the bucket for too long, and why; empty while all is well, or there is none."""
        if not self.settings.spool.s3.wanted:
            return ""
        waiting = uploading(self.records, now)
        return waiting.words(now) if waiting.is_late else ""

    def unavailable(self, error: str) -> str:
        return self._templates.get_template("unavailable.html").render(error=error)

    def refusal(self, visitor: Visitor | None, status: int, text: str) -> str:
        return self._templates.get_template("refused.html").render(status=status, text=text, visitor=visitor)

    def note(self, visitor: Visitor, action: str, study_uid: str | None = None, detail: str = "") -> None:
        """One line in the audit trail. Raises TransientError when it cannot be written."""
        self.records.audit.write(visitor.actor, action, time.time(), study_uid=study_uid, detail=detail)

    def look(
        self,
        visitor: Visitor,
        action: str,
        request: Request,
        study_uid: str | None = None,
        detail: str = "",
        often: bool = False,
    ) -> None:
        """A line in the trail for a look at patient data, of a study or of what the address says.

        A page that refreshes itself, or is asked for `often`, leaves one an hour. Raises TransientError.
        """
        mine = _eyes_on(visitor, study_uid or f"{action} {request.url.query}")
        now = time.monotonic()
        if (often or "hx-request" in request.headers) and self._looks.goes_on(mine, now):
            return
        self.note(visitor, action, study_uid, detail)
        self._looks.noted([mine], now)

    def listed(self, visitor: Visitor, study_uids: Iterable[str]) -> None:
        """A list that has its line in the trail shows a thumbnail of each of these studies."""
        self._looks.noted([_eyes_on(visitor, _thumbnail_of(uid)) for uid in study_uids], time.monotonic())

    def look_at_thumbnail(self, visitor: Visitor, request: Request, study_uid: str) -> None:
        """As `look`; the line of the list that shows it is enough. Raises TransientError."""
        if not self._looks.goes_on(_eyes_on(visitor, _thumbnail_of(study_uid)), time.monotonic()):
            self.look(visitor, "picture", request, study_uid, "thumbnail", often=True)

    def _environment(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "clock": self.clock.clock,
            "iso": self.clock.iso,
            "span": words.span,
            "exact": words.exact,
            "size": words.size,
            "dicom_date": words.dicom_date,
            "order_source": words.order_source,
            "anchor": anchor,
            "path": path,
            "share": words.share,
            "rate": words.rate,
            "interval": words.interval,
            "unbroken": words.unbroken,
            "query": urlencode,
        }
        environment.globals |= {
            "research_use": "Research use only – not for diagnosis",
            "version": __version__,
            "settings": self.settings,
            "QUEUE": pauses.QUEUE,
            "class_words": wording.CLASS_WORDS,
            "wrong_words": WRONG_WORDS,
            "of_destination": pauses.of_destination,
            "of_channel": pauses.of_channel,
        }
        return environment


def _eyes_on(visitor: Visitor, seen: str) -> Hashable:
    return visitor.name, visitor.address, visitor.how, seen


def _thumbnail_of(study_uid: str) -> str:
    return f"thumbnail {study_uid}"


def anchor(uid: str) -> str:
    """A name that may stand in an id attribute, whatever the sender put into its UID."""
    return "s" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def path(uid: str) -> str:
    """A UID as the last part of a path."""
    return quote(uid, safe="")
