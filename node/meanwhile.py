"""Something done again and again in a thread, while a block of code runs. Contains no error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meanwhile(name: str, pause_s: Callable[[], float], deed: Callable[[], object]) -> Iterator[None]:
    """Does the `deed` after each pause, of as many seconds as are told then, in a thread of that name."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause_s()):
            deed()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
