"""Every query about who may use the console: users, sessions, tokens, failed logins. Knows no password."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update

from node.domain.errors import SettingsError
from node.domain.permissions import Role, lesser
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import api_tokens, login_failures, users, web_keys, web_sessions

FORGET_FAILURES_S = 24 * 3600
FREE_TRIES = 5
"""So many wrong passwords cost no waiting; each one after them doubles it."""
USED_EVERY_S = 60
"""A token's last use is written down this often at most."""


@dataclass(frozen=True)
class User:
    name: str
    role: Role
    password: str
    """Hashed."""


class People:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def users(self) -> list[dict[str, Any]]:
        """Without their passwords."""
        with reading(self._engine) as connection:
            query = select(users.c.name, users.c.role, users.c.created_at).order_by(users.c.name)
            return [dict(row._mapping) for row in connection.execute(query)]

    def any(self) -> bool:
        with reading(self._engine) as connection:
            return connection.execute(select(users.c.name).limit(1)).first() is not None

    def get(self, name: str) -> User | None:
        """Under the name as it was added, however its letters are composed here."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(users).where(users.c.name.in_(_spellings(name)))).all()
        rows = sorted(rows, key=lambda row: str(row.name) != name)
        return User(rows[0].name, Role(rows[0].role), rows[0].password) if rows else None

    def add(self, name: str, role: Role, password: str, now: float) -> None:
        """`password` is hashed. Raises SettingsError when the name is taken."""
        row = {"name": name, "role": role, "password": password, "created_at": now}
        with writing(self._engine) as connection:
            if not insert_if_absent(connection, users, row):
                raise SettingsError(f"there is a user {name!r} already; `ichnode users passwd {name}`")

    def remove(self, name: str) -> None:
        """With sessions and tokens. Raises SettingsError when there is no such user."""
        with writing(self._engine) as connection:
            for table in (web_sessions, api_tokens):
                connection.execute(delete(table).where(table.c.user_name == name))
            if not connection.execute(delete(users).where(users.c.name == name)).rowcount:
                raise _nobody(name)

    def set_password(self, name: str, password: str) -> None:
        """Also ends the user's sessions. Raises SettingsError when there is no such user."""
        with writing(self._engine) as connection:
            mine = update(users).where(users.c.name == name)
            if not connection.execute(mine.values(password=password)).rowcount:
                raise _nobody(name)
            connection.execute(delete(web_sessions).where(web_sessions.c.user_name == name))

    def open_session(self, token_sha256: str, name: str, now: float, expires_at: float) -> None:
        row = {"token_sha256": token_sha256, "user_name": name, "created_at": now, "expires_at": expires_at}
        with writing(self._engine) as connection:
            connection.execute(delete(web_sessions).where(web_sessions.c.expires_at < now))
            connection.execute(insert(web_sessions).values(**row))

    def close_session(self, token_sha256: str) -> None:
        with writing(self._engine) as connection:
            connection.execute(delete(web_sessions).where(web_sessions.c.token_sha256 == token_sha256))

    def of_session(self, token_sha256: str, now: float) -> tuple[str, Role] | None:
        """Whose session it is, with the role the user has today."""
        query = (
            select(users.c.name, users.c.role)
            .join(web_sessions, web_sessions.c.user_name == users.c.name)
            .where(web_sessions.c.token_sha256 == token_sha256, web_sessions.c.expires_at > now)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
            return (row.name, Role(row.role)) if row else None

    def add_token(
        self, token_sha256: str, name: str, role: Role, label: str, times: tuple[float, float]
    ) -> int:
        """`times` are when it was made and when it ends. Raises SettingsError when there is no such user."""
        row = {"token_sha256": token_sha256, "user_name": name, "role": role, "label": label}
        with writing(self._engine) as connection:
            if connection.execute(select(users.c.name).where(users.c.name == name)).first() is None:
                raise _nobody(name)
            made = insert(api_tokens).values(**row, created_at=times[0], expires_at=times[1])
            connection.execute(made)
            mine = select(api_tokens.c.id).where(api_tokens.c.token_sha256 == token_sha256)
            return int(connection.execute(mine).scalar_one())

    def tokens(self) -> list[dict[str, Any]]:
        columns = [c for c in api_tokens.c if c.name != "token_sha256"]
        with reading(self._engine) as connection:
            rows = connection.execute(select(*columns).order_by(api_tokens.c.id))
            return [dict(row._mapping) for row in rows]

    def revoke_token(self, token_id: int) -> None:
        """Raises SettingsError when there is no such token."""
        with writing(self._engine) as connection:
            if not connection.execute(delete(api_tokens).where(api_tokens.c.id == token_id)).rowcount:
                raise SettingsError(f"there is no token {token_id}; `ichnode users tokens` lists them")

    def of_token(self, token_sha256: str, now: float) -> tuple[str, Role] | None:
        """Whose token it is; it may never do more than its user may today."""
        query = (
            select(api_tokens.c.id, api_tokens.c.used_at, api_tokens.c.role, users.c.name)
            .add_columns(users.c.role.label("user_role"))
            .join(users, users.c.name == api_tokens.c.user_name)
            .where(api_tokens.c.token_sha256 == token_sha256, api_tokens.c.expires_at > now)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        if (row.used_at or 0) < now - USED_EVERY_S:
            with writing(self._engine) as connection:
                connection.execute(update(api_tokens).where(api_tokens.c.id == row.id).values(used_at=now))
        return row.name, lesser(Role(row.role), Role(row.user_role))

    def try_login(self, caps_s: Mapping[str, float], now: float) -> float:
        """Count one more try under each key; returns 0 where it may be made, else the seconds to wait.

        `caps_s` gives the longest wait of each key. Counting comes before looking, so that many tries at
        once get no further than the same number in a row. What is a day old is forgotten.
        """
        with writing(self._engine) as connection:
            old = login_failures.c.next_at < now - FORGET_FAILURES_S
            connection.execute(delete(login_failures).where(old))
            for key in caps_s:
                insert_if_absent(connection, login_failures, {"key": key, "count": 0, "next_at": now})
            mine = select(login_failures).where(login_failures.c.key.in_(list(caps_s)))
            rows = connection.execute(mine.order_by(login_failures.c.key).with_for_update()).all()
            # longer than the longest: counted before the clock was set back
            waits_s = [s for row in rows if (s := row.next_at - now) <= caps_s[row.key]]
            if (wait_s := max(waits_s, default=0.0)) > 0:
                return wait_s
            for row in rows:
                count = row._mapping["count"] + 1
                delay_s = min(2.0 ** min(count - FREE_TRIES, 30), caps_s[row.key])
                one = update(login_failures).where(login_failures.c.key == row.key)
                next_at = now + delay_s if count >= FREE_TRIES else now
                connection.execute(one.values(count=count, next_at=next_at))
            return 0.0

    def succeeded(self, keys: Collection[str]) -> None:
        """A login that went well wipes out the tries before it."""
        with writing(self._engine) as connection:
            connection.execute(delete(login_failures).where(login_failures.c.key.in_(list(keys))))

    def key(self, name: str = "console") -> bytes:
        """The secret that cookies are signed with; made at its first use, the same for every process."""
        query = select(web_keys.c.value).where(web_keys.c.name == name)
        with reading(self._engine) as connection:
            found = connection.execute(query).scalar()
        if found is None:
            with writing(self._engine) as connection:
                insert_if_absent(connection, web_keys, {"name": name, "value": secrets.token_hex(32)})
                found = connection.execute(query).scalar_one()
        return bytes.fromhex(found)


def _spellings(name: str) -> set[str]:
    """One keyboard's ü is another's u with a diaeresis (Unicode Standard Annex 15)."""
    return {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}


def _nobody(name: str) -> SettingsError:
    return SettingsError(f"there is no user {name!r}; `ichnode users list` lists them")
