"""The page Shadow: two models over the same series, which is the active one, and the deed that changes it."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from node import promotion
from node.admin.web import plots, words
from node.admin.web.forms import back
from node.admin.web.gate import Gate, Visitor, fields
from node.admin.web.quality import MOST_EXPORTED, PERIOD_WORDS, PERIODS, USUAL, period_start, truth
from node.admin.web.site import Site
from node.domain.choice import Promotion
from node.domain.errors import IllegalTransition
from node.domain.findings import CLASSES
from node.domain.opinion import has
from node.promotion import LONGEST_REASON, Standing
from node.quality.agreement import Table
from node.quality.pairs import Compared, Times, compare, times
from node.settings import Settings
from node.store.pair_days import DAY_S, day_of
from node.store.pairs import Asked
from node.store.records import Records

PLOTTED = 500
TIMED = 2000
DIFFERING = 50
HISTORY = 20
Row = dict[str, Any]
TOOK = {"classified_s": "until the classes were known", "total_s": "until everything was"}
RATES = ("sensitivity", "specificity", "ppv", "npv")
_PLAIN = ("job_id", "study_instance_uid", "scanner", "model_name", "model_version", "model_sha256")
_SHADOW = ("shadow_model_name", "shadow_model_version", "shadow_model_sha256")
_WORDS = ("verdict", "any_probability", "volume_ml", "classified_s", "total_s")


@dataclass(frozen=True)
class Choice:
    """What is compared: a pair of models (as `key` names it; empty: the latest), a period, a scanner."""

    pair: str = ""
    within: str = USUAL
    scanner: str = ""


@dataclass(frozen=True)
class Comparison:
    """The figures of one pair of models; `pair` is None where no series was read by two."""

    pair: Row | None
    pairs: list[Row]
    classes: dict[str, Compared]
    taken: dict[str, tuple[Times, Times]]
    """Of the active and the shadow model."""


class Reason(BaseModel):
    """Why; it stands in the audit trail and in the history."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=LONGEST_REASON)


