"""What the processes of a node under test are."""

from __future__ import annotations

import contextlib

import psutil


def role_of(process: psutil.Process) -> str:
    """The subcommand that a process of the node runs as ("listen" of `python -P -m node listen …`), or ""."""
    with contextlib.suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        for at, word in enumerate(words[:-2]):
            if (word, words[at + 1]) == ("-m", "node"):
                return words[at + 2]
    return ""
