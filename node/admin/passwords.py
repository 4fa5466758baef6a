"""Passwords and secrets of people: made, hashed, compared. Stores nothing, logs nothing.

A password is kept as scrypt (RFC 7914) with a salt of its own; tokens are random enough for a plain SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import unicodedata
from functools import lru_cache

from node.domain.errors import SettingsError

N, R, P = 2**15, 8, 1
"""32 MiB and some 60 ms a try: what OWASP's password storage cheat sheet gives as the least for scrypt."""
SALT_BYTES, HASH_BYTES = 16, 32
SHORTEST, LONGEST = 10, 200
_SCHEME = "scrypt"
_at_once = threading.BoundedSemaphore(2)
"""Guessers must not be able to take the node's memory."""


def check_strength(password: str, name: str) -> None:
    """Raises SettingsError for a password that is too short, too long, or the user's own name."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise SettingsError(f"a password has {SHORTEST} to {LONGEST} characters; choose another one")
    if name.casefold() in password.casefold() and len(password) < len(name) + SHORTEST:
        raise SettingsError("the password is little more than the user's name; choose another one")
    if len(set(password)) < 5:
        raise SettingsError("the password repeats a few characters; choose another one")


def hashed(password: str) -> str:
    """`scrypt$N$r$p$salt$hash`, with a new salt."""
    salt = secrets.token_bytes(SALT_BYTES)
    return "$".join((_SCHEME, str(N), str(R), str(P), _text(salt), _text(_scrypt(password, salt, N, R, P))))


@lru_cache(maxsize=1)
def nobody() -> str:
    """Compared with where there is no such user, so that names cannot be told by the time an answer takes."""
    return hashed(secrets.token_urlsafe())


def matches(password: str, stored: str) -> bool:
    """Whether `stored` came of this password. False, too, for a stored text of another kind."""
    try:
        scheme, n, r, p, salt, wanted = stored.split("$")
        if scheme != _SCHEME or len(password) > LONGEST:
            return False
        made = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
        return hmac.compare_digest(made, base64.b64decode(wanted))
    except ValueError:
        return False


def new_token(prefix: str = "") -> str:
    """256 random bits, fit for a cookie or a header."""
    return prefix + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored in a token's place: who reads the database cannot use it."""
    return hashlib.sha256(token.encode()).hexdigest()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    normal = unicodedata.normalize("NFKC", password).encode()  # one keyboard's ü is another's u + ¨
    with _at_once:
        return hashlib.scrypt(normal, salt=salt, n=n, r=r, p=p, dklen=HASH_BYTES, maxmem=2 * 128 * n * r * p)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
