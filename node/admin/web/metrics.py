"""Health and figures for machines that watch: no login, and so no patient's data, no name, no UID."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from node import __version__, canary, promotion
from node.admin.waiting import uploading
from node.admin.web import board, readers
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site
from node.domain.lifecycle import AlertState, DeliveryState, JobState, ShadowState
from node.store import leaders, pauses

CONTENT = "text/plain; version=0.0.4; charset=utf-8"
HOUR_S = 3600
Sample = tuple[str, dict[str, str], float]


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    def healthz(_: Visitor = gate.anybody) -> dict[str, str]:
        """This process runs and the database answers; else 503."""
        site.records.views.processes(time.time())
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"description": "Not ready, and what is missing"}})
    def readyz(_: Visitor = gate.anybody) -> JSONResponse:
        """Every role is alive and there is room for what comes; else 503 with what is missing.

        `canary` is off, ok or failing. A failing one leaves the node ready: it receives and works on, and a
        restart would not help.
        """
        now = time.time()
        missing = [role["role"] for role in board.roles(site, now) if not role["alive"] and role["without"]]
        if board.has_no_room(site):
            missing.append("disk")
        content: dict[str, Any] = {"status": "not ready" if missing else "ready", "missing": missing}
        content |= {"canary": _canary_word(site, now)}
        return JSONResponse(content, 503 if missing else 200)

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics(_: Visitor = gate.anybody) -> Response:
        """Prometheus text format."""
        return Response("".join(exposition(site, time.time())), media_type=CONTENT)

    return router


def _canary_word(site: Site, now: float) -> str:
    """Its trouble in words is for people who logged in."""
    if not site.settings.canary.every_min:
        return "off"
    return "failing" if canary.trouble(site.settings, site.records, now) else "ok"


def exposition(site: Site, now: float) -> Iterator[str]:
    for name, words, samples in families(site, now):
        yield f"# HELP ichnode_{name} {words}\n# TYPE ichnode_{name} gauge\n"
        for suffix, labels, value in samples:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"ichnode_{name}{suffix}{f'{{{inside}}}' if inside else ''} {value}\n"


def families(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    """(name, help, samples) of each metric."""
    console = site.records.console
    counts, paused = console.counts(), site.records.pauses.all()
    names = [d.name for d in site.settings.destination]
    standing = console.destinations(names)
    oldest = console.oldest_unsent_positive()
    timed = console.times(now - HOUR_S)
    took = sorted(row["first_sent_at"] - row["received_at"] for row in timed if row["first_sent_at"])
    disk = board.disk(site, now)
    yield "info", "The version that runs.", [("", {"version": __version__}, 1)]
    roles = board.roles(site, now)
    alive = [("", {"role": role["role"]}, role["alive"]) for role in roles]
    yield "processes_alive", "Processes of each role seen within the last seconds.", alive
    gone: list[Sample] = [("", {"role": role["role"]}, len(role["lost"])) for role in roles]
    yield "processes_gone", "Processes of each role that are gone, and that no other one replaced.", gone
    led = {name for role in roles for one in role["leaders"] for name in one["leads"]}
    parts = (leaders.CLOCK, leaders.HOUSEKEEPING, leaders.COMPOSE, *map(leaders.of_destination, names))
    leading: list[Sample] = [("", {"part": part}, float(part in led)) for part in parts]
    yield "led", "1 where a living process leads this part of the node.", leading
    jobs: list[Sample] = [("", {"state": s.value}, counts["jobs"].get(s.value, 0)) for s in JobState]
    yield "jobs", "Jobs in each state.", jobs
    unsent: list[Sample] = []
    for name in standing:
        for state, key in ((DeliveryState.PENDING, "pending"), (DeliveryState.FAILED, "given_up")):
            unsent.append(("", {"destination": name, "state": state.value}, standing[name][key]))
    yield "deliveries_unsent", "Deliveries waiting (PENDING) or given up (FAILED).", unsent
    overtaken: list[Sample] = [("", {"destination": name}, of["superseded"]) for name, of in standing.items()]
    yield "deliveries_superseded", "Never sent: a newer result of the same series goes.", overtaken
    late: list[Sample] = [
        ("", {"destination": name}, count)
        for name, count in console.count_uncommitted(board.commitment_due(site, now)).items()
    ]
    yield "deliveries_uncommitted", "Sent, and no storage commitment although it was asked for twice.", late
    positive: list[Sample] = [("", {"destination": name}, of["urgent"]) for name, of in standing.items()]
    yield "deliveries_unsent_positive", "Of those, results that should change the order of reading.", positive
    age = now - oldest["created_at"] if oldest else 0.0
    yield (
        "oldest_unsent_positive_seconds",
        "Age of the oldest undelivered positive; 0: none.",
        [("", {}, age)],
    )
    unread = site.records.worklist.unread_alarms(now - 24 * HOUR_S)
    yield (
        "unread_alarms",
        "Suspected haemorrhages of the last 24 hours nobody acknowledged.",
        [("", {}, unread)],
    )
    yield "analysed_last_hour", "Jobs analysed within the last hour.", [("", {}, len(timed))]
    quantiles: list[Sample] = [
        ("", {"quantile": str(q)}, took[min(int(q * len(took)), len(took) - 1)]) for q in (0.5, 0.95) if took
    ]
    yield (
        "last_slice_to_report_seconds",
        "From the last slice to the first object sent, last hour.",
        quantiles,
    )
    yield "disk_free_bytes", "Free space on the volume of data_dir.", [("", {}, disk["free"])]
    yield (
        "disk_bytes_last_day",
        "Bytes received and made within the last 24 hours that stay on that volume.",
        [("", {}, disk["stays"])],
    )
    yield from _upload(site, now)
    gaps, archives = site.records.gaps, [a.name for a in site.settings.archive]
    missing: list[Sample] = [
        ("", {"archive": archive, "kind": kind}, count) for (archive, kind), count in gaps.counts().items()
    ]
    yield "missing", "What archives hold and never came here, by kind.", missing
    compared: list[Sample] = [
        ("", {"archive": name}, last["finished_at"])
        for name, last in gaps.latest(archives).items()
        if last["finished_at"] and not last["error"]
    ]
    yield "compared_timestamp_seconds", "When the last comparison with each archive ended well.", compared
    yield from _drift(site)
    if site.settings.audit.host:
        waiting = site.records.audit_queue.standing()
        since = now - waiting["oldest"] if waiting["oldest"] else 0.0
        yield (
            "audit_messages_waiting",
            "Not yet sent to the audit repository.",
            [("", {}, waiting["waiting"])],
        )
        yield "audit_oldest_seconds", "Age of the oldest of them; 0: none.", [("", {}, since)]
    yield from _alerts(site, now)
    yield from _canary(site, now)
    yield from _queue(site, now)
    yield from _models(site, now)
    yield from readers.metrics(site)
    stand = {pauses.QUEUE: "queue", **{pauses.of_destination(name): name for name in names}}
    stand |= {pauses.of_channel(a.name): f"alert {a.name}" for a in site.settings.alert}
    yield (
        "paused",
        "1 where an admin paused it.",
        [("", {"what": w}, float(n in paused)) for n, w in stand.items()],
    )


def _upload(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    """Where machines share a bucket in place of a volume; without one nothing ever waits for it."""
    waiting = uploading(site.records, now)
    held = "Images on the disk of one machine alone, not in the bucket yet."
    yield "held_images", held, [("", {}, waiting.instances)]
    yield "held_oldest_seconds", "How long the oldest of them has waited; 0: none.", [("", {}, waiting.age_s)]
    fine = float(not waiting.troubles)
    yield "upload_ok", "0 while an uploader cannot use the bucket.", [("", {}, fine)]
    room: list[Sample] = [("", {"disk": name}, max(left, 0)) for name, left in waiting.room_bytes.items()]
    if room:
        yield "listener_disk_room_bytes", "What the disk of a listener takes beyond its reserve.", room


def _queue(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    depths = site.records.queue.depths(now, site.settings.orders.rules)
    named = {turn.value.lower(): depth for turn, depth in depths.items()}
    waiting: list[Sample] = [("", {"turn": turn}, depth.waiting) for turn, depth in named.items()]
    yield "queue_waiting", "Jobs waiting: ordered STAT, aged so that they count as such, routine.", waiting
    oldest: list[Sample] = [
        ("", {"turn": turn}, max(now - depth.oldest, 0.0) if depth.oldest else 0.0)
        for turn, depth in named.items()
    ]
    yield "queue_oldest_seconds", "How long the oldest of them has waited; 0: none.", oldest
    workers = [row for row in site.records.views.processes(now) if row["role"] == "worker" and row["alive"]]
    for key, name, words in (
        (
            "network_busy",
            "network_busy",
            "Share of the last seconds in which a worker's networks were at work.",
        ),
        ("jobs_done", "worker_jobs_done", "Series that a worker finished since it started."),
        ("jobs_ahead", "worker_jobs_ahead", "Of those, worked on ahead of their job."),
        ("slices_early", "early_slices", "Slices a worker decoded while their series arrived."),
        ("slices_early_used", "early_slices_used", "Of those, taken by an analysis."),
        ("early_bytes", "early_bytes", "Memory of a worker in decoded slices of series that arrive."),
    ):
        told = [row for row in workers if key in (row["detail"] or {})]
        samples: list[Sample] = [("", {"worker": row["process"]}, row["detail"][key]) for row in told]
        yield name, words, samples


def _models(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    """The active model and the shadow's readings; without a shadow all is well with it."""
    stands = promotion.standing(site.settings, site.records, now)
    if stands.model:
        model, promoted = stands.model, str(int(stands.active.promoted is not None))
        named = {"name": model.name, "version": model.version, "digest": model.sha256, "promoted": promoted}
        yield "model_active", "The model whose word is reported.", [("", named, 1)]
    yield (
        "model_trouble",
        "1 while a worker cannot use the chosen model, or workers use different ones.",
        [("", {}, float(bool(stands.trouble)))],
    )
    counts = site.records.shadows.counts()
    states: dict[str, int] = dict.fromkeys((state.value.lower() for state in ShadowState), 0)
    for name, count in counts.items():
        states[name.partition(" ")[0].lower()] += count
    readings: list[Sample] = [("", {"state": state}, count) for state, count in states.items()]
    yield "shadow_readings", "Series for the shadow model, by state.", readings
    oldest = site.records.shadows.oldest_waiting() if site.settings.shadow.pipeline else None
    age = max(now - oldest, 0.0) if oldest else 0.0
    yield "shadow_oldest_seconds", "How long the oldest waiting of them has waited; 0: none.", [("", {}, age)]
    fine = float(not stands.shadow_trouble)
    yield "shadow_ok", "0 while nothing can be read in the shadow.", [("", {}, fine)]


