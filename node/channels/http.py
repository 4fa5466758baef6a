"""One HTTP request within a time limit, and its answer in terms of channels. Knows no message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import requests

from node import https
from node.channels.contract import Rejected
from node.domain.errors import TransientError

MOST_READ_BYTES = 256 * 1024
LONGEST_WORDS = 300
TRY_LATER = (408, 425, 429)
"""Request Timeout, Too Early, Too Many Requests (RFC 9110, 8470, 6585); 5xx count as well."""
CONFLICT = 409
"""Somebody else writes the same resource; only a peer of which that is known is asked again."""
HINTS = {
    401: "check the secret or token",
    403: "it must allow us to write",
    404: "check the url",
    405: "check the url",
    409: "somebody else writes the same",
    412: "it holds several of the same identifier, delete all but one",
    413: "raise the size that it takes",
    429: "it is asked again later",
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


def exchange(
    session: requests.Session,
    request: requests.Request,
    timeout_s: float,
    name: str,
    later: Sequence[int] = TRY_LATER,
) -> Answer:
    """The 2xx answer to a request. Follows no redirection: what is signed for one host is not for another.

    Raises TransientError when nobody answers in time or asks for patience (a status in `later`, with what
    Retry-After says), Rejected for other answers.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with session.send(
            session.prepare_request(request), timeout=timeout_s, stream=True, allow_redirects=False
        ) as response:
            answer = Answer(response.status_code, _read(response, deadline))
            reason, after_s = response.reason or "", https.patience_s(response)
    except requests.exceptions.SSLError as error:
        raise TransientError(f"{name}: TLS failed, is the authority in tls.ca? {error}") from error
    except requests.Timeout as error:
        text = f"{name} does not answer within {timeout_s:g} s; is it busy, or does a firewall drop us?"
        raise TransientError(text) from error
    except requests.RequestException as error:
        raise TransientError(https.unreachable(name, error)) from error
    if 200 <= answer.status < 300:
        return answer
    status = f"HTTP {answer.status}"
    text = f"{name}: {status} {reason}; {_next_step(answer.status)}{_words(answer.body)}"
    if answer.status >= 500 or answer.status in later:
        raise TransientError(text, after_s)
    raise Rejected(status, text)


def _next_step(status: int) -> str:
    if 300 <= status < 400:
        return "it points elsewhere, check the url"
    return HINTS.get(status, "its log says why")


def _read(response: requests.Response, deadline: float) -> bytes:
    """A peer that drips must not hold the channel; what is too long to be an answer is cut."""
    body = b""
    for chunk in response.iter_content(16 * 1024):
        body += chunk
        if len(body) >= MOST_READ_BYTES:
            break
        if time.monotonic() > deadline:
            raise requests.Timeout
    return body


def _words(body: bytes) -> str:
    """What it said, as far as it is text."""
    text = " ".join(body[: 4 * LONGEST_WORDS].decode("utf-8", "replace").split())
    printable = "".join(c for c in text if c.isprintable())[:LONGEST_WORDS]
    return f": {printable}" if printable and not printable.startswith("<") else ""
