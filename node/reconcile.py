"""Compares what archives hold with what came here, and fetches what is missing when asked or told by a rule.

It removes nothing and changes no record of what came: what is fetched comes in like anything else.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from io import BytesIO
from typing import cast
from zoneinfo import ZoneInfo

from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from node.domain.errors import IchnodeError, SettingsError, TransientError
from node.domain.lifecycle import GapState
from node.domain.reconciliation import ArchivedStudy, Missing, is_head, is_settled, missing
from node.domain.routing import read_date
from node.intake import OUT_OF_RESOURCES, Intake
from node.liveness import is_gone, process_name
from node.offer import TRANSFER_SYNTAXES
from node.query import Archivist, Retrieved
from node.settings import Archive, Settings
from node.spool import Spool
from node.store.gaps import Comparison, Gap
from node.store.records import Records
from node.wholeness import Announced

log = logging.getLogger(__name__)

TICK_S = 2.0
PAUSE_S = 15.0
RETRY_BASE_S, RETRY_MAX_S, MOST_ATTEMPTS = 30.0, 3600.0, 8
LEASE_S = 1800.0
"""A fetch whose process died is tried again after this long."""
LONGEST_COMPARISON_S = 6 * 3600.0
"""By then its process, on whatever host, is taken for gone."""
PATIENCE_S = 900.0
"""After this long what an archive says it sent ought to be here."""
MOST_DAYS = 366
BATCH = 200
BY_RULE, BY_CLOCK = "(rule)", "(clock)"


class Reconciler:
    """Everything about the archives of the settings. Several may run: each piece of work is taken by one."""

    def __init__(self, settings: Settings, records: Records, spool: Spool) -> None:
        self._settings = settings
        self._archives = {archive.name: archive for archive in settings.archive}
        self._records = records
        self._spool = spool
        zone = settings.web.time_zone
        self._zone = ZoneInfo(zone) if zone else None

    def round(self, now: float) -> None:
        """One comparison and one fetch that are due. Raises TransientError when the database is away."""
        gaps, names = self._records.gaps, list(self._archives)
        self._give_up_orphans(now)
        for archive in self._archives.values():
            if archive.every_min:
                slot = f"{archive.name} {int(now // (archive.every_min * 60))}"
                days = default_days(archive, now, self._settings.web.time_zone)
                gaps.ask(archive.name, days, BY_CLOCK, now, slot)
        if comparison := gaps.take(process_name(), now, names):
            self.compare(comparison)
        text = (
            "the archive said that it sent them, but they did not come: does our AE title there lead to "
            f"this node's listener (port {self._settings.scp.port})?"
        )
        gaps.settle_fetched(PATIENCE_S, text, now)
        if gap := gaps.take_wanted(names, now, now + LEASE_S):
            self.fetch(gap)

    def compare_now(self, archive: Archive, days: tuple[str, str], who: str) -> list[int]:
        """Without waiting for another process. Returns the ids of what is missing; raises TransientError."""
        check_days(days)
        owner = process_name()
        comparison = self._records.gaps.begin(archive.name, days, who, owner, time.time())
        return self._compare(comparison)

    def compare(self, comparison: Comparison) -> None:
        """One comparison that was asked for; what goes wrong stands in its record and in the log."""
        try:
            found = self._compare(comparison)
        except TransientError as error:
            log.error("comparison %d: %s", comparison.id, error)
            return
        log.info("comparison %d with %s: %d missing", comparison.id, comparison.archive, len(found))

    def _compare(self, comparison: Comparison) -> list[int]:
        looked_at: set[str] = set()
        ids: list[int] = []
        error = "it broke off: see the log"
        try:
            ids = self._look(comparison, looked_at)
            error = ""
        except TransientError as trouble:
            error = str(trouble)
            raise
        finally:
            self._records.gaps.finish(comparison, time.time(), len(looked_at), len(ids), error)
        return ids

    def _look(self, comparison: Comparison, looked_at: set[str]) -> list[int]:
        """Every study of the days, by batches, and the priors of their patients."""
        archive, gaps = self._archives[comparison.archive], self._records.gaps
        now = time.time()
        ids: list[int] = []
        with Archivist(archive.peer, self._settings.scp.ae_title) as peer:
            heads: list[ArchivedStudy] = []
            for batch in _batches(_of_days(peer, comparison.since, comparison.until)):
                looked_at.update(study.study_instance_uid for study in batch)
                old = [study for study in batch if self._is_settled(study, archive, now)]
                whole = [peer.with_series(study) for study in old]
                found = self._missing(whole)
                ids += gaps.note(archive.name, [s.study_instance_uid for s in whole], found, now)
                heads += [study for study in whole if is_head(study) is not False]
            gaps.forget_missing_there(archive.name, (comparison.since, comparison.until), list(looked_at))
            if archive.priors_days:
                ids += self._priors(peer, archive, heads, now)
        self._want_by_rule(archive, ids, now)
        return ids

    def _is_settled(self, study: ArchivedStudy, archive: Archive, now: float) -> bool:
        local = datetime.fromtimestamp(now, self._zone).replace(tzinfo=None)
        return is_settled(study, local, timedelta(minutes=archive.grace_min))

    def _missing(self, studies: Sequence[ArchivedStudy], prior: bool = False) -> list[Missing]:
        here = self._records.gaps.here([study.study_instance_uid for study in studies])
        return [one for s in studies for one in missing(s, here.get(s.study_instance_uid), prior)]

    def _priors(
        self, peer: Archivist, archive: Archive, heads: Sequence[ArchivedStudy], now: float
    ) -> list[int]:
        """Earlier head CTs of these patients; a PatientID that C-FIND takes for a pattern is left out."""
        ids: list[int] = []
        latest = {s.patient_id: s for s in sorted(heads, key=lambda s: s.study_date)}
        for patient_id, study in latest.items():
            day = read_date(study.study_date)
            if not patient_id or set("*?\\") & set(patient_id) or day is None:
                continue
            first, last = day - timedelta(days=archive.priors_days), day - timedelta(days=1)
            span = f"{first:%Y%m%d}-{last:%Y%m%d}"
            listed = [
                s for s in peer.studies(PatientID=patient_id, StudyDate=span) if s.patient_id == patient_id
            ]
            known = self._records.gaps.here([s.study_instance_uid for s in listed])
            strangers = [peer.with_series(s) for s in listed if s.study_instance_uid not in known]
            found = self._missing(strangers, prior=True)
            uids = [s.study_instance_uid for s in strangers]
            ids += self._records.gaps.note(archive.name, uids, found, now)
            self._records.gaps.arrived(archive.name, list(known))
        return ids

    def _want_by_rule(self, archive: Archive, ids: Sequence[int], now: float) -> None:
        """What is OPEN and of a kind that the settings say to fetch."""
        if archive.fetch:
            rows = self._records.gaps.rows((GapState.OPEN,), limit=len(ids) + 1000, archive=archive.name)
            chosen = [row["id"] for row in rows if row["id"] in set(ids) and row["kind"] in archive.fetch]
            self._records.gaps.want(chosen, BY_RULE, now)

    def fetch(self, gap: Gap) -> None:
        """One attempt; what comes of it is recorded."""
        gaps = self._records.gaps
        try:
            came = self._retrieve(self._archives[gap.archive], gap)
            trouble = came.trouble or ("" if came.completed else "the archive sent nothing")
        except IchnodeError as error:
            trouble = str(error)
        except Exception as error:  # nobody thought of it: it must not be tried for ever, and seen by nobody
            log.exception("gap %d: fetching it broke", gap.id)
            trouble = f"it broke ({type(error).__name__}): see the log"
        if not trouble:
            log.info("gap %d: %d instances fetched from %s", gap.id, came.completed, gap.archive)
            gaps.retrieved(gap, time.time())
        elif gap.attempts >= MOST_ATTEMPTS:
            log.error("gap %d is given up after %d attempts: %s", gap.id, gap.attempts, trouble)
            gaps.give_up(gap, trouble)
        else:
            wait_s = min(RETRY_BASE_S * 2 ** (gap.attempts - 1), RETRY_MAX_S)
            log.warning("gap %d cannot be fetched now: %s", gap.id, trouble)
            gaps.failed(gap, trouble, time.time() + wait_s)

    def _retrieve(self, archive: Archive, gap: Gap) -> Retrieved:
        peer = Archivist(archive.peer, self._settings.scp.ae_title)
        uids = (gap.study_instance_uid, gap.series_instance_uid)
        if archive.retrieve == "move":
            return peer.move(*uids, self._settings.scp.ae_title)
        with self._taking_in(archive) as store:
            return peer.get(*uids, store, TRANSFER_SYNTAXES)

    @contextmanager
    def _taking_in(self, archive: Archive) -> Iterator[Callable[[evt.Event], int]]:
        """A handler that takes instances in as the listener does, under an association of their own."""
        intake = Intake(self._spool, self._records, time.time, self._settings.scp)
        name, arrivals = str(uuid.uuid4()), self._records.arrivals
        arrivals.open_association(name, process_name(), (archive.ae_title, archive.host), time.time())

        def store(event: evt.Event) -> int:
            request = cast(C_STORE, event.request)
            announced = Announced(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae=archive.ae_title,
                association_id=name,
            )
            try:
                return intake.receive(announced, cast(BytesIO, request.DataSet).getbuffer())
            except Exception:
                log.exception("C-GET: C-STORE of %s failed", request.AffectedSOPInstanceUID)
                return OUT_OF_RESOURCES

        outcome = "aborted"
        try:
            yield store
            outcome = "released"
        finally:
            arrivals.close_association(name, outcome, time.time())

    def _give_up_orphans(self, now: float) -> None:
        """A comparison whose process is gone is over, and says so."""
        for comparison, owner, begun_at in self._records.gaps.unfinished():
            if is_gone(owner) or begun_at < now - LONGEST_COMPARISON_S:
                self._records.gaps.finish(comparison, now, 0, 0, "the process that made it ended: ask again")


def default_days(archive: Archive, now: float, time_zone: str) -> tuple[str, str]:
    """The StudyDates (DA) that `lookback_h` reaches, in that zone; empty: the machine's."""
    zone = ZoneInfo(time_zone) if time_zone else None
    first, last = (datetime.fromtimestamp(at, zone) for at in (now - archive.lookback_h * 3600, now))
    return f"{first:%Y%m%d}", f"{last:%Y%m%d}"


