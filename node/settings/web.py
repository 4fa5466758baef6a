"""The console: where it listens and who may log in."""

from __future__ import annotations

import re
import socket
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from node.settings.base import NetworkText, Port, Section, Tls

EVERYWHERE = frozenset({"0.0.0.0", "::"})
"""Addresses on which one listens, and that nobody can open."""


class Proxy(Section):
    """A proxy that logs people in and says in a header who they are; believed from these addresses alone."""

    user_header: str = ""
    """For example X-Remote-User; empty: no proxy is believed."""
    addresses: tuple[NetworkText, ...] = ("127.0.0.1", "::1")
    role: Literal["viewer", "admin"] = "viewer"
    """Of people whom `ichnode users` does not know."""


class Web(Section):
    """The console. On another address than loopback it starts only once somebody can log in."""

    host: str = "127.0.0.1"
    port: Port = Field(8080, ge=1, le=65535)
    addresses: tuple[NetworkText, ...] = ()
    """Empty: from anywhere; else only from these addresses and networks. Behind a proxy: the proxy's."""
    tls: Tls = Tls()
    time_zone: str = ""
    """Of the times shown, and of those in results, as in Europe/Berlin; empty: the machine's own."""
    session_h: float = Field(12, gt=0, le=168)
    """A login lasts this long."""
    proxy: Proxy = Proxy()
    url: str = ""
    """Where people reach the console, for links in alerts; empty: as `host` and `port` say, by this machine's
    name where it listens on every address."""

    @field_validator("tls")
    @classmethod
    def _asks_for_no_certificate(cls, tls: Tls) -> Tls:
        if tls.ca:
            raise ValueError("the console asks browsers for no certificate: leave web.tls.ca empty")
        return tls

    @field_validator("url")
    @classmethod
    def _can_be_opened(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise ValueError(f"{url!r} is no address of a console: write https://host/path")
        return url.rstrip("/")

    @property
    def address(self) -> str:
        """The root of links to the console."""
        scheme = "https" if self.tls.cert else "http"
        host = socket.gethostname() if self.host in EVERYWHERE else self.host
        host = f"[{host}]" if ":" in host else host
        return self.url or f"{scheme}://{host}:{self.port}"

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, name: str) -> str:
        try:
            return ZoneInfo(name).key if name else ""
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone is called {name!r}: write one as in Europe/Berlin") from None
