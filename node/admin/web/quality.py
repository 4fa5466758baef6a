"""The page Quality: how often readers agree, and whether anything drifts. Shows only."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Request, Response

from node.admin.web import canaries, drift, words
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site
from node.domain.findings import CLASSES
from node.domain.opinion import has
from node.quality.agreement import Agreement, Table, agreement
from node.quality.rates import Rate
from node.settings import Settings
from node.store.quality import Group
from node.store.records import Records

DAY_S = 86400.0
PERIODS = {"30d": 30, "90d": 90, "365d": 365, "all": 0}
PERIOD_WORDS = {"30d": "30 days", "90d": "90 days", "365d": "a year", "all": "all time"}
USUAL = "90d"
MOST_MONTHS = 12
MOST_EXPORTED = 20_000
SHOWN = 25
Row = dict[str, Any]


class By(StrEnum):
    """What the table has a line for."""

    SCANNER = "scanner"
    MODEL = "model"
    MONTH = "month"


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/quality")
    def page(
        request: Request, by: By = By.SCANNER, within: str = USUAL, visitor: Visitor = gate.viewer
    ) -> Response:
        now = time.time()
        within = within if within in PERIODS else USUAL
        since = period_start(within, now)
        site.look(visitor, "quality", request, detail=f"{by} {within}")
        whole, groups = figures(site.records, site.settings, by, within, now)
        return site.page(
            request,
            "quality.html",
            whole=whole,
            groups=groups,
            disagreements=site.records.quality.disagreements(since, now, SHOWN),
            sample=site.records.quality.sample(SHOWN),
            **drift.gather(site, now),
            **canaries.gather(site, now),
            by=by,
            within=within,
            periods=PERIOD_WORDS,
        )

    @router.get("/quality.csv")
    def export(within: str = USUAL, visitor: Visitor = gate.viewer) -> Response:
        now = time.time()
        rows = site.records.quality.export(period_start(within, now), now, MOST_EXPORTED)
        site.note(visitor, "export", detail=f"{len(rows)} analyses")
        headers = {"Content-Disposition": 'attachment; filename="quality.csv"'}
        text = "".join(csv_lines(rows, site.clock))
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    return router


def add_to(router: APIRouter, site: Site, gate: Gate) -> None:
    """The JSON of the same."""

    @router.get("/quality", tags=["quality"])
    def quality(by: By = By.SCANNER, within: str = USUAL, _: Visitor = gate.viewer) -> Row:
        """Agreement of readers with the model: all, and by scanner, model or month; 95 % intervals.

        `within`: 30d, 90d, 365d, all. What was not counted is null.
        """
        now = time.time()
        whole, *groups = as_json_rows(figures(site.records, site.settings, by, within, now))
        return {"all": whole, "by": by, "groups": groups}


def period_start(within: str, now: float) -> float:
    """An unknown period is the usual one."""
    days = PERIODS.get(within, PERIODS[USUAL])
    return now - days * DAY_S if days else 0.0


def figures(
    records: Records, settings: Settings, by: By, within: str, now: float
) -> tuple[Agreement, list[Agreement]]:
    """All together, and the groups: the largest first, months with the latest first."""
    since = period_start(within, now)
    whole = _all(records, since, now)
    if by is By.MONTH:
        return whole, _months(records, words.Clock(settings.web.time_zone), since, now)
    group = Group.SCANNER if by is By.SCANNER else Group.MODEL
    analysed = records.quality.analysed(group, since, now)
    said = records.quality.said(group, since, now)
    found = [agreement(name, count, said.get(name, [])) for name, count in analysed.items()]
    return whole, sorted(found, key=lambda g: (-g.analysed.total, g.name))


def _all(records: Records, since: float, until: float) -> Agreement:
    ((analysed, said),) = records.quality.of_times([(since, until)])
    return agreement("all", analysed, said)


def _months(records: Records, clock: words.Clock, since: float, now: float) -> list[Agreement]:
    times, names, end = [], [], now
    for begin, name in _month_starts(clock, now):
        times.append((max(begin, since), end))
        names.append(name)
        end = begin
        if begin <= since:
            break
    counts = zip(names, records.quality.of_times(times), strict=True)
    return [agreement(name, *count) for name, count in counts if count[0].total]


def _month_starts(clock: words.Clock, now: float) -> Iterator[tuple[float, str]]:
    """When the last months began, in local time, the latest first."""
    first = clock.wall(now).replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)
    for _ in range(MOST_MONTHS):
        yield first.timestamp(), first.strftime("%Y-%m")
        first = (first - timedelta(days=1)).replace(day=1)


def as_json_rows(found: tuple[Agreement, list[Agreement]]) -> list[Row]:
    """All together first."""
    return [as_json(found[0]), *(as_json(group) for group in found[1])]


def as_json(found: Agreement) -> Row:
    """Every figure by name, with counts and intervals."""
    return {
        "name": found.name,
        "analysed": asdict(found.analysed),
        "any": _table_json(found.table),
        "classes": {name: _table_json(table) for name, table in found.classes.items()},
        "verified_positive": asdict(found.verified_positive),
        "verified_negative": asdict(found.verified_negative),
        "sample_of_negatives": asdict(found.sample),
        "corrected": asdict(found.corrected) if found.corrected else None,
    }


def _table_json(table: Table) -> Row:
    rates: dict[str, Rate] = {
        "sensitivity": table.sensitivity,
        "specificity": table.specificity,
        "ppv": table.ppv,
        "npv": table.npv,
    }
    return asdict(table) | {name: asdict(rate) for name, rate in rates.items()}


_PLAIN = (
    "job_id", "study_instance_uid", "scanner", "model_name", "model_version", "verdict", "any_probability",
    "volume_ml", "kernel", "kvp", "slice_thickness_mm", "pixel_mm", "slices", "head_hu", "head_share",
    "opinion", "why",
)  # fmt: skip


def csv_lines(rows: Sequence[Row], clock: words.Clock) -> Iterator[str]:
    """One analysis a line: what was found, how it was acquired, what a reader said. No patient."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    yield "\ufeff"
    found = [f"present_{name}" for name in CLASSES]
    true = [f"reader_{name}" for name in CLASSES]
    writer.writerow(["analysed_at", *_PLAIN, *found, *true, "sampled"])
    for row in rows:
        present = [int(has(row["present"], name)) for name in CLASSES]
        writer.writerow(
            [
                clock.iso(row["analysed_at"]),
                *(words.plain_cell("" if row[name] is None else row[name]) for name in _PLAIN),
                *present,
                *truth(row),
                int(row["sampled_at"] is not None),
            ]
        )
    yield stream.getvalue()


def truth(row: Row, present: str = "present") -> list[Any]:
    """What the reader saw of each class; empty where nothing was said. `present`: the column judged."""
    told = row["told"] or 0
    return [
        int(has(row[present], name) != has(row["wrong"] or 0, name)) if has(told, name) else ""
        for name in CLASSES
    ]
