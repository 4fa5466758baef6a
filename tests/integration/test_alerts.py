"""Alerts in the records of both databases: who makes them, who sends them, and that none is told twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from node.announce import TICK_S, Herald, run, start_heralds
from node.channels.contract import Receipt, Rejected
from node.compose import Composer
from node.domain.announcing import Announcement, Stage
from node.domain.errors import IllegalTransition, SettingsError, TransientError
from node.domain.findings import Reason
from node.settings import Settings, Webhook
from node.spool import Spool
from node.store.records import Records
from node.store.tables import alerts, instances, jobs, studies
from tests.alerting import SUBJECT, House, alert_of, house
from tests.site import SUBDURAL, findings

URL = "http://127.0.0.1:9/hook"
CLEAR = findings()
EARLY, FINAL = Stage.PRELIMINARY, Stage.FINAL
T0 = 10_000_000_000.0
"""Later than every row that a test makes."""


def hook(name: str = "hook", **changes: Any) -> Webhook:
    made: Webhook = alert_of(Webhook, name, url=URL, **changes)
    return made


class Answering:
    """A channel that does as it is told."""

    def __init__(self, *answers: Receipt | Exception) -> None:
        self._answers = list(answers)
        self.got: list[Announcement] = []

    def check(self) -> None: ...

    def probe(self) -> str:
        return "here"

    def send(self, told: Announcement) -> Receipt:
        self.got.append(told)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


TAKEN = Receipt(True, "HTTP 204", "thanks")
AWAY = TransientError("nobody there")
REFUSED = Rejected("AR", "unknown patient")


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)


@pytest.fixture
def one(records: Records) -> House:
    return house(records, hook())


def herald(of: House, channel: Answering) -> Herald:
    return Herald(of.settings.alert[0], channel, of.records)


class TestTelling:
    def test_the_early_word_makes_one_alert_a_channel_with_all_it_says(self, records: Records) -> None:
        of = house(records, hook("a"), hook("b", when="all"))
        of.alarmed(now=time.time() + 5)
        a, b = of.rows()
        assert (a["channel"], b["channel"], a["state"], b["state"]) == ("a", "b", "PENDING", "PENDING")
        assert a["identifier"] != b["identifier"] and len(a["identifier"]) == 20
        assert (a["stage"], a["priority"], a["number"], a["urgent"]) == ("PRELIMINARY", "STAT", 1, 1)
        assert 0 <= a["created_at"] - a["last_slice_at"] < 60
        due = records.alerts.take_due("a", T0, T0 + 9)
        assert due
        told = due.announcement()
        assert told.subject == SUBJECT
        assert told.findings == SUBDURAL

    def test_a_result_nobody_wants_makes_none(self, one: House) -> None:
        one.alarmed(findings=CLEAR)
        assert one.rows() == []

    def test_the_phantom_that_the_node_sends_itself_alarms_nobody(self, one: House) -> None:
        job = one.site.running("1.1")
        with one.records.engine.begin() as connection:
            connection.execute(update(jobs).values(canary=1))
        assert one.word(job, SUBDURAL) and one.word(job, SUBDURAL, FINAL)
        assert one.rows() == []

    def test_a_job_done_twice_tells_once(self, one: House) -> None:
        job = one.alarmed()
        assert one.word(job, SUBDURAL, now=5.0)
        assert len(one.rows()) == 1
        assert one.word(job, SUBDURAL, FINAL)
        assert one.states() == ["SUPERSEDED", "PENDING"]
        one.records.jobs.fail(job, Reason("X", "x"))

    def test_who_lost_the_lease_tells_nobody(self, one: House) -> None:
        job = one.alarmed()
        assert not one.word(job, findings({"any": 0.9}), FINAL, who="another")
        assert not one.word(job, SUBDURAL, who="another")
        assert len(one.rows()) == 1

    def test_if_the_alert_cannot_be_stored_neither_is_the_priority(
        self, one: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = one.site.running("1.1")

        def broken(*_: Any) -> Any:
            raise RuntimeError("half-way")

        monkeypatch.setattr("node.store.alerts._row", broken)
        with pytest.raises(RuntimeError, match="half-way"):
            one.word(job, SUBDURAL)
        stored = one.records.jobs.get(job)
        assert stored and stored.priority is None

    def test_the_final_word_takes_the_place_of_one_that_still_waits(self, one: House) -> None:
        job = one.alarmed()
        assert one.word(job, SUBDURAL, FINAL)
        channel = Answering(TAKEN)
        assert herald(one, channel).round(lambda: T0) == 0
        assert [t.stage for t in channel.got] == [FINAL]
        assert one.states() == ["SUPERSEDED", "ACKNOWLEDGED"]

    def test_a_lower_revision_is_told_as_a_correction_with_the_priority_raised(self, one: House) -> None:
        job = one.alarmed()
        assert one.word(job, SUBDURAL, FINAL)
        one.site.receive("1.1", "1.1.1", images=1)
        second = one.site.decide("1.1", "1.1.1")
        assert second and one.records.jobs.claim(second, "worker", T0, 1.0)
        lower = replace(CLEAR, revision=2)
        assert one.word(second, lower)
        assert len(one.rows()) == 2
        assert one.word(second, lower, FINAL)
        last = one.rows()[-1]
        assert (last["number"], last["priority"], last["urgent"], last["stage"]) == (3, "STAT", 1, "FINAL")

    def test_what_failed_after_its_alarm_says_so_and_lowers_nothing(self, one: House, tmp_path: Any) -> None:
        job = one.alarmed()
        assert one.records.jobs.fail(job, Reason("WORKER_LOST", "the worker died"))
        Composer(one.settings, one.records, Spool(tmp_path)).round()
        last = one.rows()[-1]
        assert (last["stage"], last["priority"], last["job_id"]) == ("NOT_ANALYSED", "STAT", job)

    def test_what_was_never_analysed_is_told_to_those_who_want_all(
        self, records: Records, tmp_path: Any
    ) -> None:
        of = house(records, hook("a"), hook("all", when="all"))
        of.site.failed("1.1", Reason("NO_VOLUME", "the slices form no volume"))
        Composer(of.settings, of.records, Spool(tmp_path)).round()
        (row,) = of.rows()
        assert (row["channel"], row["stage"], row["urgent"]) == ("all", "NOT_ANALYSED", 0)

    def test_an_alert_of_another_version_keeps_no_result_from_being_stored(self, one: House) -> None:
        job = one.alarmed()
        with one.records.engine.begin() as connection:
            connection.execute(update(alerts).values(content={"from": "the future"}))
        assert one.word(job, SUBDURAL, FINAL)
        assert [row["number"] for row in one.rows()] == [1, 2]

    def test_two_workers_at_once_number_their_words(self, one: House) -> None:
        """Of a series each; both raise the same study."""
        one.site.receive("1.1", "1.1.1")
        one.site.receive("1.1", "1.1.2")
        first = one.site.decide("1.1", "1.1.1")
        one.site.receive("1.1", "1.1.2", images=1)
        second = one.site.decide("1.1", "1.1.2")
        assert first and second
        for job in (first, second):
            assert one.records.jobs.claim(job, "worker", T0, 1.0)
        start = threading.Barrier(2)

        def speak(job: int) -> None:
            start.wait()
            assert one.word(
                job, findings({"any": 0.9, ("epidural" if job == first else "subdural"): 0.8}), FINAL
            )

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(speak, [first, second]))
        assert [row["number"] for row in one.rows()] == [1, 2]


class TestSending:
    def test_an_acknowledgement_is_stored_with_its_times_and_its_line_in_the_trail(self, one: House) -> None:
        one.alarmed()
        assert herald(one, Answering(TAKEN)).round(lambda: T0) == 0
        (row,) = one.rows()
        assert (row["state"], row["last_status"], row["receipt"]) == ("ACKNOWLEDGED", "HTTP 204", "thanks")
        assert row["sent_at"] == row["acknowledged_at"] == T0 and row["attempts"] == 1
        (line,) = one.records.audit.entries(study_uid="1.1")
        assert (line["who"], line["action"]) == ("alert hook", "alert-acknowledged")
        assert "s after the last slice" in line["detail"] and "Müller" not in line["detail"]

    def test_without_an_acknowledgement_it_is_sent_until_one_comes(self, one: House) -> None:
        one.alarmed()
        herald(one, Answering(Receipt(False, "250"))).round(lambda: T0)
        (row,) = one.rows()
        assert (row["state"], row["sent_at"], row["acknowledged_at"]) == ("SENT", T0, None)
        assert one.records.alerts.receipt_came(row["id"], "claimed", T0 + 5)
        assert not one.records.alerts.receipt_came(row["id"], "again", T0 + 6)
        (row,) = one.rows()
        assert (row["state"], row["acknowledged_at"], row["receipt"]) == ("ACKNOWLEDGED", T0 + 5, "claimed")

    def test_a_failure_waits_ever_longer_and_says_the_same_again(self, one: House) -> None:
        one.alarmed()
        channel = Answering(AWAY, AWAY, TAKEN)
        teller = herald(one, channel)
        assert teller.round(lambda: T0) == 5
        (row,) = one.rows()
        assert (row["state"], row["attempts"], row["last_error"]) == ("PENDING", 1, "nobody there")
        assert row["next_try_at"] == T0 + 5
        assert teller.round(lambda: T0 + 1) == TICK_S
        assert teller.round(lambda: T0 + 5) == 10
        assert one.rows()[0]["next_try_at"] == T0 + 15
        assert teller.round(lambda: T0 + 15) == 0
        assert one.states() == ["ACKNOWLEDGED"]
        assert len({told.identifier for told in channel.got}) == 1 and len(channel.got) == 3

    def test_a_positive_is_never_given_up_and_others_are(self, records: Records) -> None:
        of = house(records, hook(when="all"))
        of.alarmed("1.1")
        of.alarmed("1.2", CLEAR)
        teller, late = herald(of, Answering(AWAY)), T0 + 25 * 3600
        teller.round(lambda: late)
        teller.round(lambda: late)
        assert of.states() == ["PENDING", "FAILED"]

    def test_what_is_refused_is_shown_and_a_positive_is_tried_again(self, records: Records) -> None:
        of = house(records, hook(when="all"))
        of.alarmed("1.1")
        of.alarmed("1.2", CLEAR)
        teller = herald(of, Answering(REFUSED))
        assert teller.round(lambda: T0) == teller.round(lambda: T0) == 0
        positive, other = of.rows()
        assert (positive["state"], positive["next_try_at"]) == ("PENDING", T0 + 60)
        assert (other["state"], other["last_error"], other["last_status"]) == (
            "FAILED",
            "unknown patient",
            "AR",
        )

    def test_the_urgent_go_first_then_those_that_failed_least(self, records: Records) -> None:
        of = house(records, hook(when="all"))
        for study, found in (("1.1", CLEAR), ("1.2", SUBDURAL), ("1.3", SUBDURAL)):
            of.alarmed(study, found)
        channel = Answering(AWAY, TAKEN)
        teller = herald(of, channel)
        for _ in range(4):
            teller.round(lambda: T0 + 5)
            with of.records.engine.begin() as connection:  # whoever failed is due again
                connection.execute(update(alerts).values(next_try_at=T0))
        assert [t.study_instance_uid for t in channel.got] == ["1.2", "1.3", "1.2", "1.1"]

    def test_a_correction_does_not_overtake_its_alarm(self, one: House) -> None:
        job = one.alarmed()
        taken = one.records.alerts.take_due("hook", T0, T0 + 30)
        assert taken
        assert one.word(job, SUBDURAL, FINAL)
        assert one.records.alerts.take_due("hook", T0 + 1, T0 + 30) is None
        actor = herald(one, Answering(TAKEN))._actor
        assert one.records.alerts.acknowledged(taken, "AA", "", T0 + 2, actor)
        assert one.states() == ["ACKNOWLEDGED", "PENDING"]
        assert one.records.alerts.take_due("hook", T0 + 3, T0 + 30)

    def test_several_heralds_tell_each_alert_once(self, one: House) -> None:
        for number in range(6):
            one.alarmed(f"1.{number}")
        channel = Answering(TAKEN)

        def work(_: int) -> None:
            teller = herald(one, channel)
            while teller.round(lambda: T0) == 0:
                pass

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        assert len({t.identifier for t in channel.got}) == len(channel.got) == 6

    def test_a_channel_that_is_back_gets_what_waited(self, one: House) -> None:
        for study in ("1.1", "1.2"):
            one.alarmed(study)
        teller = herald(one, Answering(AWAY, AWAY, TAKEN))
        teller.round(lambda: T0)
        teller.round(lambda: T0 + 4)
        assert teller.round(lambda: T0 + 5) == 0
        assert teller.round(lambda: T0 + 5) == 0
        assert one.states() == ["ACKNOWLEDGED"] * 2

    def test_a_channel_that_breaks_puts_the_alert_off_and_shows_it(self, one: House) -> None:
        one.alarmed()
        with pytest.raises(ZeroDivisionError):
            herald(one, Answering(ZeroDivisionError("oops"))).round(lambda: T0)
        (row,) = one.rows()
        assert (row["state"], row["attempts"]) == ("PENDING", 1) and "ZeroDivisionError" in row["last_error"]

    def test_an_alert_nobody_can_read_holds_up_no_other(self, one: House) -> None:
        one.alarmed("1.1")
        with one.records.engine.begin() as connection:
            connection.execute(update(alerts).values(content={}))
        one.alarmed("1.2")
        teller = herald(one, Answering(TAKEN))
        with pytest.raises(KeyError):
            teller.round(lambda: T0)
        assert teller.round(lambda: T0) == 0
        assert one.states() == ["PENDING", "ACKNOWLEDGED"]

    def test_a_paused_channel_is_left_alone(self, one: House) -> None:
        one.alarmed()
        one.records.pauses.pause("alert:hook", "admin", 1.0)
        assert herald(one, Answering(TAKEN)).round(lambda: T0) == TICK_S
        one.records.pauses.resume("alert:hook")
        assert herald(one, Answering(TAKEN)).round(lambda: T0) == 0

    def test_an_admin_may_retry_what_was_given_up_and_no_other(self, records: Records) -> None:
        of = house(records, hook(when="all"))
        of.alarmed("1.2", CLEAR)
        herald(of, Answering(REFUSED)).round(lambda: T0)
        (row,) = of.rows()
        records.alerts.retry(row["id"], T0 + 1)
        herald(of, Answering(TAKEN)).round(lambda: T0 + 1)
        assert of.states() == ["ACKNOWLEDGED"]
        with pytest.raises(IllegalTransition):
            records.alerts.retry(row["id"], T0 + 2)
        with pytest.raises(IllegalTransition, match="no alert 99"):
            records.alerts.retry(99, T0)


class TestThreads:
    def test_a_slow_channel_delays_no_other(self, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
        of = house(records, hook("slow"), hook("quick"))
        let_go, stop = threading.Event(), threading.Event()

        class Slow(Answering):
            def send(self, told: Announcement) -> Receipt:
                let_go.wait(30)
                return super().send(told)

        channels = {"slow": Slow(TAKEN), "quick": Answering(TAKEN)}
        monkeypatch.setattr("node.announce.channel_of", lambda alert, _: channels[alert.name])
        threads = start_heralds(of.settings, records, stop.wait)
        try:
            of.alarmed()
            until(lambda: of.states("quick") == ["ACKNOWLEDGED"])
            assert of.states("slow") == ["PENDING"]
            let_go.set()
            until(lambda: of.states("slow") == ["ACKNOWLEDGED"])
        finally:
            stop.set()
            let_go.set()
            for thread in threads:
                thread.join(10)

    def test_a_herald_outlives_whatever_goes_wrong(
        self, one: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        one.alarmed()
        waits: list[float] = []

        def stopping(seconds: float) -> bool:
            waits.append(seconds)
            with one.records.engine.begin() as connection:
                connection.execute(update(alerts).values(next_try_at=0))
            return one.states() == ["ACKNOWLEDGED"]

        run(herald(one, Answering(ZeroDivisionError("oops"), AWAY, TAKEN)), stopping)
        assert "announcing broke" in caplog.text and waits == [TICK_S, 5, 10, 0]

    def test_what_cannot_be_used_is_told_at_start(self, records: Records) -> None:
        of = house(records, hook(secret="env:NO_SUCH_VARIABLE"))
        with pytest.raises(SettingsError, match="NO_SUCH_VARIABLE"):
            start_heralds(of.settings, records, lambda _: True)


class TestKeeping:
    def test_records_stay_while_an_alert_waits_and_go_with_their_alerts(self, one: House) -> None:
        one.alarmed()
        with one.records.engine.begin() as connection:
            connection.execute(instances.delete())
            connection.execute(update(studies).values(files_removed_at=1.0))
        assert one.records.keeping.forget(T0) == 0
        herald(one, Answering(TAKEN)).round(lambda: T0)
        assert one.records.keeping.forget(T0) == 1
        assert one.rows() == []

    def test_a_clock_set_back_makes_nothing_wait(self, one: House) -> None:
        one.alarmed(now=T0)
        assert one.records.keeping.undo_the_future(1000.0, 60, 600) >= 1
        assert one.records.alerts.take_due("hook", 1000.0, 1030.0)

    def test_what_a_dead_process_held_is_due_again(self, one: House) -> None:
        one.alarmed()
        assert one.records.alerts.take_due("hook", T0, T0 + 1000)
        (owner,) = one.records.alerts.lease_owners()
        assert one.records.alerts.release(owner) == 1
        assert one.records.alerts.take_due("hook", T0, T0 + 1000)


def test_an_attempt_that_outlasts_its_lease_is_nobody_else_s(
    one: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail to many takes many steps, each its own time: a second process told the same meanwhile."""
    monkeypatch.setattr("node.announce.LEASE_S", 2.0)
    taken: list[object] = []
    one.alarmed()

    class Slow(Answering):
        def send(self, told: Announcement) -> Receipt:
            time.sleep(3.0)
            taken.append(one.records.alerts.take_due("hook", time.time(), time.time() + 9))
            return super().send(told)

    herald(one, Slow(TAKEN)).round()
    assert taken == [None]
    assert one.states() == ["ACKNOWLEDGED"]
    assert one.records.alerts.lease_owners() == set()


