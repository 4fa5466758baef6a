"""The clock: decides when series are complete and which one is analysed, and rings for forgotten jobs.

It opens no file and no association. Everything it does can be done again without harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from node.along import Along
from node.broker import Doorbell
from node.contained import Setbacks, contained
from node.counting import Counts
from node.domain.completeness import Complete, Evidence, completeness
from node.domain.eligibility import Choice, Rules, SkipCode, best_refused, choose
from node.domain.errors import TransientError
from node.domain.findings import Reason
from node.domain.lifecycle import JobState, SeriesState
from node.domain.patients import count, mixed, same_person
from node.domain.sender import Habit, Peer, is_done
from node.headstart import AFTER_RELEASE_S, HeadStart
from node.leases import LeaseWatch
from node.settings import Settings
from node.store.decisions import SeriesRow
from node.store.incidents import Code, Incident
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.5
SHORTEST_TICK_S = 0.05
"""How soon the clock looks again where it knows that something will be due by then."""
HABIT_KEPT_S = 60.0
"""For so long the clock trusts what it found about a sender."""
HABIT_SINCE_S = 14 * 86400.0
PAUSE_S = 5.0
"""After a database that is away."""
RECENT_S, SWEEP_EVERY_S = 86400.0, 60.0
"""Settled studies that came longer ago are looked at only so often: there are more of them every day."""
RING_AGAIN_S = 30
"""A job still QUEUED this long after its doorbell rang is rung again: the broker may have lost it."""
TRIES = 5
"""What the clock breaks on so often in a row, over 15 s, is no fluke."""
NOT_JUDGED = Reason(
    SkipCode.NOT_JUDGED,
    "an error of the software kept this study from being judged; the log of the clock has it; "
    "read the study without the node and report the error",
)


class Clock:
    """One round of decisions after another."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        doorbell: Doorbell,
        elapsed: Callable[[], float] = time.monotonic,
        counts: Counts | None = None,
    ) -> None:
        """`counts`, where there is an archive to be asked, tells how many instances a series has."""
        self._settings = settings
        self._records = records
        self._doorbell = doorbell
        self._elapsed = elapsed
        self._leases = LeaseWatch(elapsed)
        self._setbacks = Setbacks(elapsed)
        self._look_again: dict[str, float] = {}
        """When to look next at a series that is not complete yet."""
        self._counts = counts
        self._along = Along(records, doorbell, self._rules())
        self._head_start = HeadStart(records, doorbell, self._rules(), settings.spool.s3.wanted)
        self._next_sweep = elapsed()
        self._habits: dict[Peer, tuple[Habit, float]] = {}
        """What is known of senders, and when it was looked up."""
        self.next_look_s = TICK_S
        """How long to wait for the next round."""

    def tick(self, now: float) -> None:
        """Raises TransientError when the database is away."""
        wait = self._settings.completeness
        receiving = self._records.decisions.receiving(silent_since=now)
        self.next_look_s = self._until_next(receiving, now)
        for row in receiving:
            if self._elapsed() < self._look_again.get(row.series_instance_uid, 0.0):
                continue
            name = f"series {row.series_instance_uid}"
            self._attempt(name, partial(self._look_at, row, now), partial(self._settle_unjudged, row, now))
        if self._settings.ahead.decodes:
            with contained(log, "what arrives cannot be judged"):
                self._along.look(receiving, now)
        since = self._since(now)
        if reopened := self._records.decisions.reopen_second_choices(since):
            log.info("%d series get another chance: the one chosen instead could not be analysed", reopened)
        for study_uid in self._records.decisions.undecided_studies():
            decide = partial(self._decide_study, study_uid, now)
            self._attempt(f"study {study_uid}", decide, partial(self._refuse_unjudged, study_uid, now))
        for study_uid in self._records.decisions.unanswered_studies(now - wait.max_wait_s, since):
            answer = partial(self._answer_refused_study, study_uid, now)
            self._attempt(f"answer to {study_uid}", answer, partial(self._close_unjudged, study_uid, now))
        self._recover_jobs(now)
        self._ring(now)

    def _attempt(self, name: str, act: Callable[[], None], give_up: Callable[[], bool]) -> None:
        """`act`, unless it broke a moment ago. At TRIES setbacks `give_up`, which says if that is all."""
        if not self._setbacks.is_due(name):
            return
        with contained(log, f"{name} cannot be judged"):
            act()
            self._setbacks.forget(name)
            return
        if self._setbacks.broke(name) >= TRIES:
            with contained(log, f"{name} cannot be given up"):
                if give_up():
                    self._setbacks.forget(name)

    def _settle_unjudged(self, row: SeriesRow, now: float) -> bool:
        """Whether more is to come could not be told: it is waited for as long as for any, and no longer."""
        if now - row.last_received_at < self._settings.completeness.max_wait_s:
            return False
        return self._records.decisions.settle(row, now, ["whether all of it came could not be judged"])

    def _refuse_unjudged(self, study_uid: str, now: float) -> bool:
        """A study whose headers nobody thought of is skipped and answered, not tried in silence for ever."""
        rows = self._records.decisions.of_study(study_uid)
        refused = [(row, NOT_JUDGED) for row in rows if row.state is SeriesState.COMPLETE]
        self._records.decisions.decide(None, refused, now)
        self._note_unjudged(study_uid, refused[0][0] if refused else None, now)
        return True

    def _close_unjudged(self, study_uid: str, now: float) -> bool:
        """Nothing can be said in the PACS of what cannot be judged: perhaps it is of several patients."""
        row = next(iter(self._records.decisions.of_study(study_uid)), None)
        if row is not None:
            self._records.decisions.refuse_study(row, NOT_JUDGED, now, in_silence=True)
        self._note_unjudged(study_uid, row, now)
        return True

    def _note_unjudged(self, study_uid: str, row: SeriesRow | None, now: float) -> None:
        uid = row.series_instance_uid if row else ""
        log.error("study %s is not analysed: the clock broke on it %d times", study_uid, TRIES)
        self._records.incidents.note(Incident(Code.NOT_JUDGED, study_uid, uid, "", "", NOT_JUDGED.text), now)

    def _since(self, now: float) -> float:
        """From when on settled studies are looked at in this round."""
        if self._elapsed() < self._next_sweep:
            return now - RECENT_S
        self._next_sweep = self._elapsed() + SWEEP_EVERY_S
        return 0.0

    def _thresholds_s(self) -> list[float]:
        """After how much silence a series is looked at, for one reason or another."""
        ahead, quiet_s = self._settings.ahead, self._settings.completeness.quiet_s
        wanted = [AFTER_RELEASE_S] if ahead.head_start else []
        wanted += [ahead.sure_quiet_s] if ahead.sure_quiet_s else []
        return [seconds for seconds in wanted if seconds < quiet_s] + [quiet_s]

    def _until_next(self, receiving: Sequence[SeriesRow], now: float) -> float:
        """Seconds to the next moment at which a series may be due; a whole tick at most: others may come."""
        moments = [row.last_received_at + s - now for row in receiving for s in self._thresholds_s()]
        return max(min([TICK_S, *(left for left in moments if left > 0)]), SHORTEST_TICK_S)

    def _look_at(self, row: SeriesRow, now: float) -> None:
        """A series of thousands of slices that waits takes no more than a tenth of the clock's time."""
        silent_s = now - row.last_received_at
        if silent_s < self._thresholds_s()[0]:
            return
        began, uid = self._elapsed(), row.series_instance_uid
        if self._settle_series(row, now, silent_s):
            self._look_again.pop(uid, None)
        else:
            self._look_again[uid] = self._elapsed() + 9 * (self._elapsed() - began)

    def _settle_series(self, row: SeriesRow, now: float, silent_s: float) -> bool:
        """True once the series is no longer looked at."""
        ahead, quiet_s = self._settings.ahead, self._settings.completeness.quiet_s
        sure_s = ahead.sure_quiet_s or quiet_s
        expected = self._expected(row)
        is_early = sure_s <= silent_s < quiet_s
        is_done = is_early and self._sender_is_done(row.study_instance_uid, now)
        may_be = silent_s >= quiet_s or is_done or (is_early and expected is not None)
        if may_be and self._judge_completeness(row, now, is_done, expected):
            return True
        if ahead.head_start:
            with contained(log, f"study {row.study_instance_uid} gets no head start"):
                self._head_start.look(row.study_instance_uid, now)
        return False

    def _sender_is_done(self, study_uid: str, now: float) -> bool:
        """Nothing more of the study is to be expected of whoever sent it."""
        carriage = self._records.decisions.carriage(study_uid)
        if not carriage.said_all or len(carriage.peers) != 1:
            return False
        (peer,) = carriage.peers
        habit, known_at = self._habits.get(peer, (Habit(), -HABIT_KEPT_S))
        if not habit.is_whole or self._elapsed() - known_at >= HABIT_KEPT_S:
            habit = self._records.decisions.habit(peer, now - HABIT_SINCE_S, study_uid)
            self._habits[peer] = habit, self._elapsed()
        return is_done(carriage, habit)

    def _expected(self, row: SeriesRow) -> int | None:
        """How many instances the only sender of the study says the series has, if it can be asked."""
        if self._counts is None:
            return None
        peers = self._records.decisions.carriage(row.study_instance_uid).peers
        if len(peers) != 1:
            return None
        (peer,) = peers
        uids = (row.study_instance_uid, row.series_instance_uid)
        return self._counts.expected(*uids, peer, row.last_received_at)

    def _judge_completeness(self, row: SeriesRow, now: float, is_done: bool, expected: int | None) -> bool:
        """True once the series is no longer looked at."""
        wait = self._settings.completeness
        gathered = self._records.decisions.gather(row.series_instance_uid)
        evidence = Evidence(
            row.last_received_at,
            gathered.associations_open,
            gathered.instances,
            gathered.aborted,
            expected,
            is_done,
        )
        sure_s = self._settings.ahead.sure_quiet_s or wait.quiet_s
        verdict = completeness(evidence, now, wait.quiet_s, wait.max_wait_s, sure_s)
        if not isinstance(verdict, Complete):
            return False
        notes = [note.text for note in verdict.notes]
        if self._records.decisions.settle(row, now, notes):
            words = f" although {'; '.join(notes)}" if notes else ""
            log.info("series %s is complete%s", row.series_instance_uid, words)
        return True

    def _decide_study(self, study_uid: str, now: float) -> None:
        """Choose one series, give every other its reason.

        A series that is still arriving may be the better one and is waited for, but not for ever.
        """
        rows = {row.series_instance_uid: row for row in self._records.decisions.of_study(study_uid)}
        complete = [row for row in rows.values() if row.state is SeriesState.COMPLETE]
        if not complete:  # more came, or another clock was quicker, since it was looked for
            return
        waiting_since = min(row.completed_at or now for row in complete)
        arriving = any(row.state is SeriesState.RECEIVING for row in rows.values())
        if arriving and now - waiting_since < self._settings.completeness.max_wait_s:
            return
        self._head_start.forget(study_uid)
        open_rows = {uid: row for uid, row in rows.items() if row.state is SeriesState.COMPLETE}
        if self._refuse_mixed(study_uid, list(open_rows.values()), now):
            return
        choice = _keep(self._series_already_analysed(study_uid, rows), self._choose(list(open_rows)))
        chosen = open_rows.get(choice.chosen) if choice.chosen else None
        refused = [(open_rows[uid], reason) for uid, reason in choice.skipped.items()]
        for row, reason in refused:
            log.info("series %s is skipped: %s: %s", row.series_instance_uid, reason.code, reason.text)
        notes = [note.text for note in choice.notes]
        callers = self._settings.orders.stat_calling_ae_titles
        priority, source = self._records.orders.weigh(study_uid, callers, now)
        if priority and source:
            log.info("study %s was ordered %s (%s)", study_uid, priority.value, source.value)
        job_id = self._records.decisions.decide(chosen, refused, now, notes)
        if chosen and job_id is not None:
            log.info("series %s is accepted as job %d", chosen.series_instance_uid, job_id)

    def _refuse_mixed(self, study_uid: str, open_rows: list[SeriesRow], now: float) -> bool:
        """True when the study holds several patients: then none of its series is analysed."""
        by_series = self._records.decisions.persons(study_uid)
        everybody = set().union(*by_series.values())
        if same_person(everybody):
            return False
        reason = mixed(count(everybody))
        log.error("study %s: %s", study_uid, reason.text)
        self._records.decisions.decide(None, [(row, reason) for row in open_rows], now)
        uid = open_rows[0].series_instance_uid
        self._records.incidents.note(Incident(Code.PATIENTS_MIXED, study_uid, uid, "", "", reason.text), now)
        return True

    def _choose(self, series_uids: list[str]) -> Choice:
        gathered = {uid: self._records.decisions.gather(uid).instances for uid in series_uids}
        return choose(gathered, self._rules())

    def _series_already_analysed(self, study_uid: str, rows: dict[str, SeriesRow]) -> SeriesRow | None:
        """The series that has a job which is not a failure; later series do not displace it."""
        for job in self._records.jobs.latest_of_study(study_uid):
            if job.state is not JobState.FAILED:
                return rows.get(job.series_instance_uid)
        return None

    def _answer_refused_study(self, study_uid: str, now: float) -> None:
        """A study of which nothing can be analysed is said so in the PACS, once nothing more comes."""
        rows = {row.series_instance_uid: row for row in self._records.decisions.of_study(study_uid)}
        gathered = {uid: self._records.decisions.gather(uid).instances for uid in rows}
        reasons = {uid: self._records.decisions.reason_of(uid) for uid in rows}
        skipped = {uid: reason for uid, reason in reasons.items() if reason}
        persons = self._records.decisions.persons(study_uid)
        of_one = {uid: reason for uid, reason in skipped.items() if same_person(persons.get(uid, ()))}
        uid = best_refused(Choice(None, of_one or skipped), gathered)
        if uid is not None:
            decisions = self._records.decisions
            job_id = decisions.refuse_study(rows[uid], skipped[uid], now, in_silence=uid not in of_one)
            log.info("study %s is answered as not analysed by job %d", study_uid, job_id)

    def _recover_jobs(self, now: float) -> None:
        """A worker that went silent loses its job; a job that keeps killing workers is given up."""
        running = self._records.jobs.running()
        self._leases.look(running)
        for job in running:
            if not self._leases.is_over(job, now):
                continue
            if job.attempts >= self._settings.model.max_attempts:
                text = f"the worker died or hung in each of {job.attempts} attempts; see the worker's log"
                if self._records.jobs.lost(job, Reason("WORKER_LOST", text)):
                    log.error("job %d is given up: %s", job.id, text)
            elif self._records.jobs.expire(job):
                log.warning("job %d goes back to the queue: its worker went silent", job.id)

    def _ring(self, now: float) -> None:
        rings = self._records.queue.to_ring(now - RING_AGAIN_S, now, self._settings.orders.rules)
        begun = self._records.early.begun([ring.job_id for ring in rings])
        for ring in rings:
            try:
                self._doorbell.ring(ring.job_id, ring.stat, begun.get(ring.job_id, ""))
            except TransientError as error:
                log.warning("cannot ring for job %d, trying again: %s", ring.job_id, error)
                return
            self._records.queue.rung(ring, now)

    def _rules(self) -> Rules:
        eligibility = self._settings.eligibility
        return Rules(allow_derived=eligibility.allow_derived, allow_contrast=eligibility.allow_contrast)


def _keep(taken: SeriesRow | None, choice: Choice) -> Choice:
    """What was analysed already stays the analysed series: its late slices count, newcomers do not."""
    if taken is None or choice.chosen in (None, taken.series_instance_uid):
        return choice
    skipped = dict(choice.skipped)
    mine = skipped.get(taken.series_instance_uid)
    readable = mine is not None and mine.code == SkipCode.OTHER_SERIES_CHOSEN
    if readable:
        del skipped[taken.series_instance_uid]
    name = taken.description or taken.series_instance_uid
    reason = Reason(SkipCode.OTHER_SERIES_CHOSEN, f"series {name!r} of the study is analysed already")
    return Choice(taken.series_instance_uid if readable else None, {**skipped, str(choice.chosen): reason})


def run(clock: Clock, stopping: Callable[[float], bool], leads: Callable[[], bool] = lambda: True) -> None:
    """Tick while it `leads`, until `stopping(seconds)`, which waits that long at most, says so."""
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            if leads():
                clock.tick(time.time())
            wait_s = clock.next_look_s
        except TransientError as error:
            log.error("the clock skips a round: %s", error)
            wait_s = PAUSE_S
