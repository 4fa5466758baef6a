"""Opens the database and brings its schema up to date. Runs no query of the node's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from node.domain.errors import PermanentError, TransientError
from node.store.tables import metadata

SCHEMA_REVISION = "0001"
"""The newest migration; a test holds it against the migrations themselves."""

BUSY_TIMEOUT_S = 30
_VERSION_COLUMN = "version_num VARCHAR(32) NOT NULL PRIMARY KEY"  # as alembic makes it


def open_engine(url: str) -> Engine:
    """An engine for `url`; SQLite runs in WAL mode with every commit synced to disk."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's documented way to own BEGIN
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


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
    except OperationalError as error:
        raise TransientError(f"database: {error.orig}") from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent look that blocks no writer. Raises TransientError as `writing` does."""
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(reads_only=True)
            with connection.begin():
                yield connection
    except OperationalError as error:
        raise TransientError(f"database: {error.orig}") from error


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key exists. Returns True when it was inserted."""
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return connection.execute(build(table).values(**values).on_conflict_do_nothing()).rowcount == 1


def schema_revision(engine: Engine) -> str | None:
    """The migration the database stands at; None for an empty one."""
    try:
        with reading(engine) as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DBAPIError as error:
        raise PermanentError("DATABASE", f"database {engine.url!r} cannot be read: {error.orig}") from error


def migrate(engine: Engine) -> None:
    """Bring the schema to SCHEMA_REVISION; costs one look where nothing is to be done."""
    revision = schema_revision(engine)
    if revision == SCHEMA_REVISION:
        return
    if revision is None:
        _create(engine)
        return
    _upgrade(engine)


def _create(engine: Engine) -> None:
    """An empty database gets today's tables and is stamped, without going through its history."""
    with writing(engine) as connection:
        metadata.create_all(connection)
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS alembic_version ({_VERSION_COLUMN})"))
        if connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 0:
            connection.execute(text("INSERT INTO alembic_version VALUES (:at)"), {"at": SCHEMA_REVISION})


def _upgrade(engine: Engine) -> None:
    from alembic import command  # slow to import, and seldom needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
