"""The pages: worklist, study, queue, audit trail. Show only; what acts is in actions.py."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from node.admin.web import board, study, words
from node.admin.web.gate import Gate, RowId, Visitor
from node.admin.web.pictures import Pictures
from node.admin.web.site import Site
from node.store.records import Records
from node.store.worklist import Reading, Shown, Wanted

PAGE = 50
PAGES = 40
"""Beyond them a narrower filter finds what is looked for."""
EXPORTED_AT_ONCE = 250
TRAIL = 100
WAITING = 20
"""Messages of the audit queue that the page shows."""
WINDOWS = {"24h": 24 * 3600, "3d": 3 * 86400, "30d": 30 * 86400, "all": None}
WINDOW_WORDS = {"24h": "24 hours", "3d": "3 days", "30d": "30 days", "all": "any time"}
COLUMNS = (
    "study_instance_uid", "patient_id", "accession_number", "study_date", "description", "received_at",
    "status", "priority", "result", "any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid",
    "subdural", "volume_ml", "model", "acknowledged_by", "acknowledged_at", "opinion", "opinion_by",
    "order_priority", "alerted_after_s", "alert_acknowledged_after_s",
)  # fmt: skip


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    pictures = Pictures(site)

    @router.get("/")
    def worklist(
        request: Request,
        show: Shown = Shown.ALL,
        read: Reading = Reading.UNREAD,
        within: str = "24h",
        q: str = "",
        page: RowId = 1,
        visitor: Visitor = gate.viewer,
    ) -> Response:
        now = time.time()
        page = min(max(page, 1), PAGES)
        wanted = wanted_of(show, read, within, q, now)
        rows, more = site.records.worklist.page(wanted, PAGE, (page - 1) * PAGE)
        searched = " search" if q else ""
        site.look(visitor, "worklist", request, detail=f"{show} {read} {within}{searched}")
        site.listed(visitor, [row["study_instance_uid"] for row in rows])
        asked = {"show": str(show), "read": str(read), "within": within, "q": q}
        return site.page(
            request,
            "worklist.html",
            rows=[shown(row) for row in with_takers(site, rows)],
            asked={name: text for name, text in asked.items() if text},
            wanted=wanted,
            within=within if within in WINDOWS else "24h",
            windows=WINDOW_WORDS,
            number=page,
            more=more and page < PAGES,
            cut=more and page == PAGES,
        )

    @router.get("/worklist.csv")
    def export(
        show: Shown = Shown.ALL,
        read: Reading = Reading.BOTH,
        within: str = "24h",
        q: str = "",
        visitor: Visitor = gate.viewer,
    ) -> Response:
        """Everything the filter shows, as it is read: the first lines are there at once."""
        uids = site.records.worklist.uids(wanted_of(show, read, within, q, time.time()))
        site.note(visitor, "export", detail=f"{len(uids)} studies")
        headers = {"Content-Disposition": 'attachment; filename="worklist.csv"'}
        lines = csv_parts(site.records, uids, site.clock)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    @router.get("/study/{uid:path}")
    def one(request: Request, uid: str, series: str = "", visitor: Visitor = gate.viewer) -> Response:
        site.look(visitor, "study", request, uid)
        found = study.gather(site, pictures, uid, series, visitor.sees_names)
        if found is None:
            raise HTTPException(404, "there is no such study here")
        trail = site.records.audit.entries(20, study_uid=uid) if visitor.is_admin else []
        return site.page(request, "study.html", trail=trail, **found)

    @router.get("/queue")
    def queue(request: Request, visitor: Visitor = gate.viewer) -> Response:
        site.look(visitor, "queue", request)
        return site.page(request, "queue.html", **board.gather(site, time.time()))

    @router.get("/audit")
    def audit(
        request: Request,
        before: RowId | None = None,
        who: str = "",
        study: str = "",
        visitor: Visitor = gate.admin,
    ) -> Response:
        entries = site.records.audit.entries(TRAIL, before, who, study)
        queue = audit_queue(site, WAITING) if before is None else None
        return site.page(
            request, "audit.html", entries=entries, who=who, of_study=study, limit=TRAIL, queue=queue
        )

    return router


def audit_queue(site: Site, limit: int) -> dict[str, Any] | None:
    """What the audit repository was not told yet; None where there is no repository, and nothing waits."""
    standing = site.records.audit_queue.standing()
    if not site.settings.audit.host and not standing["waiting"]:
        return None
    messages = site.records.audit_queue.waiting(limit)
    return {**standing, "repository": site.settings.audit.host, "messages": messages}


def wanted_of(show: Shown, read: Reading, within: str, q: str, now: float) -> Wanted:
    """An unknown window is the shortest."""
    window = WINDOWS.get(within, WINDOWS["24h"])
    return Wanted(show, read, now - window if window else 0.0, q.strip()[:128])


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the worklist with its result in words."""
    word, current = row["word"], row["current"]
    outdated = bool(word and current and word["id"] != current["id"])
    found = words.result(row["status"], word)
    has_picture = bool(word and word["findings"])
    return {**row, "result": found, "outdated": outdated, "has_picture": has_picture}


def with_takers(site: Site, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `taken`: the workitem that a reader took by UPS, if one did."""
    taken = site.records.workitems.of_studies([row["study_instance_uid"] for row in rows])
    return [{**row, "taken": taken.get(row["study_instance_uid"])} for row in rows]


def csv_parts(records: Records, uids: Sequence[str], clock: words.Clock) -> Iterator[str]:
    """RFC 4180, with a byte-order mark for spreadsheets; holds no patient name. One part, one look.

    A database that is away breaks the download off, so that half a list is never taken for a whole one.
    """
    yield "\ufeff" + _csv([COLUMNS])
    for begin in range(0, len(uids), EXPORTED_AT_ONCE):
        part = uids[begin : begin + EXPORTED_AT_ONCE]
        told = records.alerts.first_of(part)
        yield _csv(_cells(row, told, clock) for row in records.worklist.rows(part))


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([words.plain_cell(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _cells(row: dict[str, Any], told: dict[str, dict[str, Any]], clock: words.Clock) -> list[Any]:
    times = told.get(row["study_instance_uid"], {})
    word, review = row["word"] or {}, row["review"] or {}
    findings = words.read_findings(word.get("findings"))
    classes = findings.classes if findings else {}
    acknowledged_at = review.get("acknowledged_at")
    return [
        row["study_instance_uid"],
        row["patient_id"],
        row["accession_number"],
        row["study_date"],
        row["description"],
        clock.iso(row["last_received_at"]),
        row["status"],
        word.get("priority") or "",
        words.result(row["status"], row["word"], findings).headline,
        *(f"{classes[c].probability:.4f}" if c in classes else "" for c in COLUMNS[9:15]),
        findings.segmentation.volume_ml if findings and findings.segmentation else "",
        f"{findings.model.name} {findings.model.version}" if findings else "",
        review.get("acknowledged_by") or "",
        clock.iso(acknowledged_at) if acknowledged_at else "",
        review.get("opinion") or "",
        review.get("opinion_by") or "",
        row["order_priority"] or "",
        *(
            f"{times[name]:.1f}" if times.get(name) is not None else ""
            for name in ("alerted_s", "acknowledged_s")
        ),
    ]
