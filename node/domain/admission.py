"""Who may open an association, and how many. Decides on addresses, AE titles and counts; opens nothing.

The receivers, and the console for its addresses, ask here: a peer is judged alike wherever it knocks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

# PS3.8 Table 9-21: Result, Source, Reason/Diag.
REJECTED_PERMANENT, REJECTED_TRANSIENT = 1, 2
BY_USER, BY_PRESENTATION = 1, 3
CALLING_NOT_RECOGNISED, CALLED_NOT_RECOGNISED = 3, 7  # of BY_USER
LOCAL_LIMIT_EXCEEDED = 2  # of BY_PRESENTATION
SHARE_OF_ONE_PEER = 0.75
REMEMBERED = 1000
"""Peers whose last refusal is remembered; a crowd of addresses must not fill the memory."""


@dataclass(frozen=True)
class Rules:
    """What an installation decides. Empty collections let everybody in."""

    ae_title: str
    calling_ae_titles: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    check_called_ae: bool = False
    max_associations: int = 64
    max_per_peer: int = 0
    """Associations of one address at a time; 0: three quarters of `max_associations`."""

    @property
    def of_one_peer(self) -> int:
        return self.max_per_peer or math.ceil(SHARE_OF_ONE_PEER * self.max_associations)


@dataclass(frozen=True)
class Caller:
    """Who asks for an association. `address` is an IP address as the socket tells it."""

    address: str
    calling_ae: str
    called_ae: str


@dataclass(frozen=True)
class Refusal:
    """Why not: a code, words with the next step, and the numbers of the A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    code: str
    text: str
    result: int = 0
    source: int = 0
    diagnostic: int = 0


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and CIDR networks. Raises ValueError that says what is wrong with one."""
    return tuple(ip_network(text.strip()) for text in texts)


def is_inside(address: str, allowed: Collection[Network]) -> bool:
    """Whether an address lies in one of the networks; where none is given, every one does."""
    if not allowed:
        return True
    found = _read(address)
    return found is not None and any(found in network for network in allowed)


def refuse_address(rules: Rules, address: str) -> Refusal | None:
    """Before a byte is read: a stranger's connection is closed, and gets no answer to learn from."""
    if is_inside(address, rules.networks):
        return None
    text = f"{address} is not in scp.addresses; add it there if it may send"
    return Refusal("ADDRESS_NOT_ALLOWED", text)


def refuse(rules: Rules, caller: Caller, open_in_all: int, open_of_peer: int) -> Refusal | None:
    """None for a caller that may come in. The counts are of this process, without this association."""
    calling, called = caller.calling_ae.strip(), caller.called_ae.strip()
    if rules.calling_ae_titles and calling not in rules.calling_ae_titles:
        text = f"{calling!r} is not in scp.calling_ae_titles; add it there if it may send"
        refused = (REJECTED_PERMANENT, BY_USER, CALLING_NOT_RECOGNISED)
        return Refusal("CALLING_AE_NOT_ALLOWED", text, *refused)
    if rules.check_called_ae and called != rules.ae_title.strip():
        text = f"it calls {called!r}, and this is {rules.ae_title!r}; correct the AE title at the sender"
        refused = (REJECTED_PERMANENT, BY_USER, CALLED_NOT_RECOGNISED)
        return Refusal("CALLED_AE_WRONG", text, *refused)
    full = (REJECTED_TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT_EXCEEDED)
    if open_in_all >= rules.max_associations:
        text = f"{open_in_all} associations are open (scp.max_associations); it may try again"
        return Refusal("TOO_MANY_ASSOCIATIONS", text, *full)
    if open_of_peer >= rules.of_one_peer:
        text = f"{open_of_peer} associations of this address are open (scp.max_associations_per_peer)"
        return Refusal("TOO_MANY_OF_PEER", f"{text}; it may try again", *full)
    return None


class RefusalNotes:
    """Which refusals to write down: the first of a peer and code, then one a period with the count since.

    A peer that knocks a thousand times a minute fills no log. IPv6 peers are taken by their /64.
    """

    def __init__(self, period_s: float = 60.0) -> None:
        self._period_s = period_s
        self._last: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def count(self, address: str, code: str, now_s: float) -> int:
        """How many refusals to write down now as one, this one included; 0: none."""
        key = (_neighbourhood(address), code)
        since_s, held_back = self._last.pop(key, (-math.inf, 0))
        due = now_s - since_s >= self._period_s
        self._last[key] = (now_s, 0) if due else (since_s, held_back + 1)
        while len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        return held_back + 1 if due else 0


def _read(address: str) -> IPv4Address | IPv6Address | None:
    """An IPv4 peer of an IPv6 socket comes as ::ffff:a.b.c.d, a link-local one with its zone."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _neighbourhood(address: str) -> str:
    found = _read(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found or address)
