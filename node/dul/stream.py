"""Bytes of one connection, read into one buffer that is used again and again. Knows no PDU.

What is handed out of the buffer is valid until more is read; `before_refill` is called just before.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BUFFER_BYTES = 264 * 1024
"""As much as stays in a core's cache while it is hashed and written. Twice that holds a CT image."""
_TIMEVAL = struct.Struct("@ll")
SLACK_S = 0.1
"""By so much a peer may be later than its deadline."""


class ConnectionOver(Exception):
    """The peer closed or reset the connection."""


class PeerTooSlow(Exception):
    """What was due did not come before `deadline`."""


class Stream:
    """A connection for reading and writing, with one deadline for whatever is waited for."""

    def __init__(self, connection: socket.socket, before_refill: Callable[[], None]) -> None:
        self._connection = connection
        self._before_refill = before_refill
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._limit_s = -1.0
        self._allowed_s = 0.0
        self.deadline = 0.0
        """Of time.monotonic()."""

    def allow(self, seconds: float) -> None:
        """A new deadline, so long after the next moment at which there is something to wait for."""
        self._allowed_s = seconds

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises ConnectionOver or PeerTooSlow."""
        start, end = self._start, self._start + count
        if end <= self._end:
            self._start = end
            return bytes(self._buffer[start:end])
        return b"".join(map(bytes, self._as_they_come(count)))

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next bytes, as `layout` says. Raises ConnectionOver or PeerTooSlow."""
        start, end = self._start, self._start + layout.size
        if end <= self._end:
            self._start = end
            return layout.unpack_from(self._buffer, start)
        return layout.unpack(self.read(layout.size))

    def await_some(self) -> None:
        """Until something lies in the buffer that was not read. Raises ConnectionOver or PeerTooSlow."""
        if self._start == self._end:
            self._refill()

    def window(self) -> tuple[memoryview, int, int]:
        """The buffer, and from where to where it holds what was not read yet."""
        return self._view, self._start, self._end

    def skip_to(self, at: int) -> None:
        """All before `at` of the `window` was read there."""
        self._start = at

    def pieces(self, count: int) -> Iterable[memoryview]:
        """`count` bytes as they come, without copying them."""
        start, end = self._start, self._start + count
        if end <= self._end:
            self._start = end
            return (self._view[start:end],)
        return self._as_they_come(count)

    def _as_they_come(self, count: int) -> Iterator[memoryview]:
        while count:
            if self._start == self._end:
                self._refill()
            start = self._start
            self._start = min(self._end, start + count)
            count -= self._start - start
            yield self._view[start : self._start]

    def send(self, data: bytes) -> None:
        """All of it before the deadline. Raises ConnectionOver or PeerTooSlow."""
        try:
            self._limit(self._left_s())
            self._connection.sendall(data)
        except (TimeoutError, BlockingIOError) as error:
            raise PeerTooSlow from error
        except OSError as error:
            raise ConnectionOver from error

    def discard(self, most_bytes: int) -> None:
        """Read on until `most_bytes` came. Raises ConnectionOver or PeerTooSlow, as is hoped for."""
        while most_bytes > 0:
            self._refill()
            most_bytes -= self._end

    def _refill(self) -> None:
        """The buffer is used up. Raises ConnectionOver or PeerTooSlow."""
        self._before_refill()
        self._start = self._end = 0
        try:
            self._limit(self._left_s())
            count = self._connection.recv_into(self._view)
        except (TimeoutError, BlockingIOError) as error:
            raise PeerTooSlow from error
        except OSError as error:
            raise ConnectionOver from error
        if not count:
            raise ConnectionOver
        self._end = count

    def _limit(self, left_s: float) -> None:
        """Of the next call. A limit that is about right stays: setting it costs a system call."""
        if left_s <= self._limit_s <= left_s + SLACK_S:
            return
        self._limit_s = left_s
        if isinstance(self._connection, ssl.SSLSocket) or self._connection.gettimeout() is not None:
            self._connection.settimeout(left_s)
            return
        seconds = int(left_s)  # by the kernel, socket(7): Python's own limit costs a poll before every call
        limit = _TIMEVAL.pack(seconds, max(int((left_s - seconds) * 1e6), 1))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _left_s(self) -> float:
        now = time.monotonic()
        if self._allowed_s:
            self.deadline, self._allowed_s = now + self._allowed_s, 0.0
        if (left_s := self.deadline - now) <= 0:
            raise PeerTooSlow
        return left_s
