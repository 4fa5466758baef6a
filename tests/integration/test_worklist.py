"""The queries of the worklist and of the queue's page, on each database."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from node.domain.errors import IllegalTransition, TransientError
from node.domain.findings import Consistency, Priority, Reason
from node.domain.lifecycle import DeliveryState
from node.domain.opinion import Opinion, Word
from node.store.deliveries import NewDelivery
from node.store.jobs import NewObject
from node.store.pauses import QUEUE, of_destination
from node.store.records import Records
from node.store.tables import BEGINNINGS, studies
from node.store.worklist import Reading, Shown, Wanted, matching
from tests.site import SUBDURAL, Site, findings


@pytest.fixture
def site(records: Records) -> Site:
    return Site(records)


def uids(records: Records, **wanted: object) -> list[str]:
    rows, _ = records.worklist.page(Wanted(**wanted), 100)  # type: ignore[arg-type]
    return [row["study_instance_uid"] for row in rows]


def test_the_list_is_filtered_by_result_and_by_reading(site: Site) -> None:
    records = site.records
    jobs = {
        "stat": site.composed("1.1", SUBDURAL),
        "high": site.composed("1.2", findings({}, 0.6, Consistency.MASK_ONLY, Priority.HIGH)),
        "routine": site.composed("1.3", findings()),
        "failed": site.failed("1.4", Reason("X", "y")),
    }
    site.receive("1.5", "1.5.1")
    assert uids(records) == ["1.1", "1.2", "1.5", "1.4", "1.3"]
    assert uids(records, shown=Shown.SUSPECTED) == ["1.1"]
    assert uids(records, shown=Shown.INDETERMINATE) == ["1.2"]
    assert uids(records, shown=Shown.NOT_ANALYSED) == ["1.4"]
    assert uids(records, shown=Shown.NOT_DETECTED) == ["1.3"]
    for job in jobs.values():
        records.reviews.acknowledge(job, "anna", time.time())
    assert uids(records) == ["1.5"]
    assert uids(records, reading=Reading.BOTH) == ["1.1", "1.2", "1.5", "1.4", "1.3"]
    assert uids(records, reading=Reading.ACKNOWLEDGED) == ["1.4", "1.3", "1.2", "1.1"]
    assert uids(records, reading=Reading.ACKNOWLEDGED, shown=Shown.SUSPECTED) == ["1.1"]
    assert uids(records, since=time.time() + 5) == []


def test_a_study_is_acknowledged_by_what_was_said_of_its_word(site: Site) -> None:
    """Not by what was said of an earlier revision; and once, however often it was read."""
    records = site.records
    first = site.composed("1.1", SUBDURAL)
    records.reviews.acknowledge(first, "anna", time.time())
    site.receive("1.1", "1.1.1", images=1)
    second = site.decide("1.1", "1.1.1")
    assert second is not None and uids(records, reading=Reading.ACKNOWLEDGED) == ["1.1"], "it has no word yet"
    assert records.jobs.claim(second, "worker", time.time() + 60, time.time())
    assert records.jobs.store_analysis(second, "worker", SUBDURAL, "maps", time.time())
    assert (uids(records), uids(records, reading=Reading.ACKNOWLEDGED)) == (["1.1"], [])
    records.reviews.acknowledge(second, "anna", time.time())
    assert (uids(records), uids(records, reading=Reading.ACKNOWLEDGED)) == ([], ["1.1"])


def test_of_many_who_acknowledge_at_once_each_is_answered(site: Site) -> None:
    """A button pressed twice, or two readers: the first counts, and nobody gets an error."""
    for number in range(5):
        job = site.composed(f"1.{number}", SUBDURAL)
        barrier = threading.Barrier(6)

        def press(who: str, job: int = job, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(20)
            return site.records.reviews.acknowledge(job, who, time.time())

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(press, "abcdef")) == [False] * 5 + [True]


def test_of_many_who_test_a_destination_at_once_each_is_answered(site: Site) -> None:
    barrier = threading.Barrier(6)

    def press(number: int) -> None:
        barrier.wait(20)
        for _ in range(10):
            site.records.console.echoed("pacs", True, f"answered in {number} ms", 1.0)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(press, range(6)))
    assert site.records.console.destinations(["pacs"])["pacs"]["echo"]["text"].startswith("answered")


def test_a_study_whose_only_job_was_cancelled_can_be_acknowledged(site: Site) -> None:
    job = site.queued("1.1")
    site.records.jobs.cancel(job)
    assert uids(site.records) == ["1.1"]
    site.records.reviews.acknowledge(job, "anna", time.time())
    assert (uids(site.records), uids(site.records, reading=Reading.ACKNOWLEDGED)) == ([], ["1.1"])


def test_the_list_is_paged_across_its_groups_without_a_gap(site: Site) -> None:
    for number in range(4):
        site.composed(f"1.{number}", SUBDURAL)
        site.composed(f"2.{number}", findings())
    whole = uids(site.records)
    assert len(whole) == 8
    parts: list[str] = []
    for offset in range(0, 9, 3):
        rows, more = site.records.worklist.page(Wanted(), 3, offset)
        parts += [row["study_instance_uid"] for row in rows]
        assert more == (offset + 3 < 8)
    assert parts == whole


def test_the_first_to_acknowledge_is_kept(site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    assert site.records.reviews.acknowledge(job, "anna", time.time())
    assert not site.records.reviews.acknowledge(job, "victor", time.time())
    review = site.records.worklist.study("1.1")["review"]  # type: ignore[index]
    assert review["acknowledged_by"] == "anna"


def test_a_result_that_was_replaced_since_it_was_read_is_not_acknowledged(site: Site) -> None:
    """Somebody reads a routine result; meanwhile the same job is analysed anew, and the word is STAT."""
    reviews = site.records.reviews
    job = site.composed("1.1", findings())
    read = site.records.worklist.study("1.1")["word"]["analysed_at"]  # type: ignore[index]
    site.records.jobs.reanalyse(job)
    assert site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    assert site.records.jobs.store_analysis(job, "worker", SUBDURAL, "maps", time.time() + 1)
    with pytest.raises(IllegalTransition, match="analysed again"):
        reviews.acknowledge(job, "anna", time.time() + 2, read)
    with pytest.raises(IllegalTransition, match="analysed again"):
        reviews.judge(job, Word(Opinion.AGREE, "anna", time.time() + 2), read)
    assert uids(site.records) == ["1.1"]
    now = site.records.worklist.study("1.1")["word"]["analysed_at"]  # type: ignore[index]
    assert reviews.acknowledge(job, "anna", time.time() + 3, now)


def test_search_takes_no_wildcard(site: Site) -> None:
    site.composed("1.1", SUBDURAL, patient_id="PID_1%", accession_number="ACC")
    site.composed("1.2", SUBDURAL, patient_id="PIDX1")
    assert uids(site.records, search="pid_") == ["1.1"]
    assert uids(site.records, search="PID_1%") == ["1.1"]
    assert uids(site.records, search="acc") == ["1.1"]
    assert uids(site.records, search="1.2") == ["1.2"]
    assert uids(site.records, search="%") == []


def test_an_alarm_stays_first_until_a_later_revision_has_its_word(site: Site) -> None:
    records = site.records
    site.composed("1.1", SUBDURAL)
    site.composed("1.2", findings())
    site.receive("1.1", "1.1.1", images=1)
    job = site.decide("1.1", "1.1.1")
    assert job is not None
    assert uids(records, shown=Shown.SUSPECTED) == ["1.1"]
    row = records.worklist.study("1.1")
    assert row and row["word"]["id"] != row["current"]["id"] == job
    assert records.worklist.unread_alarms(0) == 1
    records.jobs.claim(job, "worker", time.time() + 60, time.time())
    records.jobs.fail(job, Reason("BROKEN", "it broke"))
    assert uids(records, shown=Shown.SUSPECTED) == ["1.1"]
    assert uids(records) == ["1.1", "1.2"]
    records.jobs.retry(job)
    records.jobs.claim(job, "worker", time.time() + 60, time.time())
    records.jobs.store_analysis(job, "worker", findings(), "maps", time.time())
    assert uids(records, shown=Shown.SUSPECTED) == []
    assert records.worklist.unread_alarms(0) == 0


def test_what_was_overtaken_is_neither_waiting_nor_sent_nor_given_up(site: Site) -> None:
    older = site.overtaken("1.1", SUBDURAL)
    row = site.records.worklist.study("1.1")
    assert row and (row["pending"], row["sent"], row["given_up"]) == (1, 0, 0)
    (newer,) = [d["id"] for d in site.records.views.deliveries() if d["id"] != older]
    site.records.deliveries.sent(newer, "0x0000", time.time())
    row = site.records.worklist.study("1.1")
    assert row and (row["pending"], row["sent"], row["given_up"], row["status"]) == (0, 1, 0, "DONE")
    assert site.records.console.oldest_unsent_positive() is None
    assert site.records.console.counts()["deliveries"] == {}
    standing = site.records.console.destinations(["pacs", "other"])
    assert (standing["pacs"]["superseded"], standing["other"]["superseded"]) == (1, 0)
    assert (standing["pacs"]["pending"], standing["pacs"]["given_up"], standing["pacs"]["urgent"]) == (
        0,
        0,
        0,
    )


def test_the_backlog_of_each_destination(site: Site) -> None:
    console, now = site.records.console, time.time()
    site.given_up("1.1", SUBDURAL)
    sent = site.delivery_of(site.composed("1.2", findings()))
    late = site.delivery_of(site.composed("1.3", SUBDURAL))
    site.records.deliveries.sent(sent, "0x0000", now)
    site.records.deliveries.failed(late, "no answer", "", now + 60)
    standing = console.destinations(["pacs", "other"])
    assert standing["other"]["pending"] == 0
    pacs = standing["pacs"]
    assert (pacs["pending"], pacs["given_up"], pacs["urgent"], pacs["error"]) == (1, 1, 2, "no answer")
    assert pacs["last_sent_at"] == pytest.approx(now)
    console.echoed("pacs", True, "answered", now)
    console.echoed("pacs", False, "did not", now + 1)
    assert console.destinations(["pacs"])["pacs"]["echo"]["text"] == "did not"
    assert (console.count_given_up("pacs"), console.count_given_up("other")) == (1, 0)
    assert [row["id"] for row in console.unsent(DeliveryState.PENDING)] == [late]
    assert console.counts()["deliveries"] == {"PENDING": 1, "FAILED": 1}
    oldest = console.oldest_unsent_positive()
    assert oldest and oldest["study_instance_uid"] == "1.1"
    assert console.bytes_since(now - 60) == 6 * 1000 + 3 * 1000
    assert console.bytes_since(now + 60) == 0


def test_how_long_the_way_took(site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    site.records.deliveries.sent(site.delivery_of(job), "0x0000", 5e9)
    (row,) = site.records.console.times(0)
    assert (row["id"], row["first_sent_at"]) == (job, 5e9)
    assert row["received_at"] <= row["created_at"] <= row["started_at"] <= row["analysed_at"]


def test_a_pause_holds_for_its_own_part_alone(site: Site) -> None:
    records, now = site.records, time.time()
    job = site.queued("1.1")
    site.composed("1.2", SUBDURAL)
    assert records.pauses.pause(QUEUE, "anna", now)
    assert not records.pauses.pause(QUEUE, "victor", now)
    assert records.pauses.all()[QUEUE]["paused_by"] == "anna"
    assert records.jobs.claim(job, "worker", now + 60, now) is None
    assert len(records.deliveries.take_due("pacs", time.time(), now + 60)) == 1
    assert records.pauses.resume(QUEUE) and not records.pauses.resume(QUEUE)
    records.pauses.pause(of_destination("other"), "anna", now)
    assert records.jobs.claim(job, "worker", now + 60, now)


def test_a_review_goes_with_its_job(site: Site) -> None:
    from sqlalchemy import delete, select

    from node.store import tables

    job = site.failed("1.1", Reason("X", "y"))
    site.records.reviews.acknowledge(job, "anna", time.time())
    with site.records.engine.begin() as connection:
        connection.execute(delete(tables.jobs))
        assert connection.execute(select(tables.reviews)).all() == []


def test_a_beginning_is_found_by_an_index(records: Records) -> None:
    """However many studies there are; empty databases are scanned, so the planner is told not to."""
    query = select(studies.c.study_instance_uid).where(matching("pid-4711"))
    sqlite = records.engine.dialect.name == "sqlite"
    words = str(query.compile(records.engine, compile_kwargs={"literal_binds": True}))
    with records.engine.begin() as connection:
        if not sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        how = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        plan = str(connection.exec_driver_sql(how + words).all())
    for index in BEGINNINGS:
        assert index in plan, plan
    assert "SCAN studies" not in plan


def test_what_is_sent_first_stands_first(site: Site) -> None:
    job = site.analysed("1.1", SUBDURAL)
    kinds = ("sr", "seg", "sc")
    made = [NewObject(f"2.25.9{n}", "1.2", "1.1.8", kind, f"{kind}.dcm", 10) for n, kind in enumerate(kinds)]
    wanted = [NewDelivery(one.sop_instance_uid, "pacs", n, True) for n, one in enumerate(made)]
    stored = site.records.jobs.get(job)
    assert stored
    assert site.records.jobs.store_objects(stored, made, wanted[::-1], time.time())
    assert [row["output"] for row in site.records.console.unsent(DeliveryState.PENDING)] == list(kinds)


def test_a_judgement_is_written_down_whole_or_not_at_all(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would take a study off the list of unread ones, and lose what its reader said."""
    job = Site(records).composed("1.1", SUBDURAL)

    def breaks(*_: object) -> None:
        raise TransientError("the database went away")

    monkeypatch.setattr("node.store.quality.say", breaks)
    with pytest.raises(TransientError):
        records.reviews.judge(job, Word(Opinion.DISAGREE, "anna", time.time()))
    row = records.worklist.study("1.1")
    assert row and row["review"] is None
