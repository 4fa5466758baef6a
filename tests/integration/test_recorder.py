"""What was answered with Success and only promised a record: recorded soon, in order, whatever happens."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from sqlalchemy import select

from node import recorder as node_recorder
from node import visits
from node.domain.errors import TransientError
from node.intake import Intake
from node.scan import close_associations_of
from node.settings import Scp
from node.spool import Part, Spool, SpoolFull
from node.store.incidents import Code
from node.store.records import Records
from node.store.tables import associations, instances, series
from node.visits import Visit
from node.wholeness import Announced
from tests.factories import ct_series
from tests.peers import eventually

SUCCESS, NO_ROOM, UNREADABLE, EXPLICIT = 0x0000, 0xA700, 0xC000, "1.2.840.10008.1.2.1"
NEVER_S = 3600.0
LISTENER = "elsewhere:0123abcd:7:8"


@dataclass
class Place:
    """A listener process' intake, with one association; `later_s` is how long a promise may take."""

    records: Records
    spool: Spool

    def __post_init__(self) -> None:
        self.limits = Scp()
        self.intake = self.another(NEVER_S)
        self.visit = Visit(self.records, self.intake.recorder, LISTENER, "CT1", "10.0.0.1")
        self.association = self.visit.association_id()

    def another(self, later_s: float) -> Intake:
        return Intake(self.spool, self.records, time.time, self.limits, later_s)

    def receive(self, ds: Dataset, intake: Intake | None = None) -> int:
        return (intake or self.intake).receive(*self.sent(ds))

    def in_pieces(self, ds: Dataset) -> int:
        """As it comes from a network: in three."""
        announced, data = self.sent(ds)
        arrival, third = self.intake.begin(announced), len(data) // 3
        for piece in (data[:third], data[third : 2 * third], data[2 * third :]):
            arrival.write((piece,))
        return arrival.end()

    def sent(self, ds: Dataset) -> tuple[Announced, bytes]:
        stream = io.BytesIO()
        dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
        uids = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), EXPLICIT)
        return Announced(*uids, "CT1", self.association), stream.getvalue()

    def recorded(self) -> list[str]:
        """SOP Instance UIDs, in the order in which they came."""
        with self.records.engine.connect() as connection:
            query = select(instances.c.sop_instance_uid).order_by(instances.c.received_at)
            return list(connection.execute(query).scalars())

    def count(self) -> int:
        """As the row of the only series has it."""
        with self.records.engine.connect() as connection:
            return connection.execute(select(series.c.instance_count)).scalar_one()

    def outcome(self) -> str | None:
        with self.records.engine.connect() as connection:
            mine = associations.c.id == self.association
            return connection.execute(select(associations.c.outcome).where(mine)).scalar_one()

    def files(self) -> int:
        return sum(1 for _ in self.spool.root.rglob("*.dcm"))


@pytest.fixture
def place(records: Records, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "spool").mkdir()
    yield Place(records, Spool(tmp_path / "spool"))


@pytest.fixture
def slices() -> list[Dataset]:
    return ct_series(5, rows=16, name="promised")


def uids(slices: list[Dataset]) -> list[str]:
    return [str(ds.SOPInstanceUID) for ds in slices]


def away(*_: Any) -> Any:
    raise TransientError("database: gone")


