"""What the queue's page shows: work, destinations, dead letters, room on the disk. Changes nothing."""

from __future__ import annotations

import shutil
from typing import Any

from node.admin.waiting import uploading
from node.admin.web import plots, readers, words
from node.admin.web.site import Site
from node.domain.lifecycle import AlertState, DeliveryState
from node.store import pauses

Row = dict[str, Any]
DAY_S = 24 * 3600
SHOWN = 25
LATE_AFTER = 2
"""A storage commitment is missed after so many of commitment_wait_s: it was asked for again by then."""
INCIDENT_DAYS = 7


def gather(site: Site, now: float) -> Row:
    """The context of the queue's page."""
    records, settings = site.records, site.settings
    console = records.console
    by_name = {d.name: d for d in settings.destination}
    standing = console.destinations(list(by_name))
    paused = records.pauses.all()
    return {
        "counts": console.counts(),
        "processes": records.views.processes(now),
        "work": console.work(SHOWN, settings.orders.rules.stat),
        "aged_before": now - settings.orders.rules.age_s,
        "inquiry": records.orders.last_inquiry() if settings.orders.worklist.ae_title else None,
        "failed": console.failed_jobs(SHOWN),
        "finished": console.finished(),
        "pending": console.unsent(DeliveryState.PENDING, SHOWN),
        "given_up": console.unsent(DeliveryState.FAILED, SHOWN),
        "destinations": [
            {
                "name": name,
                "settings": by_name.get(name),
                "paused": paused.get(pauses.of_destination(name)),
                **of,
            }
            for name, of in standing.items()
        ],
        "channels": channels(site, paused),
        "alerts_pending": records.alerts.unsent(AlertState.PENDING, SHOWN),
        "alerts_given_up": records.alerts.unsent(AlertState.FAILED, SHOWN),
        "oldest_alert": records.alerts.oldest_unsent_positive(),
        "uncommitted": console.uncommitted(commitment_due(site, now), SHOWN),
        "oldest_positive": console.oldest_unsent_positive(),
        "hours": plots.by_hour(console.times(now - DAY_S), now),
        "incidents": records.incidents.since(now - INCIDENT_DAYS * DAY_S)[:SHOWN],
        "incident_days": INCIDENT_DAYS,
        "uploads": uploading(records, now) if settings.spool.s3.wanted else None,
        "disk": disk(site, now),
        **readers.gather(site),
        "shown": SHOWN,
    }


def channels(site: Site, paused: Row) -> list[Row]:
    """Every channel of the settings, then those that alerts still wait for; `settings` is None for these."""
    by_name = {alert.name: alert for alert in site.settings.alert}
    tests = site.records.console.echoes([pauses.of_channel(name) for name in by_name])
    return [
        {
            "name": name,
            "settings": by_name.get(name),
            "paused": paused.get(pauses.of_channel(name)),
            "test": tests.get(pauses.of_channel(name)),
            **of,
        }
        for name, of in site.records.alerts.channels(list(by_name)).items()
    ]


def commitment_due(site: Site, now: float) -> dict[str, float]:
    """By destination that is asked for storage commitment: what it took before then is overdue."""
    wanted = (d for d in site.settings.destination if d.commitment)
    return {d.name: now - LATE_AFTER * d.commitment_wait_s for d in wanted}


def disk(site: Site, now: float) -> Row:
    """Room in data_dir, what came in a day, and how long the room lasts so; with a bucket, for ever.

    On a volume that is away there is none; `trouble` says why.
    """
    total, free, trouble = 0, 0, ""
    try:
        total, _, free = shutil.disk_usage(site.spool.root)
    except OSError as error:
        trouble = f"{site.spool.root}: {error.strerror or error}"
    reserve = site.settings.spool.reserve_mb * 2**20
    daily = site.records.console.bytes_since(now - DAY_S)
    stays = 0 if site.settings.spool.s3.wanted else daily
    left = max(free - reserve, 0)
    return {
        "total": total,
        "free": free,
        "reserve": reserve,
        "daily": daily,
        "stays": stays,
        "lasts_s": left / stays * DAY_S if stays else None,
        "full": free <= reserve,
        "trouble": trouble,
    }


def has_no_room(site: Site) -> bool:
    """The next C-STORE would be refused."""
    try:
        return site.spool.free_bytes() <= site.spool.reserve_bytes
    except OSError:
        return True


def roles(site: Site, now: float) -> list[Row]:
    return words.roles(site.records.views.processes(now), now, site.settings.idle_roles)