def check_days(days: tuple[str, str]) -> None:
    """Raises SettingsError for what is no span of days, or too long a one."""
    first, last = (read_date(day) for day in days)
    if first is None or last is None or not 0 <= (last - first).days < MOST_DAYS:
        raise SettingsError(f"{days[0]} to {days[1]} is no span of up to {MOST_DAYS} days: write 2026-11-20")


def _of_days(peer: Archivist, since: str, until: str) -> Iterator[ArchivedStudy]:
    """Day by day: archives bound the number of answers."""
    day, last = read_date(since), read_date(until)
    while day and last and day <= last:
        yield from peer.studies(StudyDate=f"{day:%Y%m%d}")
        day += timedelta(days=1)


def _batches(studies: Iterator[ArchivedStudy]) -> Iterator[list[ArchivedStudy]]:
    """No two questions at once over one association: the first is read to its end."""
    every = list(studies)
    for start in range(0, len(every), BATCH):
        yield every[start : start + BATCH]


def run(reconciler: Reconciler, stopping: Callable[[float], bool]) -> None:
    """Until `stopping(seconds)` says so. Whatever goes wrong is logged, and tried again."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            reconciler.round(time.time())
            wait_s = TICK_S
        except TransientError as error:
            log.error("reconciling waits: %s", error)
            wait_s = PAUSE_S
        except Exception:
            log.exception("reconciling broke; it goes on")
            wait_s = PAUSE_S
