"""In which order waiting jobs are taken: STAT first, nobody starves, a late order still moves a job up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from sqlalchemy import Table, insert

from node.broker import QUEUE, STAT_QUEUE, BundledRedis, Doorbell, socket_path
from node.domain.findings import Reason
from node.domain.instance import Instance
from node.domain.lifecycle import JobState, SeriesState
from node.domain.orders import OrderPriority, Rules, Said, Source, Subject, Turn
from node.settings import Orders, Settings
from node.settle import Clock
from node.store.arrivals import StoredFile
from node.store.queue import HEAD, ORDERED, Line, Ring, _head
from node.store.records import Records, open_records
from node.store.tables import jobs, series, studies
from tests.peers import eventually, requires
from tests.site import Site

AGE_S = 600.0
LINE = Line(Rules(age_s=AGE_S))


class Hall:
    """Studies that wait, and a worker that takes them one after another."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.site = Site(records)
        self.owed = False

    def waits(self, name: str, since: float, *, ordered: str = "") -> int:
        """A job in the queue, written in one transaction: these tests make many."""
        of = {"study_instance_uid": name, "first_received_at": since, "last_received_at": since}
        mine = {"series_instance_uid": f"{name}.1", "study_instance_uid": name}
        job = {**mine, "revision": 1, "state": JobState.QUEUED, "created_at": since}
        with self.records.engine.begin() as connection:
            connection.execute(insert(studies).values(**of, accession_number=f"A{name}"))
            seen = {"first_received_at": since, "last_received_at": since}
            connection.execute(insert(series).values(**mine, **seen, state=SeriesState.ACCEPTED))
            (number,) = connection.execute(insert(jobs).values(**job)).inserted_primary_key or (0,)
        if ordered:
            self.order(name, OrderPriority(ordered))
        return int(number)

    def order(self, name: str, priority: OrderPriority, source: Source = Source.HL7) -> list[str]:
        return self.records.orders.say(Said(source, priority, Subject("", f"A{name}"), 1.0, "M1"))

    def take(self, now: float, rung: int = 0, **line: object) -> tuple[int, Turn] | None:
        mine = Line(LINE.rules, self.owed, **line)  # type: ignore[arg-type]
        taken = self.records.queue.take(rung, "w:1", now + 30, now, mine)
        if taken is None:
            return None
        self.owed = taken.owed
        return taken.job.id, taken.turn


@pytest.fixture
def hall(records: Records) -> Hall:
    return Hall(records)


def test_what_was_ordered_stat_is_taken_first_then_the_oldest(hall: Hall) -> None:
    first, second = hall.waits("1", 1000.0), hall.waits("2", 1001.0)
    stat, later_stat = hall.waits("3", 1003.0, ordered="STAT"), hall.waits("4", 1004.0, ordered="STAT")
    high = hall.waits("5", 1002.0, ordered="HIGH")
    taken = [hall.take(1100.0) for _ in range(6)]
    assert taken == [
        (stat, Turn.STAT), (later_stat, Turn.STAT), (first, Turn.ROUTINE), (second, Turn.ROUTINE),
        (high, Turn.ROUTINE), None,
    ]  # fmt: skip


def test_an_order_that_comes_after_queueing_moves_the_job_up(hall: Hall) -> None:
    ids = [hall.waits(str(n), 1000.0 + n) for n in range(3)]
    for job in ids:
        hall.records.queue.rung(Ring(job, False), 1010.0)
    assert hall.records.queue.to_ring(1000.0, 1020.0, LINE.rules) == []
    assert hall.order("2", OrderPriority.STAT) == ["2"]
    assert hall.records.queue.to_ring(1000.0, 1020.0, LINE.rules) == [Ring(ids[2], True)]
    assert hall.take(1030.0, rung=ids[0]) == (ids[2], Turn.STAT), "whichever job the message names"
    assert hall.take(1030.0, rung=ids[2]) == (ids[0], Turn.ROUTINE), "and no message is lost by that"


def test_an_order_taken_back_or_made_routine_moves_it_down_again(hall: Hall) -> None:
    first, second = hall.waits("1", 1000.0), hall.waits("2", 1001.0, ordered="STAT")
    hall.order("2", OrderPriority.ROUTINE)
    assert hall.take(1002.0) == (first, Turn.ROUTINE)
    hall.order("2", OrderPriority.STAT)
    assert hall.records.orders.withdraw(Source.HL7, Subject("", "A2")) == ["2"]
    assert hall.take(1002.0) == (second, Turn.ROUTINE)


