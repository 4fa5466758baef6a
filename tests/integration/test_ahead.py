"""Work while a series arrives: whom the clock trusts, when a worker begins, and that only time changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.admin.roles import worker_arguments
from node.broker import AHEAD_QUEUE
from node.counting import Counting
from node.domain.errors import TransientError
from node.domain.findings import Findings
from node.domain.lifecycle import JobState, SeriesState
from node.domain.sender import Peer
from node.headstart import AFTER_RELEASE_S, STILL_OPEN_S
from node.maps import unpack
from node.scu import Parcel
from node.settings import Ahead, Archive, Completeness, Orders, Settings
from node.settle import HABIT_KEPT_S, SHORTEST_TICK_S, TICK_S, Clock
from node.shipment import StreamingPeer
from node.store.records import open_records
from tests.factories import ct_series
from tests.integration.test_settle import MAX_WAIT_S, QUIET_S, STUDY, T0, Bell, Place, head
from tests.integration.test_unusual_series import Node
from tests.orthanc import plain_orthanc
from tests.scanned import Scan, Threshold, scan
from workers.ahead import Finished, Shelf, Source
from workers.models.runtime import load_pipeline
from workers.phantom_series import write_series

SURE_S = 2.0
BEFORE_S = 5000.0


class AskingBell(Bell):
    """Notes for which series a head start was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        if self.broken:
            raise TransientError("broker: gone")
        self.asked.append((series_uid, revision))


class Watched(Place):
    def __init__(self, settings: Settings, records: Any) -> None:
        super().__init__(settings, records)
        self.bell: AskingBell = AskingBell()
        self.clock = self.new_clock()

    def habit(self, *associations: int) -> None:
        """What the sender did before: one study each, over so many associations, and all of it is done."""
        for number, count in enumerate(associations):
            study = f"7.{number}"
            slices = head(f"{study}.2", "Head", study=study, count=max(count, 6))
            for part in range(count):
                self.send(slices[part::count], T0 - BEFORE_S + number)
        self.clock.tick(T0 - BEFORE_S + 2 * MAX_WAIT_S)
        self.bell.asked.clear()


def place_with(folder: Path, **ahead: Any) -> Iterator[Watched]:
    settings = Settings(
        data_dir=folder,
        completeness=Completeness(quiet_s=QUIET_S, max_wait_s=MAX_WAIT_S),
        ahead=Ahead(**ahead),
    )
    records = open_records(settings)
    yield Watched(settings, records)
    records.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Watched]:
    yield from place_with(tmp_path)


