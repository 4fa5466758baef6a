"""Statements that run for every image, compiled once and given to the database's driver as they are.

SQLAlchemy stays what writes them and opens the connections; what it does anew for every execution costs some
twenty times what SQLite needs to record an image. Decides nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, Insert
from sqlalchemy.dialects.sqlite import dialect as _SqliteDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql.expression import ClauseElement

from node.domain.errors import TransientError
from node.store import engine

if TYPE_CHECKING:
    from node.store.pipeline import Pipeline

LOOK_AGAIN_S = 0.0002
MOST_IDLE = 8
"""Connections kept for the next image."""
Row = Mapping[str, Any]
Outcome = TypeVar("Outcome")


class Refused(Exception):
    """The database holds something that contradicts the statement (a key that is there already)."""


@dataclass(frozen=True)
class _Compiled:
    text: str
    constants: Row
    """Values that were written into the statement itself."""


@dataclass(frozen=True)
class _Open:
    """A connection of the pool's, and a cursor on it that is used again and again."""

    connection: Any
    cursor: Any


class _CutOff(TransientError):
    """The connection is over, whether or not the database is."""


class Swift:
    """One for each Engine, with connections of its own. Any thread may use it."""

    def __init__(self, made: Engine) -> None:
        self._engine = engine.swift_engine(made)
        self._is_own = self._engine is not made
        self._is_sqlite = made.dialect.name == "sqlite"
        self._dialect = _SqliteDialect(paramstyle="named") if self._is_sqlite else made.dialect
        self._idle: list[_Open] = []
        self._compiled: dict[ClauseElement, _Compiled] = {}
        dbapi: Any = made.dialect.loaded_dbapi
        self._away = (dbapi.OperationalError, dbapi.InterfaceError, dbapi.InternalError)
        self._contradicted = (dbapi.IntegrityError,)

    def first(self, statement: ClauseElement, row: Row) -> Sequence[Any] | None:
        """The first row that a SELECT gives. Raises TransientError when the database is away."""
        compiled = self._text(statement)
        values = {**compiled.constants, **row} if compiled.constants else row

        def look(cursor: Any) -> Sequence[Any] | None:
            self._execute(cursor, compiled.text, values)
            found = cursor.fetchall()  # all, or the statement would stay open
            return found[0] if found else None

        return self._with_cursor(look)

    def transaction(self, work: Callable[[Run], Outcome]) -> Outcome:
        """What `work` does with what it is given, all of it or nothing; it may be called again.

        Raises TransientError when the database is locked or away, Refused for a contradiction.
        """

        def write(cursor: Any) -> Outcome:
            self._execute(cursor, "BEGIN IMMEDIATE" if self._is_sqlite else "BEGIN", {})
            found = work(Run(cursor, self._text, self._is_sqlite))
            cursor.connection.commit()
            return found

        return self._with_cursor(write)

    def pipeline(self, statement: ClauseElement) -> Pipeline | None:
        """For look-ups by one text, over one connection more; None without a server."""
        if self._is_sqlite:
            return None
        from sqlalchemy.dialects.postgresql import dialect as postgresql

        from node.store.pipeline import Pipeline

        text = str(statement.compile(dialect=postgresql(paramstyle="numeric_dollar")))
        return Pipeline(self._connection_apart, text)

    def close(self) -> None:
        """Connections that nobody uses at the moment."""
        self.drop_idle()
        if self._is_own:
            self._engine.dispose()

    def drop_idle(self) -> None:
        """Whoever comes next gets a new one."""
        with suppress(IndexError):
            while True:
                self._idle.pop().connection.close()

    def _execute(self, cursor: Any, text: str, row: Row) -> None:
        """What needs a lock: another listener holds it for a moment, and these connections wait for none."""
        deadline = 0.0
        while True:
            try:
                cursor.execute(text, row)
                return
            except self._away as error:
                is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                deadline = deadline or time.monotonic() + engine.BUSY_TIMEOUT_S
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
        """A connection that was kept may have been cut off while nobody looked: then on a new one."""
        try:
            kept = self._idle.pop()
        except IndexError:
            return self._use(self._connect(), work)
        try:
            return self._use(kept, work)
        except _CutOff:
            self.drop_idle()  # they were cut off with it
            return self._use(self._connect(), work)

    def _use(self, one: _Open, work: Callable[[Any], Outcome]) -> Outcome:
        """Kept for the next image where all went well; else given up, with what was not committed."""
        is_sound = False
        try:
            found = work(one.cursor)
            is_sound = True
            return found
        except Refused:
            is_sound = self._undo(one)
            raise
        except self._contradicted as error:
            is_sound = self._undo(one)
            raise Refused(str(error)) from error
        except self._away as error:
            is_over = getattr(one.connection.dbapi_connection, "closed", False)
            one.connection.invalidate(error)  # it may be broken; a new one costs little
            raise (_CutOff if is_over else TransientError)(str(engine.away(error))) from error
        finally:
            if is_sound and self._is_own and len(self._idle) < MOST_IDLE:
                self._idle.append(one)
            else:
                one.connection.close()

    def _undo(self, one: _Open) -> bool:
        """A connection that was opened anew would read the whole schema again, which takes a millisecond."""
        with suppress(*self._away):
            one.connection.rollback()
            return True
        return False

    def _connection_apart(self) -> Any:
        """The driver's, and no longer the pool's."""
        connection = self._connect().connection
        driver = connection.driver_connection
        connection.detach()
        return driver

    def _connect(self) -> _Open:
        try:
            connection = self._engine.raw_connection()
            return _Open(connection, connection.cursor())
        except (DBAPIError, PoolTimeoutError, *self._away) as error:
            raise engine.away(error) from error


@dataclass(frozen=True)
class Run:
    """Statements within one transaction."""

    cursor: Any
    text: Callable[[ClauseElement], _Compiled]
    is_sqlite: bool

    def __call__(self, statement: ClauseElement, row: Row) -> int:
        """How many rows were hit."""
        compiled = self.text(statement)
        self.cursor.execute(compiled.text, {**compiled.constants, **row})
        count: int = self.cursor.rowcount
        return count

    def many(self, statement: Insert, rows: Sequence[Row]) -> None:
        """An INSERT for each of `rows`, all of which name the same columns in the same order."""
        if self.is_sqlite:
            self.cursor.executemany(self.text(statement).text, rows)
            return
        columns = ", ".join(rows[0])
        with self.cursor.copy(f"COPY {statement.table.name} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(tuple(row.values()))


def _plain(value: Any) -> Any:
    """A member of a StrEnum as the text that it is: not every driver takes it for one."""
    return str(value) if isinstance(value, str) else value
