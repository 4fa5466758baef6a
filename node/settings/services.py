"""What the node runs on: database, broker and model."""

from __future__ import annotations

from pydantic import Field

from node.settings.base import Section


class Database(Section):
    url: str = ""
    """Empty: SQLite in data_dir."""


class Broker(Section):
    url: str = ""
    """Empty: a Redis of the node's own."""


class Model(Section):
    pipeline: str = "default"
    device: str = "auto"
    max_attempts: int = Field(3, ge=1)
    """A series that takes the worker down this often is given up and reported as not analysed."""
    timeout_s: float = Field(1800, gt=0)
    """A worker that hangs in one series for longer is killed, which counts as an attempt."""
