"""Statements straight on the driver say, hold and refuse what SQLAlchemy's would, on both databases."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, func, insert, select, text, update

from node.domain.errors import TransientError
from node.store import engine as store_engine
from node.store import pipeline as store_pipeline
from node.store.arrivals import UNKNOWN
from node.store.engine import migrate, open_engine
from node.store.pipeline import Pipeline
from node.store.records import Records
from node.store.swift import Refused, Run, Swift
from node.store.tables import pauses, studies
from tests.postgres import Postgres

STUDIES = insert(studies)
COUNT = select(func.count()).select_from(studies)
PATIENT = select(studies.c.patient_id).where(studies.c.study_instance_uid == bindparam("uid"))
RENAME = (
    update(studies)
    .where(studies.c.study_instance_uid == bindparam("uid"))
    .values(patient_id=bindparam("patient"), files_removed_at=None)
)


def study(uid: str) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(column.name for column in studies.columns)
    texts = ("patient_id", "patient_name", "accession_number", "study_date", "description")
    return row | dict.fromkeys(texts, "") | {
        "study_instance_uid": uid, "first_received_at": 1.0, "last_received_at": 1.0, "canary": 0,
    }  # fmt: skip


def test_rows_are_written_counted_and_read(records: Records) -> None:
    swift = Swift(records.engine)
    assert swift.first(COUNT, {}) == (0,) and swift.first(PATIENT, {"uid": "1"}) is None

    def work(run: Run) -> tuple[int, int]:
        run.many(STUDIES, [study("1"), study("2")])
        hit = run(RENAME, {"uid": "1", "patient": 'it\'s "P" %s :x'})
        return hit, run(RENAME, {"uid": "3", "patient": "P"})

    assert swift.transaction(work) == (1, 0)
    found = swift.first(PATIENT, {"uid": "1"})
    assert found and tuple(found) == ('it\'s "P" %s :x',)


@pytest.mark.parametrize("name", ["a\\b", "a\tb", "a\nb\r", "\\N", "\\.", "%s :x $1 {,}'\"", "", "Ü語"])
def test_many_rows_are_written_to_the_letter(records: Records, name: str) -> None:
    swift = Swift(records.engine)
    swift.transaction(lambda run: run.many(STUDIES, [study("1") | {"patient_id": name}, study("2")]))
    assert tuple(swift.first(PATIENT, {"uid": "1"}) or ()) == (name,)
    with records.engine.connect() as connection:
        rows = connection.execute(select(studies).order_by(studies.c.study_instance_uid)).all()
    assert [row.files_removed_at for row in rows] == [None, None]


def test_all_of_it_or_nothing(records: Records) -> None:
    swift = Swift(records.engine)
    swift.transaction(lambda run: run.many(STUDIES, [study("1")]))
    with pytest.raises(Refused):
        swift.transaction(lambda run: run.many(STUDIES, [study("2"), study("1")]))

    def breaks(run: Run) -> None:
        run.many(STUDIES, [study("3")])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swift.transaction(breaks)
    found = swift.first(COUNT, {})
    assert found and tuple(found) == (1,)


def test_a_table_that_is_not_there_is_no_row_that_is_not_there(records: Records) -> None:
    """On SQLite as when the database is away: the sender is to come again."""
    swift = Swift(records.engine)
    pauses.drop(records.engine)
    with pytest.raises(Exception, match="pauses"):
        swift.first(select(pauses), {})


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/a.sqlite3")
    migrate(engine)
    swift = Swift(engine)
    other = sqlite3.connect(tmp_path / "a.sqlite3", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    free = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    free.start()
    swift.transaction(lambda run: run.many(STUDIES, [study("1")]))
    free.join()
    other.close()
    engine.dispose()


@pytest.mark.parametrize("trouble", ["locked", "read-only"])
def test_what_cannot_be_written_is_transient(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/a.sqlite3")
    migrate(engine)
    other = sqlite3.connect(tmp_path / "a.sqlite3", isolation_level=None)
    if trouble == "locked":
        monkeypatch.setattr(store_engine, "BUSY_TIMEOUT_S", 0.1)
        other.execute("BEGIN IMMEDIATE")
    else:  # not waited for: it would not go away
        engine.dispose()
        engine = open_engine(f"sqlite:///file:{tmp_path}/a.sqlite3?mode=ro&uri=true")
    began = time.monotonic()
    with pytest.raises(TransientError):
        Swift(engine).transaction(lambda run: run.many(STUDIES, [study("1")]))
    assert time.monotonic() - began < store_engine.BUSY_TIMEOUT_S / 2 or trouble == "locked"
    other.close()
    engine.dispose()


class TestServer:
    """A database server whose connections are kept, and cut off while nobody looks."""

    @pytest.fixture
    def database(self) -> str:
        return "postgresql"

    def test_what_is_kept_is_in_no_transaction(self, records: Records) -> None:
        swift = Swift(records.engine)
        swift.first(COUNT, {})
        swift.transaction(lambda run: run.many(STUDIES, [study("1")]))
        others = text(
            "SELECT state FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with records.engine.connect() as connection:
            states = connection.execute(others).scalars().all()
        assert states == ["idle"], "one connection, for both"
        swift.close()

    def test_a_refusal_costs_no_connection(self, records: Records) -> None:
        swift, number = Swift(records.engine), select(func.pg_backend_pid())
        swift.transaction(lambda run: run.many(STUDIES, [study("1")]))
        before = swift.first(number, {})

        def refuses(run: Run) -> None:
            run.many(STUDIES, [study("2")])
            raise Refused

        for contradicts in (lambda run: run.many(STUDIES, [study("2"), study("1")]), refuses):
            with pytest.raises(Refused):
                swift.transaction(contradicts)
        assert swift.first(number, {}) == before
        assert tuple(swift.first(COUNT, {}) or ()) == (1,), "and keeps nothing"
        swift.close()

    def test_one_that_was_cut_off_costs_no_image(self, records: Records, postgres: Postgres) -> None:
        swift = Swift(records.engine)
        for uid in ("1", "2", "3"):
            postgres.disconnect_all()
            assert swift.first(PATIENT, {"uid": uid}) is None
            postgres.disconnect_all()
            swift.transaction(lambda run, uid=uid: run.many(STUDIES, [study(uid)]))
        assert tuple(swift.first(COUNT, {}) or ()) == (3,)
        swift.close()

    def test_all_that_are_kept_may_be_cut_off_at_once(self, records: Records, postgres: Postgres) -> None:
        swift = Swift(records.engine)
        together = threading.Barrier(4, timeout=20)

        def hold(run: Run) -> None:
            run(RENAME, {"uid": "none", "patient": "P"})
            together.wait()

        threads = [threading.Thread(target=swift.transaction, args=(hold,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        postgres.disconnect_all()
        assert [swift.first(PATIENT, {"uid": "1"}) for _ in range(5)] == [None] * 5
        swift.close()

    def test_one_that_is_cut_off_in_the_midst_leaves_nothing_twice(self, records: Records) -> None:
        swift = Swift(records.engine)
        swift.first(COUNT, {})
        attempts = []

        def work(run: Run) -> None:
            attempts.append(run)
            run.many(STUDIES, [study("1")])
            if len(attempts) == 1:
                run.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        swift.transaction(work)
        assert len(attempts) == 2 and tuple(swift.first(COUNT, {}) or ()) == (1,)
        swift.close()

    def test_one_that_was_just_made_is_not_tried_again(self, records: Records) -> None:
        swift = Swift(records.engine)
        attempts = []

        def work(run: Run) -> None:
            attempts.append(run)
            run.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(TransientError):
            swift.transaction(work)
        assert len(attempts) == 1
        swift.close()


class TestPipeline:
    """Look-ups that are asked ahead, over one connection."""

    @pytest.fixture
    def database(self) -> str:
        return "postgresql"

    @pytest.fixture
    def pipeline(self, records: Records, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
        monkeypatch.setattr(store_pipeline, "AGAIN_S", 0.0)
        swift = Swift(records.engine)
        swift.transaction(
            lambda run: run.many(STUDIES, [study(str(n)) | {"patient_id": f"P{n}"} for n in range(9)])
        )
        made = swift.pipeline(PATIENT)
        assert made is not None
        yield made
        made.close()
        swift.close()

    def test_each_gets_its_own_answer_in_whatever_order_they_are_wanted(self, pipeline: Pipeline) -> None:
        pipeline.open()
        asked = [pipeline.ask(str(number)) for number in range(9)]
        for number in (4, 0, 8, 7, 1):
            assert pipeline.answer(asked[number]) == f"P{number}".encode()
        assert pipeline.answer(pipeline.ask("5")) == b"P5"

    def test_threads_do_not_take_each_others(self, pipeline: Pipeline) -> None:
        pipeline.open()
        wrong: list[object] = []

        def look(number: int) -> None:
            for _ in range(200):
                found = pipeline.answer(pipeline.ask(str(number)))
                if found != f"P{number}".encode():
                    wrong.append(found)

        threads = [threading.Thread(target=look, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong

    def test_what_nobody_waits_for_does_not_pile_up(self, pipeline: Pipeline) -> None:
        pipeline.open()
        for _ in range(5 * store_pipeline.MOST_OPEN):
            pipeline.ask("1")
        assert len(pipeline._asked) <= store_pipeline.MOST_OPEN
        assert pipeline.answer(pipeline.ask("2")) == b"P2"

    def test_one_that_is_cut_off_answers_nothing_until_it_is_opened_again(
        self, pipeline: Pipeline, postgres: Postgres
    ) -> None:
        assert pipeline.answer(pipeline.ask("1")) is None, "it was not opened yet"
        pipeline.open()
        asked = [pipeline.ask("1"), pipeline.ask("2")]
        assert pipeline.answer(asked[0]) == b"P1"
        postgres.disconnect_all()
        asked += [pipeline.ask("3"), pipeline.ask("4")]
        assert [pipeline.answer(one) for one in asked[2:]] == [None, None] and asked[3].is_lost
        assert pipeline.answer(pipeline.ask("5")) is None
        pipeline.open()
        assert pipeline.answer(pipeline.ask("5")) == b"P5"

    def test_a_refusal_of_the_server_is_no_answer_and_shifts_none(
        self, records: Records, pipeline: Pipeline
    ) -> None:
        pipeline.open()
        with records.engine.begin() as connection:
            connection.execute(text("ALTER TABLE studies RENAME TO elsewhere"))
        refused = pipeline.ask("1")
        assert pipeline.answer(refused) is None and not refused.is_lost
        with records.engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO studies"))
        assert pipeline.answer(pipeline.ask("2")) == b"P2"

    def test_what_is_known_is_known_with_the_connection_and_without(
        self, records: Records, postgres: Postgres
    ) -> None:
        for _ in range(3):
            assert records.arrivals.inquire("2.25.1")() == UNKNOWN
            answer = records.arrivals.inquire("2.25.1")
            postgres.disconnect_all()
            assert answer() == UNKNOWN
