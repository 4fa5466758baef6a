"""Opens the database and brings its schema up to date. Runs no query of the node's own."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, Pool

from node.domain.errors import PermanentError, TransientError
from node.store.tables import metadata

SCHEMA_REVISION = "0029"
"""The newest migration; a test holds it against the migrations themselves."""

BUSY_TIMEOUT_S = 30
SWIFT_CONNECTIONS = 8
"""Of a listener process to a database server, for what runs for every image."""
SILENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Of a connection to PostgreSQL (libpq's names; in s, the last one in ms): a machine that vanished is
away after half a minute. Linux alone would wait for it for 15 minutes to 2 hours. A slow answer ends nothing.
"""
_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
_MIGRATION_LOCK = 0x69636E6F6465  # "icnode"; any number that nobody else takes
_VERSION_COLUMN = "version_num VARCHAR(32) NOT NULL PRIMARY KEY"  # as alembic makes it


def open_engine(
    url: str, synchronous: str = "FULL", patience_s: float | None = None, pool: type[Pool] | None = None
) -> Engine:
    """An engine for `url`; SQLite runs in WAL mode, and syncs every commit to disk unless told otherwise."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, connect_args=_patience(parsed))
    if parsed.database:
        _make_folder(Path(parsed.database).parent)
    patience_s = BUSY_TIMEOUT_S if patience_s is None else patience_s
    engine = create_engine(url, connect_args={"timeout": patience_s}, poolclass=pool)
    event.listen(engine, "connect", lambda made, _: _prepare_sqlite(made, synchronous))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _patience(url: URL) -> dict[str, int]:
    """What is to be said of SILENCE: all that the URL says nothing of."""
    if url.get_backend_name() != "postgresql":
        return {}
    return {name: value for name, value in SILENCE.items() if name not in url.query}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        user = os.geteuid()
        text = f"the folder {folder} for the database cannot be made by user {user}: {error.strerror}"
        raise PermanentError("DATABASE", f"{text}; make it, or name another as data_dir") from error


def swift_engine(engine: Engine) -> Engine:
    """For what runs for every image (`Swift`): connections in no transaction unless one is begun.

    SQLite keeps a commit through `kill -9` and syncs it later: it can be found again after a power cut.
    Another database may lose its power alone, and syncs as it does. Nor does SQLite wait for a lock in these
    connections: it would sleep for 1 to 100 ms, for what takes a tenth of one (`Swift` does). A database in
    memory has but one connection: there it is the engine itself.
    """
    url = engine.url.render_as_string(hide_password=False)
    if engine.url.get_backend_name() != "sqlite":
        more = {"pool_size": 1, "max_overflow": SWIFT_CONNECTIONS - 1, "pool_pre_ping": True}
        return create_engine(url, isolation_level="AUTOCOMMIT", connect_args=_patience(engine.url), **more)
    if engine.url.database in (None, "", ":memory:"):
        return engine
    return open_engine(url, "NORMAL", 0.0, NullPool)


def _prepare_sqlite(connection: sqlite3.Connection, synchronous: str) -> None:
    connection.isolation_level = None  # SQLAlchemy's documented way to own BEGIN
    _use_wal(connection)
    for pragma in (f"synchronous = {synchronous}", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for the lock that this change needs, so that roles starting at once collide."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock at once, so that none fails half-way with a busy snapshot."""
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction. Raises TransientError when the database is locked or away."""
    try:
        with engine.begin() as connection:
            yield connection
    except _AWAY as error:
        raise away(error) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent look that blocks no writer. Raises TransientError as `writing` does."""
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(reads_only=True)
            with connection.begin():
                yield connection
    except _AWAY as error:
        raise away(error) from error


def away(error: Exception) -> TransientError:
    """In words, with the next step: the last line of a driver tells nobody what to look at."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    return TransientError(f"database: {text}; is it running, has its disk room, is database.url right?")


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key exists. Returns True when it was inserted."""
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")  # only the one in use
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    # SQLAlchemy forgets the row count of an INSERT unless it is told to keep it
    return connection.execute(statement.execution_options(preserve_rowcount=True)).rowcount == 1


def schema_revision(engine: Engine) -> str | None:
    """The migration the database stands at; None for an empty one."""
    try:
        with reading(engine) as connection:
            return _revision(connection)
    except DBAPIError as error:
        raise PermanentError("DATABASE", f"database {engine.url!r} cannot be read: {error.orig}") from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def migrate(engine: Engine) -> None:
    """Bring the schema to SCHEMA_REVISION; costs one look where nothing is to be done.

    Raises PermanentError for a database that a newer version of the node made.
    """
    if schema_revision(engine) == SCHEMA_REVISION:
        return
    with writing(engine) as connection:
        _lock_others_out(connection)
        revision = _revision(connection)  # another process may have been quicker
        if revision == SCHEMA_REVISION:
            return
        if revision is None:
            _create(connection)
        else:
            _upgrade(connection, revision)


def _lock_others_out(connection: Connection) -> None:
    """Until the end of the transaction. SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def _create(connection: Connection) -> None:
    """An empty database gets today's tables and is stamped, without going through its history."""
    metadata.create_all(connection)
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS alembic_version ({_VERSION_COLUMN})"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:at)"), {"at": SCHEMA_REVISION})


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command  # slow to import, and seldom needed
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        known = f"the database stands at migration {revision}, this version knows {SCHEMA_REVISION}"
        raise PermanentError("DATABASE", f"{known}: {error}; install the version that made it") from error