class TestPromises:
    def test_a_series_that_comes_in_another_study_is_refused_over_the_same_association_too(
        self, place: Place, slices: list[Dataset]
    ) -> None:
        """What was recorded says so already: nobody is told Success of an image that never gets a record."""
        first, second, stray = slices[:3]
        stray.StudyInstanceUID = "2.25.4711"
        assert [place.receive(ds) for ds in (first, second, stray)] == [SUCCESS, SUCCESS, UNREADABLE]
        place.intake.recorder.flush()
        assert set(place.recorded()) == set(uids([first, second])) and place.files() == 2
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.SERIES_IN_OTHER_STUDY and incident["text"].startswith("refused: ")

    def test_the_first_slice_is_recorded_at_once_and_the_others_together(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        groups: list[int] = []
        really = place.records.arrivals.record_new

        def noted(news: Any, most: int) -> bool:
            groups.append(len(news))
            return really(news, most)

        monkeypatch.setattr(place.records.arrivals, "record_new", noted)
        assert place.receive(slices[0]) == SUCCESS
        assert place.recorded() == uids(slices[:1])
        groups.clear()
        assert [place.receive(ds) for ds in slices[1:]] == [SUCCESS] * 4
        assert place.recorded() == uids(slices[:1]) and place.files() == 5
        place.intake.recorder.flush()
        assert (groups, place.recorded(), place.count()) == ([4], uids(slices), 5)

    def test_a_promise_is_kept_though_nobody_asks(self, place: Place, slices: list[Dataset]) -> None:
        soon = place.another(0.01)
        assert [place.receive(ds, soon) for ds in slices] == [SUCCESS] * 5
        eventually(lambda: place.recorded() == uids(slices))

    def test_another_series_is_never_recorded_before_it(self, place: Place, slices: list[Dataset]) -> None:
        """Else the first one would seem to be over: its association moved on."""
        (other,) = ct_series(1, rows=16, name="another")
        assert [place.receive(ds) for ds in (*slices, other)] == [SUCCESS] * 6
        assert place.recorded() == uids([*slices, other])

    def test_the_end_of_the_association_comes_behind_it(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(visits, "AGAIN_S", 0.05)
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        with monkeypatch.context() as patched:
            patched.setattr(place.records.arrivals, "record_new", away)
            place.visit.close(released=True)
            assert (place.outcome(), len(place.recorded())) == (None, 1)
        eventually(lambda: place.outcome() == "released")
        assert place.recorded() == uids(slices)

    def test_what_comes_again_before_it_is_recorded_is_known(
        self, place: Place, slices: list[Dataset]
    ) -> None:
        assert [place.receive(ds) for ds in (*slices, *slices)] == [SUCCESS] * 10
        assert (place.recorded(), place.files(), place.count()) == (uids(slices), 5, 5)

    def test_no_more_are_made_than_fit_into_a_transaction(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_recorder, "MOST_AT_ONCE", 2)
        assert [place.receive(ds) for ds in slices[:3]] == [SUCCESS] * 3
        assert len(place.recorded()) == 1
        assert place.receive(slices[3]) == SUCCESS
        assert place.recorded() == uids(slices[:4])


class TestNoRoom:
    """What lies here already needs no room, and is told from what is new by every byte."""

    @pytest.mark.parametrize("written", [0, 1, 2])
    def test_what_comes_again_is_known_wherever_the_room_runs_out(
        self, written: int, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`written` pieces still find room."""
        assert place.receive(slices[0]) == SUCCESS
        really, counted = Part.write, []

        def filling_up(part: Part, parts: Any) -> None:
            if len(counted) == written:
                really(part, [parts[0][:1]])  # some of it is written
                raise SpoolFull("full")
            counted.append(part)
            really(part, parts)

        monkeypatch.setattr(Part, "write", filling_up)
        assert place.in_pieces(slices[0]) == SUCCESS
        counted.clear()
        slices[0].SeriesDescription = "Other"
        assert place.in_pieces(slices[0]) == NO_ROOM
        assert (place.files(), place.count()) == (1, 1)

    def test_so_it_is_where_there_is_none_to_begin_with(self, place: Place, slices: list[Dataset]) -> None:
        assert place.receive(slices[0]) == SUCCESS
        place.spool.reserve_bytes = 2**60
        assert place.in_pieces(slices[0]) == SUCCESS
        assert place.in_pieces(slices[1]) == NO_ROOM
        assert (place.files(), place.count()) == (1, 1)


class TestTrouble:
    def test_a_database_that_goes_away_is_told_and_loses_nothing(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_recorder, "AGAIN_S", 0.05)
        soon = place.another(0.01)
        assert place.receive(slices[0], soon) == SUCCESS
        with monkeypatch.context() as patched:
            patched.setattr(place.records.arrivals, "record_new", away)
            assert place.receive(slices[1], soon) == SUCCESS, "its file is safe"
            eventually(lambda: soon.recorder._is_behind)
            assert place.receive(slices[2], soon) == NO_ROOM, "no more promises"
            assert place.files() == 2
        eventually(lambda: place.recorded() == uids(slices[:2]))
        eventually(lambda: not soon.recorder._is_behind)
        assert [place.receive(ds, soon) for ds in slices[2:]] == [SUCCESS] * 3
        soon.recorder.flush()
        assert place.recorded() == uids(slices)

    def test_what_a_killed_listener_had_promised_is_recorded_before_its_associations_are_over(
        self, place: Place, slices: list[Dataset]
    ) -> None:
        """Nobody flushes: as after `kill -9`. What one had answered counts, under its own association."""
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        assert len(place.recorded()) == 1
        close_associations_of(LISTENER, place.records, place.spool)
        assert sorted(place.recorded()) == sorted(uids(slices)) and place.count() == 5
        assert place.outcome() == "aborted"
        gathered = place.records.decisions.gather(str(slices[0].SeriesInstanceUID))
        assert (len(gathered.instances), gathered.associations_open, gathered.aborted) == (5, 0, True)

    def test_one_that_was_only_thought_dead_goes_on(self, place: Place, slices: list[Dataset]) -> None:
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        close_associations_of(LISTENER, place.records, place.spool)
        place.intake.recorder.flush()
        assert (len(place.recorded()), place.files(), place.count()) == (5, 5, 5)

    def test_the_database_is_away_when_a_listener_is_found_dead(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        monkeypatch.setattr(place.records.arrivals, "record", away)
        with pytest.raises(TransientError):
            close_associations_of(LISTENER, place.records, place.spool)
        assert place.outcome() is None, "it is looked at again"

    def test_what_cannot_be_recorded_holds_up_no_other(
        self, place: Place, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(*_: Any) -> bool:
            raise ValueError("a fault of our own")

        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        really, poisoned = place.records.arrivals.record, str(slices[2].SOPInstanceUID)
        monkeypatch.setattr(place.records.arrivals, "record_new", breaks)
        monkeypatch.setattr(
            place.records.arrivals,
            "record",
            lambda *a: breaks() if a[0].sop_instance_uid == poisoned else really(*a),
        )
        place.intake.recorder.flush()
        assert poisoned not in place.recorded() and len(place.recorded()) == 4
        assert place.files() == 5, "it stays for the scan"


class TestContradictions:
    """Another listener process was quicker, after this one had looked and before it recorded."""

    def came_elsewhere(self, place: Place, ds: Dataset) -> None:
        assert place.receive(ds, place.another(0.0)) == SUCCESS

    def test_the_same_bytes_are_kept_once(self, place: Place, slices: list[Dataset]) -> None:
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        self.came_elsewhere(place, slices[2])
        place.intake.recorder.flush()
        assert (sorted(place.recorded()), place.files()) == (sorted(uids(slices)), 5)
        assert place.count() == 5

    def test_other_content_counts_from_then_on(self, place: Place, slices: list[Dataset]) -> None:
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        other = slices[2].copy()
        other.PatientComments = "other"
        self.came_elsewhere(place, other)
        place.intake.recorder.flush()
        assert (len(place.recorded()), place.files(), place.count()) == (5, 6, 5)
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.CONTENT_REPLACED

    def test_one_of_another_series_is_told_and_its_file_kept(
        self, place: Place, slices: list[Dataset]
    ) -> None:
        assert [place.receive(ds) for ds in slices] == [SUCCESS] * 5
        other = slices[2].copy()
        other.SeriesInstanceUID = "1.2.3"
        self.came_elsewhere(place, other)
        place.intake.recorder.flush()
        assert (len(place.recorded()), place.files()) == (5, 6)
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == Code.SOP_IN_OTHER_SERIES
        assert str(slices[2].SeriesInstanceUID) in incident["text"]

    def test_a_full_series_takes_what_was_promised_and_nothing_more(
        self, place: Place, slices: list[Dataset]
    ) -> None:
        place.limits = Scp(max_series_instances=3)
        limited = place.another(NEVER_S)
        assert [place.receive(ds, limited) for ds in slices[:4]] == [SUCCESS] * 4
        limited.recorder.flush()
        assert place.count() == 4
        assert place.receive(slices[4], limited) == NO_ROOM
        assert place.files() == 4
