"""`ichnode doctor`: looks at every part the node leans on, and says what to do about what is wrong."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from node import broker, canary, certificates, promotion
from node.admin.backup import standing_at
from node.admin.listing import when
from node.admin.roles import prepare
from node.admin.waiting import uploading
from node.admin.web.words import roles
from node.audit import syslog
from node.channels.catalogue import channel_of
from node.deliver import Carrier, carrier_to
from node.depot.remote import RemoteDepot
from node.domain.errors import IchnodeError, PermanentError, SettingsError
from node.orders.worklist import Worklist
from node.quality.counts import FEATURES
from node.query import Archivist
from node.scan import MISSING, Fate, summary
from node.settings import AnyAlert, Database, Settings, Tls
from node.spool import spool_of
from node.store.records import Records, open_records

log = logging.getLogger(__name__)

INCIDENT_DAYS = 7
MOST_SKEW_S = 60
CHECKS = "ichnode.checks"
"""Entry-point group of further checks: functions of the settings that return words or raise IchnodeError."""


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    text: str


def examine(settings: Settings) -> Iterator[Check]:
    """Each check in turn; a failed one keeps none of the others from being made."""
    yield Check("settings", True, f"data_dir {settings.data_dir.resolve()}")
    if _has_database(settings):
        yield _check("database", lambda: _database(settings))
    else:
        yield _check("database", partial(_no_database, settings))
        settings = settings.model_copy(update={"database": Database(url="sqlite:///:memory:")})
    yield _check("broker", lambda: _broker(settings))
    yield _check("processes", lambda: _processes(settings))
    for entry in sorted(entry_points(group=CHECKS), key=lambda e: e.name):
        yield _check(entry.name, lambda entry=entry: entry.load()(settings))  # type: ignore[misc]
    if shown := _shown_certificates(settings):
        yield _check("certificates", lambda: _certificates(shown))
    yield _check("disk", lambda: _disk(settings))
    if settings.spool.s3.wanted:
        yield _check("bucket", lambda: _bucket(settings))
        yield _check("upload", lambda: _upload(settings))
    yield _check("spool", lambda: _spool(settings))
    yield _check("incidents", lambda: _incidents(settings))
    yield _check("drift", lambda: _drift(settings))
    yield _check("canary", lambda: _canary(settings))
    yield _check("active model", lambda: _active_model(settings))
    if settings.shadow.pipeline:
        yield _check("shadow", lambda: _shadow(settings))
    if settings.audit.host:
        yield _check("audit", lambda: _audit(settings))
    if not settings.destination:
        yield Check("destinations", False, "there is none: add a [[destination]] to the settings")
    elif unsent := _without_destination(settings):
        yield Check("destinations", False, unsent)
    if settings.orders.worklist.ae_title:
        worklist = Worklist(settings.orders.worklist, settings.scp.ae_title)
        yield _check("worklist", lambda: _echo(worklist))
    if settings.ups.watcher:
        yield _check("subscribers", lambda: _subscribers(settings))
    for destination in settings.destination:
        peer = carrier_to(destination, settings.scp.ae_title)
        yield _check(f"destination {destination.name}", lambda peer=peer: _echo(peer))  # type: ignore[misc]
    yield from _archives(settings)
    for alert in settings.alert:
        yield _check(f"alert {alert.name}", lambda alert=alert: _probe(alert, settings))  # type: ignore[misc]
    if abandoned := _without_channel(settings):
        yield Check("alerts", False, abandoned)


def _archives(settings: Settings) -> Iterator[Check]:
    for archive in settings.archive:
        peer = Archivist(archive.peer, settings.scp.ae_title)
        yield _check(f"archive {archive.name}", lambda peer=peer: _echo(peer))  # type: ignore[misc]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except IchnodeError as error:
        return Check(name, False, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Check(name, False, f"{where}{error.strerror or error}; look at data_dir and who may use it")
    except Exception as error:
        log.debug("the check %s broke", name, exc_info=True)
        return Check(name, False, f"the check broke: {type(error).__name__}: {error}")


def _has_database(settings: Settings) -> bool:
    """False where there is none, or an empty one: looking must not make it."""
    try:
        return standing_at(settings) is not None
    except IchnodeError:
        return True  # the check of the database tells it


def _no_database(settings: Settings) -> str:
    """Before the first start. Raises SettingsError where data_dir could not be made."""
    nearest = _nearest(settings.data_dir.resolve())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        text = f"data_dir {settings.data_dir} cannot be made in {nearest}"
        raise SettingsError(f"{text}: choose a folder you own")
    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    return f"there is none yet at {shown}; `ichnode up` makes it, if that is where it should be"


def _nearest(folder: Path) -> Path:
    """The folder, or the lowest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _database(settings: Settings) -> str:
    prepare(settings)
    records = open_records(settings)
    counts = records.views.counts()["jobs"]
    records.close()
    jobs = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none yet"
    return f"{records.engine.url.render_as_string(hide_password=True)}; jobs: {jobs}"


