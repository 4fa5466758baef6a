"""The database and the broker go away and come back, for real: nothing is lost, nothing promised."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import redis
from sqlalchemy import make_url, text

from node import visits
from node.broker import Doorbell, socket_path
from node.domain.errors import TransientError
from node.domain.lifecycle import JobState
from node.liveness import process_name
from node.recorder import Recorder
from node.settings import Completeness, Settings
from node.settle import RING_AGAIN_S, Clock
from node.spool import Spool
from node.store import engine as store_engine
from node.store.records import Records, open_records
from tests.factories import ct_series
from tests.faraway import PORT, FarAway
from tests.integration.test_housekeeping import NO_ROOM, SUCCESS, Place
from tests.postgres import Postgres
from tests.unit.test_broker import Redis, folder, server
from workers import tasks

__all__ = ["folder", "server"]  # fixtures


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that may be stopped without hurting other tests."""
    made = Postgres()
    yield made
    made.stop()


class TestTheDatabasesMachineVanishes:
    """It lost its power, or its cable: nobody says a word, and no connection is ended."""

    @pytest.fixture
    def far(self, postgres: Postgres) -> Iterator[FarAway]:
        made = FarAway(postgres.socket)
        yield made
        made.stop()

    @pytest.fixture
    def url(self, postgres: Postgres, far: FarAway) -> str:
        return str(make_url(postgres.create()).set(host=far.address, port=PORT).render_as_string(False))

    def test_a_query_that_waits_for_its_answer_is_told(
        self, far: FarAway, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        soon = {"keepalives_idle": 1, "keepalives_interval": 1, "tcp_user_timeout": 3000}
        monkeypatch.setattr(store_engine, "SILENCE", {**store_engine.SILENCE, **soon})
        engine = store_engine.open_engine(url)
        with pytest.raises(TransientError, match="database"), store_engine.reading(engine) as connection:
            Timer(0.5, far.vanish).start()
            connection.execute(text("SELECT pg_sleep(20)"))
            pytest.fail("it waited all the while")
        engine.dispose()

    def test_so_is_one_that_is_sent_to_nobody(
        self, far: FarAway, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            store_engine, "SILENCE", {**store_engine.SILENCE, "connect_timeout": 2, "tcp_user_timeout": 2000}
        )
        engine = store_engine.open_engine(url)
        assert store_engine.schema_revision(engine) is None
        far.vanish()
        began = time.monotonic()
        with pytest.raises(TransientError, match="database"):
            store_engine.schema_revision(engine)
        assert time.monotonic() - began < 15
        engine.dispose()

    def test_that_it_is_answered_slowly_ends_nothing(
        self, far: FarAway, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        soon = {"keepalives_idle": 1, "keepalives_interval": 1, "tcp_user_timeout": 1000}
        monkeypatch.setattr(store_engine, "SILENCE", {**store_engine.SILENCE, **soon})
        engine = store_engine.open_engine(url)
        with store_engine.reading(engine) as connection:
            connection.execute(text("SELECT pg_sleep(4)"))
        engine.dispose()

    def test_an_image_whose_look_up_was_under_way_is_told(
        self, far: FarAway, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        soon = {
            "connect_timeout": 2,
            "keepalives_idle": 1,
            "keepalives_interval": 1,
            "tcp_user_timeout": 3000,
        }
        monkeypatch.setattr(store_engine, "SILENCE", {**store_engine.SILENCE, **soon})
        engine = store_engine.open_engine(url)
        store_engine.migrate(engine)
        records = Records(engine)
        for _ in range(2):  # the second one is asked ahead
            assert records.arrivals.inquire("2.25.1")().file is None
        far.vanish()
        began = time.monotonic()
        with pytest.raises(TransientError, match="database"):
            records.arrivals.inquire("2.25.2")()
        assert time.monotonic() - began < 12
        records.close()

    def test_an_administrator_says_otherwise_in_the_url(self, postgres: Postgres) -> None:
        engine = store_engine.open_engine(f"{postgres.create()}?keepalives_idle=77&connect_timeout=5")
        for made in (engine, store_engine.swift_engine(engine)):
            with made.connect() as connection:
                said = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
            assert (said["keepalives_idle"], said["connect_timeout"]) == ("77", "5")
            assert said["tcp_user_timeout"] == str(store_engine.SILENCE["tcp_user_timeout"])
            made.dispose()


def test_postgresql_restarted_in_the_middle_of_a_study(own_postgres: Postgres, tmp_path: Path) -> None:
    url = own_postgres.create()
    engine = store_engine.open_engine(url)
    store_engine.migrate(engine)
    (tmp_path / "spool").mkdir()
    place = Place(Records(engine), Spool(tmp_path / "spool"))
    series = ct_series(3, rows=16, name="restart")
    assert place.receive(series[0]) == SUCCESS
    own_postgres.halt()
    assert place.receive(series[1]) == NO_ROOM, "no Success while nothing can be recorded"
    assert place.receive(series[0]) == NO_ROOM
    own_postgres.start()
    assert [place.receive(ds) for ds in series] == [SUCCESS] * 3
    assert sorted(place.recorded()) == place.files() and len(place.files()) == 3
    place.records.close()


@pytest.mark.parametrize("trouble", ["locked", "read-only"])
def test_sqlite_that_cannot_be_written_refuses_and_leaves_no_file(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_engine, "BUSY_TIMEOUT_S", 0.1)
    settings = Settings(data_dir=tmp_path)
    place = Place(open_records(settings), Spool(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    (ds,) = ct_series(1, rows=16, name="a")
    if trouble == "locked":
        other = sqlite3.connect(tmp_path / "ichnode.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        place.records.close()
        url = f"sqlite:///file:{tmp_path}/ichnode.sqlite3?mode=ro&uri=true"
        place.records = Records(store_engine.create_engine(url))
    assert place.receive(ds) == NO_ROOM
    assert place.files() == []
    if trouble == "locked":
        other.execute("ROLLBACK")
        other.close()
    else:
        place.records.close()
        place.records = open_records(settings)
    assert place.receive(ds) == SUCCESS
    place.records.close()


@pytest.mark.parametrize("step", ["part", "rename"])
@pytest.mark.parametrize("trouble", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_volume_that_takes_no_file_refuses_and_leaves_none(
    step: str, trouble: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(open_records(Settings(data_dir=tmp_path)), Spool(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    (ds,) = ct_series(1, rows=16, name="a")

    def refuses(*_: object) -> None:
        raise OSError(trouble, os.strerror(trouble))

    with monkeypatch.context() as patched:
        patched.setattr(place.spool, step, refuses)
        assert place.receive(ds) == NO_ROOM, "worth repeating"
    assert place.files() == []
    assert place.receive(ds) == SUCCESS
    place.records.close()


def test_the_end_of_an_association_is_recorded_once_the_database_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its series would be taken for one that is still being sent, and wait for `max_wait_s`."""
    monkeypatch.setattr(visits, "AGAIN_S", 0.01)
    records, tries = open_records(Settings(data_dir=tmp_path)), 0
    ended, really = threading.Event(), records.arrivals.close_association

    def close(*told: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise TransientError("database: gone")
        really(*told)
        ended.set()

    visit = visits.Visit(records, Recorder(records.arrivals, 1), process_name(), "CT1", "10.0.0.1")
    assert visit.association_id()
    monkeypatch.setattr(records.arrivals, "close_association", close)
    visit.close(released=True)
    assert ended.wait(30)
    assert records.arrivals.open_listeners() == set() and tries == 3
    records.close()


def test_a_worker_says_in_a_line_that_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery would write a traceback for every job that rings."""

    class Away:
        def run(self, rung: int) -> None:
            raise TransientError("database: gone")

    monkeypatch.setattr(tasks, "_worker", Away())
    tasks.analyse_job(1)
    assert caplog.messages == ["no job is taken or finished now: database: gone"]


def test_a_broker_that_was_flushed_or_restarted_is_rung_again(server: Redis) -> None:
    """The message is lost, the job is not: it is QUEUED in the database, and the clock rings once more."""
    settings = Settings(data_dir=server.settings.data_dir, completeness=Completeness(quiet_s=1, max_wait_s=5))
    records = open_records(settings)
    (settings.data_dir / "spool").mkdir()
    place = Place(records, Spool(settings.data_dir / "spool"))
    clock = Clock(settings, records, Doorbell(settings))
    place.study("a", slices=24)
    records.arrivals.close_association("a1", "released", place.now)
    now = place.now + 2
    clock.tick(now)
    assert len(server.messages()) == 1
    client = redis.Redis(unix_socket_path=str(socket_path(settings)))
    client.flushall()
    client.close()
    clock.tick(now + 1)
    assert server.messages() == [], "not yet: a worker may have taken it"
    clock.tick(now := now + RING_AGAIN_S + 1)
    assert len(server.messages()) == 1
    server.stop()
    for minute in range(3):  # away for minutes: every round goes on with the rest
        clock.tick(now + 60 * (minute + 1))
    (job,) = records.views.jobs()
    assert job["state"] == JobState.QUEUED
    server.start()
    clock.tick(now + 240)
    assert len(server.messages()) == 1
    records.close()
