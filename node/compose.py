"""Builds a job's objects once, stores them, and writes down where each must go. Sends nothing."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node import __version__
from node.domain import patients
from node.domain.announcing import Stage
from node.domain.errors import OutOfReach, PermanentError, TransientError
from node.domain.findings import Findings, ModelIdentity, Priority, Reason, Status
from node.domain.lifecycle import JobState
from node.domain.routing import Decision, Part
from node.maps import unpack
from node.outputs.catalogue import ALL_NAMES, NAMES, build_all
from node.outputs.context import Context, Predecessor, PriorReport
from node.outputs.report import REPORTS, expected
from node.outputs.source import Source
from node.pixels import hounsfield
from node.routing import Router, as_json
from node.settings import Destination, Settings
from node.spool import Spool
from node.store.deliveries import SOURCE_RANK, NewDelivery
from node.store.incidents import Code, Incident
from node.store.jobs import Job, NewObject, Word
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.25
PAUSE_S = 5.0
"""After a disk that is full or a database that is away."""
SENDING_ORDER = ("sr", "csr", "seg", "sc", "pm", "gsps", "kos", "seg-subtypes", "labelmap")
"""The report first: it carries the alarm."""
DEFER_BYTES = 64 * 1024
"""Values longer than this (the pixels) stay on disk until somebody asks for them."""


VOLUME_S = 3600.0
"""For so long a volume that gives or takes no file is waited for; then a bad file costs its job."""


class SpoolTrouble(TransientError):
    """Files can be neither read nor written now: a file server is away, a volume is read-only."""


class Composer:
    def __init__(self, settings: Settings, records: Records, spool: Spool) -> None:
        self._destinations = settings.destination
        self._canary_destination = settings.canary.destination
        self._audiences = settings.audiences
        self._router = Router(settings.destination, records)
        self._records = records
        self._spool = spool
        self._troubled: dict[int, float] = {}
        """Jobs whose files could not be read or written, and since when."""

    def round(self, leads: Callable[[], bool] = lambda: True) -> int:
        """Compose every job that waits for it, the most urgent first. Returns how many there were."""
        if not leads():
            return 0
        waiting = self._records.jobs.to_report(disk=self._spool.depot.disk)
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
            self._troubled.pop(job.id, None)
        except TransientError:
            raise
        except Exception as error:
            if _is_of_the_volume(error) and self._waits_for_volume(job):
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

    def _waits_for_volume(self, job: Job) -> bool:
        """Whether its files may still turn out to be there, or to be taken."""
        now = time.monotonic()
        return now - self._troubled.setdefault(job.id, now) < VOLUME_S

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
        context = self._context_of(job)
        for name in wanted_outputs(self._destinations):
            try:
                build_all(context, [name])
                found.append(name)
            except Exception as error:
                if name in REPORTS or _is_of_the_volume(error):
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
        wanted = wanted_outputs(self._destinations)
        lost = [name for name in wanted if names is not None and name not in names]
        earlier = self._records.jobs.earlier_alarm(job)
        context = self._context_of(job, earlier, lost)
        findings = context.findings
        known = self._records.jobs.known_objects(job.id)
        made: list[NewObject] = []
        for name, datasets in build_all(context, [name for name in wanted if name not in lost]).items():
            for ds in datasets:
                made.append(known.get(str(ds.SOPInstanceUID)) or self._store(job, name, ds))
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

    def _context_of(
        self, job: Job, earlier: tuple[int, Priority] | None = None, lost: Sequence[str] = ()
    ) -> Context:
        """All that is needed to build; `earlier` is the alarm of an earlier revision."""
        findings = job.findings if job.state is JobState.ANALYSED else not_analysed(job)
        if findings is None:
            raise PermanentError("NO_FINDINGS", f"job {job.id} is {job.state} but has no findings")
        findings = not_lowered_in_silence(findings, earlier)
        if lost:
            text = f"these objects could not be built and are missing: {', '.join(lost)}"
            findings = replace(findings, warnings=(*findings.warnings, text))
        self._records.held.require_reach(job.series_instance_uid, self._spool.depot.disk)
        paths = self._spool.fetch(self._records.arrivals.paths(job.series_instance_uid))
        return self._context(job, findings, paths)

    def _context(self, job: Job, findings: Findings, paths: Sequence[Path]) -> Context:
        maps = None
        if job.state is JobState.ANALYSED and job.maps_path:
            (file,) = self._spool.fetch([job.maps_path])
            maps = unpack(file.read_bytes())
        reports = [name for name in REPORTS if name in wanted_outputs(self._destinations)]
        earlier = {name: self._records.jobs.predecessor(job, name) for name in reports}
        return Context(
            findings=findings,
            source=Source.ordered(read_source(paths), findings, hounsfield),
            made_at=datetime.fromtimestamp(job.analysed_at or job.created_at, UTC),
            software_version=__version__,
            masks=maps.masks if maps else None,
            heat=maps.heat if maps else None,
            subtypes=maps.subtypes if maps else {},
            predecessors={
                name: Predecessor(old.sop_class_uid, old.sop_instance_uid, old.series_instance_uid)
                for name, old in earlier.items()
                if old
            },
            prior_reports=self._prior_reports(findings, reports),
        )

    def _prior_reports(self, findings: Findings, names: Sequence[str]) -> dict[str, PriorReport]:
        """The reports on the earlier CT: as they are kept, else as they will be called once composed."""
        comparison = findings.comparison
        then = self._records.priors.findings(comparison) if comparison else None
        if comparison is None or then is None:
            return {}
        found = {}
        for name in names:
            kept = self._records.priors.report(comparison, name)
            found[name] = (
                PriorReport(
                    comparison.study_uid, kept.series_instance_uid, kept.sop_class_uid, kept.sop_instance_uid
                )
                if kept
                else expected(comparison.study_uid, then, name)
            )
        return found

    def _store(self, job: Job, name: str, ds: Dataset) -> NewObject:
        data = encode(ds)
        path = self._spool.object_path(job.id, str(ds.SOPInstanceUID))
        self._spool.write(path, (data,))
        return NewObject(
            str(ds.SOPInstanceUID), str(ds.SOPClassUID), str(ds.SeriesInstanceUID), name, path, len(data)
        )


def _is_of_the_volume(error: BaseException) -> bool:
    """An error of the operating system is why; that a file is gone is none."""
    cause = error if isinstance(error, OSError) else error.__cause__
    gone = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, gone)


def not_analysed(job: Job) -> Findings:
    """The findings of a job that will never have any: the reason, and an alarm that was raised before."""
    reason = job.reason or Reason("UNKNOWN", "no reason was recorded; see the log of the node")
    if is_urgent(job.priority):
        alarm = f"the classifier had proposed priority {job.priority} before the analysis failed"
        reason = Reason(reason.code, f"{reason.text}; {alarm}")
    nobody = ModelIdentity("ichnode", __version__, "")
    return Findings(nobody, job.series_instance_uid, job.revision, Status.NOT_ANALYSED, reason)


def not_lowered_in_silence(findings: Findings, earlier: tuple[int, Priority] | None) -> Findings:
    """With a warning, where an earlier revision of the series was more urgent than this one."""
    order = list(Priority)
    if earlier is None or (findings.priority and order.index(findings.priority) <= order.index(earlier[1])):
        return findings
    revision, priority = earlier
    now = f"is {findings.priority}" if findings.priority else "was not analysed"
    text = f"revision {revision} of this series was reported as {priority}; this one {now}. Read the images"
    return replace(findings, warnings=(*findings.warnings, text))


def is_urgent(priority: Priority | None) -> bool:
    """A result that should change the order of reading."""
    return priority in (Priority.STAT, Priority.HIGH)


def wanted_outputs(destinations: Iterable[Destination]) -> tuple[str, ...]:
    """What any destination wants; the usual objects when there is none, so that they can be looked at."""
    wanted = {name for destination in destinations for name in destination.objects}
    return tuple(name for name in ALL_NAMES if name in wanted) or NAMES


def schedule(
    made: Sequence[NewObject],
    destinations: Iterable[Destination],
    urgent: bool,
    routed: Mapping[str, Decision] | None = None,
) -> list[NewDelivery]:
    """One delivery for each object and each destination that wants it and gets it, in sending order."""
    return [
        NewDelivery(item.sop_instance_uid, destination.name, rank, urgent)
        for destination in destinations
        if routed is None or Part.RESULTS in routed[destination.name].send
        for rank, item in enumerate(sorted(made, key=lambda o: SENDING_ORDER.index(o.output)))
        if item.output in destination.objects
    ]


def forward(sources: Sequence[NewObject], routed: Mapping[str, Decision], urgent: bool) -> list[NewDelivery]:
    """One delivery for each source image and each destination that gets the images, behind every result."""
    return [
        NewDelivery(item.sop_instance_uid, name, SOURCE_RANK + number, urgent)
        for name, decision in routed.items()
        if Part.SOURCE in decision.send
        for number, item in enumerate(sources)
    ]


def read_source(paths: Iterable[Path]) -> list[Dataset]:
    """The stored instances of a series, pixels left on disk. Raises PermanentError for a broken file."""
    datasets: list[Dataset] = []
    for path in paths:
        try:
            datasets.append(dcmread(path, defer_size=DEFER_BYTES))
        except (OSError, InvalidDicomError) as error:
            text = f"{path.name} cannot be read: {error}; send the study again"
            raise PermanentError("SOURCE_UNREADABLE", text) from error
    return datasets


def encode(ds: Dataset) -> bytes:
    """The bytes of a whole DICOM file (PS3.10)."""
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def run(
    composer: Composer, stopping: Callable[[float], bool], leads: Callable[[], bool] = lambda: True
) -> None:
    """Compose what waits while it `leads`, until `stopping(seconds)` (which waits that long) says so."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            composer.round(leads)
            wait_s = TICK_S
        except TransientError as error:
            log.error("composing waits: %s", error)
            wait_s = PAUSE_S