def _canary(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    """Nothing where none is sent: an alert on its absence would be one for every node without it."""
    if not site.settings.canary.every_min:
        return
    last, good = site.records.canaries.last_finished(), site.records.canaries.last_good()
    fine = not canary.trouble(site.settings, site.records, now)
    yield "canary_ok", "0 while the last canary came out wrong, late or not at all.", [("", {}, float(fine))]
    ended: list[Sample] = [("", {}, good["finished_at"])] if good else []
    yield "canary_last_good_timestamp_seconds", "When the last good one ended.", ended
    steps = (last or {}).get("steps_s") or {}
    took: list[Sample] = [("", {"step": name}, value) for name, value in steps.items()]
    yield "canary_seconds", "From sending the last canary to the end of each step.", took


def _drift(site: Site) -> Iterator[tuple[str, str, list[Sample]]]:
    rows = site.records.drifts.all()
    labels = [{"scanner": row["scanner"], "feature": row["feature"]} for row in rows]
    distance: list[Sample] = [("", label, row["distance"]) for label, row in zip(labels, rows, strict=True)]
    alarm: list[Sample] = [
        ("", label, float(row["drifted_since"] is not None)) for label, row in zip(labels, rows, strict=True)
    ]
    yield "drift_distance", "Of the latest analyses of a scanner from its reference, 0 to 1.", distance
    yield "drift_alarm", "1 where that distance is large and no chance.", alarm


def _alerts(site: Site, now: float) -> Iterator[tuple[str, str, list[Sample]]]:
    """Of the channels in the settings, and of those that alerts still wait for."""
    alerts = site.records.alerts
    unsent: list[Sample] = []
    positive: list[Sample] = []
    for name, of in alerts.channels([alert.name for alert in site.settings.alert]).items():
        for state, key in ((AlertState.PENDING, "pending"), (AlertState.FAILED, "given_up")):
            unsent.append(("", {"channel": name, "state": state.value}, of[key]))
        positive.append(("", {"channel": name}, of["urgent"]))
    yield "alerts_unsent", "Alerts waiting (PENDING) or given up (FAILED).", unsent
    yield "alerts_unsent_positive", "Of those, results that should change the order of reading.", positive
    oldest = alerts.oldest_unsent_positive()
    age = now - oldest["created_at"] if oldest else 0.0
    yield (
        "oldest_unsent_alert_seconds",
        "Age of the oldest positive nobody was told of; 0: none.",
        [("", {}, age)],
    )
    timed = alerts.times(now - HOUR_S)
    for event, name, words in (
        ("sent_at", "last_slice_to_alert_seconds", "From the last slice to the first alert, last hour."),
        (
            "acknowledged_at",
            "last_slice_to_alert_acknowledged_seconds",
            "…to its acknowledgement, last hour.",
        ),
    ):
        yield name, words, _quantiles(timed, event)


def _quantiles(timed: list[dict[str, Any]], event: str) -> list[Sample]:
    """Median and 95th percentile of each channel, in seconds from the last slice."""
    samples: list[Sample] = []
    for channel in sorted({row["channel"] for row in timed}):
        mine = [row for row in timed if row["channel"] == channel and row[event]]
        took = sorted(row[event] - row["last_slice_at"] for row in mine)
        for q in (0.5, 0.95) if took else ():
            at = min(int(q * len(took)), len(took) - 1)
            samples.append(("", {"channel": channel, "quantile": str(q)}, took[at]))
    return samples


def _escaped(text: Any) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
