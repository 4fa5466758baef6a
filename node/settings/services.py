"""What the node runs on: database, broker and model."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from node.settings.base import Section

DATABASES = ("postgresql+psycopg://", "sqlite:///")


class Database(Section):
    url: str = ""
    """Empty: SQLite in data_dir."""

    @field_validator("url")
    @classmethod
    def _is_spoken(cls, url: str) -> str:
        """Without a word of what was given: it may hold a password."""
        try:
            known = not url or (url.startswith(DATABASES) and urlsplit(url).port != 0)
        except ValueError:  # a port that is no number
            known = False
        if not known:
            raise ValueError(
                "write postgresql+psycopg://user:password@host:5432/database, with special characters of the "
                "password as %40 and the like; or leave it empty for SQLite in data_dir"
            )
        return url


class Broker(Section):
    url: str = ""
    """Empty: a Redis of the node's own; `redis://…`, `rediss://…`, or `sentinel://host:26379;sentinel://…`."""
    master_name: str = ""
    """With sentinel:// the name under which the Sentinels watch the Redis."""

    @field_validator("url")
    @classmethod
    def _speaks_redis(cls, url: str) -> str:
        parts = url.split(";") if url else []
        schemes = {part.partition("://")[0] for part in parts}
        if not schemes <= {"redis", "rediss", "sentinel"} or len(schemes) > 1:
            raise ValueError("write redis://host:port/0, or sentinel://host:26379;sentinel://host:26379")
        if len(parts) > 1 and schemes != {"sentinel"}:
            raise ValueError("only sentinel:// knows several hosts")
        try:
            ports = [urlsplit(part).port for part in parts]
        except ValueError:  # without a word of what was given: it may hold a password
            ports = [0]
        if 0 in ports:
            raise ValueError(
                "the port is no number from 1 to 65535; write redis://host:port/0, with special characters "
                "of the password as %40 and the like"
            )
        return url

    @model_validator(mode="after")
    def _names_its_master(self) -> Broker:
        if self.url.startswith("sentinel://") != bool(self.master_name):
            raise ValueError("sentinel:// and broker.master_name go together: give both, or neither")
        return self


class Model(Section):
    pipeline: str = "default"
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the networks' convolutions; auto: bfloat16 on a GPU that computes in it, float32 elsewhere."""
    compile: bool = False
    """Through torch.compile: a slower start, faster networks; where it fails they run as they are."""
    max_attempts: int = Field(3, ge=1)
    """A series that takes the worker down this often is given up and reported as not analysed."""
    timeout_s: float = Field(1800, gt=0)
    """A worker that hangs in one series for longer is killed, which counts as an attempt."""