class Wanted(Reason):
    """Which model, by the SHA-256 of its weights."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Chosen(BaseModel):
    """The model that is the active one from now on."""

    name: str
    version: str
    sha256: str


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/shadow")
    def page(
        request: Request, choice: Annotated[Choice, Depends()], visitor: Visitor = gate.viewer
    ) -> Response:
        now = time.time()
        site.look(visitor, "shadow", request, detail=choice.within)
        return site.page(request, "shadow.html", **gather(site, choice, now))

    @router.get("/shadow.csv")
    def export(choice: Annotated[Choice, Depends()], visitor: Visitor = gate.viewer) -> Response:
        now = time.time()
        found = chosen(site.records.pairs.which(), choice.pair)
        rows = site.records.pairs.latest(asked(found, choice, now), MOST_EXPORTED) if found else []
        site.note(visitor, "export", detail=f"{len(rows)} shadow readings")
        headers = {"Content-Disposition": 'attachment; filename="shadow.csv"'}
        text = "".join(csv_lines(rows, site.clock))
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    @router.post("/shadow/promote")
    async def make_active(request: Request, visitor: Visitor = gate.admin) -> Response:
        form = await fields(request)
        await run_in_threadpool(promote, site, visitor, form.get("sha256", ""), form.get("reason", ""))
        return await back(request)

    @router.post("/shadow/rollback")
    async def take_back(request: Request, visitor: Visitor = gate.admin) -> Response:
        form = await fields(request)
        await run_in_threadpool(roll_back, site, visitor, form.get("reason", ""))
        return await back(request)

    return router


def add_to(router: APIRouter, site: Site, gate: Gate) -> None:
    """The JSON of the same."""

    @router.get("/shadow", tags=["shadow"])
    def shadow(choice: Annotated[Choice, Depends()], _: Visitor = gate.viewer) -> Row:
        """Active and shadow model over the series that both read: agreement, accuracy, times; 95 % intervals.

        `pair`: two digests, joined by a colon; empty: the latest. `within`: 30d, 90d, 365d, all.
        """
        return as_json(site.settings, site.records, choice, time.time())

    @router.get("/models", tags=["shadow"])
    def models(_: Visitor = gate.viewer) -> Row:
        """The active model and since when, the shadow model, what is wrong, and every promotion."""
        return models_json(site.settings, site.records, time.time())

    @router.post("/models/promote", tags=["shadow"])
    def make_active(wanted: Wanted, visitor: Visitor = gate.admin) -> Chosen:
        """Make a model that has read in the shadow the active one; 409 for another."""
        return Chosen(**asdict(promote(site, visitor, wanted.sha256, wanted.reason)))

    @router.post("/models/rollback", tags=["shadow"])
    def take_back(why: Reason, visitor: Visitor = gate.admin) -> Chosen:
        """Make the model before the active one again; 409 where none was promoted."""
        return Chosen(**asdict(roll_back(site, visitor, why.reason)))


def promote(site: Site, visitor: Visitor, sha256: str, reason: str) -> Any:
    """A whole digest alone: what was looked at, and nothing that begins like it."""
    if len(sha256) != 64:
        raise IllegalTransition("which model? Give the whole SHA-256 of its weights")
    return promotion.promote(site.settings, site.records, visitor.actor, sha256, reason, time.time())


def roll_back(site: Site, visitor: Visitor, reason: str) -> Any:
    return promotion.roll_back(site.settings, site.records, visitor.actor, reason, time.time())


def gather(site: Site, choice: Choice, now: float) -> Row:
    """All that the page shows."""
    records = site.records
    found = comparison(records, choice, now)
    wanted = asked(found.pair, choice, now) if found.pair else None
    differing, differ = records.pairs.differing(wanted, DIFFERING) if wanted else ([], 0)
    stands = promotion.standing(site.settings, records, now)
    return {
        "found": found,
        "stands": stands,
        "candidates": candidates(records, stands),
        "counts": records.shadows.counts(),
        "failures": records.shadows.failures(5),
        "dots": plots.scatter(records.pairs.dots(wanted, PLOTTED)) if wanted else [],
        "plotted": PLOTTED,
        "scanners": records.pairs.scanners(wanted) if wanted else [],
        "differing": [{**row, "differs": differences(row)} for row in differing],
        "differ": differ,
        "history": records.promotions.history(HISTORY),
        "choice": choice,
        "within": choice.within if choice.within in PERIODS else USUAL,
        "periods": PERIOD_WORDS,
        "key": key,
        "took_words": TOOK,
        "longest_reason": LONGEST_REASON,
    }


def comparison(records: Records, choice: Choice, now: float) -> Comparison:
    """Of the pair that was asked for, else of the latest."""
    pairs = records.pairs.which()
    pair = chosen(pairs, choice.pair)
    if pair is None:
        return Comparison(None, pairs, compare([]), {})
    wanted = asked(pair, choice, now)
    rows = records.pairs.times(wanted, TIMED)
    taken = {
        name: (times(row[f"active_{name}"] for row in rows), times(row[f"shadow_{name}"] for row in rows))
        for name in TOOK
    }
    return Comparison(pair, pairs, compare(records.pairs.counted(wanted)), taken)


def key(pair: Row) -> str:
    """Of a pair of models, for an address."""
    return f"{pair['active_sha256']}:{pair['shadow_sha256']}"


def chosen(pairs: Sequence[Row], wanted: str) -> Row | None:
    return next((pair for pair in pairs if key(pair) == wanted), pairs[0] if pairs else None)


def asked(pair: Row, choice: Choice, now: float) -> Asked:
    since = day_of(period_start(choice.within, now)) * DAY_S  # whole days are counted already
    return Asked(pair["active_sha256"], pair["shadow_sha256"], since, now, choice.scanner)


def candidates(records: Records, stands: Standing) -> list[Row]:
    """Models that have read in the shadow and are not the active one, the latest first."""
    active = stands.model.sha256 if stands.model else ""
    read: Counter[str] = Counter()
    for pair in records.pairs.which():
        read[pair["shadow_sha256"]] += pair["count"]
    known = [{**row, "done": read[row["model_sha256"]]} for row in records.shadows.models()]
    return [row for row in known if row["model_sha256"] != active]


def differences(row: Row) -> list[tuple[str, bool]]:
    """(class, the shadow model calls it) for each class on which the two differ."""
    both = row["active_evaluated"] & row["shadow_evaluated"]
    differ = (row["active_present"] ^ row["shadow_present"]) & both
    return [(name, has(row["shadow_present"], name)) for name in CLASSES if has(differ, name)]


def as_json(settings: Settings, records: Records, choice: Choice, now: float) -> Row:
    """Every figure by name, with counts and intervals."""
    found = comparison(records, choice, now)
    return {
        "pair": found.pair,
        "pairs": found.pairs,
        "within": choice.within if choice.within in PERIODS else USUAL,
        "classes": {name: _class_json(one) for name, one in found.classes.items()},
        "seconds": {
            name: {"active": asdict(active), "shadow": asdict(shadow)}
            for name, (active, shadow) in found.taken.items()
        },
        "readings": records.shadows.counts(),
        "trouble": list(promotion.standing(settings, records, now).shadow_trouble),
    }


def _class_json(one: Compared) -> Row:
    cross = one.cross
    return {
        "cross": asdict(cross) | {"total": cross.total},
        "agreement": asdict(cross.agreement),
        "kappa": asdict(cross.kappa),
        "active": _table_json(one.active),
        "shadow": _table_json(one.shadow),
        "mcnemar": {"sensitivity": asdict(one.bleeding), "specificity": asdict(one.clear)},
        "differing_judged": one.differing_judged,
        "sampled": one.sampled,
    }


def _table_json(table: Table) -> Row:
    four = ("true_positive", "false_positive", "false_negative", "true_negative")
    counts = {name: getattr(table, name) for name in four}
    return counts | {name: asdict(getattr(table, name)) for name in RATES}


def models_json(settings: Settings, records: Records, now: float) -> Row:
    stands = promotion.standing(settings, records, now)
    active = stands.active
    return {
        "active": {
            "pipeline": active.pipeline,
            **(asdict(stands.model) if stands.model else {"name": None, "version": None, "sha256": None}),
            "since": stands.since,
            "promoted": _promotion_json(active.promoted) if active.promoted else None,
            "set_aside": _promotion_json(active.set_aside) if active.set_aside else None,
        },
        "shadow": {"pipeline": stands.shadow.pipeline, **asdict(stands.shadow.identity)}
        if stands.shadow
        else None,
        "can_be_promoted": candidates(records, stands),
        "trouble": [*stands.trouble, *stands.shadow_trouble],
        "history": [_promotion_json(one) for one in records.promotions.history(HISTORY)],
    }


def _promotion_json(one: Promotion) -> Row:
    return asdict(one) | {"back_to_settings": one.back_to_settings}


def csv_lines(rows: Sequence[Row], clock: words.Clock) -> Iterator[str]:
    """One series a line: what each model said and how long it took, and what a reader saw. No patient."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    yield "\ufeff"
    both = [f"{who}_{name}" for who in ("active", "shadow") for name in _WORDS]
    each = [
        f"{who}_{what}_{name}"
        for who in ("active", "shadow")
        for what in ("present", "probability")
        for name in CLASSES
    ]
    readers = [f"reader_{name}" for name in CLASSES]
    writer.writerow(["analysed_at", *_PLAIN, *_SHADOW, *both, *each, *readers, "sampled"])
    for row in rows:
        cells = [row[name] for name in (*_PLAIN, *_SHADOW, *both)]
        writer.writerow(
            [
                clock.iso(row["analysed_at"]),
                *(words.plain_cell("" if cell is None else cell) for cell in cells),
                *_each(row, "active"),
                *_each(row, "shadow"),
                *truth(row, "active_present"),
                int(row["sampled_at"] is not None),
            ]
        )
    yield stream.getvalue()


def _each(row: Row, who: str) -> list[Any]:
    """Present and probability of each class; empty for one that was not evaluated."""
    evaluated, known = row[f"{who}_evaluated"], row[f"{who}_probabilities"] or {}
    present = [int(has(row[f"{who}_present"], c)) if has(evaluated, c) else "" for c in CLASSES]
    return [*present, *(known.get(c, "") for c in CLASSES)]
