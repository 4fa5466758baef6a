"""When a delivery is tried again, when it is given up, and that a courier never stops for good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from node import deliver
from node.deliver import LEASE_S, Courier
from node.domain.errors import TransientError
from node.retry import LONGEST_BREAK_S, Breaker, back_off_s, is_hopeless
from node.scu import AssociationBroke, Outcome, Parcel
from node.settings import Destination
from node.spool import Spool
from node.store.deliveries import Due, Taken

PACS = Destination(name="pacs", ae_title="PACS", retry_base_s=5, retry_max_s=600, give_up_h=72)


def due(number: int = 1, *, attempts: int = 0, created_at: float = 0.0, urgent: bool = False) -> Due:
    return Due(number, 1, f"2.25.{number}", "1.2", f"o/{number}", attempts, created_at, urgent)


@pytest.mark.parametrize(
    ("attempts", "longest"), [(0, 5), (1, 10), (2, 20), (6, 320), (7, 600), (8, 600), (10_000, 600)]
)
def test_waiting_doubles_up_to_the_maximum(attempts: int, longest: float) -> None:
    assert back_off_s(attempts, PACS, 1.0) == longest
    assert back_off_s(attempts, PACS, 0.0) == longest / 2


def test_a_base_beyond_the_maximum_is_the_maximum() -> None:
    odd = PACS.model_copy(update={"retry_base_s": 1000.0})
    assert back_off_s(0, odd, 1.0) == 600


@pytest.mark.parametrize(
    ("age_h", "urgent", "hopeless"),
    [(71.9, False, False), (72.1, False, True), (72.1, True, False), (1e6, True, False)],
)
def test_only_what_alarms_nobody_is_given_up(age_h: float, urgent: bool, hopeless: bool) -> None:
    assert is_hopeless(due(urgent=urgent), PACS, age_h * 3600) is hopeless


class Rows:
    """Deliveries that are due, and what a courier wrote down of them."""

    def __init__(self, *rows: Due) -> None:
        self.rows = list(rows)
        self.log: list[tuple[Any, ...]] = []

    def take_due(self, destination: str, now: float, lease_until: float, limit: int) -> list[Due]:
        taken, self.rows = self.rows[:limit], self.rows[limit:]
        return taken

    def extend(self, ids: Sequence[int], lease_until: float) -> None:
        self.log.append(("extend", tuple(ids), lease_until))

    def hasten(self, destination: str, now: float) -> int:
        self.log.append(("hasten", destination))
        return 0

    def sent_all(self, taken: Sequence[Taken]) -> None:
        self.log += [("sent", one.id, one.status) for one in taken]

    def failed(self, delivery_id: int, error: str, status: str, next_try_at: float) -> None:
        self.log.append(("failed", delivery_id, status, next_try_at))

    def postpone(self, ids: Sequence[int], error: str, next_try_at: float) -> None:
        self.log.append(("postponed", tuple(ids), next_try_at))

    def give_up(self, delivery_id: int, error: str, status: str) -> None:
        self.log.append(("given up", delivery_id, status))


class Script:
    """A peer that does what it was told, parcel by parcel; an exception breaks the association."""

    name = "destination pacs"

    def __init__(self, *answers: Any, clock: Any = None, seconds: float = 0.0) -> None:
        self.answers = iter(answers)
        self.clock, self.seconds = clock, seconds

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        for parcel in parcels:
            answer = next(self.answers)
            if self.clock is not None:
                self.clock.now += self.seconds
            if isinstance(answer, Exception):
                raise answer
            yield Outcome(parcel.key, *answer)


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def courier(rows: Rows, script: Script, moves: Callable[[], object] = lambda: None) -> Courier:
    class Records:
        deliveries = rows

    return Courier(PACS, script, Records, Spool(Path("/nowhere")), moves)  # type: ignore[arg-type]


GOOD, REMARK, BAD = (True, "0x0000"), (True, "0xB000", "coerced"), (False, "0xA700", "no room")


@pytest.fixture(autouse=True)
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)


def test_nothing_due_asks_nobody() -> None:
    assert courier(Rows(), Script()).round(Clock())


def test_each_outcome_is_written_down() -> None:
    rows = Rows(due(1), due(2), due(3, attempts=2))
    assert courier(rows, Script(GOOD, REMARK, BAD)).round(Clock(1000.0))
    assert rows.log == [("sent", 1, "0x0000"), ("sent", 2, "0xB000"), ("failed", 3, "0xA700", 1020.0)]


def test_a_slow_batch_is_seen_to_move() -> None:
    moves: list[int] = []
    courier(Rows(due(1), due(2)), Script(GOOD, BAD), lambda: moves.append(1)).round(Clock())
    assert len(moves) == 2


def test_what_got_no_answer_is_tried_again_and_the_destination_counts_as_away() -> None:
    rows = Rows(due(1), due(2), due(3))
    assert not courier(rows, Script(GOOD, TransientError("broke"))).round(Clock(1000.0))
    assert rows.log == [("sent", 1, "0x0000"), ("failed", 2, "", 1005.0), ("failed", 3, "", 1005.0)]


def test_the_object_at_which_the_peer_breaks_off_is_set_aside_once() -> None:
    rows = Rows(*(due(n) for n in range(1, 6)))
    script = Script(GOOD, AssociationBroke(2, "broke"), GOOD, AssociationBroke(4, "broke again"))
    assert not courier(rows, script).round(Clock(1000.0))
    assert [entry for entry in rows.log if entry[0] != "extend"] == [
        ("sent", 1, "0x0000"),
        ("failed", 2, "", 1005.0),
        ("sent", 3, "0x0000"),
        ("failed", 4, "", 1005.0),
        ("postponed", (5,), 1005.0),
    ]


def test_an_object_that_nobody_can_send_holds_up_no_other() -> None:
    rows = Rows(due(1), due(2), due(3))
    with pytest.raises(KeyError):  # which the log shall show
        courier(rows, Script(GOOD, KeyError("no such element"))).round(Clock(1000.0))
    assert rows.log == [("sent", 1, "0x0000"), ("failed", 2, "broke", 1005.0), ("postponed", (3,), 1000.0)]


def test_an_old_result_is_given_up_unless_it_is_positive() -> None:
    rows = Rows(due(1, created_at=0.0), due(2, created_at=0.0, urgent=True))
    now = 73 * 3600.0
    courier(rows, Script(BAD, BAD)).round(Clock(now))
    assert rows.log == [("given up", 1, "0xA700"), ("failed", 2, "0xA700", now + 5)]


def test_an_old_result_that_gets_through_at_last_is_sent() -> None:
    rows = Rows(due(1, created_at=0.0))
    courier(rows, Script(GOOD)).round(Clock(1e9))
    assert rows.log == [("sent", 1, "0x0000")]


def test_a_slow_peer_never_outlasts_the_lease_of_what_still_waits() -> None:
    clock = Clock(0.0)
    rows = Rows(*(due(n) for n in range(1, 7)))
    courier(rows, Script(*[GOOD] * 6, clock=clock, seconds=LEASE_S * 0.6)).round(clock)
    until, held = LEASE_S, {}
    for entry in rows.log:
        if entry[0] == "extend":
            until = entry[2]
            held = dict.fromkeys(entry[1], until)
    assert until >= LEASE_S * 0.6 * 5
    assert set(held) == {6}


def test_an_object_that_takes_long_on_the_wire_keeps_its_lease_and_is_seen_to_move() -> None:
    clock, moves, steps = Clock(0.0), list[float](), 8

    class Slow(Script):
        def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
            for parcel in parcels:
                for _ in range(steps):
                    clock.now += LEASE_S * 0.3
                    parcel.moved()
                yield Outcome(parcel.key, *GOOD)

    rows = Rows(due(1), due(2))
    assert courier(rows, Slow(), lambda: moves.append(clock.now)).round(clock)
    extended = [entry for entry in rows.log if entry[0] == "extend"]
    assert extended[0][1] == (1, 2)
    until = LEASE_S
    for at in [LEASE_S * 0.3 * n for n in range(1, 2 * steps)]:
        assert at < until
        until = max([until, *(to for _, _, to in extended if to - LEASE_S <= at)])
    assert len(moves) >= 2 * steps


def test_files_that_are_long_in_coming_cost_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a bucket, say: the lease runs from when the deliveries were taken."""
    clock, rows = Clock(), Rows(due(1), due(2), due(3))

    def fetch(_: Spool, paths: Sequence[str]) -> list[Path]:
        clock.now += LEASE_S - 20
        return [Path(path) for path in paths]

    monkeypatch.setattr(Spool, "fetch", fetch)
    assert courier(rows, Script(GOOD, GOOD, GOOD, clock=clock, seconds=30)).round(clock)
    first = next(one for one in rows.log if one[0] == "extend")
    assert first == ("extend", (1, 2, 3), 1000.0 + LEASE_S - 20 + LEASE_S)
    assert rows.log[0] == first


