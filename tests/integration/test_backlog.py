"""A worker with its hands full: several series at once, nobody lost, STAT first, and every answer as ever."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from node.domain.errors import PermanentError, TransientError
from node.domain.lifecycle import JobState
from node.domain.orders import OrderPriority, Said, Subject, Turn
from node.domain.orders import Source as Place
from node.settings import Model, Settings
from node.settings import Worker as Bounds
from node.settle import Clock
from node.store.jobs import Job
from node.store.queue import Line, Taken
from tests.integration.test_unusual_series import Node
from tests.peers import eventually
from tests.scanned import Scan, Threshold, scan
from workers.ahead import Source
from workers.backlog import BYTES_A_VOXEL, ON_A_GPU, Backlog, Hands, look_ahead
from workers.models.contract import Classification
from workers.models.several import Share, Unprepared
from workers.stages import Stage, chosen
from workers.worker import Worker

VOXELS = 25 * 116 * 100
"""Of one series of these tests."""


class Several(Threshold):
    """Takes several series at once, and notes how many; waits at `gate` with the networks, if it is shut."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prepared = 0
        self.gate = threading.Event()
        self.gate.set()
        self.dislikes: Callable[[np.ndarray], bool] = lambda hu: False

    def prepare(self, hu: np.ndarray, spacing_mm: Any) -> Unprepared:
        self.prepared += 1
        return Unprepared(hu, spacing_mm)

    def classify_all(self, prepared: Sequence[Any]) -> list[Classification]:
        self.gate.wait(30)
        self.batches.append(len(prepared))
        if any(self.dislikes(one.hu) for one in prepared):
            raise PermanentError("MODEL_OUTPUT_INVALID", "one of them is disliked")
        return [self.classify(one.hu, one.spacing_mm) for one in prepared]


class Full(Node):
    """A node whose worker looks ahead; the test is its clock and its bell."""

    def __init__(self, folder: Path, **bounds: Any) -> None:
        super().__init__(folder)
        self.pipeline = Several()
        given = {"look_ahead": 4, "together": 2, "readers": 2, **bounds}
        self.settings = Settings(data_dir=folder, worker=Bounds(**given))
        self.worker = Worker(self.settings, self.pipeline)
        self.records.close()
        self.records, self.spool = self.worker.records, self.worker.spool
        self.clock = Clock(self.settings, self.records, self.bell)  # type: ignore[arg-type]
        self.words: list[int] = []
        spoken = self.records.jobs.store_priority
        self.records.jobs.store_priority = lambda job_id, *rest: (  # type: ignore[method-assign]
            self.words.append(job_id) or spoken(job_id, *rest)
        )
        self._count = self._known = 0

    @property
    def backlog(self) -> Backlog:
        assert self.worker.backlog is not None
        return self.worker.backlog

    def wait(self, count: int, **how: Any) -> list[int]:
        """So many jobs that wait, each of a study of its own."""
        for _ in range(count):
            self._count += 1
            self.receive(*scan(replace(Scan(), name=f"s{self._count}", **how)))
        self.records.arrivals.close_association("a1", "released", self.now)
        self.now += 60
        self.clock.tick(self.now)
        rung, self.bell.rung = [one for one in self.bell.rung if one > self._known], []
        assert len(rung) == count
        self._known = max(rung)
        return rung

    def job(self, job_id: int) -> Job:
        found = self.records.jobs.get(job_id)
        assert found
        return found

    def states(self, ids: Sequence[int]) -> list[JobState]:
        return [self.job(one).state for one in ids]

    def order(self, job_id: int) -> None:
        said = Said(Place.HL7, OrderPriority.STAT, Subject(self.job(job_id).study_instance_uid), 1.0, "M1")
        assert self.records.orders.say(said)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """While the networks are stuck in a first batch."""
        self.pipeline.gate.clear()
        try:
            yield
        finally:
            self.pipeline.gate.set()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Full]:
    made = Full(tmp_path)
    yield made
    made.pipeline.gate.set()
    made.backlog.close()
    made.records.close()


