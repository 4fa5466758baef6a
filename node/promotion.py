"""Makes another model the active one, by a deed of an admin, and says which one is. Loads none itself.

Only a model that has read series here in the shadow can be promoted: so it is known to load and to run, and
by which weights. What was found stays as it is; what is analysed from then on is the new model's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from node.domain.choice import Active, Promotion
from node.domain.errors import IllegalTransition
from node.domain.findings import ModelIdentity
from node.settings import Settings
from node.shadowing import ROLE as SHADOW_ROLE
from node.shadowing import is_loaded
from node.store.audit import Actor
from node.store.promotions import Wish
from node.store.records import Records
from node.store.shadows import ShadowModel

LONGEST_REASON = 400
FOLLOWS_WITHIN_S = 60.0
"""A worker looks every five seconds; loading takes the rest."""
SHORTEST_DIGEST = 8
UNKNOWN = "unknown"
Row = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Which model is active, since when, and what is wrong with that or with the shadow, in words."""

    active: Active
    model: ModelIdentity | None
    """None until a worker has been seen or something was analysed."""
    since: float | None
    """Of a promotion; else the first analysis by it here."""
    shadow: ShadowModel | None
    """Loaded by a living shadow worker."""
    trouble: tuple[str, ...]
    shadow_trouble: tuple[str, ...]
    back_to: Promotion | None
    """The promotion that can be taken back."""


def standing(settings: Settings, records: Records, now: float) -> Standing:
    """As the records tell."""
    last = records.promotions.last()
    active = records.promotions.active(settings.model.pipeline)
    alive = [p for p in records.views.processes(now) if p["alive"]]
    workers = [p for p in alive if p["role"] == "worker"]
    model = active.promoted.model if active.promoted else _seen(workers, records)
    shadows = [p for p in alive if p["role"] == SHADOW_ROLE]
    shadow = _loaded(shadows)
    in_force = last if last and last.settings_pipeline == settings.model.pipeline else None
    since = in_force.at if in_force else records.quality.first_by(model) if model else None
    return Standing(
        active,
        model,
        since,
        shadow,
        tuple(_trouble(active, alive, now)),
        tuple(_shadow_trouble(settings, model, shadow, shadows)),
        in_force,
    )


def _seen(workers: Sequence[Row], records: Records) -> ModelIdentity | None:
    """What the worker that started last has loaded; without one, what analysed last."""
    loaded = [p for p in workers if "sha256" in p["detail"]]
    if loaded:
        return _identity(max(loaded, key=lambda p: float(p["started_at"])))
    return records.quality.latest_model()


def _identity(process: Row) -> ModelIdentity:
    detail = process["detail"]
    return ModelIdentity(detail["model"], detail["version"], detail["sha256"])


def _loaded(shadows: Sequence[Row]) -> ShadowModel | None:
    ready = [p for p in shadows if is_loaded(p)]
    if not ready:
        return None
    newest = max(ready, key=lambda p: float(p["started_at"]))
    return ShadowModel(newest["detail"]["pipeline"], _identity(newest))


def trouble(settings: Settings, records: Records, processes: Sequence[Row], now: float) -> list[str]:
    """What keeps the chosen model from being the one that reads, in words; of the processes as they stand."""
    alive = [p for p in processes if p["alive"]]
    return _trouble(records.promotions.active(settings.model.pipeline), alive, now)


def _trouble(active: Active, alive: Sequence[Row], now: float) -> list[str]:
    workers = [p for p in alive if p["role"] == "worker"]
    refusing = sorted({p["detail"]["refuses"] for p in workers if p["detail"].get("refuses")})
    found = [f"A worker takes no work: {text}" for text in refusing]
    loaded = {p["process"]: _identity(p) for p in workers if "sha256" in p["detail"]}
    digests = {identity.sha256 for identity in loaded.values()}
    if active.promoted and now - active.promoted.at > FOLLOWS_WITHIN_S:
        others = sorted(name for name, identity in loaded.items() if identity.sha256 != active.sha256)
        if others:
            found.append(f"Workers still use another model than the promoted one: {', '.join(others)}")
    elif not active.promoted and len(digests) > 1:
        models = sorted(f"{m.name} {m.version} {m.sha256[:12]}" for m in set(loaded.values()))
        found.append(f"Workers use different models: {', '.join(models)}; their settings or weights differ")
    return found


def _shadow_trouble(
    settings: Settings, model: ModelIdentity | None, shadow: ShadowModel | None, processes: Sequence[Row]
) -> list[str]:
    if not settings.shadow.pipeline:
        return []
    refusing = sorted({p["detail"]["refuses"] for p in processes if p["detail"].get("refuses")})
    if refusing:
        return [f"The shadow worker cannot load its model: {text}" for text in refusing]
    if shadow is None:
        return ["No shadow worker is up yet, or any more: nothing is read in the shadow"]
    if model and shadow.identity.sha256 == model.sha256:
        return ["The shadow model is the active one: there is nothing to compare; name another in [shadow]"]
    return []


def promote(
    settings: Settings, records: Records, actor: Actor, sha256: str, reason: str, now: float
) -> ModelIdentity:
    """The model with this digest (or its beginning) is the active one from now on.

    Raises IllegalTransition for one that has read nothing here, or that is active already.
    """
    wanted = sha256.strip().lower()
    known = [m for m in records.shadows.models() if m["model_sha256"].startswith(wanted)]
    if len(wanted) < SHORTEST_DIGEST or len(known) != 1:
        names = ", ".join(f"{m['model_name']} {m['model_sha256'][:12]}" for m in records.shadows.models())
        text = f"no model {sha256!r} has read a series here in the shadow; there are: {names or 'none'}"
        raise IllegalTransition(text)
    (row,) = known
    chosen = ModelIdentity(row["model_name"], row["model_version"], row["model_sha256"])
    stands = standing(settings, records, now)
    if stands.model and stands.model.sha256 == chosen.sha256:
        raise IllegalTransition(f"{chosen.name} {chosen.version} is the active model already")
    wish = _wish(settings, stands, row["pipeline"], chosen, reason)
    records.promotions.add(wish, actor, "promote-model", _last_id(records), now)
    return chosen


def roll_back(settings: Settings, records: Records, actor: Actor, reason: str, now: float) -> ModelIdentity:
    """What was active before is so again. Raises IllegalTransition where nothing was promoted."""
    stands = standing(settings, records, now)
    if stands.back_to is None:
        raise IllegalTransition("no promotion is in force: the settings name the active model")
    before = stands.back_to
    wish = _wish(settings, stands, before.before_pipeline, before.before, reason)
    records.promotions.add(wish, actor, "roll-back-model", before.id, now)
    return before.before


def _wish(settings: Settings, stands: Standing, pipeline: str, model: ModelIdentity, reason: str) -> Wish:
    if not reason.strip():
        raise IllegalTransition("say why: the reason stands in the audit trail and in the history")
    before = stands.model or ModelIdentity(UNKNOWN, "", "")
    said = " ".join(reason.split())[:LONGEST_REASON]
    return Wish(pipeline, model, settings.model.pipeline, stands.active.pipeline, before, said)


def _last_id(records: Records) -> int:
    last = records.promotions.last()
    return last.id if last else 0