def test_a_lease_that_cannot_be_kept_breaks_no_association() -> None:
    class Away(Rows):
        def extend(self, ids: Sequence[int], lease_until: float) -> None:
            raise TransientError("database is locked")

    class Slow(Script):
        def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
            clock.now += LEASE_S
            parcels[0].moved()
            yield Outcome(parcels[0].key, *GOOD)

    clock, rows = Clock(0.0), Away(due(1))
    assert courier(rows, Slow()).round(clock)
    assert rows.log == [("sent", 1, "0x0000")]


class Forgetful(Rows):
    """The database is away for a moment when it is told what was sent."""

    away = 1

    def sent_all(self, taken: Sequence[Taken]) -> None:
        if self.away:
            self.away -= 1
            raise TransientError("database is locked")
        super().sent_all(taken)


@pytest.mark.parametrize("away", [1, 2, 3])
def test_what_was_taken_while_the_database_was_away_is_written_down_later(away: int) -> None:
    rows = Forgetful(due(1), due(2))
    rows.away = away
    sender = courier(rows, Script(GOOD, GOOD))
    for _ in range(4):
        with contextlib.suppress(TransientError):
            sender.round(Clock())
    assert [entry[:2] for entry in rows.log] == [("sent", 1), ("sent", 2)]


def test_a_courier_outlives_every_error() -> None:
    rounds: list[int] = []

    class Broken:
        def pause_s(self) -> float:
            return 5.0

        def round(self) -> bool:
            rounds.append(1)
            raise [TransientError("database"), ValueError("an object nobody thought of"), OSError("disk")][
                len(rounds) % 3
            ]

    deliver.run(Broken(), lambda seconds: len(rounds) >= 6)  # type: ignore[arg-type]
    assert len(rounds) == 6