def test_a_backlog_is_worked_off_together_and_every_answer_is_as_ever(node: Full) -> None:
    ids = node.wait(6)
    for job_id in ids:
        node.worker.run(job_id)
    node.backlog.wait_idle()
    assert node.states(ids) == [JobState.ANALYSED] * 6
    assert sorted(node.words) == ids and node.worker.jobs_done == 6
    assert sum(node.pipeline.batches) == node.pipeline.prepared == 6
    first = node.job(ids[0]).findings
    assert first and first.classes["any"].present and first.segmentation
    for job_id in ids:
        found = node.job(job_id).findings
        assert found and found.classes["any"].probability == first.classes["any"].probability
        assert found.series_instance_uid == node.job(job_id).series_instance_uid
        assert {"load", "canonical", "classify", "alert", "segment", "total"} <= set(found.timings_s)


def test_slices_of_several_series_go_through_at_once_while_others_are_read(node: Full) -> None:
    ids = node.wait(4)
    with node.shut():
        for job_id in ids:
            node.worker.run(job_id)
        eventually(lambda: node.pipeline.prepared == 4, 20)
        assert node.states(ids) == [JobState.RUNNING] * 4, "all are under a lease"
    node.backlog.wait_idle()
    assert sorted(node.pipeline.batches) in ([1, 1, 2], [2, 2]), "no more than two together"


def test_what_is_in_hand_is_bounded_by_number_and_stat_has_room_for_one_more(node: Full) -> None:
    ids = node.wait(7)
    with node.shut():
        for job_id in ids[:4]:
            node.worker.run(job_id)
        feeding = threading.Thread(target=node.worker.run, args=(ids[4],))
        feeding.start()
        time.sleep(0.1)
        assert node.states(ids[4:]) == [JobState.QUEUED] * 3
        node.order(ids[6])
        feeding.join(20)
        assert node.states(ids[4:]) == [JobState.QUEUED, JobState.QUEUED, JobState.RUNNING]
        eventually(lambda: node.pipeline.prepared == 5, 20)
    node.backlog.wait_idle()
    assert node.words.index(ids[6]) <= 2, "only what was in the networks already came before"
    assert node.states([*ids[:4], ids[6]]) == [JobState.ANALYSED] * 5


def test_and_by_memory(tmp_path: Path) -> None:
    node = Full(tmp_path, look_ahead=100, look_ahead_mb=256)
    room = 256 * 2**20 // (VOXELS * BYTES_A_VOXEL)
    assert 1 < room < 100
    ids = node.wait(2)
    sizes: list[int] = []
    with node.shut():
        for job_id in ids:
            node.worker.run(job_id)
        sizes = [one.size_bytes for one in node.backlog._held]
        node.backlog._held[0].size_bytes = 250 * 2**20
        assert not node.backlog._has_room()
    node.backlog.wait_idle()
    assert sizes == [VOXELS * BYTES_A_VOXEL] * 2
    assert node.backlog._has_room(), "also for a series larger than all the room"
    node.backlog.close()


def test_one_that_fails_among_several_fails_alone(node: Full) -> None:
    ids = node.wait(3)
    bad = node.wait(1, spacing_mm=(2.0, 1.9))
    volume = node.worker._load(node.worker._source(node.job(bad[0]))).volume
    known = float(np.ascontiguousarray(volume.canonical()).sum())
    node.pipeline.dislikes = lambda hu: float(hu.sum()) == known
    with node.shut():
        for job_id in (*ids, *bad):
            node.worker.run(job_id)
        eventually(lambda: node.pipeline.prepared == 4, 20)
    node.backlog.wait_idle()
    assert node.states(ids) == [JobState.ANALYSED] * 3
    failed = node.job(bad[0])
    assert failed.state is JobState.FAILED and failed.reason and failed.reason.code == "MODEL_OUTPUT_INVALID"
    assert 2 in node.pipeline.batches


def test_one_that_cannot_be_read_fails_and_the_others_go_on(node: Full) -> None:
    ids = node.wait(3)
    node.spool.remove(node.worker._source(node.job(ids[1])).paths[0])
    for job_id in ids:
        node.worker.run(job_id)
    node.backlog.wait_idle()
    assert node.states(ids) == [JobState.ANALYSED, JobState.FAILED, JobState.ANALYSED]
    failed = node.job(ids[1])
    assert failed.reason and failed.reason.code == "FILE_MISSING"


