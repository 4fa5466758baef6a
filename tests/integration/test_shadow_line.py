"""The line of the shadow model: behind every study, bounded, retried a few times, and in nobody's way."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from node.domain.errors import TransientError
from node.domain.findings import Reason
from node.domain.lifecycle import JobState
from node.domain.opinion import Opinion
from node.domain.orders import Rules, Turn
from node.quality.pairs import compare
from node.shadowing import AT_ONCE, place_of
from node.store import quality
from node.store.pairs import Asked
from node.store.records import Records
from node.store.shadows import Drawn, ShadowModel
from tests.shadowed import ACTIVE, OTHER, SHADOW, Shadowed, read


@pytest.fixture
def node(records: Records) -> Shadowed:
    return Shadowed(records)


def everything_about(records: Records, job: int) -> tuple[object, ...]:
    """What the study, its job, its deliveries and alerts look like."""
    study = records.jobs.get(job)
    assert study
    uid = study.study_instance_uid
    return (
        study,
        records.worklist.study(uid),
        records.views.deliveries_of(job),
        records.alerts.of_study(uid),
        records.quality.export(0, 1e12, 10),
    )


def test_what_was_analysed_is_read_once_and_nothing_else_changes(node: Shadowed) -> None:
    job = node.analysed("1.1", 0.94)
    before = everything_about(node.records, job)
    node.line.round(time.time())
    assert node.records.shadows.counts() == {}, "no shadow worker is there"
    node.loads()
    for _ in range(3):
        node.line.round(time.time())
    assert node.records.shadows.counts() == {"WAITING": 1}
    assert len(node.bell.rung) == 1, "it is not rung for again at once"
    assert node.reads(0.03) == job
    node.line.round(time.time())
    assert node.records.shadows.counts() == {"DONE": 1}
    assert node.take() is None
    assert everything_about(node.records, job) == before


def test_it_waits_while_any_study_waits(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    waiting = node.site.queued("1.2")
    node.line.round(time.time())
    assert node.records.shadows.counts() == {"WAITING": 1} and node.bell.rung == []
    assert node.take() is None, "not even when its doorbell rings"
    node.records.jobs.cancel(waiting)
    node.line.round(time.time())
    assert len(node.bell.rung) == 1 and node.take()


def test_a_message_that_comes_twice_and_two_workers_read_once(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    node.line.round(time.time())
    (rung,) = node.bell.rung
    taken = node.take("h:1", rung)
    assert taken and node.take("h:2", rung) is None
    assert not node.records.shadows.store(taken.id, "h:2", read(0.1, OTHER), 1.0), "not its lease"
    assert node.records.shadows.renew(taken.id, "h:1", time.time() + 60)
    assert node.records.shadows.store(taken.id, "h:1", read(0.1, OTHER), 1.0)
    assert not node.records.shadows.store(taken.id, "h:1", read(0.9, OTHER), 2.0)
    assert node.take("h:1", rung) is None


def test_a_long_line_leaves_out_what_comes_and_counts_it(records: Records) -> None:
    node = Shadowed(records, max_backlog=2)
    node.loads()
    jobs = [node.analysed(f"1.{number}") for number in range(5)]
    for _ in range(2):
        node.line.round(time.time())
    assert records.shadows.counts() == {"WAITING": 2, "SKIPPED BACKLOG": 3}
    assert [node.reads(), node.reads()] == jobs[:2], "the oldest are kept"
    node.line.round(time.time())
    assert records.shadows.counts() == {"DONE": 2, "SKIPPED BACKLOG": 3}, "left out for good"


def test_what_waited_too_long_is_not_read(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    now = time.time()
    node.line.round(now)
    node.records.views.beat("shadow-worker@h:1", "shadow-worker", _detail(SHADOW), now + 25 * 3600)
    node.line.round(now + 25 * 3600)
    assert node.records.shadows.counts() == {"SKIPPED TOO_OLD": 1}


def _detail(model: ShadowModel) -> dict[str, str]:
    identity = model.identity
    named = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
    return {**named, "pipeline": model.pipeline}


def test_another_shadow_model_reads_anew_and_the_old_line_is_dropped(node: Shadowed) -> None:
    node.loads()
    node.both("1.1", 0.1, 0.2)
    node.analysed("1.2")
    node.line.round(time.time())
    third = ShadowModel("/models/third.json", replace(OTHER, name="third", sha256="c" * 64))
    node.loads(third)
    node.line.round(time.time())
    assert node.records.shadows.counts() == {"DONE": 1, "SKIPPED OTHER_MODEL": 1, "WAITING": 2}
    assert node.take() is None, "the old worker gets nothing of the new model's line"


def test_the_active_model_is_no_shadow_of_itself(node: Shadowed) -> None:
    node.analysed("1.1")
    node.loads(ShadowModel("default", ACTIVE))
    node.line.round(time.time())
    assert node.records.shadows.counts() == {}


def test_the_share_follows_from_the_uid(records: Records) -> None:
    drawn = [Drawn(1, "1", f"1.2.{number}", 1) for number in range(2000)]
    below = sum(place_of(one) < 0.25 for one in drawn)
    assert 400 < below < 600
    node = Shadowed(records, share=1e-9)
    node.loads()
    node.analysed("1.1")
    node.line.round(time.time())
    assert records.shadows.counts() == {"SKIPPED NOT_DRAWN": 1}


def test_what_fails_is_tried_again_with_its_own_doorbell_and_then_given_up(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    node.line.round(time.time())
    taken = node.take()
    assert taken and node.records.shadows.put_back(taken.id, "h:1", Reason("TRANSIENT", "disk"))
    assert node.take() is None, "a message for another does not use up its attempts"
    again = node.take(rung=taken.id)
    assert again and again.attempts == 2
    assert node.records.shadows.fail(again.id, "h:1", Reason("MODEL_OUTPUT_INVALID", "NaN"), time.time())
    (failed,) = node.records.shadows.failures()
    assert (failed["reason_code"], failed["attempts"]) == ("MODEL_OUTPUT_INVALID", 2)
    assert node.take(rung=taken.id) is None


def test_a_worker_that_dies_loses_it_and_one_that_kills_workers_is_given_up(node: Shadowed) -> None:
    node.loads()
    job = node.analysed("1.1")
    node.line.round(time.time())
    for attempt in (1, 2):
        taken = node.take(rung=node.bell.rung[0])
        assert taken and taken.attempts == attempt
        node.line.round(time.time())
        assert node.records.shadows.counts() == {"RUNNING": 1}, "its lease lasts"
        for _ in range(7):
            node.elapsed_s += 2
            node.line.round(time.time() + 31)
    assert node.records.shadows.counts() == {"FAILED": 1}
    assert node.records.shadows.failures()[0]["reason_code"] == "WORKER_LOST"
    found = node.records.jobs.get(job)
    assert found and found.state is JobState.ANALYSED


def test_a_newer_revision_overtakes_it(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    node.line.round(time.time())
    taken = node.take()
    assert taken
    node.site.receive("1.1", "1.1.1", images=1)
    assert not node.records.shadows.store(taken.id, "h:1", read(0.1, OTHER), time.time())
    assert node.records.shadows.counts() == {"SKIPPED OVERTAKEN": 1}


def test_a_broker_that_is_away_loses_nothing(node: Shadowed) -> None:
    def away(number: int) -> None:
        raise TransientError("broker: away")

    node.loads()
    node.analysed("1.1")
    ring, node.bell.ring_shadow = node.bell.ring_shadow, away  # type: ignore[method-assign]
    node.line.round(time.time())
    node.bell.ring_shadow = ring  # type: ignore[method-assign]
    node.line.round(time.time())
    assert len(node.bell.rung) == 1


def test_a_clock_that_is_set_back_does_not_silence_the_doorbell(node: Shadowed) -> None:
    node.loads()
    node.analysed("1.1")
    node.line.round(time.time())
    (rung,) = node.bell.rung
    node.records.shadows.rung(rung, time.time() + 3600)
    assert node.records.shadows.to_ring(time.time(), 5) == []
    assert node.records.keeping.undo_the_future(time.time(), 60, 60) == 1
    assert node.records.shadows.to_ring(time.time(), 5) == [rung]


def test_only_a_few_doorbells_are_rung_at_once(node: Shadowed) -> None:
    node.loads()
    for number in range(AT_ONCE + 3):
        node.analysed(f"1.{number}")
    node.line.round(time.time())
    assert len(node.bell.rung) == AT_ONCE


def test_forgetting_a_study_keeps_the_figures_and_no_uid(node: Shadowed) -> None:
    node.both("1.1", 0.9, 0.1)
    with node.records.engine.begin() as connection:
        quality.forget(connection, ["1.1"])
    (row,) = node.records.pairs.latest(_asked(), 5)
    assert row["study_instance_uid"] is None and row["shadow_any_probability"] == 0.1


def test_pairs_are_counted_alike_by_either_database(node: Shadowed) -> None:
    jobs = [node.both(f"1.{n}", *both) for n, both in enumerate(((0.9, 0.8), (0.9, 0.2), (0.1, 0.7)))]
    for job, opinion in zip(jobs, (Opinion.AGREE, Opinion.AGREE, Opinion.DISAGREE), strict=True):
        node.judged(job, opinion)
    pairs = node.records.pairs
    (pair,) = pairs.which()
    assert (pair["active_sha256"], pair["shadow_sha256"], pair["count"]) == (ACTIVE.sha256, OTHER.sha256, 3)
    any_ = compare(pairs.counted(_asked()))["any"]
    cross = any_.cross
    assert (cross.both, cross.active_only, cross.shadow_only, cross.neither) == (1, 1, 1, 0)
    assert (any_.bleeding.active_right, any_.bleeding.shadow_right) == (1, 1)
    rows, count = pairs.differing(_asked(), 1)
    assert count == 2 and rows[0]["study_instance_uid"] == "1.2", "the latest first"
    assert pairs.scanners(_asked()) == ["ACME"]
    assert [row["shadow_total_s"] for row in pairs.times(_asked(), 9)] == [4.0] * 3
    assert pairs.counted(replace(_asked(), scanner="another")) == []
    assert node.records.quality.latest_model() == ACTIVE
    assert node.records.quality.first_by(ACTIVE) and node.records.quality.first_by(OTHER) is None


def test_what_waits_is_counted_by_turn(node: Shadowed) -> None:
    now = time.time()
    node.site.queued("1.1")
    node.site.queued("1.2", requested_priority="STAT")
    node.records.orders.weigh("1.2", (), now)
    depths = node.records.queue.depths(now, Rules(age_s=600))
    assert {turn.value: depth.waiting for turn, depth in depths.items()} == {
        "STAT": 1,
        "AGED": 0,
        "ROUTINE": 1,
    }
    assert depths[Turn.STAT].oldest == pytest.approx(now, abs=60) and depths[Turn.AGED].oldest is None
    later = node.records.queue.depths(now + 3600, Rules(age_s=600))
    assert (later[Turn.AGED].waiting, later[Turn.STAT].waiting) == (1, 1)


def _asked() -> Asked:
    return Asked(ACTIVE.sha256, OTHER.sha256)