def test_a_courier_waits_longer_after_a_failure() -> None:
    waits: list[float] = []
    answers = iter([True, False, True])

    class Fickle:
        def pause_s(self) -> float:
            return 5.0

        def round(self) -> bool:
            return next(answers)

    def stopping(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 4

    deliver.run(Fickle(), stopping)  # type: ignore[arg-type]
    assert waits == [deliver.TICK_S, deliver.TICK_S, 5.0, deliver.TICK_S]


def test_a_destination_that_stays_away_is_left_alone_ever_longer() -> None:
    breaker = Breaker(5)
    assert [breaker.failed(1.0) for _ in range(6)] == [5, 10, 20, 40, LONGEST_BREAK_S, LONGEST_BREAK_S]
    assert breaker.failed(0.0) == LONGEST_BREAK_S / 2
    assert breaker.answered() and not breaker.answered()
    assert breaker.failed(1.0) == 5


@pytest.mark.parametrize(
    ("asked_s", "due_in_s", "pause_s"), [(40.0, 40.0, 40.0), (1e6, 600.0, 60.0), (1.0, 5.0, 5.0)]
)
def test_a_destination_that_asks_for_patience_gets_it_within_bounds(
    asked_s: float, due_in_s: float, pause_s: float
) -> None:
    rows = Rows(due(1))
    one = courier(rows, Script(TransientError("busy", asked_s)))
    assert not one.round(Clock(0.0))
    assert rows.log == [("failed", 1, "", due_in_s)]
    assert [one.pause_s(), one.pause_s()] == [pause_s, 10]


def test_once_a_destination_is_back_what_waits_for_it_is_due_at_once() -> None:
    clock = Clock(0.0)
    rows = Rows(due(1), due(2))
    first = courier(rows, Script(TransientError("down")))
    assert not first.round(clock)
    assert first.pause_s() > 0
    rows.rows = [due(1), due(2)]
    first._peer = Script(GOOD, GOOD)
    assert first.round(clock)
    assert [entry[0] for entry in rows.log] == ["failed", "failed", "sent", "hasten", "sent"]