def test_one_whose_result_cannot_be_written_is_let_go_once(
    node: Full, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(node.spool, "write", write)
    (job_id,) = node.wait(1)
    node.worker.run(job_id)
    node.backlog.wait_idle()
    node.backlog.close()
    assert node.states([job_id]) == [JobState.QUEUED]
    assert node.worker.jobs_done == 1 and "finish-" not in caplog.text


def test_what_was_cancelled_while_it_was_in_hand_is_not_begun(node: Full) -> None:
    ids = node.wait(3)
    with node.shut():
        for job_id in ids:
            node.worker.run(job_id)
        eventually(lambda: node.pipeline.prepared == 3, 20)
        node.records.jobs.cancel(ids[2])
    node.backlog.wait_idle()
    assert node.states(ids) == [JobState.ANALYSED, JobState.ANALYSED, JobState.CANCELLED]
    assert ids[2] not in node.words


def test_a_worker_that_ends_gives_back_what_it_has_not_begun(node: Full) -> None:
    ids = node.wait(4)
    with node.shut():
        for job_id in ids:
            node.worker.run(job_id)
        eventually(lambda: node.pipeline.prepared == 4, 20)
        closing = threading.Thread(target=node.worker.stop)
        closing.start()
        eventually(lambda: not node.backlog._network._is_open, 20)
    closing.join(20)
    done = [one for one in ids if node.job(one).state is JobState.ANALYSED]
    back = [node.job(one) for one in ids if one not in done]
    assert done and len(back) >= 2, "the batch at work was finished"
    assert [(one.state, one.attempts, one.lease_owner) for one in back] == [(JobState.QUEUED, 0, None)] * len(
        back
    )
    taken = node.records.queue.take(0, "other", time.time() + 30, time.time(), Line())
    assert taken and taken.job.id in [one.id for one in back], "and another worker gets it at once"


@pytest.mark.parametrize("is_away_for", [2, 1000])
def test_a_database_that_is_away_when_a_worker_ends_keeps_no_job_from_the_queue(
    is_away_for: int, node: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks later it is back; and if it stays away, the worker ends nevertheless."""
    monkeypatch.setattr("workers.backlog.GIVE_BACK_S", 0.6)
    ids = node.wait(4)
    tries: list[int] = []
    give_back = node.backlog.hands.give_back

    def away_at_first(job: Job) -> None:
        tries.append(job.id)
        if len(tries) <= is_away_for:
            raise TransientError("database: away")
        give_back(job)

    node.backlog.hands = replace(node.backlog.hands, give_back=away_at_first)
    ended = threading.Event()
    closing = threading.Thread(target=lambda: [node.backlog.close(), ended.set()])
    with node.shut():
        for job_id in ids:
            node.worker.run(job_id)
        eventually(lambda: node.pipeline.prepared == 4)
        closing.start()
        eventually(lambda: not node.backlog._network._is_open)
    assert ended.wait(20)
    begun = [one for one in ids if node.job(one).state is JobState.ANALYSED]
    waits = JobState.QUEUED if is_away_for == 2 else JobState.RUNNING
    assert begun and [node.job(one).state for one in ids if one not in begun] == [waits] * (4 - len(begun))


def test_a_job_that_was_tried_before_is_worked_alone(node: Full) -> None:
    """So that a series that kills its worker cannot use up the attempts of those beside it."""
    ids = node.wait(3)
    assert node.records.jobs.claim(ids[0], "dead", 0.0, time.time())
    assert node.records.jobs.expire(node.job(ids[0]))
    seen: list[tuple[int, int]] = []
    hands = node.backlog.hands

    def alone(job: Job) -> None:
        seen.append((job.id, len(node.backlog._held)))
        hands.alone(job)

    node.backlog.hands = replace(hands, alone=alone)
    for job_id in (*ids[1:], ids[0]):
        node.worker.run(job_id)
    node.backlog.wait_idle()
    assert seen == [(ids[0], 0)], "nothing else is in hand while it is"
    assert node.states(ids) == [JobState.ANALYSED] * 3


def test_a_head_start_is_not_begun_while_anything_is_in_hand(node: Full) -> None:
    ids = node.wait(1)
    with node.shut():
        node.worker.run(ids[0])
        node.worker.prepare("1.2.3", 1)
        assert len(node.worker.shelf) == 0
    node.backlog.wait_idle()
    assert node.backlog.is_idle


def test_what_was_analysed_ahead_is_taken_as_it_is(node: Full) -> None:
    (job_id,) = node.wait(1)
    source = node.worker._source(node.job(job_id))
    node.worker.shelf.put(source, node.worker._work(source, lambda early: None))
    node.worker.run(job_id)
    assert node.states([job_id]) == [JobState.ANALYSED]
    assert (node.worker.jobs_ahead, node.pipeline.prepared) == (1, 1)


HOLD = """
import sys, time
from pathlib import Path
from node.settings import Settings, Worker as Bounds
from tests.integration.test_backlog import Several
from workers.worker import Worker

pipeline = Several()
pipeline.gate.clear()
worker = Worker(Settings(data_dir=Path(sys.argv[1]), worker=Bounds(look_ahead=4)), pipeline)
pipeline.gate.wait = lambda _: time.sleep(600)
for job_id in sys.argv[2:]:
    worker.run(int(job_id))
while pipeline.prepared < len(sys.argv) - 2:
    time.sleep(0.05)
print("full", flush=True)
time.sleep(600)
"""


def test_after_kill_9_every_job_in_hand_goes_back_to_the_queue(node: Full, tmp_path: Path) -> None:
    ids = node.wait(4)
    command = [sys.executable, "-c", HOLD, str(tmp_path), *map(str, ids)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout and holding.stdout.readline() == "full\n"
        assert node.states(ids) == [JobState.RUNNING] * 4
        holding.send_signal(signal.SIGKILL)
    node.clock.tick(time.time())
    assert node.states(ids) == [JobState.QUEUED] * 4
    for job_id in ids:
        node.worker.run(job_id)
    node.backlog.wait_idle()
    assert node.states(ids) == [JobState.ANALYSED] * 4
    assert [node.job(one).attempts for one in ids] == [2] * 4


class TestStage:
    class One:
        def __init__(self, name: str, is_stat: bool = False) -> None:
            self.name, self.is_stat = name, is_stat

    def test_stat_is_chosen_first_and_never_with_routine(self) -> None:
        a, b, s, t = self.One("a"), self.One("b"), self.One("s", True), self.One("t", True)
        assert chosen([a, s, b, t], 3) == [s, t]
        assert chosen([a, b], 1) == [a]

    def test_a_line_goes_on_after_an_error_nobody_thought_of(self) -> None:
        done: list[str] = []

        def work(some: list[TestStage.One]) -> None:
            done.append(some[0].name)
            raise ZeroDivisionError

        stage: Stage[TestStage.One] = Stage("s", work)
        for name in "ab":
            stage.put(self.One(name))
        assert stage.close(empty=True) == [] and done == ["a", "b"]


def test_a_database_that_is_away_leaves_no_job_in_hand() -> None:
    job = Job(1, "1.2", "1", 1, JobState.RUNNING, 1, None, None, "w", 0.0, 0.0, None, None, None)

    def away(*_: object) -> Any:
        raise TransientError("database: away")

    @contextmanager
    def failing(_: Job) -> Iterator[None]:
        try:
            yield
        except TransientError:
            away()

    hands = Hands(
        pipeline=Several, take=lambda *_: Taken(job, Turn.ROUTINE, False),
        source=lambda _: Source.of("1.2", 1, []), voxels=lambda _: 1, load=away,
        leased=lambda _: nullcontext(), outcome=lambda _: nullcontext(), watched=lambda _: nullcontext(),
        is_ours=away, speak=away, store=away, give_back=away, alone=away,
        is_prepared=lambda _: False, done=lambda: None,
    )  # fmt: skip
    ours = replace(hands, is_ours=lambda _: True)
    for one in (hands, ours, replace(ours, outcome=failing)):
        backlog = Backlog(one, Bounds(), 2)
        backlog.feed(1)
        backlog.wait_idle()
        assert backlog.is_idle
        backlog.close()


def test_by_itself_a_worker_looks_ahead_on_a_gpu_only() -> None:
    assert look_ahead(Bounds(), False, 3) == 0
    assert look_ahead(Bounds(), True, 3) == ON_A_GPU
    assert look_ahead(Bounds(), True, 1) == 0, "what is lost with a dead worker must have another attempt"
    assert look_ahead(Bounds(look_ahead=3), False, 3) == 3
    with pytest.raises(ValidationError, match="max_attempts of 2 or more"):
        Settings(model=Model(max_attempts=1), worker=Bounds(look_ahead=2))


def test_the_share_of_the_time_the_networks_were_busy() -> None:
    share = Share()
    assert share.of(1.0, 10.0) is None
    assert share.of(3.5, 15.0) == 0.5
    assert share.of(0.1, 20.0) is None, "another model was loaded"
    assert share.of(9.0, 25.0) == 1.0
    assert share.of(None, 30.0) is None