def test_nobody_starves_while_stat_keeps_coming(hall: Hall) -> None:
    """Two STAT orders come for each analysis; the routine that aged still gets every second turn."""
    routine = [hall.waits(f"r{n}", 1000.0 + n) for n in range(3)]
    stats, taken, now = 0, [], 1100.0
    for _ in range(10):
        for _ in range(2):
            hall.waits(f"s{stats}", now, ordered="STAT")
            stats += 1
        found = hall.take(now)
        assert found
        taken.append(found)
        now += 100
    turns = [turn for _, turn in taken]
    assert turns[:6] == [Turn.STAT] * 6, "nothing has waited for ten minutes yet"
    assert turns[6:] == [Turn.AGED, Turn.STAT, Turn.AGED, Turn.STAT] or turns[6:] == [
        Turn.STAT, Turn.AGED, Turn.STAT, Turn.AGED
    ]  # fmt: skip
    assert [job for job, turn in taken if turn is Turn.AGED] == routine[:2], "the oldest first"


def test_a_stat_job_waits_for_one_aged_job_at_most(hall: Hall) -> None:
    for n in range(4):
        hall.waits(f"r{n}", 0.0 + n)
    now = 5000.0
    assert (hall.take(now) or (0, None))[1] is Turn.AGED
    for n in range(3):
        stat = hall.waits(f"s{n}", now + n, ordered="STAT")
        ahead = [found for _ in range(2) if (found := hall.take(now + n)) is not None]
        assert (stat, Turn.STAT) in ahead
        assert sum(turn is not Turn.STAT for _, turn in ahead) <= 1


def test_a_worker_kept_free_takes_no_routine(hall: Hall) -> None:
    fresh = hall.waits("1", 1000.0)
    assert hall.take(1100.0, stat_only=True) is None
    assert hall.take(1000.0 + AGE_S + 1, stat_only=True) == (fresh, Turn.AGED)


def test_a_job_that_was_tried_before_comes_only_with_its_own_doorbell(hall: Hall) -> None:
    """So that a message meant for another does not use up its attempts within a second."""
    broken, sound = hall.waits("1", 1000.0, ordered="STAT"), hall.waits("2", 1001.0)
    assert hall.take(1002.0) == (broken, Turn.STAT)
    assert hall.records.jobs.put_back(broken, "w:1", Reason("TRANSIENT", "disk"))
    assert hall.take(1003.0, rung=sound) == (sound, Turn.ROUTINE)
    assert hall.take(1003.0, rung=sound) is None
    assert hall.take(1004.0, rung=broken) == (broken, Turn.STAT)


def test_a_paused_queue_gives_nothing(hall: Hall) -> None:
    job = hall.waits("1", 1000.0, ordered="STAT")
    hall.records.pauses.pause("queue", "anna", 1.0)
    assert hall.take(1001.0) is None
    assert hall.records.queue.to_ring(2000.0, 2000.0, LINE.rules) == []
    hall.records.pauses.resume("queue")
    assert hall.take(1001.0) == (job, Turn.STAT)


def test_each_job_is_taken_once_however_many_workers_ask(hall: Hall) -> None:
    ids = [hall.waits(str(n), 1000.0 + n) for n in range(8)]

    def ask(number: int) -> int | None:
        taken = hall.records.queue.take(0, f"w:{number}", 2000.0, 1100.0, LINE)
        return taken.job.id if taken else None

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(12)))
    assert sorted(job for job in found if job) == ids
    assert found.count(None) == 4


def test_what_the_study_itself_says_is_weighed(records: Records) -> None:
    now = time.time()

    def came(study: str, caller: str, priority: str = "") -> tuple[object, object]:
        records.arrivals.open_association(study, "l", (caller, "10.0.0.1"), now)
        one = Instance(f"{study}.1.1", "1.2", f"{study}.1", study, "x", "CT", requested_priority=priority)
        records.arrivals.record(one, StoredFile(study, 1, study), study, now)
        return records.orders.weigh(study, ("ER_CT ",), now)

    assert came("1.1", "ER_CT") == (OrderPriority.STAT, Source.CALLER)
    assert came("1.2", "CT2", "HIGH") == (OrderPriority.HIGH, Source.HEADER)
    assert came("1.3", "CT2", "whenever") == (None, None)
    assert records.orders.weigh("1.1", ("ER_CT",), now) == (OrderPriority.STAT, Source.CALLER)
    assert [said.reference for said in records.orders.of_study("1.1")] == ["ER_CT"], "said once"


