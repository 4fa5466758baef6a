"""Gathers what the objects of a job are built from: findings, images, maps, earlier reports. Builds none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from datetime import time as clock_time
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from node import __version__
from node.domain.errors import PermanentError
from node.domain.findings import Findings, ModelIdentity, Reason, Status, most_urgent
from node.domain.lifecycle import JobState
from node.domain.routing import read_date
from node.frames import UNREADABLE
from node.maps import unpack
from node.outputs.context import Context, Predecessor, PriorReport
from node.outputs.report import REPORTS, expected
from node.outputs.source import Source, value
from node.outputs.uids import uid_for
from node.pixels import hounsfield
from node.scheduling import is_urgent
from node.spool import Spool
from node.store.jobs import Alarm, Job
from node.store.records import Records

DEFER_BYTES = 64 * 1024
"""Values longer than this (the pixels) stay on disk until somebody asks for them."""
FIRST_CT = 1971
"""A Study Date before that year is none."""


class Gathering:
    """Of jobs whose objects are wanted by the names `wanted`; in that `zone`, None: the machine's own."""

    def __init__(
        self, wanted: Sequence[str], records: Records, spool: Spool, zone: tzinfo | None = None
    ) -> None:
        self._reports = [name for name in REPORTS if name in wanted]
        self._always = next((name for name in (*REPORTS, "sc") if name in wanted), None)
        """One of those outputs of which there is at least one object, whatever was found."""
        self._records = records
        self._spool = spool
        self._zone = zone

    def of(self, job: Job, earlier: Alarm | None = None, lost: Sequence[str] = ()) -> Context:
        """All that is needed to build; `earlier` is the alarm that was reported before."""
        findings = job.findings if job.state is JobState.ANALYSED else not_analysed(job)
        if findings is None:
            raise PermanentError("NO_FINDINGS", f"job {job.id} is {job.state} but has no findings")
        findings = not_lowered_in_silence(findings, earlier)
        if lost:
            text = f"these objects could not be built and are missing: {', '.join(lost)}"
            findings = replace(findings, warnings=(*findings.warnings, text))
        self._records.held.require_reach(job.series_instance_uid, self._spool.depot.disk)
        return self._context(job, findings, self._source(job))

    def _source(self, job: Job) -> list[Dataset]:
        """The images of the series; of one that was not analysed those that can be read.

        A broken file is often why it was not, and must not keep the report back that says so.
        """
        paths = self._records.arrivals.paths(job.series_instance_uid)
        try:
            return read_source(self._spool.fetch(paths))
        except PermanentError:
            found = [] if job.state is JobState.ANALYSED else self._legible(paths)
            if not found:
                raise
            return found

    def _legible(self, paths: Sequence[str]) -> list[Dataset]:
        found: list[Dataset] = []
        for path in paths:
            with suppress(PermanentError):
                found += read_source(self._spool.fetch([path]))
        return found

    def _context(self, job: Job, findings: Findings, datasets: Sequence[Dataset]) -> Context:
        maps = None
        if job.state is JobState.ANALYSED and job.maps_path:
            (file,) = self._spool.fetch([job.maps_path])
            maps = unpack(file.read_bytes())
        earlier = {name: self._records.jobs.predecessor(job, name) for name in self._reports}
        return Context(
            findings=findings,
            source=Source.ordered(datasets, findings, hounsfield),
            made_at=made_at(job.analysed_at or job.created_at, self._zone, datasets),
            software_version=__version__,
            masks=maps.masks if maps else None,
            heat=maps.heat if maps else None,
            subtypes=maps.subtypes if maps else {},
            predecessors={
                name: Predecessor(old.sop_class_uid, old.sop_instance_uid, old.series_instance_uid)
                for name, old in earlier.items()
                if old
            },
            prior_reports=self._prior_reports(findings),
            edition=self._edition(job, findings),
        )

    def _edition(self, job: Job, findings: Findings) -> int:
        """The first one that was not reported before, or was so last."""
        if self._always is None:
            return 0
        made, last = self._records.jobs.made(job.id, self._always)
        edition = 0
        while uid_for(findings, self._always, 0, edition) in made - last:
            edition += 1
        return edition

    def _prior_reports(self, findings: Findings) -> dict[str, PriorReport]:
        """The reports on the earlier CT: as they are kept, else as they will be called once composed."""
        comparison = findings.comparison
        then = self._records.priors.findings(comparison) if comparison else None
        if comparison is None or then is None:
            return {}
        found = {}
        for name in self._reports:
            kept = self._records.priors.report(comparison, name)
            found[name] = (
                PriorReport(
                    comparison.study_uid, kept.series_instance_uid, kept.sop_class_uid, kept.sop_instance_uid
                )
                if kept
                else expected(comparison.study_uid, then, name)
            )
        return found


def made_at(seconds: float, zone: tzinfo | None, datasets: Iterable[Dataset]) -> datetime:
    """The moment with the offset from UTC that the zone (None: the machine's) had on the day of the study.

    The objects state one offset for all their times, Study Date and Time included. Those are copied from
    images that seldom state any, and then mean the clock on the wall.
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    days = (read_date(str(value(ds, "StudyDate") or "")) for ds in datasets)
    day = next((day for day in days if day and day.year >= FIRST_CT), moment.date())
    noon = datetime.combine(day, clock_time(12))
    there = noon.replace(tzinfo=zone) if zone else noon.astimezone()
    return moment.astimezone(timezone(there.utcoffset() or timedelta()))


def not_analysed(job: Job) -> Findings:
    """The findings of a job that will never have any: the reason, and an alarm that was raised before."""
    reason = job.reason or Reason("UNKNOWN", "no reason was recorded; see the log of the node")
    if is_urgent(job.priority):
        alarm = f"the classifier had proposed priority {job.priority} before the analysis failed"
        reason = Reason(reason.code, f"{alarm}: {reason.text}")  # first: a page cuts a long reason off
    nobody = ModelIdentity("ichnode", __version__, "")
    return Findings(nobody, job.series_instance_uid, job.revision, Status.NOT_ANALYSED, reason)


def not_lowered_in_silence(findings: Findings, earlier: Alarm | None) -> Findings:
    """With a warning, where what was reported of the study before was more urgent than this is."""
    if earlier is None or findings.priority is most_urgent(findings.priority, earlier.priority):
        return findings
    now = f"is {findings.priority}" if findings.priority else "was not analysed"
    then = f"was reported as {earlier.priority}"
    if earlier.series_instance_uid != findings.series_instance_uid:
        text = f"another series of this study {then}; this one {now}"
    elif earlier.revision != findings.revision:
        text = f"revision {earlier.revision} of this series {then}; this one {now}"
    else:
        text = f"this revision of the series {then} before; now it {now}"
    return replace(findings, warnings=(*findings.warnings, f"{text}. Read the images"))


def read_source(paths: Iterable[Path]) -> list[Dataset]:
    """The stored instances of a series, pixels left on disk. Raises PermanentError for a broken file."""
    datasets: list[Dataset] = []
    for path in paths:
        try:
            datasets.append(dcmread(path, defer_size=DEFER_BYTES))
        except (OSError, *UNREADABLE) as error:
            text = f"{path.name} cannot be read: {error}; send the study again"
            raise PermanentError("SOURCE_UNREADABLE", text) from error
    return datasets
