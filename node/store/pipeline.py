"""Look-ups that PostgreSQL answers while something else is done, in libpq's pipeline mode. Decides nothing.

All go over one connection, and answers come in order: whoever wants one reads those before it, too. So nobody
keeps a connection while a peer sends slowly. Where it is lost nothing is answered, and nothing is raised:
whoever asked looks in the usual way (`node.store.swift`), which tells what is wrong.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from node.domain.errors import TransientError

MOST_OPEN = 64
"""Look-ups asked and not answered: peers that go away leave theirs behind."""
AGAIN_S = 10.0
"""Between attempts to connect."""
_NAME = b"lookup"


class Lookup:
    """What was asked. `value` is the answer as libpq gives it, None where there is none."""

    value: bytes | None = None
    is_over = False
    is_lost = False
    """Its connection was cut off, and others to that server were, too."""


class Pipeline:
    """A SELECT of one row with one column, by one text. Any thread may use it."""

    def __init__(self, connect: Callable[[], psycopg.Connection], text: str) -> None:
        """`connect` gives a connection that is in no transaction; it raises TransientError."""
        self._connect, self._text = connect, text.encode()
        self._lock = Lock()
        self._connection: psycopg.Connection | None = None
        self._readable = select.poll()
        self._asked: deque[Lookup] = deque()
        self._not_before = 0.0

    def open(self) -> None:
        """Where it is not. To be called when the database was just seen to answer: here nobody is told."""
        if self._connection is not None or time.monotonic() < self._not_before:
            return
        with self._lock, suppress(TransientError, psycopg.Error):
            if self._connection is None:
                self._not_before = time.monotonic() + AGAIN_S
                connection = self._connect()
                connection.pgconn.prepare(_NAME, self._text)
                connection.pgconn.enter_pipeline_mode()
                self._readable = select.poll()
                self._readable.register(connection.pgconn.socket, select.POLLIN)
                self._connection = connection

    def ask(self, value: str) -> Lookup:
        """Waits for nothing. `value` is ASCII without NUL."""
        lookup = Lookup()
        with self._lock:
            if len(self._asked) >= MOST_OPEN:
                self._read_until(self._asked[0])
            self._asked.append(lookup)
            try:
                if self._connection is None:
                    raise psycopg.OperationalError("it is not open")
                self._connection.pgconn.send_query_prepared(_NAME, [value.encode()])
                self._connection.pgconn.pipeline_sync()
            except psycopg.Error:
                self._lose()
        return lookup

    def answer(self, lookup: Lookup) -> bytes | None:
        """Waits for it. None where the connection is lost, or the server does not do what it is told."""
        with self._lock:
            self._read_until(lookup)
        return lookup.value

    def close(self) -> None:
        with self._lock:
            self._lose()

    def _read_until(self, lookup: Lookup) -> None:
        try:
            while not lookup.is_over:
                self._read_one(self._asked[0])
                self._asked.popleft().is_over = True
        except psycopg.Error:
            self._lose()

    def _read_one(self, lookup: Lookup) -> None:
        """A result, an end of results, an end of a transaction. Raises psycopg.Error for anything else."""
        found, nothing, end = self._result(), self._result(), self._result()
        if found is None or nothing is not None or end is None or end.status != ExecStatus.PIPELINE_SYNC:
            raise psycopg.OperationalError("answers are out of step")
        if found.status == ExecStatus.TUPLES_OK:
            lookup.value = found.get_value(0, 0)

    def _result(self) -> PGresult | None:
        if self._connection is None:
            raise psycopg.OperationalError("it is not open")
        pgconn = self._connection.pgconn
        while pgconn.is_busy():
            self._readable.poll()
            pgconn.consume_input()
        return pgconn.get_result()

    def _lose(self) -> None:
        while self._asked:
            lookup = self._asked.popleft()
            lookup.is_over, lookup.is_lost = True, self._connection is not None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