def _broker(settings: Settings) -> str:
    if not settings.broker.url and not broker.socket_path(settings).exists():
        return f"bundled Redis ({broker.redis_executable()}), started by `ichnode up`"
    broker.ping(settings)
    return broker.shown_url(settings) or "bundled Redis answers"


def _processes(settings: Settings) -> str:
    """Raises PermanentError for those that are gone, and for a role that none of those alive plays."""
    records, now = open_records(settings), time.time()
    rows = records.views.processes(now)
    records.close()
    alive = sorted(row["process"] for row in rows if row["alive"])
    trouble = []
    for role in roles(rows, now, settings.idle_roles):
        gone = [f"gone: {', '.join(role['lost'])}"] if role["lost"] else []
        if alive and role["without"] and not role["alive"]:
            why = role["refuses"] or "; ".join(gone) or "not running"
            trouble.append(f"{role['role']}: {role['without']} ({why})")
        else:
            trouble += [f"{role['role']}: {text}" for text in gone]
    if trouble:
        raise PermanentError("PROCESSES", f"{'; '.join(trouble)}; its messages in the log say why")
    return ", ".join(alive) or "none is running; `ichnode up` starts them"


def _shown_certificates(settings: Settings) -> dict[str, Tls]:
    """What the node shows to those who connect to it, by section."""
    sections = {
        "scp.tls": settings.scp.tls,
        "web.tls": settings.web.tls,
        "ups.tls": settings.ups.tls,
        "orders.hl7.tls": settings.orders.hl7.tls,
    }
    return {name: tls for name, tls in sections.items() if tls.cert}


def _certificates(shown: dict[str, Tls]) -> str:
    """Raises SettingsError for one that ended, cannot be used, or ends soon."""
    now = time.time()
    left = {name: certificates.days_left(tls, name, now) for name, tls in shown.items()}
    words = ", ".join(f"{name} for {days:.0f} days" for name, days in left.items())
    if min(left.values()) < certificates.SOON_DAYS:
        raise SettingsError(f"good {words}: renew what ends soon, and start the node anew")
    return f"good {words}"


def _disk(settings: Settings) -> str:
    spool = spool_of(settings)
    if not spool.root.exists():
        free = shutil.disk_usage(_nearest(spool.root)).free
        return f"{free / 2**30:.1f} GiB free where data_dir is to be"
    spool.check_room()
    return f"{spool.free_bytes() / 2**30:.1f} GiB free, {settings.spool.reserve_mb} MiB kept in reserve"


def _bucket(settings: Settings) -> str:
    """Writes, reads and deletes. Raises SettingsError where the clocks are too far apart, else as `probe`."""
    depot = spool_of(settings).depot
    assert isinstance(depot, RemoteDepot)
    took_s, skew_s = depot.bucket.probe(), depot.bucket.skew_s()
    if abs(skew_s) > MOST_SKEW_S:
        raise SettingsError(
            f"the clock of {depot.bucket.name} is {skew_s:+.0f} s from that of this machine: set the clock; "
            "S3 refuses requests from 900 s on"
        )
    forever = "" if settings.spool.keep_days else "; spool.keep_days is 0: nothing is ever removed from it"
    return f"{depot.bucket.name} takes, gives and deletes ({took_s * 1000:.0f} ms){forever}"


def _upload(settings: Settings) -> str:
    """Raises PermanentError while something waits for the bucket for too long."""
    records, now = open_records(settings), time.time()
    waiting = uploading(records, now)
    records.close()
    if waiting.is_late:
        raise PermanentError("UPLOAD", waiting.words(now))
    return waiting.words(now) if waiting.disks else "everything received is in the bucket"


def _spool(settings: Settings) -> str:
    """What the last scan found. Raises PermanentError while something is missing or unexplained."""
    records = open_records(settings)
    found = records.keeping.last_scan()
    records.close()
    if found is None:
        return "was not scanned yet; `ichnode up` (or `settle`) does that at its start"
    counts = found["counts"]
    text = f"{summary(counts)} (scanned {when(found['finished_at'])})"
    if counts.get(MISSING) or counts.get(Fate.UNKNOWN):
        raise PermanentError("SPOOL", f"{text}; `ichnode incidents` names them")
    return text


def _incidents(settings: Settings) -> str:
    records = open_records(settings)
    found = records.incidents.since(time.time() - INCIDENT_DAYS * 24 * 3600)
    records.close()
    if not found:
        return f"none within {INCIDENT_DAYS} days"
    codes = Counter(str(incident["code"]) for incident in found)
    words = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    return f"within {INCIDENT_DAYS} days, by series: {words}; `ichnode incidents` lists them"


def _audit(settings: Settings) -> str:
    """Connects to the audit repository. Raises TransientError where that fails."""
    records = open_records(settings)
    waiting = records.audit_queue.standing()["waiting"]
    records.close()
    syslog.check(settings.audit)
    known = "cannot be asked over UDP" if settings.audit.transport == "udp" else "answers"
    return f"{settings.audit.host}:{settings.audit.port} {known}; {waiting} messages wait"


