"""Slices decoded while their series arrives: who is asked, what is kept, and that only time changes."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.along import ARRIVING_S, ASK_AGAIN_S, FROM_SLICES
from node.domain.errors import TransientError
from node.domain.lifecycle import JobState
from node.headstart import AFTER_RELEASE_S
from node.intake import SUCCESS, Intake
from node.liveness import process_name
from node.settings import Ahead, Completeness, Settings
from node.store.jobs import Job
from node.store.records import Records, open_records
from node.wholeness import Announced
from tests.bench.decoding import recoded
from tests.integration.test_settle import MAX_WAIT_S, QUIET_S, T0, Bell, Place, head
from tests.integration.test_unusual_series import Node
from tests.peers import eventually
from tests.scanned import Scan, Threshold, scan
from workers.along import Along, Eyes
from workers.images import packed
from workers.load import load_acquired
from workers.worker import Worker

PATIENCE_S = 60.0
"""Decoding threads stand behind everybody else, so that a busy machine keeps them waiting."""
SYNTAXES = (ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless)
GONE = process_name().rpartition(":")[0] + ":4194305"
"""Named like a process of this machine, with a pid that none has."""


class AskingBell(Bell):
    """Notes whom the clock asks for what."""

    def __init__(self) -> None:
        super().__init__()
        self.along_for: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.also: list[str] = []

    def along(self, series_uid: str) -> None:
        if self.broken:
            raise TransientError("broker: gone")
        self.along_for.append(series_uid)

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        self.asked.append((series_uid, to))

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        super().ring(job_id, stat)
        self.also.append(also)


class Arriving(Place):
    def __init__(self, settings: Settings, records: Records) -> None:
        super().__init__(settings, records)
        self.bell: AskingBell = AskingBell()
        self.clock = self.new_clock()

    def asked(self, now: float) -> list[str]:
        """For which series decoding is asked for by a tick then."""
        self.bell.along_for.clear()
        self.clock.tick(now)
        return list(self.bell.along_for)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Arriving]:
    wait = Completeness(quiet_s=QUIET_S, max_wait_s=MAX_WAIT_S)
    settings = Settings(data_dir=tmp_path, completeness=wait)
    records = open_records(settings)
    yield Arriving(settings, records)
    records.close()


class TestAsking:
    def test_as_soon_as_a_few_slices_are_there_and_until_somebody_is_at_it(self, place: Arriving) -> None:
        slices = head("1.2.2", "Head")
        name = place.send(slices[: FROM_SLICES - 1], T0, outcome=None)
        assert place.asked(T0) == []
        place.send(slices[FROM_SLICES - 1 : FROM_SLICES], T0, of=name, outcome=None)
        assert place.asked(T0) == ["1.2.2"]
        assert place.asked(T0 + ASK_AGAIN_S - 0.1) == []
        assert place.asked(T0 + ASK_AGAIN_S) == ["1.2.2"]
        assert place.records.early.claim("1.2.2", "somebody")
        place.send(slices[FROM_SLICES:], T0 + 5, of=name, outcome=None)
        assert place.asked(T0 + 5) == []
        place.records.early.give_back(["1.2.2"], "somebody else")
        assert place.asked(T0 + 6) == []
        place.records.early.give_back(["1.2.2"], "somebody")
        assert place.asked(T0 + 7) == ["1.2.2"]

    @pytest.mark.parametrize("trouble", ["silent", "bone", "off", "no room", "no head start", "analysed"])
    def test_not_where_it_would_be_in_vain(self, trouble: str, place: Arriving, tmp_path: Path) -> None:
        ahead = {"off": Ahead(decode=False), "no room": Ahead(decode_mb=0)}.get(trouble, Ahead())
        if trouble == "no head start":
            ahead = Ahead(head_start=False)
        place.settings = place.settings.model_copy(update={"ahead": ahead})
        place.clock = place.new_clock()
        slices = head("1.2.2", "Head", kernel="H60s" if trouble == "bone" else "H31s")
        if trouble == "analysed":
            place.send(slices[:20], T0 - 900)
            place.clock.tick(T0 - 900 + QUIET_S)
            slices = slices[20:]
        place.send(slices, T0, outcome=None)
        assert place.asked(T0 + (ARRIVING_S if trouble == "silent" else 0)) == []

    def test_for_the_series_that_would_be_chosen(self, place: Arriving) -> None:
        name = place.send(head("1.2.3", "thin", step_mm=1.0, count=20), T0, outcome=None)
        assert place.asked(T0) == ["1.2.3"]
        place.send(head("1.2.2", "thick", count=10), T0 + 1, of=name, outcome=None)
        assert place.asked(T0 + 1) == ["1.2.2"]
        assert place.asked(T0 + 2.5) == []

    def test_a_broker_that_is_away_costs_time_only(self, place: Arriving) -> None:
        place.bell.broken = True
        place.send(head("1.2.2", "Head"), T0, outcome=None)
        assert place.asked(T0) == []
        place.bell.broken = False
        assert place.asked(T0 + ASK_AGAIN_S) == ["1.2.2"]

    @pytest.mark.parametrize(("who", "to"), [("alive", True), ("silent", False), ("gone", False)])
    def test_the_head_start_goes_to_whoever_has_decoded_if_it_lives(
        self, who: str, to: bool, place: Arriving
    ) -> None:
        name = GONE if who == "gone" else process_name()
        if who != "silent":
            place.records.views.beat(f"worker@{name}", "worker", {}, T0)
        place.send(head("1.2.2", "Head"), T0)
        assert place.records.early.claim("1.2.2", name)
        place.clock.tick(T0 + AFTER_RELEASE_S)
        assert place.bell.asked == [("1.2.2", name if to else "")]

    def test_the_bell_of_the_job_is_rung_for_it_too(self, place: Arriving) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.send(head("2.2.2", "Head", study="2.2"), T0)
        assert place.records.early.claim("1.2.2", "begun")
        place.clock.tick(T0 + QUIET_S)
        assert len(place.bell.rung) == 2 and sorted(place.bell.also) == ["", "begun"]


class Arrival(Node):
    """A node to which slices come as they are, one by one, in any transfer syntax."""

    def __init__(self, folder: Path, **ahead: Any) -> None:
        super().__init__(folder)
        self.settings = Settings(data_dir=folder, ahead=Ahead(**ahead))
        self.worker = Worker(self.settings, Threshold())
        self.records.close()
        self.records, self.spool = self.worker.records, self.worker.spool

    def come(self, *datasets: Dataset) -> None:
        intake = Intake(self.spool, self.records, lambda: self.now)
        for ds in datasets:
            self.now += 0.001
            stream = io.BytesIO()
            syntax = ds.file_meta.TransferSyntaxUID
            dcmwrite(stream, _bare(ds), implicit_vr=False, little_endian=True)
            request = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(syntax), "CT1", "a1")
            assert intake.receive(Announced(*request), stream.getvalue()) == SUCCESS

    def followed(self) -> list[Dataset]:
        """A series that came while the worker followed it, each of its slices decoded early."""
        series = scan()
        self.come(*series)
        self.worker.read_along(uid_of(series))
        self.decoded(len(series))
        return series

    def decoded(self, count: int) -> None:
        """Until so many slices are decoded early, and no more."""
        assert eventually(lambda: self.worker.along.standing()["slices_early"] == count, PATIENCE_S)

    def settled(self) -> dict[str, int]:
        """What the worker tells once nothing is left to be decoded."""
        self.worker.along.look()
        assert eventually(self.worker.along.is_free, PATIENCE_S)
        time.sleep(0.05)
        return self.worker.along.standing()

    def analysed(self) -> list[Job]:
        """The jobs that came of it, done but not composed."""
        self.records.arrivals.close_association("a1", "released", self.now)
        self.now += 60
        self.clock.tick(self.now)
        while self.bell.rung:
            self.worker.run(self.bell.rung.pop(0))
        return [job for number in (1, 2) if (job := self.records.jobs.get(number))]

    def done(self) -> dict[str, Any]:
        """What came of the only job, without its times."""
        (job,) = self.analysed()
        said = job.findings.to_json() if job.findings else {}
        return {"state": job.state, "reason": job.reason, **said, "timings_s": None}


def _bare(ds: Dataset) -> Dataset:
    """The data set alone, as it comes over an association."""
    bare = Dataset()
    bare.update(ds)
    return bare


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Arrival]:
    made = Arrival(tmp_path)
    yield made
    made.worker.along.stop()
    made.records.close()


def uid_of(series: Sequence[Dataset]) -> str:
    return str(series[0].SeriesInstanceUID)


def plainly(folder: Path, series: Sequence[Dataset]) -> dict[str, Any]:
    """What a worker that decodes nothing early finds in the same."""
    folder.mkdir()
    node = Arrival(folder, decode=False)
    node.come(*series)
    found = node.done()
    node.records.close()
    return found


class TestDecoding:
    @pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name[:12])
    def test_finds_the_same_bit_for_bit(self, syntax: Any, node: Arrival, tmp_path: Path) -> None:
        series = [recoded(ds, syntax) for ds in scan()]
        node.come(*series[:10])
        node.worker.read_along(uid_of(series))
        node.decoded(10)
        node.come(*series[10:])
        node.decoded(len(series))
        paths = node.records.arrivals.paths(uid_of(series))
        files = [node.spool.absolute(path) for path in paths]
        images = node.worker.along.images(uid_of(series), paths)
        assert len(images) == len(series)
        known = {node.spool.absolute(path): image for path, image in images.items()}
        plain, early = load_acquired(files), load_acquired(files, known)
        assert plain.volume.hu.tobytes() == early.volume.hu.tobytes()
        assert plain.acquisition == early.acquisition and plain.volume.slices == early.volume.slices
        assert not plain.volume.seen and len(early.volume.seen) == len(series)
        assert node.done() == plainly(tmp_path / "plain", series)
        assert node.worker.along.standing()["early_bytes"] == 0

    def test_the_head_start_has_the_pixels_at_hand_and_the_job_its_outcome(self, node: Arrival) -> None:
        series = node.followed()
        node.worker.prepare(uid_of(series), 1)
        assert node.worker.along.standing()["slices_early_used"] == len(series)
        assert node.done()["state"] is JobState.ANALYSED
        assert node.worker.jobs_ahead == 1
        assert node.worker.along.standing()["early_bytes"] == 0

    def test_what_cannot_be_decoded_is_told_by_the_job(self, node: Arrival, tmp_path: Path) -> None:
        series = [recoded(ds, JPEGLSLossless) for ds in scan()]
        series[7].PixelData = series[7].PixelData[:200] + bytes(len(series[7].PixelData) - 200)
        node.come(*series)
        node.worker.read_along(uid_of(series))
        node.decoded(len(series) - 1)
        found = node.done()
        assert found == plainly(tmp_path / "plain", series)
        assert found["reason"].code == "PIXELS_UNDECODABLE"

    def test_in_any_order_twice_and_replaced(self, node: Arrival, tmp_path: Path) -> None:
        series = scan()
        order = np.random.default_rng(5).permutation(len(series))
        node.come(*(series[index] for index in order))
        node.worker.read_along(uid_of(series))
        node.decoded(len(series))
        old = node.records.arrivals.paths(uid_of(series))
        other = Dataset()
        other.update(series[3])
        other.file_meta = series[3].file_meta
        other.PixelData = bytes(len(series[3].PixelData))
        node.come(series[0], other)
        node.decoded(len(series) + 1)
        assert node.worker.along.images(uid_of(series), old).keys() == set(old) & set(
            node.records.arrivals.paths(uid_of(series))
        )
        come = [*(series[index] for index in order), series[0], other]
        assert node.done() == plainly(tmp_path / "plain", come)

    def test_two_series_that_come_interleaved(self, node: Arrival, tmp_path: Path) -> None:
        one, other = scan(), scan(replace(Scan(), name="other"))
        node.come(*one[:8])
        node.worker.read_along(uid_of(one))
        node.come(*other[:8])
        node.decoded(8)
        node.worker.read_along(uid_of(other))
        for pair in zip(one[8:], other[8:], strict=True):
            node.come(*pair)
        node.decoded(2 * len(one))
        assert [job.state for job in node.analysed()] == [JobState.ANALYSED] * 2
        assert node.worker.along.standing()["slices_early_used"] == 2 * len(one)

    def test_only_one_worker_is_at_a_series(self, node: Arrival) -> None:
        series = scan()
        node.come(*series)
        assert node.records.early.claim(uid_of(series), GONE)
        node.worker.read_along(uid_of(series))
        assert node.settled()["slices_early"] == 0

    def test_a_study_that_is_removed_is_forgotten(self, node: Arrival) -> None:
        node.followed()
        assert node.worker.along.standing()["early_bytes"] > 0
        with node.records.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM instances")
            connection.exec_driver_sql("DELETE FROM series")
        node.worker.along.look()
        assert node.worker.along.standing()["early_bytes"] == 0

    def test_a_file_that_is_gone_is_missing_though_it_was_decoded(self, node: Arrival) -> None:
        series = node.followed()
        node.spool.absolute(node.records.arrivals.paths(uid_of(series))[3]).unlink()
        assert node.done()["reason"].code == "FILE_MISSING"

    def test_not_while_a_job_waits(self, node: Arrival) -> None:
        series = scan()
        node.come(*series)
        node.records.pauses.pause("queue", "admin", 0.0)
        node.worker.read_along(uid_of(series))
        assert node.records.early.claim(uid_of(series), "anybody")


class TestSeveralWorkers:
    """Another worker has begun with the series of a job."""

    def job(self, node: Arrival, who: str) -> int:
        series = scan()
        node.come(*series)
        node.records.early.take_over(uid_of(series), who)
        node.records.arrivals.close_association("a1", "released", node.now)
        node.now += 60
        node.clock.tick(node.now)
        (job_id,) = node.bell.rung
        return job_id

    @pytest.mark.parametrize("takes", [True, False])
    def test_the_job_is_left_to_it_for_a_while(
        self, takes: bool, node: Arrival, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = process_name(os.getppid())
        job_id, slept = self.job(node, other), []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if takes and len(slept) == 3:
                assert node.records.jobs.claim(job_id, other, time.time() + 30, time.time())

        monkeypatch.setattr("workers.worker.time.sleep", sleep)
        node.worker.run(job_id)
        job = node.records.jobs.get(job_id)
        assert job and job.state is (JobState.RUNNING if takes else JobState.ANALYSED)
        assert len(slept) == (3 if takes else 10)

    def test_but_not_when_it_is_gone(self, node: Arrival, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.worker.time.sleep", lambda seconds: pytest.fail("it waits"))
        job_id = self.job(node, GONE)
        node.worker.run(job_id)
        job = node.records.jobs.get(job_id)
        assert job and job.state is JobState.ANALYSED

    def test_a_worker_that_ends_gives_back_what_it_followed(self, node: Arrival) -> None:
        series = scan()
        node.come(*series[:8])
        node.worker.read_along(uid_of(series))
        assert not node.records.early.claim(uid_of(series), "another")
        node.worker.along.stop()
        assert node.records.early.claim(uid_of(series), "another")


class Table:
    """Series for threads that decode them, without database and spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.there: dict[str, list[str]] = {}
        self.given_back: list[str] = []
        self.state: Any = "RECEIVING"

    def eyes(self) -> Eyes:
        from node.domain.lifecycle import SeriesState
        from node.store.early import Arrived

        return Eyes(
            arrived=lambda uid: Arrived(SeriesState(self.state), tuple(self.there.get(uid, ()))),
            fetch=lambda path: self.folder / path,
            give_back=self.given_back.extend,
        )

    def put(self, uid: str, series: Sequence[Dataset]) -> None:
        for number, ds in enumerate(series, start=len(self.there.get(uid, ()))):
            name = f"{uid}-{number}.dcm"
            dcmwrite(self.folder / name, ds, enforce_file_format=True)
            self.there.setdefault(uid, []).append(name)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