def test_an_order_before_its_study_waits_for_it(hall: Hall) -> None:
    assert hall.order("7", OrderPriority.STAT) == []
    job = hall.site.queued("7", accession_number="A7", patient_id="P")
    hall.records.orders.weigh("7", (), 1.0)
    assert hall.take(time.time()) == (job, Turn.STAT)
    assert hall.records.orders.forget(2.0) == 1
    row = hall.records.worklist.study("7")
    assert row and (row["order_priority"], row["order_source"]) == ("STAT", "HL7")


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A folder shorter than pytest's own, since a socket's path must be short; with a real Redis."""
    requires("redis-server")
    folder = Path(tempfile.mkdtemp(prefix="ich"))
    made = Settings(data_dir=folder, orders=Orders(age_min=10))
    bundled = BundledRedis(made)
    server = subprocess.Popen(bundled.command())
    bundled.wait_ready()
    yield made
    server.terminate()
    server.wait(timeout=10)
    shutil.rmtree(folder)


def in_queue(settings: Settings, queue: str) -> int:
    client = redis.Redis(unix_socket_path=str(socket_path(settings)))
    try:
        return int(client.llen(queue))
    finally:
        client.close()


def test_celery_workers_take_a_filled_queue_in_order(settings: Settings) -> None:
    """The clock rings a real Redis for jobs of every kind; a Celery worker with the node's own command line
    writes down which job it got. One order becomes STAT after its doorbell rang as routine."""
    records = open_records(settings)
    hall, now = Hall(records), time.time()
    routine = [hall.waits(f"r{n}", now - 100 + n) for n in range(12)]
    clock = Clock(settings, records, Doorbell(settings))
    clock.tick(now)
    assert (in_queue(settings, STAT_QUEUE), in_queue(settings, QUEUE)) == (0, 12)
    stat = hall.waits("s", now, ordered="STAT")
    old = hall.waits("o", now - 4000)
    hall.order("r9", OrderPriority.STAT)
    clock.tick(now + 1)
    assert (in_queue(settings, STAT_QUEUE), in_queue(settings, QUEUE)) == (3, 12)
    late, rest = routine[9], [job for job in routine if job != routine[9]]
    taken = settings.data_dir / "taken"
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.taking", str(settings.data_dir)],
        start_new_session=True,
        env={**os.environ, "ICHNODE_ORDERS__AGE_MIN": "10"},
    )
    try:
        eventually(lambda: taken.exists() and len(taken.read_text().split()) == 14, 60)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(timeout=20)
    order = [int(job) for job in taken.read_text().split()]
    assert order == [late, old, stat, *rest]
    rung = [int(job) for job in (settings.data_dir / "rung").read_text().split()]
    assert set(rung[:3]) == {late, old, stat}, "the messages of the STAT queue are heard first, too"
    records.close()


def test_of_a_long_line_only_the_head_is_rung_for_and_what_was_tried(hall: Hall) -> None:
    """Whoever hears a doorbell takes whose turn it is: more of them would only fill the broker."""
    with hall.records.engine.begin() as connection:
        for table, rows in _many(HEAD + 5).items():
            connection.execute(insert(table), rows)
    stat = hall.waits("stat", 5000.0, ordered="STAT")
    tried = hall.waits("tried", 6000.0)
    assert hall.records.jobs.claim(tried, "w:1", 0.0, 0.0)
    assert hall.records.jobs.put_back(tried, "w:1", Reason("TRANSIENT", "disk"))
    rung = hall.records.queue.to_ring(1.0, 1100.0, LINE.rules)
    assert (rung[0], rung[-1]) == (Ring(stat, True), Ring(tried, False))
    assert len(rung) == HEAD + 2
    head = [ring.job_id for ring in rung[1:-1]]
    for _ in range(10):
        hall.take(1100.0)
    assert {ring.job_id for ring in hall.records.queue.to_ring(1.0, 1100.0, LINE.rules)} > set(head[9:])


def _many(count: int) -> dict[Table, list[dict[str, object]]]:
    """Rows of so many studies with a job each that waits."""
    seen = {"first_received_at": 1000.0, "last_received_at": 1000.0}
    names = [f"m{n}" for n in range(count)]
    series_of = [{"study_instance_uid": n, "series_instance_uid": f"{n}.1"} for n in names]
    waits = {"revision": 1, "state": JobState.QUEUED}
    return {
        studies: [{"study_instance_uid": name, **seen} for name in names],
        series: [{**of, **seen, "state": SeriesState.ACCEPTED} for of in series_of],
        jobs: [{**of, **waits, "created_at": 1000.0 + n} for n, of in enumerate(series_of)],
    }


@pytest.mark.parametrize("database", ["sqlite"])
def test_whose_turn_it_is_an_index_tells_however_many_wait(records: Records) -> None:
    """No sorting, no look at those behind. PostgreSQL plans by what it counted (tests.bench.queue_depth)."""
    with records.engine.connect() as connection:
        for ordered in ORDERED:
            query = _head(ordered, 1).compile(connection, compile_kwargs={"literal_binds": True})
            (step,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
            assert "jobs_in_line" in step.detail and "ordered=?" in step.detail