class TestSureSenders:
    def state(self, place: Watched) -> SeriesState:
        return place.series()["Head"]

    def settles_after(self, place: Watched, seconds: float, since: float = T0) -> None:
        place.clock.tick(since + seconds - 0.1)
        assert self.state(place) is SeriesState.RECEIVING
        place.clock.tick(since + seconds)
        assert self.state(place) is SeriesState.ACCEPTED

    def test_one_that_always_sent_studies_whole_is_believed(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        place.send(head("1.2.2", "Head"), T0)
        self.settles_after(place, SURE_S)

    @pytest.mark.parametrize("before", [(), (1, 1), (1, 1, 1, 2), (30, 1, 1, 1)])
    def test_a_new_one_and_one_that_sends_in_pieces_are_not(
        self, before: tuple[int, ...], place: Watched
    ) -> None:
        place.habit(*before)
        place.send(head("1.2.2", "Head"), T0)
        self.settles_after(place, QUIET_S)

    def test_neither_is_one_in_pieces_this_time(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        slices = head("1.2.2", "Head")
        place.send(slices[:20], T0 - 1)
        place.send(slices[20:], T0)
        self.settles_after(place, QUIET_S)

    def test_nor_one_whose_habit_is_that_of_another(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        place.records.arrivals.open_association("other", "h:1", ("CT2", "10.0.0.1"), T0)
        place.send(head("1.2.2", "Head"), T0, of="other")
        self.settles_after(place, QUIET_S)

    def test_nor_one_that_has_not_released_or_broke_off_or_left_a_gap(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        slices = head("1.2.2", "Head")
        place.send([*slices[:9], *slices[10:]], T0)
        place.send(head("3.2.2", "Open", study="3.2"), T0, outcome=None)
        place.send(head("4.2.2", "Broken", study="4.2"), T0, outcome="aborted")
        place.clock.tick(T0 + QUIET_S)
        states = [next(iter(place.series(study).values())) for study in (STUDY, "3.2", "4.2")]
        assert states == [SeriesState.RECEIVING] * 3

    def test_all_series_of_the_association_are_waited_for(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        name = place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0, outcome=None)
        place.send(head("1.2.2", "thick"), T0 + 1, of=name)
        place.clock.tick(T0 + SURE_S)
        assert place.series() == {"thin": SeriesState.COMPLETE, "thick": SeriesState.RECEIVING}
        place.clock.tick(T0 + 1 + SURE_S)
        assert place.series() == {"thin": SeriesState.SKIPPED, "thick": SeriesState.ACCEPTED}

    def test_a_late_slice_makes_a_new_revision_and_costs_the_trust(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        slices = head("1.2.2", "Head")
        place.send(slices[:28], T0)
        place.clock.tick(T0 + SURE_S)
        place.send(slices[28:], T0 + 5)
        place.clock.tick(T0 + 5 + QUIET_S)
        jobs = place.jobs()[-2:]
        assert [(job.revision, job.state) for job in jobs] == [(1, JobState.SUPERSEDED), (2, JobState.QUEUED)]
        place.seconds += HABIT_KEPT_S
        place.send(head("5.2.2", "Head", study="5.2"), T0 + 100)
        place.clock.tick(T0 + 100 + SURE_S)
        assert place.series("5.2") == {"Head": SeriesState.RECEIVING}

    def test_the_wait_is_switched_off_by_zero(self, tmp_path: Path) -> None:
        for place in place_with(tmp_path, sure_quiet_s=0):
            place.habit(1, 1, 1)
            place.send(head("1.2.2", "Head"), T0)
            self.settles_after(place, QUIET_S)

    def test_the_clock_looks_again_just_when_something_may_be_due(self, place: Watched) -> None:
        place.clock.tick(T0)
        assert place.clock.next_look_s == TICK_S
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + 0.1)
        assert place.clock.next_look_s == pytest.approx(AFTER_RELEASE_S - 0.1)
        place.clock.tick(T0 + SURE_S - 0.2)
        assert place.clock.next_look_s == pytest.approx(0.2)
        place.clock.tick(T0 + SURE_S - 0.001)
        assert place.clock.next_look_s == SHORTEST_TICK_S

    def test_a_series_that_waits_for_long_makes_the_clock_sleep_through_no_other(
        self, place: Watched
    ) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + SURE_S + 0.1)
        assert place.series("1.2") == {"Head": SeriesState.RECEIVING}  # until the longest wait is over
        assert place.clock.next_look_s == TICK_S


class Told:
    """Counts that a test sets, in place of an archive."""

    def __init__(self, instances: int | None) -> None:
        self.instances = instances

    def expected(self, study_uid: str, series_uid: str, peer: Peer, since: float) -> int | None:
        return self.instances if peer.calling_ae == "CT1" else None


class TestCounts:
    def clock(self, place: Watched, instances: int | None) -> None:
        place.clock = Clock(
            place.settings,
            place.records,
            place.bell,  # type: ignore[arg-type]
            lambda: place.seconds,
            Told(instances),
        )

    def test_who_says_that_all_is_there_is_believed_though_unknown(self, place: Watched) -> None:
        self.clock(place, 30)
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + SURE_S - 0.1)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.clock.tick(T0 + SURE_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_what_lacks_a_slice_is_waited_for_though_nothing_else_tells(self, place: Watched) -> None:
        place.habit(1, 1, 1)
        self.clock(place, 31)
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + MAX_WAIT_S - 1)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.clock.tick(T0 + MAX_WAIT_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        assert place.records.decisions.notes("1.2.2") == ("30 of 31 expected instances arrived",)

    def test_an_association_that_is_open_counts_for_more(self, place: Watched) -> None:
        self.clock(place, 30)
        place.send(head("1.2.2", "Head"), T0, outcome=None)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.RECEIVING}

    def counting(self, ask: Any) -> Counting:
        archive = Archive(name="pacs", ae_title="PACS", counts=True)
        silent = Archive(name="other", ae_title="OTHER")
        return Counting(Settings(archive=(archive, silent)), ask)

    def test_only_what_was_asked_for_after_the_last_instance_counts(self) -> None:
        asked: list[str] = []
        counting = self.counting(lambda archive, uid: asked.append(uid) or {"1.2.2": len(asked)})
        pacs, since = Peer("PACS", "10.0.0.9"), time.time()
        assert counting.expected("1.2", "1.2.2", Peer("OTHER", "10.0.0.9"), since) is None
        assert not counting.answer_one()
        for _ in range(2):  # nobody waits, and nobody asks twice at a time
            assert counting.expected("1.2", "1.2.2", pacs, since) is None
        assert counting.answer_one() and not counting.answer_one()
        assert counting.expected("1.2", "1.2.2", pacs, since) == 1
        assert counting.expected("1.2", "1.2.3", pacs, since) is None
        later = time.time() + 1
        assert counting.expected("1.2", "1.2.2", pacs, later) is None
        assert counting.answer_one() and asked == ["1.2", "1.2"]
        assert counting.expected("1.2", "1.2.2", pacs, later) is None

    def test_an_archive_that_does_not_answer_counts_for_nothing_and_is_left_alone(self) -> None:
        asked: list[str] = []

        def ask(archive: Archive, uid: str) -> dict[str, int]:
            asked.append(uid)
            raise TransientError("archive pacs cannot be reached")

        counting, pacs = self.counting(ask), Peer("PACS", "10.0.0.9")
        for study in ("1.2", "1.2", "1.3"):
            assert counting.expected(study, "1.2.2", pacs, 0.0) is None
            assert counting.answer_one()
        assert asked == ["1.2"]

    def test_a_real_archive_is_asked(self, tmp_path: Path) -> None:
        orthanc = plain_orthanc(tmp_path / "orthanc", DicomAlwaysAllowFind=True)
        try:
            series = ct_series(4, rows=16, name="counted")
            parcels = []
            for number, ds in enumerate(series):
                ds.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
                parcels.append(Parcel(number, tmp_path / f"{number}.dcm", str(ds.SOPClassUID)))
            archive = Archive(name="pacs", ae_title="ORTHANC", port=orthanc.port, counts=True)
            assert all(one.accepted for one in StreamingPeer(archive.peer, "CT1").send(parcels))
            settings, since = Settings(archive=(archive,)), time.time()
            counting, uid = Counting(settings), str(series[0].SeriesInstanceUID)
            study, peer = str(series[0].StudyInstanceUID), Peer("ORTHANC", "127.0.0.1")
            assert counting.expected(study, uid, peer, since) is None
            assert counting.answer_one()
            assert counting.expected(study, uid, peer, since) == 4
        finally:
            orthanc.close()


class TestAsking:
    def test_once_for_each_state_of_a_study_that_looks_whole(self, place: Watched) -> None:
        slices = head("1.2.2", "Head")
        place.send(slices[:29], T0)
        place.clock.tick(T0 + AFTER_RELEASE_S - 0.1)
        assert place.bell.asked == []
        for later in (0.0, 0.5, 1.0):
            place.clock.tick(T0 + AFTER_RELEASE_S + later)
        assert place.bell.asked == [("1.2.2", 1)]
        place.send(slices[29:], T0 + 3)
        place.clock.tick(T0 + 3 + AFTER_RELEASE_S)
        assert place.bell.asked == [("1.2.2", 1)] * 2
        assert self.series(place) is SeriesState.RECEIVING

    def series(self, place: Watched) -> SeriesState:
        return place.series()["Head"]

    def test_an_association_that_stays_open_must_be_silent_for_longer(self, place: Watched) -> None:
        place.send(head("1.2.2", "Head"), T0, outcome=None)
        place.clock.tick(T0 + STILL_OPEN_S - 0.1)
        assert place.bell.asked == []
        place.clock.tick(T0 + STILL_OPEN_S)
        assert place.bell.asked == [("1.2.2", 1)]

    def test_for_the_series_that_would_be_chosen(self, place: Watched) -> None:
        place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0)
        place.send(head("1.2.2", "thick"), T0)
        place.clock.tick(T0 + AFTER_RELEASE_S)
        assert place.bell.asked == [("1.2.2", 1)]

    @pytest.mark.parametrize("trouble", ["gap", "bone", "broker", "analysed", "off"])
    def test_not_where_it_would_be_in_vain(self, trouble: str, place: Watched, tmp_path: Path) -> None:
        slices = head("1.2.2", "Head", kernel="H60s" if trouble == "bone" else "H31s")
        if trouble == "off":
            place.settings = Settings(data_dir=tmp_path, ahead=Ahead(head_start=False))
            place.clock = place.new_clock()
        if trouble == "analysed":
            place.send(slices[:20], T0 - 900)
            place.clock.tick(T0 - 900 + QUIET_S)
            place.bell.asked.clear()
            slices = slices[20:]
        place.bell.broken = trouble == "broker"
        place.send([*slices[:3], *slices[4:]] if trouble == "gap" else slices, T0)
        place.clock.tick(T0 + STILL_OPEN_S)
        assert place.bell.asked == []

    def test_a_worker_listens_to_it_unless_it_is_switched_off(self, tmp_path: Path) -> None:
        def queues(**settings: Any) -> str:
            arguments = worker_arguments(Settings(data_dir=tmp_path, **settings))
            return next(one for one in arguments if one.startswith("--queues="))

        assert queues().endswith(f",{AHEAD_QUEUE}")
        assert AHEAD_QUEUE not in queues(ahead=Ahead(head_start=False))
        assert AHEAD_QUEUE not in queues(orders=Orders(only_stat=True))


class Reader(Threshold):
    """Counts what it reads, and lets something happen while it does."""

    def __init__(self) -> None:
        self.read = 0
        self.meanwhile: Any = lambda: None

    def classify(self, hu: np.ndarray, spacing_mm: object) -> Any:
        self.read += 1
        self.meanwhile()
        return super().classify(hu, spacing_mm)


class Ahead_(Node):
    """A node of which the test is the clock: studies come, a worker begins, jobs are made."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pipeline = Reader()
        self.worker.model.pipeline = self.pipeline
        self.worker.records.jobs.store_priority = self._hear  # type: ignore[method-assign]
        self.words: list[tuple[int, int]] = []

    def _hear(self, job_id: int, *rest: Any) -> bool:
        """Which job spoke, after how many readings."""
        self.words.append((job_id, self.pipeline.read))
        return True

    def uid(self, series: Sequence[Dataset]) -> str:
        return str(series[0].SeriesInstanceUID)

    def prepare(self, series: Sequence[Dataset], revision: int = 1) -> None:
        self.worker.prepare(self.uid(series), revision)

    def job(self) -> int:
        """The clock makes a job of what came."""
        self.now += 60
        self.clock.tick(self.now)
        return self.bell.rung.pop()

    def state(self, job_id: int) -> JobState:
        job = self.records.jobs.get(job_id)
        assert job
        return job.state


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Ahead_]:
    made = Ahead_(tmp_path)
    made.records.arrivals.close_association("a1", "released", made.now)
    yield made
    made.records.close()


class TestHeadStart:
    def test_the_job_takes_what_was_prepared_and_nothing_was_told_before(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)
        node.prepare(series)
        assert (node.pipeline.read, node.words, len(node.worker.shelf)) == (1, [], 1)
        job = node.job()
        node.worker.run(job)
        assert node.state(job) is JobState.ANALYSED
        assert (node.pipeline.read, node.words, len(node.worker.shelf)) == (1, [(job, 1)], 0)
        assert (node.worker.jobs_done, node.worker.jobs_ahead) == (1, 1)

    def test_a_slice_that_comes_later_is_never_left_out(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series[:-1])
        node.prepare(series)
        node.receive(series[-1])
        job = node.job()
        node.worker.run(job)
        assert (node.pipeline.read, node.worker.jobs_ahead) == (2, 0)
        done = node.records.jobs.get(job)
        assert done and done.findings and len(done.findings.slices) == len(series)

    def test_content_that_came_again_counts(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)
        node.prepare(series)
        series[0].WindowCenter = 41
        node.receive(series[0])
        node.worker.run(node.job())
        assert (node.pipeline.read, node.worker.jobs_ahead) == (2, 0)

    def test_its_own_job_that_comes_meanwhile_is_done_in_one_go(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)
        jobs: list[int] = []
        node.pipeline.meanwhile = lambda: jobs.append(node.job())
        node.prepare(series)
        (job,) = jobs
        assert node.state(job) is JobState.ANALYSED
        assert (node.pipeline.read, node.words, len(node.worker.shelf)) == (1, [(job, 1)], 0)
        node.worker.run(job)  # its doorbell, heard late
        assert node.pipeline.read == 1

    def test_it_makes_way_for_another_job(self, node: Ahead_) -> None:
        other, series = scan(replace(Scan(), name="other")), scan()
        node.receive(*series)
        jobs: list[int] = []

        def another_comes() -> None:
            if not jobs:
                node.records.decisions.settle(
                    node.records.decisions.of_study(series[0].StudyInstanceUID)[0], 0
                )
                node.receive(*other)
                rows = node.records.decisions.of_study(other[0].StudyInstanceUID)
                node.records.decisions.settle(rows[0], node.now)
                jobs.append(node.records.decisions.decide(rows[0], [], node.now) or 0)

        node.pipeline.meanwhile = another_comes
        node.prepare(series)
        assert node.state(jobs[0]) is JobState.ANALYSED
        assert (node.pipeline.read, len(node.worker.shelf)) == (2, 0)

    def test_it_begins_with_nothing_while_a_job_waits_or_the_queue_is_paused(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)
        node.records.pauses.pause("queue", "admin", 0.0)
        node.prepare(series)
        node.records.pauses.resume("queue")
        node.job()
        node.prepare(series)
        assert node.pipeline.read == 0

    def test_what_goes_wrong_is_left_to_the_job(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)

        def broken() -> None:
            raise RuntimeError("nobody thought of that")

        node.pipeline.meanwhile = broken
        node.prepare(series)
        node.worker.spool.remove(node.records.arrivals.paths(node.uid(series))[0])
        node.prepare(series)
        assert (node.words, len(node.worker.shelf), node.worker.jobs_done) == ([], 0, 0)
        job = node.job()
        node.worker.run(job)
        done = node.records.jobs.get(job)
        assert done and done.reason and done.reason.code == "FILE_MISSING"

    def test_its_own_job_fails_with_it(self, node: Ahead_) -> None:
        series = scan()
        node.receive(*series)
        jobs: list[int] = []
        node.pipeline.meanwhile = lambda: jobs.append(node.job())
        node.pipeline.segment = lambda hu, *_: np.zeros((1, 1, 1), bool)  # type: ignore[method-assign]
        node.pipeline.classify = lambda hu, mm: (  # type: ignore[method-assign]
            node.pipeline.meanwhile() or Threshold().classify(hu, mm)
        )
        node.prepare(series)
        done = node.records.jobs.get(jobs[0])
        assert (
            done
            and done.reason
            and (done.state, done.reason.code)
            == (
                JobState.FAILED,
                "MODEL_OUTPUT_INVALID",
            )
        )


def without_times(findings: Findings) -> dict[str, Any]:
    return {key: value for key, value in findings.to_json().items() if key != "timings_s"}


def test_the_default_model_finds_the_same_ahead_and_after_bit_for_bit(tmp_path: Path) -> None:
    """Nothing but the times differs: findings, the early word, masks, heat map, parts by subtype."""
    files = write_series(tmp_path / "ct", 3, ("intraparenchymal", "intraventricular"), slices=28, size=96)
    series = [Dataset() for _ in files]
    for ds, path in zip(series, files, strict=True):
        ds.update(dcmread(path))  # without preamble and file meta
    found, pipeline = [], load_pipeline("default", "cpu")
    for name in ("plain", "ahead"):
        (tmp_path / name).mkdir()
        node = Node(tmp_path / name)
        node.worker.model.pipeline = pipeline
        words: list[Findings] = []
        speak = node.worker.claims.speak
        node.worker.claims.speak = lambda job, early, to=words, then=speak: (
            to.append(early),
            then(job, early),
        )  # type: ignore[method-assign,misc,assignment]
        node.records.arrivals.close_association("a1", "released", node.now)
        node.receive(*series)
        if name == "ahead":
            node.worker.prepare(str(series[0].SeriesInstanceUID), 1)
        (job,) = node.work()
        assert job.findings and job.maps_path, job.reason
        assert node.worker.jobs_ahead == (name == "ahead")
        maps = unpack(node.spool.absolute(job.maps_path).read_bytes())
        found.append((without_times(job.findings), [without_times(word) for word in words], maps))
        node.records.close()
    (plain, plain_words, plain_maps), (ahead, ahead_words, ahead_maps) = found
    assert plain == ahead and plain_words == ahead_words and len(plain_words) == 1
    assert plain["classes"]["any"]["present"] and plain_maps.masks.any()
    assert np.array_equal(plain_maps.masks, ahead_maps.masks)
    assert np.array_equal(plain_maps.heat, ahead_maps.heat)
    assert plain_maps.subtypes.keys() == ahead_maps.subtypes.keys()
    for part, mask in plain_maps.subtypes.items():
        assert np.array_equal(mask, ahead_maps.subtypes[part])


class TestShelf:
    def finished(self, size: int = 100) -> Finished:
        class Analysis:
            masks, heat, subtypes = np.zeros(size, bool), np.zeros(0, np.uint8), {}

        return Finished(None, Analysis(), None, 0.0)  # type: ignore[arg-type]

    def test_only_the_very_same_source_gets_it_and_only_once(self) -> None:
        shelf, one = Shelf(1000), self.finished()
        source = Source.of("1", 1, ["a", "b"])
        for other in (("1", 2, ["a", "b"]), ("1", 1, ["a"]), ("1", 1, ["b", "a"]), ("1", 1, ["a", "b", "c"])):
            shelf.put(source, one)
            assert shelf.take(Source.of(*other)) is None
            assert len(shelf) == 0
        shelf.put(source, one)
        assert shelf.take(Source.of("2", 1, ["a", "b"])) is None
        assert shelf.take(source) is one
        assert shelf.take(source) is None

    def test_it_is_bounded(self) -> None:
        shelf = Shelf(250)
        for number in range(4):
            shelf.put(Source.of(str(number), 1, []), self.finished())
        assert len(shelf) == 2
        assert [shelf.take(Source.of(str(n), 1, [])) is not None for n in range(4)] == [False] * 2 + [
            True
        ] * 2
        shelf.put(Source.of("large", 1, []), self.finished(251))
        assert len(shelf) == 0