class TestRoom:
    def along(self, table: Table, slices: float, kept_s: float = 60.0) -> Along:
        """Room for so many slices of a scan."""
        return Along(table.eyes(), int(slices * 116 * 100 * 2), kept_s, 2)

    def test_no_more_is_kept_than_there_is_room(self, table: Table) -> None:
        table.put("1", scan()[:12])
        along = self.along(table, 5)
        along.begin("1")
        assert eventually(lambda: along.standing()["slices_early"] >= 4, PATIENCE_S)
        time.sleep(0.3)
        assert along.standing()["slices_early"] <= 5
        assert len(along.images("1", table.there["1"])) == along.standing()["slices_early"]
        along.stop()

    def test_the_series_that_is_silent_makes_way(self, table: Table) -> None:
        table.put("1", scan()[:6])
        along = self.along(table, 12)
        along.begin("1")
        assert eventually(lambda: along.standing()["slices_early"] == 6, PATIENCE_S)
        table.put("2", scan()[:10])
        along.begin("2")
        assert eventually(lambda: len(along.images("2", table.there["2"])) == 10, PATIENCE_S)
        assert along.images("1", table.there["1"]) == {}
        along.stop()

    def test_one_that_stops_arriving_or_is_not_wanted_is_forgotten(self, table: Table) -> None:
        table.put("1", scan()[:4])
        table.put("2", scan()[:4])
        along = self.along(table, 50, kept_s=0.5)
        along.begin("1")
        assert eventually(lambda: along.standing()["slices_early"] == 4, PATIENCE_S)
        assert eventually(lambda: along.standing()["early_bytes"] == 0, PATIENCE_S)
        along.begin("2")
        assert eventually(lambda: along.standing()["slices_early"] == 8, PATIENCE_S)
        table.state = "SKIPPED"
        along.look()
        assert along.standing()["early_bytes"] == 0
        along.stop()

    def test_a_job_goes_first_and_what_was_followed_is_given_back(self, table: Table) -> None:
        along = self.along(table, 50)
        with along.making_way():
            table.put("1", scan()[:4])
            along.begin("1")
            along.look()
            assert not along.is_free()
            time.sleep(0.1)
            assert along.standing()["slices_early"] == 0
        assert eventually(lambda: along.standing()["slices_early"] == 4, PATIENCE_S)
        along.give_back(but="1")
        assert table.given_back == []
        along.give_back()
        assert table.given_back == ["1"]
        table.put("1", scan()[:2])
        along.look()
        time.sleep(0.1)
        assert along.standing()["slices_early"] == 4
        along.begin("1")
        assert eventually(lambda: along.standing()["slices_early"] == 6, PATIENCE_S)
        along.stop()
        assert table.given_back == ["1", "1"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-1024.0, "i2"), (32767.0, "i2"), (40.5, "f4"), (40000.0, "f4"), (-0.0, "f4"), (float("nan"), "f4")],
)
def test_hu_are_kept_in_half_the_memory_only_where_they_come_back_exactly(value: float, kind: str) -> None:
    hu = np.array([[0.0, value], [31.0, -1000.0]], np.float32)
    kept = packed(hu)
    assert kept.dtype == np.dtype(kind)
    assert kept.astype(np.float32).tobytes() == hu.tobytes()