def _canary(settings: Settings) -> str:
    """Raises PermanentError while the last one came out wrong, late or not at all."""
    records, now = open_records(settings), time.time()
    words, good = canary.trouble(settings, records, now), records.canaries.last_good()
    records.close()
    if words:
        raise PermanentError("CANARY", f"{words}; `ichnode canary` lists the latest")
    if not settings.canary.every_min:
        return "off; [canary] every_min lets a phantom go the whole way now and then"
    return f"the last good one ended {when(good['finished_at'])}" if good else "none was sent yet"


def _active_model(settings: Settings) -> str:
    """Raises PermanentError while workers do not use the model that was chosen."""
    records, now = open_records(settings), time.time()
    stands = promotion.standing(settings, records, now)
    records.close()
    if stands.trouble:
        raise PermanentError("MODEL", "; ".join(stands.trouble))
    model, promoted, aside = stands.model, stands.active.promoted, stands.active.set_aside
    name = f"{model.name} {model.version} {model.sha256[:12]}" if model else stands.active.pipeline
    how = f"promoted by {promoted.who}" if promoted else "named by the settings"
    since = f" since {when(stands.since)}" if stands.since else ""
    ignored = f"; the promotion of {aside.model.name} is set aside: the settings changed" if aside else ""
    return f"{name}, {how}{since}{ignored}"


def _shadow(settings: Settings) -> str:
    """Raises PermanentError while nothing can be read in the shadow."""
    records, now = open_records(settings), time.time()
    stands, counts = promotion.standing(settings, records, now), records.shadows.counts()
    records.close()
    if stands.shadow_trouble:
        raise PermanentError("SHADOW", "; ".join(stands.shadow_trouble))
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "nothing was read yet"


def _subscribers(settings: Settings) -> str:
    """Raises PermanentError while events wait for one who is away, or takes none."""
    records, now = open_records(settings), time.time()
    found = records.subscriptions.standing([watcher.ae_title for watcher in settings.ups.watcher])
    records.close()
    failing = [
        f"{one.ae_title} takes no event since {when(one.failing_since)}, {one.waiting} wait: {one.last_error}"
        for one in found
        if one.failing_since
    ]
    if failing:
        raise PermanentError("SUBSCRIBER", "; ".join(failing))
    words = []
    for one in found:
        oldest = f", the oldest for {now - one.oldest_at:.0f} s" if one.oldest_at else ""
        lost = f", {one.given_up} given up so far" if one.given_up else ""
        hears = "every workitem" if one.to_all else "a filter" if one.matching is not None else ""
        to = hears or (f"{one.workitems} workitems" if one.workitems else "nothing yet")
        words.append(f"{one.ae_title} subscribed to {to}; {one.waiting} events wait{oldest}{lost}")
    return "; ".join(words)


def _drift(settings: Settings) -> str:
    """Raises PermanentError while a scanner's input or scores are not as they used to be."""
    records = open_records(settings)
    rows = records.drifts.all()
    records.close()
    found = [
        f"{r['scanner']}: {FEATURES[r['feature']]} was {r['before']}, is {r['after']}"
        for r in rows
        if r["drifted_since"]
    ]
    if found:
        raise PermanentError("DRIFT", f"{'; '.join(found)}; see the page Quality")
    if not rows:
        return "not judged yet: too few analyses of any scanner"
    return f"none; {len({r['scanner'] for r in rows})} scanners are watched"


def _echo(peer: Carrier | Worklist) -> str:
    peer.check()
    began = time.perf_counter()
    peer.echo()
    return f"{peer.name} answered in {(time.perf_counter() - began) * 1000:.0f} ms"


def _probe(alert: AnyAlert, settings: Settings) -> str:
    channel = channel_of(alert, settings)
    channel.check()
    return channel.probe()


def _without_destination(settings: Settings) -> str:
    """Results that wait for a destination which the settings no longer name; empty where there are none."""
    names = {destination.name for destination in settings.destination}
    return _for_nobody(settings, lambda records: records.console.destinations(()), names, "[[destination]]")


def _without_channel(settings: Settings) -> str:
    """Alerts that wait for a channel which the settings no longer name; empty where there are none."""
    names = {alert.name for alert in settings.alert}
    return _for_nobody(settings, lambda records: records.alerts.channels(()), names, "[[alert]]")


def _for_nobody(
    settings: Settings, standing: Callable[[Records], dict[str, dict[str, Any]]], names: set[str], what: str
) -> str:
    """What waits, by name, and for nobody in `names`."""
    try:
        records = open_records(settings)
        found = standing(records)
        records.close()
    except IchnodeError:
        return ""  # the check of the database tells it
    waiting = [
        f"{of['pending']} to {name}" for name, of in found.items() if of["pending"] and name not in names
    ]
    return f"{', '.join(waiting)} wait, and no {what} has that name" if waiting else ""
