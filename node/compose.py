"""Builds a job's objects once, stores them, and writes down where each must go. Sends nothing."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset

from node.domain import patients
from node.domain.announcing import Stage
from node.domain.errors import OutOfReach, TransientError
from node.domain.findings import Reason
from node.domain.lifecycle import JobState
from node.domain.routing import Decision, Part
from node.gathering import Gathering, not_analysed
from node.outputs.catalogue import build_all
from node.outputs.encoding import encode
from node.outputs.rehearsal import rehearse
from node.outputs.report import REPORTS
from node.routing import Router, as_json
from node.scheduling import forward, is_urgent, schedule, wanted_outputs
from node.settings import Settings
from node.spool import Spool, Troubled, is_of_the_volume
from node.store.incidents import Code, Incident
from node.store.jobs import Job, NewObject, Word
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.25
PAUSE_S = 5.0
"""After a disk that is full or a database that is away."""
REHEARSED_AFTER_S = 5.0
"""Not at once: the other processes of a node start at the same time, and need the cores more."""
WRITERS = 4
"""So many objects are encoded and written at a time, since most of that is waiting for the volume."""
AT_ONCE = 50
"""Jobs of one round."""


class SpoolTrouble(TransientError):
    """Files can be neither read nor written now: a file server is away, a volume is read-only."""


class Composer:
    def __init__(
        self,
        settings: Settings,
        records: Records,
        spool: Spool,
        stored: Callable[[], object] = lambda: None,
    ) -> None:
        """`stored` is called when there is something new to be sent."""
        self._destinations = settings.destination
        self._wanted = wanted_outputs(settings.destination)
        zone = ZoneInfo(settings.web.time_zone) if settings.web.time_zone else None
        self._gathering = Gathering(self._wanted, records, spool, zone)
        self._stored = stored
        self._canary_destination = settings.canary.destination
        self._audiences = settings.audiences
        self._router = Router(settings.destination, records)
        self._records = records
        self._spool = spool
        self._troubled = Troubled()

    def rehearse(self) -> None:
        """Build a result of nobody, so that the first real one is as quick as the next.

        What goes wrong is written to the log, and stops nothing: real results have their own way to fail.
        """
        try:
            rehearse(self._wanted)
        except Exception:
            log.exception("the first result will take longer, since a trial of it failed")

    def round(self, leads: Callable[[], bool] = lambda: True) -> int:
        """Compose every job that waits for it, the most urgent first. Returns how many there were."""
        if not leads():
            return 0
        waiting = self._records.jobs.to_report(AT_ONCE, self._spool.depot.disk, self._troubled.jobs)
        trouble: SpoolTrouble | OutOfReach | None = None
        for job in waiting:
            try:
                if leads():
                    self._attempt(job)
            except (SpoolTrouble, OutOfReach) as error:  # it may be one file, which must hold up no other job
                trouble = error
        if trouble is not None:
            raise trouble
        return len(waiting)

    def _attempt(self, job: Job) -> None:
        """Whatever goes wrong ends in a report or in the log, and never stops the jobs behind it."""
        try:
            self.compose(job)
            self._troubled.is_over(job.id)
        except TransientError:
            raise
        except Exception as error:
            if self._troubled.waits(job.id, error):
                text = f"the objects of job {job.id} wait for the volume of data_dir: {error}"
                raise SpoolTrouble(text) from error
            log.exception("objects of job %d cannot be built", job.id)
            if job.state is JobState.ANALYSED and self._compose_in_part(job):
                return
            reason = Reason("COMPOSE_FAILED", f"the result objects could not be built: {error}")
            if job.state is JobState.ANALYSED:
                self._records.jobs.fail(job.id, reason)
            else:  # not even the report that nothing was analysed: it must not be tried for ever
                self._records.jobs.store_objects(job, (), (), time.time(), word=self._word(job))

    def _compose_in_part(self, job: Job) -> bool:
        """One object that cannot be built must not make a finding "not analysed". False without a report."""
        try:
            self.compose(job, self._buildable(job))
            return True
        except TransientError:
            raise
        except Exception:
            log.exception("job %d gets no report of its result", job.id)
            return False

    def _buildable(self, job: Job) -> list[str]:
        """The wanted outputs that can be built by themselves. Raises what keeps a report from being built."""
        found = []
        context = self._gathering.of(job)
        for name in self._wanted:
            try:
                build_all(context, [name])
                found.append(name)
            except Exception as error:
                if name in REPORTS or is_of_the_volume(error):
                    raise
                log.error("job %d goes out without %s: %s", job.id, name, error)
        return found

    def compose(self, job: Job, names: Sequence[str] | None = None) -> None:
        """Build, store and schedule the objects of an ANALYSED or FAILED job.

        With `names`, of the wanted ones these alone: what is left out is said in the report, and noted.
        """
        if self._is_of_several(job):  # a report, or an alert, would be filed under one of them
            self._records.jobs.store_objects(job, (), (), time.time())
            return
        lost = [name for name in self._wanted if names is not None and name not in names]
        earlier = self._records.jobs.earlier_alarm(job)
        context = self._gathering.of(job, earlier, lost)
        findings = context.findings
        built = build_all(context, [name for name in self._wanted if name not in lost])
        made = self._stored_of(job, [(name, ds) for name, datasets in built.items() for ds in datasets])
        now = time.time()
        if job.is_canary:
            self._store_canary(job, made, now)
            return
        urgent = earlier is not None or is_urgent(findings.priority or job.priority)
        routed = self._router.decide(job, findings, now)
        sources = self._sources(job, routed)
        deliveries = [*schedule(made, self._destinations, urgent, routed), *forward(sources, routed, urgent)]
        routing = as_json(routed) if self._router.has_rules else None
        objects = [*made, *sources]
        if self._records.jobs.store_objects(job, objects, deliveries, now, routing, self._word(job)):
            self._stored()
            log.info("job %d: %d objects, %d deliveries", job.id, len(made), len(deliveries))
            if lost:
                text = f"job {job.id}: its result went out without {', '.join(lost)}; the log says why"
                self._note(Code.OBJECTS_NOT_BUILT, job, text, now)
            if urgent and routed and not any(decision.send for decision in routed.values()):
                self._note_nowhere(job, now)

    def _is_of_several(self, job: Job) -> bool:
        """Nothing was analysed because the series itself holds several patients."""
        if job.state is not JobState.FAILED or job.reason is None or job.reason.code != patients.CODE:
            return False
        persons = self._records.decisions.persons(job.study_instance_uid)
        return not patients.same_person(persons.get(job.series_instance_uid, set()))

    def _store_canary(self, job: Job, made: Sequence[NewObject], now: float) -> None:
        """The node's own phantom alarms nobody, and goes nowhere but where the settings say."""
        wanted = [d for d in self._destinations if d.name == self._canary_destination]
        self._records.jobs.store_objects(job, made, schedule(made, wanted, urgent=False), now)
        self._stored()

    def _sources(self, job: Job, routed: Mapping[str, Decision]) -> list[NewObject]:
        """The images of the analysed series, where somebody is to get them."""
        wanted = any(Part.SOURCE in decision.send for decision in routed.values())
        return self._records.routes.sources(job.series_instance_uid) if wanted else []

    def _note_nowhere(self, job: Job, now: float) -> None:
        """A positive result that nobody gets is for a person to see."""
        text = f"job {job.id} is a positive result that the rules of no destination take: look at `rules`"
        log.error("%s", text)
        self._note(Code.ROUTED_NOWHERE, job, text, now)

    def _note(self, code: Code, job: Job, text: str, now: float) -> None:
        study, series = job.study_instance_uid, job.series_instance_uid
        self._records.incidents.note(Incident(code, study, series, "", "", text), now)

    def _word(self, job: Job) -> Word | None:
        """What was not analysed is announced here; results were as they were stored."""
        if job.state is JobState.ANALYSED:
            return None
        return Word(Stage.NOT_ANALYSED, not_analysed(job), self._audiences, time.time())

    def _stored_of(self, job: Job, built: Sequence[tuple[str, Dataset]]) -> list[NewObject]:
        """Files that survive a power cut, in this order. What fails first ends it, and is raised."""
        known = self._records.jobs.known_objects(job.id)

        def stored(item: tuple[str, Dataset]) -> NewObject:
            name, ds = item
            return known.get(str(ds.SOPInstanceUID)) or self._store(job, name, ds)

        with ThreadPoolExecutor(WRITERS, "compose") as pool:
            return list(pool.map(stored, built))

    def _store(self, job: Job, name: str, ds: Dataset) -> NewObject:
        data = encode(ds)
        path = self._spool.object_path(job.id, str(ds.SOPInstanceUID))
        self._spool.write(path, (data,))
        return NewObject(
            str(ds.SOPInstanceUID), str(ds.SOPClassUID), str(ds.SeriesInstanceUID), name, path, len(data)
        )


def run(
    composer: Composer, stopping: Callable[[float], bool], leads: Callable[[], bool] = lambda: True
) -> None:
    """Compose what waits while it `leads`, until `stopping(seconds)` (which waits that long) says so.

    Who has had nothing to compose for REHEARSED_AFTER_S rehearses once, and who stands by does, too. Whatever
    goes wrong is written to the log: a composer that ended would take the couriers of its process down.
    """
    wait_s, began, is_warm = TICK_S, time.monotonic(), False
    while not stopping(wait_s):
        try:
            composed = composer.round(leads)
            wait_s = TICK_S
            if not is_warm and (composed or time.monotonic() - began >= REHEARSED_AFTER_S):
                if not composed:
                    composer.rehearse()
                is_warm = True
                gc.collect()
                gc.freeze()  # tables and code stay for good, and need not be gone through amid a result
        except TransientError as error:
            log.error("composing waits: %s", error)
            wait_s = PAUSE_S
        except Exception:
            log.exception("composing broke; it goes on")
            wait_s = PAUSE_S
