"""Sessions with web services as the settings want them: their authorities, their certificate, their secrets.

Whatever the environment says of proxies' certificates does not count; retries nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from node.credentials import client_tls
from node.settings.base import PeerTls


class Session(requests.Session):
    """Calls `moved` now and then while a body goes out, where that goes in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Callable[[], object] = lambda: None

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if isinstance(request.body, Iterator):
            request.body = self._watched(request.body)
        return super().send(request, **kwargs)

    def _watched(self, pieces: Iterator[bytes]) -> Any:
        for piece in pieces:
            self.moved()
            yield piece


def session(tls: PeerTls, owner: str) -> Session:
    """A session over TLS as `owner` wants it. Raises SettingsError for certificates that cannot be used."""
    made = Session()
    made.mount("https://", _Adapter(client_tls(tls, owner)))
    return made


def unreachable(name: str, error: Exception) -> str:
    """`name` cannot be reached, why, and what to look at; the reason lies some exceptions deep."""
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    words = "".join(c for c in f"{type(cause).__name__}: {cause}"[:120] if c.isprintable())
    why = getattr(cause, "strerror", None) or words
    return f"{name} cannot be reached ({why}); is it running, and are host and port of its url right?"


def patience_s(answer: requests.Response) -> float:
    """Retry-After in seconds (RFC 9110 10.2.3); 0 without one that can be read, or where it is past.

    A date is one of the peer's clock, which may be wrong: Date says what time it has (RFC 9110 6.6.1).
    """
    said = answer.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said)
    until, now = _date(said), _date(answer.headers.get("Date", ""))
    return max((until - (now or datetime.now(UTC))).total_seconds(), 0.0) if until else 0.0


def _date(text: str) -> datetime | None:
    """An HTTP-date (RFC 9110 5.6.7), which is in UTC whatever it says."""
    try:
        return parsedate_to_datetime(text).replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


class Bearer(requests.auth.AuthBase):
    """An Authorization header (RFC 6750), whatever ~/.netrc says."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Adapter(HTTPAdapter):
    """TLS as for DICOM associations: the same authorities, the same certificate, 1.2 or newer."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if not self._context.check_hostname:
            kwargs["assert_hostname"] = False
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Whatever REQUESTS_CA_BUNDLE says in the environment: the settings decide."""
        return super().send(request, *args, **{**kwargs, "verify": True, "cert": None})

    def cert_verify(self, *_: Any) -> None:
        """The context says whom to trust; requests would add the authorities of its own list."""
