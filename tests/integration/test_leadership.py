"""Who leads: one at a time, taken over from the dead, the silent and the hanging; on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node import leadership
from node.leadership import HANGS_S, SILENT_S, STEP_DOWN_S, Candidate
from node.liveness import process_name
from node.store.engine import open_engine, writing
from node.store.leaders import CLOCK, Lead
from node.store.records import Records
from node.store.tables import leaders
from tests.peers import eventually
from tests.site import SUBDURAL
from tests.site import Site as Filled

NOW = 1_800_000_000.0


class Site:
    """Candidates on other hosts, with a clock that the test sets."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.seconds = 0.0
        self.taken: list[tuple[str, str]] = []

    def candidate(self, holder: str, *names: str) -> Candidate:
        return Candidate(
            self.records,
            names or (CLOCK,),
            holder=holder,
            took=lambda name, before: self.taken.append((name, before)),
            elapsed=lambda: self.seconds,
        )

    def pass_time(
        self, seconds: float, *candidates: Candidate, asking: bool = True, step_s: float = 1.0
    ) -> None:
        """Step by step, as the threads of the candidates do."""
        for _ in range(int(seconds / step_s)):
            self.seconds += step_s
            for one in candidates:
                one.look(NOW)
                if asking:
                    one.leads(CLOCK)


@pytest.fixture
def site(records: Records) -> Site:
    return Site(records)


def test_the_first_leads_and_the_second_waits(site: Site) -> None:
    a, b = site.candidate("a:1"), site.candidate("b:1")
    site.pass_time(40, a, b, step_s=4)
    assert a.leads(CLOCK) and not b.leads(CLOCK)
    assert (a.leading(), b.leading()) == ([CLOCK], [])
    assert site.records.leaders.all()[CLOCK].holder == "a:1"


def test_a_leader_that_falls_silent_steps_down_before_the_other_takes_over(site: Site) -> None:
    a, b = site.candidate("a:1"), site.candidate("b:1")
    site.pass_time(3, a, b)
    both_at_once, changes = 0, []
    for second in range(20):
        site.pass_time(1, b)
        state = (a.leads(CLOCK), b.leads(CLOCK))
        both_at_once += all(state)
        changes.append((second, state))
    assert not both_at_once
    stepped_down = next(second for second, state in changes if not state[0])
    took_over = next(second for second, state in changes if state[1])
    assert STEP_DOWN_S - 2 <= stepped_down < took_over <= SILENT_S + 2
    assert site.taken == [(CLOCK, "a:1")]


def test_who_was_deposed_learns_it_and_waits_in_its_turn(site: Site) -> None:
    a, b = site.candidate("a:1"), site.candidate("b:1")
    site.pass_time(3, a, b)
    site.pass_time(20, b, step_s=4)
    site.pass_time(24, a, b, step_s=4)
    assert not a.leads(CLOCK) and b.leads(CLOCK)
    assert site.records.leaders.all()[CLOCK].term == 2


def test_a_dead_process_of_this_host_is_followed_at_once(site: Site) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    name = process_name(dead.pid)
    site.candidate(name).look(NOW)
    dead.wait()
    b = site.candidate("b:1")
    b.look(NOW)
    assert b.leads(CLOCK)


def test_a_namesake_that_started_before_is_followed_too(site: Site) -> None:
    """A container that is started anew may carry the very name of the old one, and holds nothing yet."""
    site.candidate("a:1").look(NOW)
    again = site.candidate("a:1")
    again.look(NOW)
    assert not again.leads(CLOCK)
    site.pass_time(SILENT_S + 4, again, step_s=4)
    assert again.leads(CLOCK)


def test_who_ends_in_good_order_leaves_the_lead_at_once(site: Site) -> None:
    a, b = site.candidate("a:1"), site.candidate("b:1")
    with a.standing():
        eventually(lambda: a.leads(CLOCK))
    b.look(NOW)
    assert b.leads(CLOCK) and site.taken == []


def test_a_leader_that_hangs_is_replaced_and_stays_out_until_it_moves(site: Site) -> None:
    a, b = site.candidate("a:1"), site.candidate("b:1")
    site.pass_time(3, a, b)
    a._asked[CLOCK] -= HANGS_S
    for _ in range(10):
        site.pass_time(2, a, asking=False, step_s=2)
        site.pass_time(2, b, step_s=2)
    assert b.leading() == [CLOCK] and a.leading() == []
    site.pass_time(SILENT_S + 4, a, asking=False, step_s=4)
    assert a.leading() == [], "nobody asks whether it leads: it must not take the lead again"
    assert not a.leads(CLOCK)
    site.pass_time(SILENT_S + 8, a, step_s=4)
    assert a.leads(CLOCK)


def test_without_the_database_a_leader_steps_down(site: Site, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/away.sqlite3")
    away = Site(Records(engine))
    site.candidate("a:1").look(NOW)
    lost = away.candidate("a:1")
    lost._held = {CLOCK: Lead(CLOCK, "a:1", 1, 0, NOW)}
    lost._renewed = {CLOCK: 0.0}
    assert lost.leads(CLOCK)
    away.seconds = STEP_DOWN_S
    assert not lost.leads(CLOCK)
    engine.dispose()


def test_a_database_that_answers_nonsense_ends_no_candidate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would end in silence, and with it all that this process leads."""
    monkeypatch.setattr(leadership, "LOOK_S", 0.01)
    real, answers = site.records.leaders.all, iter([ValueError("malformed")])

    def all_() -> dict[str, Lead]:
        for error in answers:
            raise error
        return real()

    monkeypatch.setattr(site.records.leaders, "all", all_)
    one = site.candidate("a:1")
    with one.standing():
        assert eventually(lambda: one.leads(CLOCK))


def test_parts_are_led_one_by_one(site: Site) -> None:
    a, b = site.candidate("a:1", "deliver:x"), site.candidate("b:1", "deliver:x", "deliver:y")
    site.pass_time(2, a, b)
    assert (a.leading(), b.leading()) == (["deliver:x"], ["deliver:y"])


@pytest.mark.parametrize("change", ["holder", "beat", "term"])
def test_nobody_takes_what_changed_since_it_was_looked_at(site: Site, change: str) -> None:
    site.candidate("a:1").look(NOW)
    seen = site.records.leaders.all()[CLOCK]
    with writing(site.records.engine) as connection:
        values = {"holder": "c:1", "beat": 7, "term": 7}
        connection.execute(leaders.update().values(**{change: values[change]}))
    assert site.records.leaders.take(CLOCK, seen, "b:1", NOW) is None


def test_many_that_start_at_once_agree_on_one(site: Site) -> None:
    many = [site.candidate(f"h{n}:1") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one.look(NOW), many))
    assert [one.leads(CLOCK) for one in many].count(True) == 1


def test_what_a_dead_deliverer_had_taken_is_due_for_its_successor(site: Site) -> None:
    filled = Filled(site.records)
    delivery = filled.delivery_of(filled.composed("1.2", SUBDURAL))
    (due,) = site.records.deliveries.take_due("pacs", NOW * 2, NOW * 3)
    assert due.id == delivery
    assert site.records.leaders.release_leases("elsewhere", process_name(os.getpid())) == 0
    assert site.records.leaders.release_leases("pacs", process_name(os.getpid())) == 1
    assert [d.id for d in site.records.deliveries.take_due("pacs", NOW * 2, NOW * 3)] == [delivery]
