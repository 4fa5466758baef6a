"""Sends a phantom study through the node's own front door now and then, and sees whether it comes out right.

It takes the way of every study: C-STORE to the listener, choice, queue, worker, objects, delivery where the
settings name a destination. It alarms no reader, counts in no statistics, and is removed again.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import UID

from node.domain.canary import Outcome, State, differences
from node.domain.errors import IchnodeError, IllegalTransition, PermanentError, TransientError
from node.domain.lifecycle import DeliveryState, JobState
from node.scu import Parcel, Peer
from node.settings import Destination, PeerTls, Settings
from node.spool import Spool
from node.store import pauses
from node.store.canaries import Progress
from node.store.records import Records

log = logging.getLogger(__name__)

PHANTOMS = "ichnode.phantoms"
"""Entry-point group of what draws a phantom: `head(folder)` writes DICOM files and returns their paths."""
FOLDER = "canary"
TICK_S = 2.0
PAUSE_S = 15.0
OVERDUE = 3
"""So many turns without a good one are too many."""
BY_ITSELF = "the node"
_DELIVERED = (DeliveryState.SENT, DeliveryState.COMMITTED)
Draw = Callable[[Path], Sequence[Path]]


class Canary:
    """One round after another; several processes may run it at once, and each turn is taken once."""

    def __init__(self, settings: Settings, records: Records, spool: Spool, draw: Draw | None = None) -> None:
        self._settings = settings
        self._wanted = settings.canary
        self._records = records
        self._spool = spool
        self._draw = draw or drawn_by_the_workers

    def round(self, now: float) -> None:
        """Ask for one when it is due, send what was asked for, judge what is under way, clear up."""
        self._ask_when_due(now)
        for row in self._records.canaries.open():
            if row["state"] == State.WANTED and self._records.canaries.take(row["id"], now):
                self.send(row)
            elif row["state"] == State.UNDER_WAY:
                self._judge(row, now)
        self._clear()

    def _ask_when_due(self, now: float) -> None:
        """Not while the queue is paused: that it stands still is known."""
        every_s = self._wanted.every_min * 60
        if every_s and pauses.QUEUE not in self._records.pauses.all():
            self._records.canaries.ask(new_uid(), BY_ITSELF, now, slot=int(now // every_s))

    def send(self, row: dict[str, Any]) -> None:
        """C-STORE to the own listener."""
        try:
            with tempfile.TemporaryDirectory(prefix="ichnode-canary-") as folder:
                parcels = self._dressed(row, Path(folder))
                refused = [
                    o
                    for o in Peer(own_listener(self._settings), self._calling_ae).send(parcels)
                    if not o.accepted
                ]
            trouble = refused[0].text or refused[0].status if refused else ""
        except IchnodeError as error:
            trouble = str(error)
        if trouble:
            self._end(row, State.LOST, f"the listener did not take it: {trouble}", time.time())

    @property
    def _calling_ae(self) -> str:
        known = self._settings.scp.calling_ae_titles
        return self._wanted.ae_title or (known[0] if known else self._settings.scp.ae_title)

    def _dressed(self, row: dict[str, Any], folder: Path) -> list[Parcel]:
        """The phantom as a study of today with UIDs of its own, and with a name that is nobody's."""
        made = datetime.fromtimestamp(row["begun_at"], UTC)
        series, frame = new_uid(), new_uid()
        parcels = []
        for number, file in enumerate(self._phantom()):
            ds = dcmread(file)
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(new_uid())
            ds.StudyInstanceUID, ds.SeriesInstanceUID = row["study_instance_uid"], series
            ds.FrameOfReferenceUID = frame
            ds.PatientName, ds.PatientID = "CANARY^NOT A PATIENT", f"CANARY-{row['id']}"
            ds.AccessionNumber, ds.StudyID = f"CANARY{row['id']}"[:16], "CANARY"
            ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{made:%Y%m%d}"
            ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{made:%H%M%S}"
            path = folder / f"{number:04d}.dcm"
            ds.save_as(path, enforce_file_format=True)
            parcels.append(Parcel(number, path, str(ds.SOPClassUID)))
        return parcels

    def _phantom(self) -> list[Path]:
        """Drawn once, and kept in data_dir."""
        kept = self._settings.data_dir.resolve() / FOLDER
        if not (files := sorted(kept.glob("*.dcm"))):
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".canary-") as folder:
                drawn = Path(folder) / FOLDER
                drawn.mkdir()
                self._draw(drawn)
                drawn.replace(kept)
            files = sorted(kept.glob("*.dcm"))
        if not files:
            raise PermanentError("NO_PHANTOM", f"no phantom could be drawn into {kept}")
        return files

    def _judge(self, row: dict[str, Any], now: float) -> None:
        """Ends it once all is there, something is wrong, or it took too long."""
        way = self._records.canaries.progress(row["study_instance_uid"])
        if way.job_state in (JobState.FAILED, JobState.CANCELLED):
            text = f"it was not analysed: {way.reason or way.job_state.value.lower()}"
            self._end(row, State.WRONG, text, now, way)
        elif DeliveryState.FAILED in way.deliveries:
            self._end(row, State.WRONG, f"{self._wanted.destination} does not take its results", now, way)
        elif way.reported_at and way.findings and all(state in _DELIVERED for state in way.deliveries):
            self._compare(row, way, now)
        elif now - row["sent_at"] > self._wanted.max_s:
            self._end(row, State.LATE, f"after {now - row['sent_at']:.0f} s it is {_where(way)}", now, way)

    def _compare(self, row: dict[str, Any], way: Progress, now: float) -> None:
        assert way.findings is not None
        found, sha256 = Outcome.of(way.findings), way.findings.model.sha256
        expected = self._records.canaries.expected(sha256)
        whole_s = max(way.reported_at or 0, way.sent_at or 0) - row["sent_at"]
        if expected is None:
            self._records.canaries.expect(sha256, found, BY_ITSELF, now)
            text = f"the first one of this model: {found.priority} is expected from now on"
            self._end(row, State.RECORDED, text, now, way)
        elif told := differences(expected, found, self._wanted.tolerance):
            self._end(row, State.WRONG, "; ".join(told), now, way)
        elif whole_s > self._wanted.max_s:
            self._end(row, State.LATE, f"it took {whole_s:.0f} s", now, way)
        else:
            self._end(row, State.OK, "", now, way)

    def _end(
        self, row: dict[str, Any], state: State, text: str, now: float, way: Progress | None = None
    ) -> None:
        steps = steps_s(row["sent_at"] or now, way) if way else {}
        self._records.canaries.finish(row["id"], state, text, now, way.findings if way else None, steps)
        level = logging.INFO if state in (State.OK, State.RECORDED) else logging.ERROR
        log.log(level, "canary %d: %s%s", row["id"], state.value, f": {text}" if text else "")

    def _clear(self) -> None:
        """Files and records of the oldest; never the newest, whose job may have the highest number."""
        for row in self._records.canaries.outdated(self._wanted.keep):
            if self._records.held.is_held(row["study_instance_uid"]):
                continue  # its images are still on their way into the bucket
            removal = self._records.keeping.begin_canary(row["study_instance_uid"], time.time())
            self._spool.remove(*removal.paths)
            self._records.keeping.finish(removal, time.time())
            self._records.canaries.remove(row["id"])


