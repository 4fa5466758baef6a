"""Statements that run for every image, compiled once and given to the database's driver as they are.

SQLAlchemy stays what writes them, opens the connections and finds the broken ones; what it does anew for
every execution costs some twenty times what SQLite needs to record an image. Decides nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.dialects.sqlite import dialect as _SqliteDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import ClauseElement

from node.store import engine

LOOK_AGAIN_S = 0.0002
MOST_IDLE = 16
"""Connections kept for the next image, where the engine keeps none itself."""
Row = Mapping[str, Any]
Outcome = TypeVar("Outcome")


class Refused(Exception):
    """The database holds something that contradicts the statement (a key that is there already)."""


@dataclass(frozen=True)
class _Compiled:
    text: str
    constants: Row
    """Values that were written into the statement itself."""


class Swift:
    """One for each Engine. Any thread may use it."""

    def __init__(self, made: Engine) -> None:
        self._engine = made
        self._is_sqlite = made.dialect.name == "sqlite"
        self._dialect = _SqliteDialect(paramstyle="named") if self._is_sqlite else made.dialect
        self._keeps = isinstance(made.pool, NullPool)
        self._idle: list[Any] = []
        self._compiled: dict[ClauseElement, _Compiled] = {}
        dbapi: Any = made.dialect.loaded_dbapi
        self._away = (dbapi.OperationalError, dbapi.InterfaceError, dbapi.InternalError)
        self._contradicted = (dbapi.IntegrityError,)

    def first(self, statement: ClauseElement, row: Row) -> Sequence[Any] | None:
        """The first row that a SELECT gives. Raises TransientError when the database is away."""
        compiled = self._text(statement)

        def look(cursor: Any) -> Sequence[Sequence[Any]]:
            self._execute(cursor, compiled.text, {**compiled.constants, **row})
            found: Sequence[Sequence[Any]] = cursor.fetchall()  # all, or the statement would stay open
            return found

        return next(iter(self._with_cursor(look)), None)

    def transaction(self, work: Callable[[Run], Outcome]) -> Outcome:
        """What `work` does with what it is given, all of it or nothing.

        Raises TransientError when the database is locked or away, Refused for a contradiction.
        """

        def write(cursor: Any) -> Outcome:
            if self._is_sqlite:  # as `engine.writing` does; other drivers begin by themselves
                self._execute(cursor, "BEGIN IMMEDIATE", {})
            found = work(Run(cursor, self._text))
            cursor.connection.commit()
            return found

        return self._with_cursor(write)

    def close(self) -> None:
        """Connections that nobody uses at the moment."""
        while self._idle:
            self._idle.pop().close()

    def _execute(self, cursor: Any, text: str, row: Row) -> None:
        """What needs a lock: another listener holds it for a moment, and these connections wait for none."""
        deadline = time.monotonic() + engine.BUSY_TIMEOUT_S
        while True:
            try:
                cursor.execute(text, row)
                return
            except self._away as error:
                is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_AGAIN_S)

    def _text(self, statement: ClauseElement) -> _Compiled:
        found = self._compiled.get(statement)
        if found is None:
            compiled = statement.compile(dialect=self._dialect)
            values = {name: _plain(value) for name, value in compiled.params.items()}
            found = self._compiled[statement] = _Compiled(str(compiled), values)
        return found

    def _with_cursor(self, work: Callable[[Any], Outcome]) -> Outcome:
        """Of a connection that is rolled back unless it was committed."""
        connection = self._connection()
        is_sound = False
        try:
            found = work(connection.cursor())
            is_sound = True
            return found
        except self._contradicted as error:
            raise Refused(str(error)) from error
        except self._away as error:
            connection.invalidate(error)  # it may be broken; a new one costs little
            raise engine.away(error) from error
        finally:
            if is_sound and self._keeps and len(self._idle) < MOST_IDLE:
                self._idle.append(connection)
            else:
                connection.close()

    def _connection(self) -> Any:
        with suppress(IndexError):
            return self._idle.pop()
        try:
            return self._engine.raw_connection()
        except (DBAPIError, PoolTimeoutError, *self._away) as error:
            raise engine.away(error) from error


@dataclass(frozen=True)
class Run:
    """Statements within one transaction."""

    cursor: Any
    text: Callable[[ClauseElement], _Compiled]

    def __call__(self, statement: ClauseElement, row: Row) -> int:
        """How many rows were hit."""
        compiled = self.text(statement)
        self.cursor.execute(compiled.text, {**compiled.constants, **row})
        count: int = self.cursor.rowcount
        return count

    def many(self, statement: ClauseElement, rows: Sequence[Row]) -> None:
        """The same statement for each of `rows`."""
        compiled = self.text(statement)
        self.cursor.executemany(compiled.text, [{**compiled.constants, **row} for row in rows])


def _plain(value: Any) -> Any:
    """A member of a StrEnum as the text that it is: not every driver takes it for one."""
    return str(value) if isinstance(value, str) else value
