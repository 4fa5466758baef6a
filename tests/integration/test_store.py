"""The records, on SQLite and on PostgreSQL: what is recorded, who may change it, and who wins a race."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydicom.dataset import Dataset
from sqlalchemy import Engine, inspect, select, text, update
from sqlalchemy.exc import OperationalError

from node.domain.errors import IllegalTransition, PermanentError, TransientError
from node.domain.findings import Findings, ModelIdentity, Priority, Reason, Status
from node.domain.instance import Instance
from node.domain.lifecycle import DeliveryState, JobState, SeriesState
from node.domain.patients import Person
from node.headers import instance_of
from node.store import engine as store_engine
from node.store.arrivals import Recorded, StoredFile
from node.store.decisions import SeriesRow
from node.store.deliveries import SOURCE_RANK, NewDelivery
from node.store.engine import SCHEMA_REVISION, migrate, open_engine, schema_revision
from node.store.jobs import SOURCE, Job, NewObject
from node.store.records import Records
from node.store.tables import BEGINNINGS, deliveries, heartbeats, instances, jobs, metadata, objects, series
from tests.postgres import Postgres
from tests.queueing import Ring, ringing

T = TypeVar("T")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ASSOCIATION = "a1"
REASON = Reason("NOT_HEAD", "BodyPartExamined FOOT: another body part")


def instance(number: int = 1, *, of: str = "1.2.10", study: str = "1.2", **changes: Any) -> Instance:
    made = Instance(f"{of}.{number}", CT_IMAGE, of, study, "1.2.840.10008.1.2.1", modality="CT")
    return replace(made, **changes)


def stored(content: str = "a") -> StoredFile:
    return StoredFile(f"incoming/{content}.dcm", 100, content * 64)


def receive(records: Records, *made: Instance, now: float = 100.0, content: str = "a") -> list[Recorded]:
    records.arrivals.open_association(ASSOCIATION, "host:1", ("CT1", "10.0.0.1"), now)
    return [records.arrivals.record(one, stored(content), ASSOCIATION, now) for one in made]


def only_series(records: Records, study: str = "1.2") -> SeriesRow:
    (row,) = records.decisions.of_study(study)
    return row


def settle(records: Records, study: str = "1.2", now: float = 200.0) -> list[SeriesRow]:
    """Every series of the study COMPLETE."""
    for row in records.decisions.of_study(study):
        if row.state is SeriesState.RECEIVING:
            assert records.decisions.settle(row, now)
    return records.decisions.of_study(study)


def queued_job(records: Records, number: int = 1) -> int:
    """A QUEUED job of a study of its own."""
    study = f"1.{number}"
    receive(records, instance(of=f"{study}.10", study=study))
    (row,) = settle(records, study)
    job_id = records.decisions.decide(row, [], 300.0)
    assert job_id is not None
    return job_id


def job(records: Records, job_id: int) -> Job:
    found = records.jobs.get(job_id)
    assert found is not None
    return found


def findings(priority: Priority | None = Priority.STAT) -> Findings:
    return Findings(ModelIdentity("m", "1", "ab"), "1.1.10", 1, Status.ANALYSED, priority=priority)


def analysed_job(records: Records, number: int = 1, priority: Priority = Priority.STAT) -> Job:
    job_id = queued_job(records, number)
    assert records.jobs.claim(job_id, "w:1", 1e9, 400.0)
    assert records.jobs.store_analysis(job_id, "w:1", findings(priority), "results/m.npz", 500.0)
    return job(records, job_id)


def new_object(number: int = 1, output: str = "sr") -> NewObject:
    return NewObject(f"2.25.{number}", "1.2.840.10008.5.1.4.1.1.88.34", "2.25.900", output, f"o/{number}", 10)


def composed_job(records: Records, number: int = 1, urgent: bool = False, destination: str = "pacs") -> Job:
    """A COMPOSED job with one object and one delivery."""
    made = analysed_job(records, number)
    uid = f"2.25.{number}"
    delivery = NewDelivery(uid, destination, 0, urgent)
    assert records.jobs.store_objects(made, [new_object(number)], [delivery], 600.0)
    return job(records, made.id)


def put_in_state(records: Records, job_id: int, state: JobState) -> None:
    with records.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=state))


def count(records: Records, table: Any) -> int:
    with records.engine.connect() as connection:
        return len(connection.execute(select(table)).all())


def at_once(number: int, call: Callable[[int], T]) -> list[T]:
    """`call` from that many threads, let loose together."""
    barrier = threading.Barrier(number)

    def run(index: int) -> T:
        barrier.wait()
        return call(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


class TestSchema:
    def test_the_revision_in_the_code_is_the_newest_migration(self) -> None:
        config = Config()
        config.set_main_option("script_location", "node:store/migrations")
        assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_REVISION]

    def test_inserting_says_whether_it_did(self, records: Records) -> None:
        row = {"process": "p", "role": "r", "started_at": 1.0, "seen_at": 1.0, "detail": {}}
        with store_engine.writing(records.engine) as connection:
            assert store_engine.insert_if_absent(connection, heartbeats, row)
            assert not store_engine.insert_if_absent(connection, heartbeats, row)

    def test_a_new_database_is_the_same_as_a_migrated_one(self, database_url: str) -> None:
        engine = open_engine(database_url)
        with store_engine.writing(engine) as connection:
            store_engine._upgrade(connection, "base")
        with engine.connect() as connection:
            opts = {"compare_type": True, "include_name": lambda name, *_: name not in BEGINNINGS}
            context = MigrationContext.configure(connection, opts=opts)
            assert compare_metadata(context, metadata) == []
        migrated = _shape(engine)
        assert schema_revision(engine) == SCHEMA_REVISION
        with engine.begin() as connection:
            metadata.drop_all(connection)
            connection.execute(text("DROP TABLE alembic_version"))
        migrate(engine)
        assert _shape(engine) == migrated
        assert schema_revision(engine) == SCHEMA_REVISION
        engine.dispose()

    def test_an_empty_database_is_at_no_revision(self, database_url: str) -> None:
        engine = open_engine(database_url)
        assert schema_revision(engine) is None
        engine.dispose()

    def test_migrating_again_changes_nothing(self, records: Records) -> None:
        queued_job(records)
        migrate(records.engine)
        assert count(records, jobs) == 1

    def test_every_role_may_start_at_once_on_an_empty_database(self, database_url: str) -> None:
        def start(_: int) -> str | None:
            engine = open_engine(database_url)
            migrate(engine)
            revision = schema_revision(engine)
            engine.dispose()
            return revision

        assert at_once(6, start) == [SCHEMA_REVISION] * 6

    def test_a_database_of_a_newer_version_is_refused_in_words(self, records: Records) -> None:
        with records.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(PermanentError, match="9999"):
            migrate(records.engine)

    def test_sqlite_survives_a_power_cut_and_checks_references(self, tmp_path: Any) -> None:
        engine = open_engine(f"sqlite:///{tmp_path}/deep/er/t.sqlite3")
        with engine.connect() as connection:
            pragma = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        engine.dispose()
        assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    def test_a_database_that_cannot_be_reached_is_a_transient_error(self) -> None:
        engine = open_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
        with pytest.raises(TransientError, match="database"):
            Records(engine).jobs.get(1)
        engine.dispose()

    def test_broken_connections_are_replaced(self, postgres: Postgres) -> None:
        engine = open_engine(postgres.create())
        migrate(engine)
        made = Records(engine)
        job_id = queued_job(made)
        postgres.disconnect_all()
        assert job(made, job_id).state is JobState.QUEUED
        made.close()

    def test_a_connection_that_breaks_in_a_transaction_is_a_transient_error(self, postgres: Postgres) -> None:
        engine = open_engine(postgres.create())
        migrate(engine)
        with pytest.raises(TransientError), store_engine.writing(engine) as connection:
            connection.execute(select(jobs))
            postgres.disconnect_all()
            connection.execute(select(jobs))
        engine.dispose()

    def test_a_pool_that_runs_dry_is_a_transient_error(self, database_url: str) -> None:
        engine = open_engine(database_url)
        migrate(engine)
        engine.pool._timeout = 0.1  # type: ignore[attr-defined]
        held = [engine.connect() for _ in range(15)]
        with pytest.raises(TransientError):
            Records(engine).jobs.get(1)
        for connection in held:
            connection.close()
        engine.dispose()

    def test_a_locked_database_is_a_transient_error(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_engine, "BUSY_TIMEOUT_S", 0.1)
        engine = open_engine(f"sqlite:///{tmp_path}/t.sqlite3")
        migrate(engine)
        made = Records(engine)
        with engine.connect() as other, pytest.raises(TransientError, match="locked"):
            other.execute(select(jobs))  # our engine begins IMMEDIATE: the lock is held
            receive(made, instance())
        made.close()


def _shape(engine: Engine) -> dict[str, Any]:
    found = inspect(engine)
    catalogue = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
        if engine.dialect.name == "postgresql"
        else "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    )
    with engine.connect() as connection:
        every = [" ".join(sql.split()) for sql in connection.execute(text(catalogue)).scalars()]
    beginnings = {name: [sql for sql in every if f" {name} ON" in sql] for name in BEGINNINGS}
    assert all(beginnings.values())
    return {"beginnings": beginnings} | {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)],
            "key": found.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(str(u["column_names"]) for u in found.get_unique_constraints(table)),
            "indexes": sorted((i["name"] or "", str(i["column_names"])) for i in found.get_indexes(table)),
            "foreign": sorted(
                (str(f["constrained_columns"]), f["referred_table"]) for f in found.get_foreign_keys(table)
            ),
        }
        for table in found.get_table_names()
    }


class TestArrivals:
    def test_new_then_same_then_replaced(self, records: Records) -> None:
        assert receive(records, instance()) == [Recorded.NEW]
        assert receive(records, instance(), now=101.0) == [Recorded.SAME]
        assert receive(records, instance(), now=102.0, content="b") == [Recorded.REPLACED]
        assert count(records, instances) == 1
        assert records.arrivals.paths("1.2.10") == ["incoming/b.dcm"]

    def test_the_same_bytes_again_change_nothing(self, records: Records) -> None:
        receive(records, instance())
        before = settle(records)
        receive(records, instance(), now=900.0)
        assert records.decisions.of_study("1.2") == before

    def test_instances_are_counted_once_however_often_they_come(self, records: Records) -> None:
        receive(records, instance(1), instance(2), instance(1))
        receive(records, instance(2), content="b")
        with records.engine.connect() as connection:
            assert connection.execute(select(series.c.instance_count)).scalar() == 2

    def test_a_header_comes_back_as_it_went_in(self, records: Records) -> None:
        given = instance(
            position=(1.5, -2.25, 3.0),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            image_type=("ORIGINAL", "PRIMARY"),
            patient_name="山田^太郎",
            slice_thickness=0.1 + 0.2,
            rescaled=True,
        )
        receive(records, given)
        assert records.decisions.gather("1.2.10").instances == (given,)

    def test_headers_beyond_what_dicom_allows_are_recorded_all_the_same(self, records: Records) -> None:
        given = instance(
            modality="C" * 100,
            series_description="d\0" * 500,
            study_description="s\0x",
            patient_id="p" * 1000,
            patient_name="n\0m" * 300,
            accession_number="a" * 300,
            study_date="20260101" * 30,
            series_number=10**30,
            instance_number=10**30,
        )
        assert receive(records, given) == [Recorded.NEW]
        assert len(records.decisions.of_study("1.2")) == 1
        assert records.decisions.gather("1.2.10").instances[0].patient_id == given.patient_id

    def test_a_uid_too_long_for_its_column_is_refused_for_good_and_leaves_nothing(
        self, records: Records
    ) -> None:
        with pytest.raises(PermanentError):
            receive(records, instance(series_instance_uid="1." + "2" * 300))
        assert count(records, series) == count(records, instances) == 0

    @pytest.mark.parametrize("state", list(SeriesState))
    def test_an_arrival_opens_a_series_again(self, state: SeriesState, records: Records) -> None:
        receive(records, instance(1))
        with records.engine.begin() as connection:
            connection.execute(update(series).values(state=state, reason_code="X", reason_text="y"))
        receive(records, instance(2), now=300.0)
        row = only_series(records)
        assert row.state is SeriesState.RECEIVING
        assert row.revision == (1 if state is SeriesState.RECEIVING else 2)
        assert row.last_received_at == 300.0
        assert records.decisions.reason_of("1.2.10") is None

    def test_a_replacement_opens_a_decided_series_too(self, records: Records) -> None:
        receive(records, instance(1))
        settle(records)
        receive(records, instance(1), now=300.0, content="b")
        assert (only_series(records).state, only_series(records).revision) == (SeriesState.RECEIVING, 2)

    def test_settle_refuses_when_something_arrived_meanwhile(self, records: Records) -> None:
        receive(records, instance(1))
        seen = only_series(records)
        receive(records, instance(2), now=100.5)
        assert not records.decisions.settle(seen, 200.0)
        assert only_series(records).state is SeriesState.RECEIVING

    def test_settle_refuses_what_is_settled(self, records: Records) -> None:
        receive(records, instance(1))
        seen = only_series(records)
        assert records.decisions.settle(seen, 200.0)
        assert not records.decisions.settle(seen, 201.0)

    def test_an_instance_never_moves_to_another_series(self, records: Records) -> None:
        receive(records, instance())
        with pytest.raises(PermanentError) as caught:
            receive(records, instance(series_instance_uid="1.2.99"), content="b")
        assert caught.value.code == "DUPLICATE_SOP"
        assert records.arrivals.paths("1.2.10") == ["incoming/a.dcm"]

    def test_the_same_header_in_another_transfer_syntax_leaves_the_first_one(self, records: Records) -> None:
        receive(records, instance())
        again = instance(transfer_syntax_uid="1.2.840.10008.1.2.4.70")
        assert receive(records, again, content="b") == [Recorded.RECODED]
        assert records.arrivals.paths("1.2.10") == ["incoming/a.dcm"]
        assert only_series(records).revision == 1

    def test_the_persons_of_a_study_are_told_by_series(self, records: Records) -> None:
        receive(records, instance(1, patient_id="A"), instance(2, patient_id="A"))
        receive(records, instance(1, of="1.2.11", patient_id="B", patient_name="B^B"))
        found = records.decisions.persons("1.2")
        assert found == {"1.2.10": {Person("A", "")}, "1.2.11": {Person("B", "B^B")}}

    def test_a_header_that_holds_nul_can_be_asked_for_again(self, records: Records) -> None:
        """PostgreSQL takes it into a column of JSON, and then gives nothing of that row any more."""
        named = Dataset()
        named.SOPClassUID, named.SOPInstanceUID, named.SeriesInstanceUID = CT_IMAGE, "1.2.10.1", "1.2.10"
        named.StudyInstanceUID, named.PatientID = "1.2", "A\0B"
        named.PatientName, named.StudyDescription = "DOE\0^JOHN", "HE\0AD"
        receive(records, instance_of(named, "1.2.840.10008.1.2.1"))
        assert records.decisions.persons("1.2") == {"1.2.10": {Person("AB", "DOE^JOHN")}}

    def test_receiving_lists_what_was_silent_long_enough(self, records: Records) -> None:
        receive(records, instance(of="1.2.10"), now=100.0)
        receive(records, instance(of="1.2.11"), now=105.0)
        assert [r.series_instance_uid for r in records.decisions.receiving(100.0)] == ["1.2.10"]
        assert len(records.decisions.receiving(105.0)) == 2
        assert records.decisions.receiving(99.9) == []

    def test_instances_of_one_series_recorded_from_many_threads_are_all_there(self, records: Records) -> None:
        receive(records)
        outcomes = at_once(8, lambda thread: [receive(records, instance(10 * thread + n)) for n in range(5)])
        assert outcomes == [[[Recorded.NEW]] * 5] * 8
        assert len(records.decisions.gather("1.2.10").instances) == 40
        with records.engine.connect() as connection:
            assert connection.execute(select(series.c.instance_count)).scalar() == 40

    def test_one_instance_recorded_from_many_threads_is_new_once(self, records: Records) -> None:
        receive(records)
        for number in range(10):
            outcomes = at_once(4, partial(lambda n, _: receive(records, instance(n))[0], number))
            assert sorted(outcomes) == [Recorded.NEW] + [Recorded.SAME] * 3
        with records.engine.connect() as connection:
            assert connection.execute(select(series.c.instance_count)).scalar() == 10

    def test_an_own_object_is_known_by_its_uid(self, records: Records) -> None:
        composed_job(records, 1)
        assert records.arrivals.known("2.25.1").own
        assert not records.arrivals.known("2.25.2").own


class TestAssociations:
    def open(self, records: Records, name: str, listener: str = "host:1") -> None:
        records.arrivals.open_association(name, listener, ("CT1", "10.0.0.1"), 1.0)

    def record(self, records: Records, name: str, number: int, of: str, now: float) -> None:
        records.arrivals.record(instance(number, of=of), stored(str(number % 10)), name, now)

    def test_an_open_association_counts_until_it_is_closed(self, records: Records) -> None:
        self.open(records, "x")
        self.record(records, "x", 1, "1.2.10", 2.0)
        assert records.decisions.gather("1.2.10").associations_open == 1
        records.arrivals.close_association("x", "released", 3.0)
        gathered = records.decisions.gather("1.2.10")
        assert (gathered.associations_open, gathered.aborted) == (0, False)

    def test_an_open_association_that_moved_on_to_another_series_counts_there_alone(
        self, records: Records
    ) -> None:
        self.open(records, "x")
        self.record(records, "x", 1, "1.2.10", 2.0)
        self.record(records, "x", 2, "1.2.10", 3.0)
        self.record(records, "x", 1, "1.2.11", 4.0)
        assert records.decisions.gather("1.2.10").associations_open == 0
        assert records.decisions.gather("1.2.11").associations_open == 1

    def test_one_association_counts_once_however_many_instances_it_brought(self, records: Records) -> None:
        self.open(records, "x")
        self.open(records, "y")
        for number in range(5):
            self.record(records, "xy"[number % 2], number, "1.2.10", 2.0 + number)
        assert records.decisions.gather("1.2.10").associations_open == 2

    def test_the_association_that_came_last_decides_whether_the_series_broke_off(
        self, records: Records
    ) -> None:
        for name, number, outcome in (("x", 1, "aborted"), ("y", 2, "released")):
            self.open(records, name)
            self.record(records, name, number, "1.2.10", 2.0 + number)
            records.arrivals.close_association(name, outcome, 9.0)
            assert records.decisions.gather("1.2.10").aborted is (outcome == "aborted")

    def test_the_first_outcome_of_an_association_stands(self, records: Records) -> None:
        self.open(records, "x")
        self.record(records, "x", 1, "1.2.10", 2.0)
        records.arrivals.close_association("x", "released", 3.0)
        records.arrivals.close_association("x", "aborted", 3.1)
        assert not records.decisions.gather("1.2.10").aborted

    def test_what_a_dead_listener_had_open_is_over_and_nobody_elses(self, records: Records) -> None:
        self.open(records, "x", "host:1")
        self.open(records, "y", "host:2")
        self.record(records, "x", 1, "1.2.10", 2.0)
        self.record(records, "y", 1, "1.2.11", 2.0)
        assert records.arrivals.open_listeners() == {"host:1", "host:2"}
        records.arrivals.close_associations_of("host:1", 5.0)
        assert records.arrivals.open_listeners() == {"host:2"}
        assert records.decisions.gather("1.2.10").aborted
        assert records.decisions.gather("1.2.11").associations_open == 1


class TestDecide:
    def test_a_whole_study_is_decided_at_once(self, records: Records) -> None:
        for last, of in enumerate(("1.2.10", "1.2.11", "1.2.12")):
            receive(records, instance(of=of), now=100.0 + last)
        chosen, one, other = settle(records)
        job_id = records.decisions.decide(chosen, [(one, REASON), (other, Reason("LOCALIZER", "l"))], 300.0)
        assert job_id is not None
        states = {r.series_instance_uid: r.state for r in records.decisions.of_study("1.2")}
        assert states == {
            "1.2.10": SeriesState.ACCEPTED,
            "1.2.11": SeriesState.SKIPPED,
            "1.2.12": SeriesState.SKIPPED,
        }
        assert records.decisions.reason_of("1.2.11") == REASON
        assert records.decisions.reason_of("1.2.12") == Reason("LOCALIZER", "l")
        assert records.decisions.reason_of("1.2.10") is None
        made = job(records, job_id)
        assert (made.series_instance_uid, made.study_instance_uid, made.revision) == ("1.2.10", "1.2", 1)
        assert (made.state, made.attempts, made.reason) == (JobState.QUEUED, 0, None)

    def test_nothing_is_decided_when_the_chosen_series_changed_meanwhile(self, records: Records) -> None:
        """Else the others would be refused for a choice that was never made."""
        receive(records, instance(of="1.2.10"))
        receive(records, instance(of="1.2.11"), now=101.0)
        chosen, other = settle(records)
        receive(records, instance(2, of="1.2.10"), now=250.0)
        assert records.decisions.decide(chosen, [(other, REASON)], 300.0) is None
        states = {r.series_instance_uid: r.state for r in records.decisions.of_study("1.2")}
        assert states == {"1.2.10": SeriesState.RECEIVING, "1.2.11": SeriesState.COMPLETE}
        assert count(records, jobs) == 0

    def test_a_refused_series_that_changed_meanwhile_is_left(self, records: Records) -> None:
        receive(records, instance(of="1.2.10"))
        receive(records, instance(of="1.2.11"), now=101.0)
        chosen, other = settle(records)
        receive(records, instance(2, of="1.2.11"), now=250.0)
        assert records.decisions.decide(chosen, [(other, REASON)], 300.0) is not None
        states = {r.series_instance_uid: r.state for r in records.decisions.of_study("1.2")}
        assert states == {"1.2.10": SeriesState.ACCEPTED, "1.2.11": SeriesState.RECEIVING}
        assert records.decisions.reason_of("1.2.11") is None

    def test_deciding_twice_makes_one_job(self, records: Records) -> None:
        receive(records, instance())
        (row,) = settle(records)
        outcomes = at_once(4, lambda _: records.decisions.decide(row, [], 300.0))
        assert len([o for o in outcomes if o is not None]) == 1
        assert count(records, jobs) == 1

    def test_an_error_half_way_leaves_the_study_undecided(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receive(records, instance(of="1.2.10"))
        receive(records, instance(of="1.2.11"), now=101.0)
        chosen, other = settle(records)

        def fail(*_: Any) -> int:
            raise OperationalError("x", {}, Exception("disk I/O error"))

        monkeypatch.setattr("node.store.decisions._new_job", fail)
        with pytest.raises(TransientError):
            records.decisions.decide(chosen, [(other, REASON)], 300.0)
        assert {r.state for r in records.decisions.of_study("1.2")} == {SeriesState.COMPLETE}

    @pytest.mark.parametrize(
        ("state", "after"),
        [
            (JobState.QUEUED, JobState.SUPERSEDED),
            (JobState.RUNNING, JobState.SUPERSEDED),
            (JobState.ANALYSED, JobState.SUPERSEDED),
            (JobState.FAILED, JobState.SUPERSEDED),
            (JobState.CANCELLED, JobState.SUPERSEDED),
            (JobState.COMPOSED, JobState.COMPOSED),
        ],
    )
    def test_a_newer_revision_supersedes(self, state: JobState, after: JobState, records: Records) -> None:
        old = queued_job(records)
        bystander = queued_job(records, 7)
        put_in_state(records, old, state)
        receive(records, instance(2, of="1.1.10", study="1.1"), now=400.0)
        (row,) = settle(records, "1.1", 500.0)
        new = records.decisions.decide(row, [], 600.0)
        assert new is not None and new != old
        assert job(records, old).state is after
        assert (job(records, new).state, job(records, new).revision) == (JobState.QUEUED, 2)
        assert job(records, bystander).state is JobState.QUEUED

    def test_an_unanswered_study_is_one_whose_every_series_was_refused(self, records: Records) -> None:
        receive(records, instance(of="1.2.10"), instance(of="1.2.11"))
        one, other = settle(records)
        records.decisions.decide(None, [(one, REASON)], 300.0)
        assert records.decisions.unanswered_studies(1000.0) == []
        records.decisions.decide(None, [(other, REASON)], 300.0)
        assert records.decisions.unanswered_studies(1000.0) == ["1.2"]
        assert records.decisions.unanswered_studies(99.0) == []
        job_id = records.decisions.refuse_study(one, REASON, 400.0)
        assert records.decisions.unanswered_studies(1000.0) == []
        assert (job(records, job_id).state, job(records, job_id).reason) == (JobState.FAILED, REASON)

    def test_a_study_without_ct_is_never_unanswered(self, records: Records) -> None:
        receive(records, instance(modality="MR"))
        (row,) = settle(records)
        records.decisions.decide(None, [(row, REASON)], 300.0)
        assert records.decisions.unanswered_studies(1000.0) == []


class TestJobs:
    def test_a_claim_is_a_lease(self, records: Records) -> None:
        job_id = queued_job(records)
        claimed = records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        assert claimed is not None and claimed == job(records, job_id)
        assert (claimed.state, claimed.lease_owner, claimed.lease_until) == (JobState.RUNNING, "w:1", 430.0)
        assert claimed.attempts == 1
        assert records.jobs.claim(job_id, "w:2", 430.0, 400.0) is None
        assert records.jobs.claim(job_id + 1, "w:2", 430.0, 400.0) is None

    def test_of_many_who_claim_one_job_one_gets_it(self, records: Records) -> None:
        other = Records(open_engine(records.engine.url.render_as_string(hide_password=False)))
        hands = [records, other]

        def claim(job_id: int, hand: int) -> Job | None:
            return hands[hand % 2].jobs.claim(job_id, f"w:{hand}", 1e9, 1.0)

        for number in range(1, 21):
            job_id = queued_job(records, number)
            won = at_once(6, partial(claim, job_id))
            owners = [claimed.lease_owner for claimed in won if claimed]
            assert len(owners) == 1
            assert job(records, job_id).lease_owner == owners[0]
            assert job(records, job_id).attempts == 1
        other.close()

    def test_only_the_owner_of_a_running_job_renews(self, records: Records) -> None:
        job_id = queued_job(records)
        assert not records.jobs.renew(job_id, "w:1", 500.0)
        records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        assert records.jobs.renew(job_id, "w:1", 500.0)
        assert not records.jobs.renew(job_id, "w:2", 999.0)
        assert job(records, job_id).lease_until == 500.0
        records.jobs.cancel(job_id)
        assert not records.jobs.renew(job_id, "w:1", 600.0)

    def test_a_lease_expires_unless_it_was_renewed_meanwhile(self, records: Records) -> None:
        job_id = queued_job(records)
        records.queue.rung(Ring(job_id, False), 350.0)
        seen = records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        assert seen
        records.jobs.renew(job_id, "w:1", 460.0)
        assert not records.jobs.expire(seen)
        assert records.jobs.expire(job(records, job_id))
        now = job(records, job_id)
        assert (now.state, now.lease_owner, now.lease_until, now.attempts) == (JobState.QUEUED, None, None, 1)
        assert ringing(records, 0.0) == [job_id]

    def test_who_lost_the_lease_can_store_nothing(self, records: Records) -> None:
        job_id = queued_job(records)
        records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        records.jobs.expire(job(records, job_id))
        records.jobs.claim(job_id, "w:2", 530.0, 500.0)
        assert not records.jobs.store_analysis(job_id, "w:1", findings(), "m", 510.0)
        assert not records.jobs.store_priority(job_id, "w:1", Priority.ROUTINE)
        assert not records.jobs.fail(job_id, REASON, "w:1")
        assert not records.jobs.put_back(job_id, "w:1", REASON)
        assert job(records, job_id).state is JobState.RUNNING
        assert records.jobs.store_analysis(job_id, "w:2", findings(), "m", 520.0)

    def test_an_analysis_is_stored_whole(self, records: Records) -> None:
        made = analysed_job(records)
        assert made.state is JobState.ANALYSED
        assert made.findings == findings()
        assert (made.maps_path, made.analysed_at) == ("results/m.npz", 500.0)

    def test_put_back_is_queued_with_its_reason_and_counts_as_an_attempt(self, records: Records) -> None:
        job_id = queued_job(records)
        records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        assert records.jobs.put_back(job_id, "w:1", Reason("TRANSIENT", "disk busy"))
        now = job(records, job_id)
        assert (now.state, now.attempts, now.lease_owner) == (JobState.QUEUED, 1, None)
        assert now.reason == Reason("TRANSIENT", "disk busy")
        again = records.jobs.claim(job_id, "w:1", 530.0, 500.0)
        assert again and again.attempts == 2

    def test_an_early_word_is_kept_through_a_lost_worker(self, records: Records) -> None:
        job_id = queued_job(records)
        records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        assert records.jobs.store_priority(job_id, "w:1", Priority.STAT)
        records.jobs.expire(job(records, job_id))
        assert next(j["priority"] for j in records.views.jobs() if j["id"] == job_id) == "STAT"

    @pytest.mark.parametrize("state", list(JobState))
    def test_fail(self, state: JobState, records: Records) -> None:
        job_id = queued_job(records)
        put_in_state(records, job_id, state)
        possible = state in (JobState.RUNNING, JobState.ANALYSED)
        assert records.jobs.fail(job_id, REASON) is possible
        assert job(records, job_id).state is (JobState.FAILED if possible else state)
        assert job(records, job_id).reason == (REASON if possible else None)

    @pytest.mark.parametrize("state", list(JobState))
    def test_cancel(self, state: JobState, records: Records) -> None:
        job_id = queued_job(records)
        put_in_state(records, job_id, state)
        if state in (JobState.QUEUED, JobState.RUNNING, JobState.ANALYSED):
            records.jobs.cancel(job_id)
            assert job(records, job_id).state is JobState.CANCELLED
            return
        with pytest.raises(IllegalTransition, match=state):
            records.jobs.cancel(job_id)
        assert job(records, job_id).state is state

    @pytest.mark.parametrize("state", list(JobState))
    def test_retry(self, state: JobState, records: Records) -> None:
        job_id = queued_job(records)
        records.jobs.claim(job_id, "w:1", 430.0, 400.0)
        records.queue.rung(Ring(job_id, False), 400.0)
        put_in_state(records, job_id, state)
        if state not in (JobState.FAILED, JobState.CANCELLED):
            with pytest.raises(IllegalTransition, match=state):
                records.jobs.retry(job_id)
            assert job(records, job_id).state is state
            return
        records.jobs.retry(job_id)
        now = job(records, job_id)
        assert (now.state, now.attempts, now.reason, now.lease_owner) == (JobState.QUEUED, 0, None, None)
        assert ringing(records, 0.0) == [job_id]

    def test_a_job_that_is_not_there_cannot_be_changed(self, records: Records) -> None:
        for change in (records.jobs.cancel, records.jobs.retry):
            with pytest.raises(IllegalTransition, match="no job 99"):
                change(99)
        assert records.jobs.get(99) is None

    def test_the_doorbell_rings_for_queued_jobs_alone_oldest_first(self, records: Records) -> None:
        ids = [queued_job(records, number) for number in range(1, 5)]
        records.jobs.claim(ids[1], "w:1", 1e9, 400.0)
        records.queue.rung(Ring(ids[0], False), 500.0)
        assert ringing(records, 400.0) == [ids[2], ids[3]]
        assert ringing(records, 500.1) == [ids[0], ids[2], ids[3]]

    def test_the_most_urgent_is_reported_first(self, records: Records) -> None:
        routine = analysed_job(records, 1, Priority.ROUTINE)
        failed = queued_job(records, 2)
        records.jobs.claim(failed, "w:1", 1e9, 400.0)
        records.jobs.fail(failed, REASON)
        stat = analysed_job(records, 3, Priority.STAT)
        order = [j.id for j in records.jobs.to_report()]
        assert order[0] == stat.id
        assert set(order) == {routine.id, failed, stat.id}

    def test_objects_deliveries_and_the_new_state_are_stored_together_and_once(
        self, records: Records
    ) -> None:
        made = analysed_job(records)
        new = [new_object(1), new_object(2, "sc")]
        due = [NewDelivery("2.25.1", "pacs", 0, True), NewDelivery("2.25.2", "pacs", 1, True)]
        assert records.jobs.store_objects(made, new, due, 600.0)
        assert not records.jobs.store_objects(made, new, due, 601.0)
        assert job(records, made.id).state is JobState.COMPOSED
        assert records.jobs.known_objects(made.id) == {o.sop_instance_uid: o for o in new}
        assert (count(records, objects), count(records, deliveries)) == (2, 2)
        assert records.jobs.to_report() == []

    def test_objects_of_a_job_that_was_cancelled_meanwhile_are_not_stored(self, records: Records) -> None:
        made = analysed_job(records)
        records.jobs.cancel(made.id)
        assert not records.jobs.store_objects(
            made, [new_object()], [NewDelivery("2.25.1", "p", 0, True)], 1.0
        )
        assert (count(records, objects), count(records, deliveries)) == (0, 0)

    def test_two_composers_store_one_set_of_objects(self, records: Records) -> None:
        made = analysed_job(records)
        due = [NewDelivery("2.25.1", "pacs", 0, True)]
        won = at_once(4, lambda _: records.jobs.store_objects(made, [new_object()], due, 600.0))
        assert sorted(won) == [False, False, False, True]
        assert (count(records, objects), count(records, deliveries)) == (1, 1)

    def test_objects_stored_before_a_retry_are_kept_beside_the_new_ones(self, records: Records) -> None:
        job_id = queued_job(records)
        records.jobs.claim(job_id, "w:1", 1e9, 400.0)
        records.jobs.fail(job_id, REASON, "w:1")
        (failed,) = records.jobs.to_report()
        assert records.jobs.store_objects(
            failed, [new_object(1)], [NewDelivery("2.25.1", "p", 0, False)], 1.0
        )
        assert records.jobs.to_report() == []
        assert job(records, job_id).state is JobState.FAILED
        records.jobs.retry(job_id)
        records.jobs.claim(job_id, "w:1", 1e9, 400.0)
        records.jobs.store_analysis(job_id, "w:1", findings(), "m", 500.0)
        (made,) = records.jobs.to_report()
        assert records.jobs.store_objects(made, [new_object(2)], [NewDelivery("2.25.2", "p", 0, True)], 600.0)
        assert set(records.jobs.known_objects(job_id)) == {"2.25.1", "2.25.2"}

    def test_the_predecessor_is_the_newest_made_before(self, records: Records) -> None:
        first = composed_job(records)
        records.deliveries.sent(1, "0x0000", 700.0)
        assert records.jobs.predecessor(first, "sr") == new_object(1)  # as a retry of the job finds it
        assert records.jobs.predecessor(replace(first, revision=0), "sr") is None
        later = replace(first, id=99, revision=3)
        assert records.jobs.predecessor(later, "sr") == new_object(1)
        assert records.jobs.predecessor(later, "seg") is None
        assert records.jobs.predecessor(replace(later, series_instance_uid="9"), "sr") is None

    def test_a_report_that_nobody_has_is_no_predecessor(self, records: Records) -> None:
        first = composed_job(records)
        later = replace(first, id=99, revision=3)
        assert records.jobs.predecessor(later, "sr") is None
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.sent(taken.id, "0x0000", 701.0)
        assert records.jobs.predecessor(later, "sr") == new_object(1)


class TestDeliveries:
    def due(self, records: Records, now: float = 700.0, limit: int = 100) -> list[str]:
        taken = records.deliveries.take_due("pacs", now, now + 90, limit)
        return [delivery.sop_instance_uid for delivery in taken]

    def only(self, records: Records) -> dict[str, Any]:
        (row,) = records.views.deliveries()
        return row

    def test_what_is_due_is_taken_once_until_its_lease_ends(self, records: Records) -> None:
        composed_job(records)
        assert self.due(records, 700.0) == ["2.25.1"]
        assert self.due(records, 789.0) == []
        assert self.due(records, 791.0) == ["2.25.1"]

    def test_a_lease_can_be_extended(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.extend([taken.id], 900.0)
        assert self.due(records, 850.0) == []

    def test_nothing_is_due_before_its_time_or_for_another_destination(self, records: Records) -> None:
        composed_job(records)
        assert self.due(records, 599.9) == []
        assert records.deliveries.take_due("viewer", 700.0, 790.0) == []

    def test_urgent_results_go_first_then_older_jobs_then_the_order_within_a_job(
        self, records: Records
    ) -> None:
        composed_job(records, 1)
        composed_job(records, 2, urgent=True)
        third = analysed_job(records, 3)
        new = [new_object(31, "sc"), new_object(30)]
        where = [NewDelivery("2.25.31", "pacs", 1, True), NewDelivery("2.25.30", "pacs", 0, True)]
        records.jobs.store_objects(third, new, where, 600.0)
        assert self.due(records) == ["2.25.2", "2.25.30", "2.25.31", "2.25.1"]

    def revised(self, records: Records, *outputs: str, now: float, urgent: bool = False) -> list[str]:
        """Another slice of the series of the first job came; returns the UIDs of what is made of that."""
        receive(records, instance(int(now), of="1.1.10", study="1.1"), now=now)
        (row,) = settle(records, "1.1", now)
        job_id = records.decisions.decide(row, [], now)
        assert job_id and records.jobs.claim(job_id, "w:1", 1e9, now)
        assert records.jobs.store_analysis(job_id, "w:1", findings(), "results/m.npz", now)
        new = [new_object(int(now) + index, output) for index, output in enumerate(outputs)]
        where = [NewDelivery(o.sop_instance_uid, "pacs", rank, urgent) for rank, o in enumerate(new)]
        assert records.jobs.store_objects(job(records, job_id), new, where, now)
        return [one.sop_instance_uid for one in new]

    def states(self, records: Records) -> dict[tuple[str, str], str]:
        """By SOP instance and destination."""
        rows = records.views.deliveries()
        return {(row["sop_instance_uid"], row["destination"]): row["state"] for row in rows}

    def test_what_a_newer_report_overtook_is_never_sent(self, records: Records) -> None:
        """It was refused for a while, say: an archive would show the older report as the latest."""
        first = composed_job(records, 1)
        composed_job(records, 2)
        for taken in records.deliveries.take_due("pacs", 700.0, 790.0):
            records.deliveries.failed(taken.id, "no room", "0xA700", 5000.0)
        report, picture = self.revised(records, "sr", "sc", now=900.0)
        assert self.due(records, 9e3) == [report, picture, "2.25.2"]
        assert self.states(records)["2.25.1", "pacs"] == "SUPERSEDED"
        assert records.deliveries.waiting(first.id) == 0
        with pytest.raises(IllegalTransition, match="SUPERSEDED"):
            records.deliveries.retry(1, 9e3)

    def test_what_was_given_up_and_overtaken_asks_nobody_to_try_again(self, records: Records) -> None:
        composed_job(records, 1)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.give_up(taken.id, "refused", "0xA900")
        report, *_ = self.revised(records, "sr", now=900.0)
        assert records.deliveries.retry_all("", 1000.0) == 0
        assert self.due(records, 1000.0) == [report]

    def test_what_was_overtaken_on_its_way_and_taken_is_sent(self, records: Records) -> None:
        composed_job(records, 1)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        self.revised(records, "sr", now=701.0)
        assert not records.deliveries.failed(taken.id, "no room", "0xA700", 800.0)
        assert records.deliveries.sent(taken.id, "0x0000", 702.0)
        assert self.states(records)["2.25.1", "pacs"] == "SENT"

    def test_what_was_sent_stays_sent_and_is_not_sent_anew_once_overtaken(self, records: Records) -> None:
        composed_job(records, 1)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.sent(taken.id, "0x0000", 701.0)
        report, *_ = self.revised(records, "sr", now=900.0)
        assert self.states(records)["2.25.1", "pacs"] == "SENT"
        assert records.commitments.refused(taken.id, "lost", "0x0112", 901.0)
        assert self.due(records, 1000.0) == [report]
        assert self.states(records)["2.25.1", "pacs"] == "SUPERSEDED"

    def test_who_gets_nothing_newer_gets_what_is_older(self, records: Records) -> None:
        composed_job(records, 1, destination="viewer")
        self.revised(records, "sr", now=900.0)
        (taken,) = records.deliveries.take_due("viewer", 1000.0, 1090.0)
        assert taken.sop_instance_uid == "2.25.1"

    def test_images_are_handed_on_whatever_is_reported_since(self, records: Records) -> None:
        first = analysed_job(records, 1)
        handed_on = NewDelivery("1.1.10.1", "pacs", SOURCE_RANK, False)
        records.jobs.store_objects(
            first,
            [new_object(1), replace(new_object(), sop_instance_uid="1.1.10.1", output=SOURCE)],
            [handed_on],
            600.0,
        )
        report, *_ = self.revised(records, "sr", now=900.0)
        assert self.due(records, 1000.0) == [report, "1.1.10.1"]

    def again(self, records: Records, job_id: int, objects: list[NewObject], now: float) -> None:
        """The job analysed again, with these results for the destination."""
        records.jobs.reanalyse(job_id)
        assert records.jobs.claim(job_id, "w:1", 1e9, now)
        assert records.jobs.store_analysis(job_id, "w:1", findings(), "results/m.npz", now)
        where = [NewDelivery(o.sop_instance_uid, "pacs", rank, False) for rank, o in enumerate(objects)]
        assert records.jobs.store_objects(job(records, job_id), objects, where, now)

    def test_of_a_result_that_is_composed_again_every_object_goes(self, records: Records) -> None:
        """Some were made the first time, and the report refers to them."""
        first = composed_job(records, 1)
        self.again(records, first.id, [new_object(1), new_object(2, "sc")], 900.0)
        assert self.due(records, 1000.0) == ["2.25.1", "2.25.2"]

    def test_another_result_of_the_same_images_overtakes_the_one_before(self, records: Records) -> None:
        first = composed_job(records, 1)
        self.again(records, first.id, [new_object(2)], 900.0)
        assert self.due(records, 1000.0) == ["2.25.2"]

    def test_what_was_overtaken_and_is_composed_again_goes_after_all(self, records: Records) -> None:
        first = composed_job(records, 1)
        self.again(records, first.id, [new_object(2)], 900.0)
        self.again(records, first.id, [new_object(1)], 950.0)
        assert self.due(records, 1000.0) == ["2.25.1"]

    def test_two_couriers_never_take_the_same_row(self, records: Records) -> None:
        for number in range(1, 31):
            composed_job(records, number)
        taken: list[str] = []
        for _ in range(15):
            for batch in at_once(4, lambda _: self.due(records, 700.0, limit=1)):
                taken += batch
        rest = self.due(records)
        assert sorted(taken + rest) == sorted(f"2.25.{number}" for number in range(1, 31))

    def test_a_sent_delivery_is_never_due_again(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        assert records.deliveries.waiting(taken.job_id) == 1
        assert records.deliveries.sent(taken.id, "0x0000", 701.0)
        assert not records.deliveries.sent(taken.id, "0x0000", 702.0)
        assert not records.deliveries.failed(taken.id, "late", "", 703.0)
        assert not records.deliveries.give_up(taken.id, "late", "")
        assert self.due(records, 9e9) == []
        assert records.deliveries.waiting(taken.job_id) == 0
        row = self.only(records)
        assert (row["state"], row["sent_at"], row["last_status"]) == (DeliveryState.SENT, 701.0, "0x0000")

    def test_a_failed_attempt_is_due_again_at_its_time(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        assert records.deliveries.failed(taken.id, "refused", "0xA700", 750.0)
        assert self.due(records, 749.0) == []
        (again,) = records.deliveries.take_due("pacs", 750.0, 850.0)
        assert again.attempts == 1
        row = self.only(records)
        assert (row["last_error"], row["last_status"]) == ("refused", "0xA700")

    def test_what_is_given_up_comes_back_only_by_an_admin(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        assert records.deliveries.give_up(taken.id, "gone", "")
        assert self.due(records, 9e9) == []
        records.deliveries.retry(taken.id, 1000.0)
        (again,) = records.deliveries.take_due("pacs", 1000.0, 1090.0)
        assert again.created_at == 1000.0  # its time to be given up begins anew

    def test_retry_brings_a_waiting_delivery_forward(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.failed(taken.id, "down", "", 5000.0)
        records.deliveries.retry(taken.id, 800.0)
        assert self.due(records, 800.0) == ["2.25.1"]

    def test_retry_is_refused_for_what_was_sent_and_for_what_is_not_there(self, records: Records) -> None:
        composed_job(records)
        (taken,) = records.deliveries.take_due("pacs", 700.0, 790.0)
        records.deliveries.sent(taken.id, "0x0000", 701.0)
        with pytest.raises(IllegalTransition, match="SENT"):
            records.deliveries.retry(taken.id, 800.0)
        with pytest.raises(IllegalTransition, match="no delivery 99"):
            records.deliveries.retry(99, 800.0)