def steps_s(sent_at: float, way: Progress) -> dict[str, float]:
    """Seconds from the beginning of sending to the end of each step that has one."""
    ends = {
        "received": way.received_at,
        "analysed": way.analysed_at,
        "composed": way.reported_at,
        "delivered": way.sent_at,
    }
    return {name: round(max(at - sent_at, 0.0), 3) for name, at in ends.items() if at}


def _where(way: Progress) -> str:
    if way.job_state is None:
        return "not chosen for analysis; see why on its study page"
    waiting = sum(1 for state in way.deliveries if state is DeliveryState.PENDING)
    return f"{way.job_state.value.lower()}{f', {waiting} objects undelivered' if waiting else ''}"


def own_listener(settings: Settings) -> Destination:
    """The node as its own destination. Its certificate is trusted by `scp.tls.ca`, or by itself."""
    scp, host = settings.scp, settings.canary.host or settings.scp.host
    local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    tls = PeerTls()
    if scp.tls.cert:
        ca = scp.tls.ca or scp.tls.cert
        tls = PeerTls(ca=ca, cert=scp.tls.cert, key=scp.tls.key, check_hostname=False)
    return Destination(
        name="own listener", ae_title=scp.ae_title, host=local.get(host, host), port=scp.port, tls=tls
    )


def trouble(settings: Settings, records: Records, now: float) -> str:
    """What is wrong with the canaries, in words; empty when nothing is, or none are sent."""
    every_s = settings.canary.every_min * 60
    if not every_s:
        return ""
    last = records.canaries.last_finished()
    if last and last["state"] not in (State.OK, State.RECORDED):
        begun = datetime.fromtimestamp(last["begun_at"]).astimezone()
        return f"The canary of {begun:%Y-%m-%d %H:%M} came out {last['state']}: {last['text']}"
    good = records.canaries.last_good()
    if good and now - good["finished_at"] > OVERDUE * every_s + settings.canary.max_s:
        if pauses.QUEUE in records.pauses.all():
            return ""
        return f"No canary came through for {(now - good['finished_at']) / 60:.0f} min"
    return ""


def accept(records: Records, who: str, now: float) -> dict[str, Any]:
    """Expect from now on what the last canary brought. Raises IllegalTransition when there is nothing."""
    for row in records.canaries.latest():
        if row["outcome"]:
            outcome = Outcome.from_json(row["outcome"])
            records.canaries.expect(row["model_sha256"], outcome, who, now)
            return row
    raise IllegalTransition("no canary brought values yet; `ichnode canary run` sends one")


def new_uid() -> str:
    """A UID that nobody else has (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def drawn_by_the_workers(folder: Path) -> Sequence[Path]:
    """Raises PermanentError where nothing that draws is installed."""
    for entry in entry_points(group=PHANTOMS):
        if entry.name == "head":
            files: Sequence[Path] = entry.load()(folder)
            return files
    raise PermanentError("NO_PHANTOM", "nothing here draws a phantom; install the package with its workers")


def run(canary: Canary, stopping: Callable[[float], bool]) -> None:
    """Until `stopping(seconds)` says so. Whatever goes wrong is logged, and tried again."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            canary.round(time.time())
            wait_s = TICK_S
        except TransientError as error:
            log.error("the canary waits: %s", error)
            wait_s = PAUSE_S
        except Exception:
            log.exception("the canary broke; it goes on")
            wait_s = PAUSE_S
