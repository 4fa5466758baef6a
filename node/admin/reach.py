"""From where the console can be reached, and whether that is safe. Opens no socket."""

from __future__ import annotations

import ipaddress

from node.domain.errors import SettingsError
from node.settings import Settings, Web
from node.store.records import Records

LOCAL = "local"
"""The name under which whoever sits at a node without users acts."""
NOBODY_CAN_LOG_IN = (
    "web.host = {host!r} is reachable from other machines, and nobody could log in: add a user with "
    "`ichnode users add NAME --role admin`, or set web.proxy.user_header, or leave web.host on 127.0.0.1"
)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(web: Web) -> list[str]:
    """The Host headers to answer to: any, unless bound to a loopback address without a proxy before it.

    A page elsewhere could otherwise read a node without a login by DNS rebinding.
    """
    if not is_loopback(web.host) or web.proxy.user_header:
        return ["*"]
    return ["127.0.0.1", "localhost", "[::1]", web.host]


def check_reachable(settings: Settings, records: Records) -> None:
    """Raises SettingsError for a console that others can reach and nobody can log in to."""
    web = settings.web
    if not (is_loopback(web.host) or web.proxy.user_header or records.people.any()):
        raise SettingsError(NOBODY_CAN_LOG_IN.format(host=web.host))