@pytest.mark.parametrize(("asked_s", "least_s", "most_s"), [(50.0, 50.0, 50.0), (1000.0, 60.0, 60.0)])
def test_a_receiver_that_asks_for_patience_is_left_alone_with_all_its_alerts(
    asked_s: float, least_s: float, most_s: float, one: House
) -> None:
    """The next alert asked again within two seconds, and so on: what limits its rate never got any peace."""
    one.alarmed()
    teller = herald(one, Answering(TransientError("too many requests", asked_s), TAKEN))
    assert least_s <= teller.round() <= most_s
    assert teller.pause_s() < least_s, "asked once"


def test_what_is_told_of_a_patient_comes_from_that_patient_s_images(one: House) -> None:
    """Those of another one under the same UIDs may come before the analysis is over."""
    job = one.alarmed()
    other = {"patient_id": "OTHER", "issuer_of_patient_id": "ELSE", "patient_birth_date": "20000101"}
    one.site.receive("1.1", "1.1.1", study_time="235959", **other)
    assert one.word(job, SUBDURAL, FINAL)
    told = Announcement.from_json(one.records.alerts.take_due("hook", T0, T0 + 1).content)  # type: ignore[union-attr]
    assert told.subject == SUBJECT


def test_times_of_first_alerts(one: House) -> None:
    job = one.alarmed()
    herald(one, Answering(TAKEN)).round(lambda: T0)
    assert one.word(job, SUBDURAL, FINAL, now=T0)
    (row,) = one.records.alerts.times(0.0)
    found = one.records.alerts.first_of(["1.1"])["1.1"]
    assert found["alerted_s"] == found["acknowledged_s"] == T0 - row["last_slice_at"]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_settings_of_channels_are_told_apart() -> None:
    settings = Settings(alert=({"type": "webhook", "url": URL}, {"type": "webhook", "name": "b", "url": URL}))  # type: ignore[arg-type]
    assert [alert.name for alert in settings.alert] == ["webhook", "b"]
    assert [a.when for a in settings.audiences] == ["positive", "positive"]
    with pytest.raises(ValueError, match="alert names must differ"):
        Settings(alert=(hook("a"), hook("a")))
